"""The cost of a training step, measured on forward and backward of the real model on the meta device.

torch counts the operations. For bytes the model runs as on a GPU: ``GpuNumerics`` gives its types and its fused
kernels. Every tensor's storage counts from its allocation to its release. The two are measured apart, because torch's
counter of operations keeps recomputed tensors alive.
"""

import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tokenbridge.base.device import DTYPES, autocast
from tokenbridge.config import TrainConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.head_loss import head_loss, positions_at_once
from tokenbridge.model.heads import Head
from tokenbridge.model.layers import INDEX_LIMIT, scratch_numbers
from tokenbridge.model.token_head import TokenHead
from tokenbridge.ops.planning.flops import Flops, summed
from tokenbridge.ops.planning.sizes import FULL, deepened, head_inputs, loss_uniforms, step_inputs
from tokenbridge.training.batches import num_masked_positions, predicted_positions

IMAGES = 4096  # enough that copies of weights add nothing to the bytes of one image
DRAWS = 1000  # draws of the masked share, evenly spaced in probability


@dataclass(frozen=True)
class Activations:
    """Bytes of activations, by part of the model."""

    encoder: float
    decoder: float
    head: float
    working: float  # at the peak, beyond these: gradients, a part of the head, and a block that is recomputed

    @property
    def total(self) -> float:
        return self.encoder + self.decoder + self.head + self.working


class GpuNumerics(TorchFunctionMode):
    """Compute on the meta device in the types that autocast chooses on a GPU, with fused attention and dropout.

    torch has no autocast and no fused kernels for the meta device. The functions below are all that differ in this
    model. Autocast gives ``addcmul`` the widest type of its inputs, one of which is float32 here.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        half, full = DTYPES[precision], torch.float32
        self.types = {F.linear: half, torch.einsum: half, F.layer_norm: full, torch.addcmul: full}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k, v, _, *others = args  # a mask adds no memory
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, *others)[0]
        if func is F.dropout and kwargs["p"] > 0:
            return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
        if func in self.types:
            args = tree_map_only(Tensor, lambda tensor: tensor.to(self.types[func]), args)
        return func(*args, **(kwargs or {}))


class HeldBytes(TorchDispatchMode):
    """Count the bytes of the tensors that are made within it: those that exist now, and the most at a time.

    Views and results in place have the storage of a tensor that was there before, such as a weight. They do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(result.alias_info for result in func._schema.returns):
            return made
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._storages:
                self._storages.add(storage)
                weakref.finalize(storage, self._add, -storage.nbytes())
                self._add(storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@dataclass(frozen=True)
class Step:
    """What the bytes of a training step depend on, besides the model, which is on the meta device.

    On the CPU, of fake tensors, the numerics are a CPU's.

    Attributes:
        masked: positions that are not visible.
        head_share: of these, those that the head predicts.
        checkpointed: keep only each block's input, and compute the rest again.
        whole_head: the head computes all positions at once; else by parts.
    """

    masked: int
    precision: str
    checkpointed: bool = False
    whole_head: bool = False
    head_share: float = 1.0

    @property
    def predicted(self) -> int:
        return predicted_positions(self.masked, self.head_share)


@dataclass(frozen=True)
class StepBytes:
    """Bytes of a step: those that the forward leaves, by part of the model, and the most at a time."""

    encoder: float
    decoder: float
    head: float
    head_peak: float  # of the head during the forward, which computes gradients of its parts too
    working: float  # in the backward, beyond what the forward leaves


def activations(model: AutoregressiveModel, step: Step, images: int) -> Activations:
    """Return the activations of ``images`` images at once."""
    rows = positions_at_once(model.head, model.device)
    if step.whole_head or images * step.predicted <= rows:
        found = images / IMAGES * measured(model, replace(step, whole_head=True), IMAGES)
    else:  # linear from two whole parts on
        two, four = (parts * (rows // step.predicted + 1) for parts in (2, 4))
        first, last = (measured(model, step, count) for count in (two, four))
        found = first + (images - two) / (four - two) * (last - first)
    encoder, decoder, head, head_peak, working = found.tolist()
    return Activations(encoder, decoder, head, max(head_peak - head, working))


@cache
def measured(model: AutoregressiveModel, step: Step, images: int) -> NDArray[np.float64]:
    """Return the fields of ``StepBytes``."""
    return np.array(astuple(deepened(model, lambda one: step_bytes(one, step, images))))


def step_bytes(model: AutoregressiveModel, step: Step, images: int) -> StepBytes:
    """Run forward and backward of ``model`` as it is."""
    model.zero_grad()  # an earlier run's gradients would not be allocated again
    held = HeldBytes()
    marks: dict[str, int] = {}

    def numerics() -> AbstractContextManager[object]:  # a new one each time: one that is entered twice is never left
        cpu = model.device.type == "cpu"
        return autocast(model.device, step.precision) if cpu else GpuNumerics(step.precision)

    recompute = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), numerics()))
    model.enable_gradient_checkpointing(recompute) if step.checkpointed else model.disable_gradient_checkpointing()
    for each in model.heads:
        each.loss_by_parts = not step.whole_head

    def mark(part: str, *_: object) -> None:
        marks.setdefault(part, held.now)

    begins = {"decoder": [model.decoder_in], "head": model.head.modules()}  # whose first call is the part's beginning
    hooks = [
        module.register_forward_pre_hook(partial(mark, part)) for part, modules in begins.items() for module in modules
    ]
    inputs, random = step_inputs(model, images), loss_uniforms(model, images)
    with held:
        with numerics():
            loss = model(*inputs, step.masked, step.predicted, random)
        kept, forward, held.most = held.now, held.most, held.now
        loss.backward()
    for hook in hooks:
        hook.remove()
    decoder, head = marks["decoder"], marks["head"]
    return StepBytes(decoder, head - decoder, kept - head, forward - head, held.most - kept)


def scratch_bytes(model: AutoregressiveModel, step: Step, images: int) -> int:
    """Return the most bytes that the fused attention of the head's backward allocates; a CPU needs none."""
    if model.device.type == "cpu" or isinstance(model.head, TokenHead):  # which has no attention
        return 0
    rows = images * step.predicted
    sequences = rows if step.whole_head else min(rows, positions_at_once(model.head, model.device))
    sizes = model.config
    of_one = scratch_numbers(sizes.head_heads, model.head.slots, sizes.head_width // sizes.head_heads)
    return FULL * min(sequences * of_one, INDEX_LIMIT)


@cache
def step_flops(
    model: AutoregressiveModel, masked: int, checkpointed: bool = False, predicted: int | None = None
) -> Flops:
    """Return the operations of forward and backward for one image; None: all of its masked positions are predicted."""
    model.enable_gradient_checkpointing() if checkpointed else model.disable_gradient_checkpointing()
    draft, model.draft = model.draft, None  # torch would count what follows the draft's backward as the draft's
    try:
        with FlopCounterMode(display=False) as counter:
            model(*step_inputs(model, 1), masked, predicted, loss_uniforms(model, 1)).backward()
    finally:
        model.draft = draft
    modules, root = counter.get_flop_counts(), type(model).__name__
    parts = ("decoder_in", *(f"decoder.{block}" for block in range(len(model.decoder))))
    decoder = sum(sum(modules.get(f"{root}.{part}", {}).values()) for part in parts)  # a norm has none
    rows = masked if predicted is None else predicted
    head = head_loss_flops(model, model.head, rows)
    of_draft = 0 if draft is None else head_loss_flops(model, draft, rows)
    return Flops(counter.get_total_flops() - decoder - head, decoder, head + of_draft)


def head_loss_flops(model: AutoregressiveModel, head: Head, rows: int) -> int:
    """Return the operations of a head's forward and backward, for one image. The draft's features learn nothing."""
    z, tokens, uniforms = head_inputs(model, rows)
    z.requires_grad_(head is model.head)
    with FlopCounterMode(display=False) as counter:
        head_loss(head, z, tokens, uniforms).backward()
    return counter.get_total_flops()


def mask_range(model: AutoregressiveModel, recipe: TrainConfig) -> tuple[int, int]:
    """Return the fewest and the most positions that the recipe masks."""
    return math.ceil(model.units * recipe.mask_ratio_min), model.units


def masked_draws(model: AutoregressiveModel, recipe: TrainConfig) -> list[int]:
    """Return ``DRAWS`` numbers of masked positions, as often as the recipe draws each."""
    uniforms = (torch.arange(DRAWS) + 0.5) / DRAWS
    drawn: list[int] = num_masked_positions(uniforms, model.units, recipe).tolist()
    return drawn


def train_flops(model: AutoregressiveModel, recipe: TrainConfig, checkpointed: bool = False) -> Flops:
    """Return the operations of forward and backward for one image, as the mean over the recipe's masks.

    They are counted at the fewest and the most masked positions. In between they count as linear, which they are but
    for attention in the encoder. Each further predicted position costs the same.
    """
    masked = masked_draws(model, recipe)
    predicted = [predicted_positions(number, recipe.head_share) for number in masked]

    def count(number: int, predicted: int) -> Flops:
        return deepened(model, lambda one: step_flops(one, number, checkpointed, predicted))

    one_predicted = summed(partial(count, predicted=1), mask_range(model, recipe), masked, 1 / DRAWS)
    all_masked = partial(count, model.units)
    return one_predicted + summed(all_masked, (1, 2), predicted, 1 / DRAWS) - all_masked(1)
