"""The cost of one image in a training step, measured on forward and backward of the real model on the meta device.

torch counts the operations. For bytes the model runs as on a GPU: ``GpuNumerics`` gives its types and its fused
kernels. Every tensor's storage counts from its allocation to its release. The two are measured apart, because torch's
counter of operations keeps recomputed tensors alive.
"""

import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tokenbridge.base.device import DTYPES, autocast
from tokenbridge.config import TrainConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.planning.flops import Flops, summed
from tokenbridge.ops.planning.sizes import deepened, step_inputs
from tokenbridge.training.batches import num_masked_positions

IMAGES = 4096  # enough that copies of weights add nothing to the bytes of one image
DRAWS = 1000  # draws of the masked share, evenly spaced in probability


@dataclass(frozen=True)
class Activations:
    """Bytes of activations, by part of the model."""

    encoder: float
    decoder: float
    head: float
    working: float  # at the peak, beyond what the forward leaves: gradients, and a block that is recomputed

    @property
    def total(self) -> float:
        return self.encoder + self.decoder + self.head + self.working


class GpuNumerics(TorchFunctionMode):
    """Compute on the meta device in the types that autocast chooses on a GPU, with fused attention and dropout.

    torch has no autocast and no fused kernels for the meta device. The functions below are all that differ in this
    model.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.types = {F.linear: DTYPES[precision], torch.einsum: DTYPES[precision], F.layer_norm: torch.float32}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args, **kwargs)[0]
        if func is F.dropout and kwargs["p"] > 0:
            return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
        if func in self.types:
            args = tree_map_only(Tensor, lambda tensor: tensor.to(self.types[func]), args)
        return func(*args, **(kwargs or {}))


class HeldBytes(TorchDispatchMode):
    """Count the bytes of the tensors that are made within it: those that exist now, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
            if storage not in self._storages:
                self._storages.add(storage)
                weakref.finalize(storage, self._add, -storage.nbytes())
                self._add(storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@cache
def activations(model: TokenBridgeTransformer, masked: int, precision: str, checkpointed: bool = False) -> Activations:
    """Return the activations of one image in a training step with ``masked`` positions to predict.

    Args:
        model: on the meta device; on the CPU, of fake tensors, the numerics are a CPU's.
        checkpointed: keep only each block's input, and compute the rest again.
    """
    return deepened(model, lambda one: step_bytes(one, masked, precision, checkpointed))


def step_bytes(model: TokenBridgeTransformer, masked: int, precision: str, checkpointed: bool) -> Activations:
    """Run forward and backward of ``model`` as it is, and return the activations of one image."""
    held, marks = HeldBytes(), [0]
    numerics = autocast(model.device, precision) if model.device.type == "cpu" else GpuNumerics(precision)
    recompute = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), numerics))
    model.enable_gradient_checkpointing(recompute) if checkpointed else model.disable_gradient_checkpointing()
    borders = (model.decoder_in, model.head)  # the first modules of decoder and head
    hooks = [module.register_forward_pre_hook(lambda *_: marks.append(held.now)) for module in borders]
    inputs = step_inputs(model, IMAGES)
    with held:
        with numerics:
            loss = model(*inputs, masked)
        marks.append(held.now)
        loss.backward()
    for hook in hooks:
        hook.remove()
    return Activations(*(np.diff([*marks, held.most]) / IMAGES).tolist())


def step_flops(model: TokenBridgeTransformer, masked: int, checkpointed: bool = False) -> Flops:
    """Return the operations of forward and backward for one image with ``masked`` positions to predict."""
    model.enable_gradient_checkpointing() if checkpointed else model.disable_gradient_checkpointing()
    with FlopCounterMode(display=False) as counter:
        model(*step_inputs(model, 1), masked).backward()
    modules, root = counter.get_flop_counts(), type(model).__name__
    parts = ("decoder_in", *(f"decoder.{block}" for block in range(len(model.decoder))))
    decoder = sum(sum(modules[f"{root}.{part}"].values()) for part in parts)
    head = sum(modules[f"{root}.head"].values())
    return Flops(counter.get_total_flops() - decoder - head, decoder, head)


def mask_range(model: TokenBridgeTransformer, recipe: TrainConfig) -> tuple[int, int]:
    """Return the fewest and the most positions that the recipe masks."""
    return math.ceil(model.positions * recipe.mask_ratio_min), model.positions


def train_flops(model: TokenBridgeTransformer, recipe: TrainConfig, checkpointed: bool = False) -> Flops:
    """Return the operations of forward and backward for one image, as the mean over the recipe's masks.

    They are counted at the fewest and the most masked positions. In between they count as linear, which they are but
    for attention in the encoder.
    """
    uniforms = (torch.arange(DRAWS) + 0.5) / DRAWS
    masked = [num_masked_positions(uniform, model.positions, recipe) for uniform in uniforms]

    def count(number: int) -> Flops:
        return deepened(model, lambda one: step_flops(one, number, checkpointed))

    return summed(count, mask_range(model, recipe), masked, 1 / DRAWS)
