"""Bytes on one GPU while a model is trained, and the largest batch that fits.

Weights, gradients, optimizer and averaged weights are float32. With FSDP each GPU holds its share of them. It also
holds full copies, in the precision of the products, of two blocks (the one that computes and the one being fetched) and
of everything outside of blocks. Gradients in full, in float32, are those of one block and of everything outside of
blocks, or all gradients if they are accumulated. DDP's buckets are the gradients themselves.

Gradients are cleared after each update, and are allocated again while the backward frees activations. The head, whose
backward is first, has the most activations for each parameter, and the encoder has the fewest. So memory falls and then
rises, and the peak is at the start of the backward or in the update. There, FlashAttention-2 also has its scratch
memory, which the meta device does not show. The update is PyTorch's for many tensors at once, its default on GPUs.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

from tokenbridge.base.checks import BF16
from tokenbridge.base.device import DTYPES
from tokenbridge.config import TrainConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.sizes import FULL, Parameters
from tokenbridge.ops.planning.steps import Activations, Step, activations, mask_range, scratch_bytes
from tokenbridge.training.trainer import is_matrix

ADAMW_MOMENTS, MUON_MOMENTS = 2, 1
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float  # when all are allocated
    early: float  # those that exist when the backward begins
    optimizer: float
    average: float
    copies: float  # weights in bf16, or gathered from the other GPUs
    buckets: float  # gradients being exchanged
    activations: Activations  # of all images at once
    scratch: float  # of the fused attention in the head's backward
    update: float  # AdamW's temporaries after activations are freed: the root of its second moment

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def total(self) -> float:
        """Bytes at the peak, which is at the start of the backward or in the update."""
        backward = self.early + self.copies + self.activations.total + self.scratch
        return self.states - self.gradients + self.buckets + max(backward, self.gradients + self.update)


def optimizer_bytes(model: AutoregressiveModel, recipe: TrainConfig) -> int:
    """Return the bytes of the optimizer's state for the whole model."""
    muon = recipe.optimizer == "muon"
    numbers = (
        parameter.numel() * (MUON_MOMENTS if muon and is_matrix(name, parameter) else ADAMW_MOMENTS)
        for name, parameter in model.named_parameters()
    )
    return FULL * sum(numbers)


@dataclass(frozen=True)
class MemoryModel:
    """Everything that memory depends on except the number of images."""

    model: AutoregressiveModel  # on the meta device
    parameters: Parameters
    optimizer: int  # bytes, before sharding
    precision: str
    cluster: Cluster
    recipe: TrainConfig

    def at(self, images: int) -> Memory:
        """Return the memory for ``images`` images at once, under the mask that needs the most."""
        cluster, shards = self.cluster, self.cluster.gpus if self.cluster.sharded else 1
        weights, several = FULL * self.parameters.total, cluster.accumulation > 1
        steps = [
            Step(masked, self.precision, cluster.checkpointed, shards > 1, self.recipe.head_share)
            for masked in mask_range(self.model, self.recipe)
        ]
        # with more masked positions, the head needs more and the encoder less
        found = [activations(self.model, step, images) for step in steps]
        gradients = weights / (1 if several else shards)
        # gradients exist when the backward begins: in DDP's buckets, or from earlier parts of the batch
        early = several or (cluster.gpus > 1 and not cluster.sharded)
        return Memory(
            weights=weights / shards,
            gradients=gradients,
            early=gradients if early else 0,
            optimizer=self.optimizer / shards,
            average=weights / shards,
            copies=DTYPES[self.precision].itemsize * self._copied(shards),
            buckets=FULL * (self.parameters.block + self.parameters.outside_blocks) if shards > 1 else 0,
            activations=max(found, key=lambda one: one.total),
            scratch=max(scratch_bytes(self.model, step, images) for step in steps),
            update=(self.optimizer - weights) / shards,  # the second moments, which Muon does not have
        )

    def _copied(self, shards: int) -> int:
        """Return the number of weights that have a second copy."""
        if shards > 1:
            return 2 * self.parameters.block + self.parameters.outside_blocks
        if self.precision != BF16:
            return 0
        # autocast keeps the copies from the forward to the backward; with checkpointing, only those of one block
        return self.parameters.block if self.cluster.checkpointed else self.parameters.total

    def largest(self, limit: float) -> int:
        """Return the most images of a mask group at once within ``limit`` bytes; 0 if not even one fits."""
        sizes = range(1, self.recipe.mask_group + 1)
        return bisect_left(sizes, True, key=lambda images: self.at(images).total > limit)

    def parts(self, images: int, limit: float) -> int:
        """Return the fewest parts of ``images`` that fit one at a time; 0 if not even one image fits.

        More than one part needs memory for the gradients of the earlier parts. No part is larger than a mask group.
        """
        if images <= self.recipe.mask_group and self.changed(accumulation=1).at(images).total <= limit:
            return 1
        largest = self.changed(accumulation=2).largest(limit)
        return max(2, -(-images // largest)) if largest else 0

    def changed(self, **settings: Any) -> "MemoryModel":
        """Return the same with other settings of the cluster."""
        return replace(self, cluster=replace(self.cluster, **settings))
