"""The processes that share the work of a stage over torch.distributed, or a single process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tokenbridge.base.environment import MEETING_VARIABLE
from tokenbridge.base.errors import UserError
from tokenbridge.base.slices import share

T = TypeVar("T")
# Timeout of collectives: a hang ends after it. The longest rightful waits are for rank 0, which reads a checkpoint's
# digests or draws a grid of samples, and for the slowest process to write its part of a checkpoint.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process's place among its stage's ``world`` processes. All of them must call every method but ``share``."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints, logs and writes what must exist only once."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` consecutive items; the sizes of the parts differ by one at most."""
        return share(count, self.rank, self.world)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether at least one process set it."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, ordered by rank."""
        values: list[T] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            dist.barrier()


SINGLE_PROCESS = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes that torchrun started, on this process's own GPU if the machine has any.

    After an error the group is not destroyed. destroy_process_group would block: the other ranks wait for this one.

    Raises:
        UserError: if this machine has fewer GPUs than processes.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, _meeting(), timeout=PATIENCE, rank=rank, world_size=world)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def _meeting() -> str:
    """Return where the processes meet: in a file if they share a machine, else at torchrun's address."""
    file = os.environ.get(MEETING_VARIABLE)
    return f"file://{file}.{os.environ['TORCHELASTIC_RESTART_COUNT']}" if file else "env://"


def _take_gpu(number: int, processes: int) -> None:
    there = torch.cuda.device_count()
    if there < processes:
        raise UserError(f"launcher.processes is {processes}, but this machine has {there} GPUs: set at most {there}")
    torch.cuda.set_device(number)
