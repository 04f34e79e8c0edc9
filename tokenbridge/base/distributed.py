"""The processes that share the work of a stage, over torch.distributed; or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tokenbridge.base.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # for the others, where one writes what all wait for


@dataclass(frozen=True)
class Processes:
    """This process's place among the ``world`` processes of its stage. Every method but ``share`` is called by all."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this one prints, logs and writes what there is one of."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` things in a row; the parts differ by one at most."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a process raised it."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values: list[T] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


SINGLE_PROCESS = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the others that torchrun started, on this process's own GPU if there are any.

    An error leaves the group as it is: to take leave of the others would wait for them, who wait for this one.

    Raises:
        UserError: if this machine has fewer GPUs than processes.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def _take_gpu(number: int, processes: int) -> None:
    there = torch.cuda.device_count()
    if there < processes:
        raise UserError(f"launcher.processes is {processes}, and this machine has {there} GPUs: say so many")
    torch.cuda.set_device(number)
