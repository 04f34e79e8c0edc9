"""The least time of a training step on one GPU, from the operations and bytes of each of its kernels (roofline model).

A kernel takes at least the time of its operations at the peak rate, and at least the time of its bytes at the memory's
bandwidth. It reads its inputs and writes its results once. The model runs as without torch.compile, so each operation
is a kernel. Compiled blocks move fewer bytes. Not counted are launches, and what a GPU's cache holds from one kernel to
the next.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tokenbridge.config.operations import PlanConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.head_loss import head_loss
from tokenbridge.ops.planning.schedule import GIGA, UPDATE_PASSES, peak_flops
from tokenbridge.ops.planning.sizes import FULL, Parameters, head_inputs, step_inputs
from tokenbridge.ops.planning.steps import GpuNumerics


@dataclass(frozen=True)
class Kernel:
    """The operations of matrix products or attention, and the bytes read and written."""

    flops: float
    moved: float

    def seconds(self, plan: PlanConfig, precision: str) -> float:
        return max(self.flops / peak_flops(plan, precision), self.moved / (plan.gpu.memory_bandwidth * GIGA))


def seconds(kernels: Iterable[Kernel], plan: PlanConfig, precision: str) -> float:
    """Return the least time of the kernels, one after the other."""
    return sum(kernel.seconds(plan, precision) for kernel in kernels)


class Kernels(TorchDispatchMode):
    """Collect the kernels that are run within it. Views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=made) if count else 0
            self.found.append(Kernel(flops, moved((args, kwargs)) + moved(made)))
        return made


def moved(values: Any) -> int:
    """Return the bytes of the tensors in ``values``; what an expanded tensor repeats counts once."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return sum(min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in tensors)


def step_kernels(model: AutoregressiveModel, precision: str, images: int, masked: int) -> dict[str, list[Kernel]]:
    """Return the kernels of forward and backward, and of AdamW's update, by part of the model.

    Args:
        model: on the meta device.
        masked: positions to predict.
    """
    values, _, labels, order = step_inputs(model, images)
    model = deepcopy(model)  # plans of equal settings share theirs, and this one is changed
    model.head.loss_by_parts = False  # which moves the same bytes, but for sums of the weights' gradients
    read, wanted = model.training_positions(order, masked, masked)
    encoded = torch.empty_like(model.encode(values, labels, read))
    z, known, random = head_inputs(model, images * masked)
    runs: dict[str, Callable[[], Tensor]] = {
        "encoder": lambda: model.encode(values, labels, read),
        "decoder": lambda: model.decode(encoded.requires_grad_(), read, wanted),
        "head": lambda: head_loss(model.head, z.requires_grad_(), known, random),
    }
    found = {part: forward_and_backward(run, precision) for part, run in runs.items()}
    return found | {"update": [Kernel(0, UPDATE_PASSES * FULL * Parameters.of(model).total)]}


def forward_and_backward(run: Callable[[], Tensor], precision: str) -> list[Kernel]:
    with Kernels() as kernels:
        with GpuNumerics(precision):
            result = run()
        torch.autograd.backward(result, torch.empty_like(result))
    return kernels.found
