"""Bytes on one GPU while a model is trained, and the largest batch that fits.

Weights, gradients, optimizer and averaged weights are float32. With FSDP each GPU holds its share of them; two blocks
(the one at work and the one that is fetched meanwhile) and all that lies outside of blocks are there whole, in the
precision of the products, with the gradients of one block in float32; of all blocks, if gradients are accumulated.
DDP's buckets are the gradients themselves.

Gradients are cleared after each update, and come again as the backward lets activations go. The head, whose backward
is first, has most activations for each parameter, the encoder fewest: what is held falls and then rises, so the peak
is where the backward begins or in the update. The update is PyTorch's of many tensors at once, its choice on GPUs.
"""

from dataclasses import dataclass, replace

from tokenbridge.config import TrainConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.planning.activations import FULL, Activations, Numerics, activations
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.sizes import Parameters, Sizes
from tokenbridge.training.trainer import is_matrix

ADAMW_MOMENTS, MUON_MOMENTS = 2, 1
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float  # when all are there
    early: float  # those that are there when the backward begins
    optimizer: float
    average: float
    copies: float  # weights in bf16, or gathered from the other GPUs
    buckets: float  # gradients on their way
    activations: Activations  # of all images at once
    update: float  # AdamW's temporaries, when the activations are gone: the root of its second moment

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def total(self) -> float:
        """At the peak: where the backward begins, or in the update."""
        backward = self.early + self.copies + self.activations.total
        return self.states - self.gradients + self.buckets + max(backward, self.gradients + self.update)


def optimizer_bytes(model: TokenBridgeTransformer, recipe: TrainConfig) -> int:
    """Of the whole model."""
    muon = recipe.optimizer == "muon"
    numbers = (
        parameter.numel() * (MUON_MOMENTS if muon and is_matrix(name, parameter) else ADAMW_MOMENTS)
        for name, parameter in model.named_parameters()
    )
    return FULL * sum(numbers)


@dataclass(frozen=True)
class MemoryModel:
    """All that memory depends on but the number of images."""

    sizes: Sizes
    parameters: Parameters
    optimizer: int  # bytes, whole
    numerics: Numerics
    cluster: Cluster
    masked: tuple[int, int]  # fewest and most positions: the head grows with them, the encoder shrinks

    def at(self, images: int) -> Memory:
        """With so many images at once, under the mask that needs most."""
        shards = self.cluster.gpus if self.cluster.sharded else 1
        weights = FULL * self.parameters.total
        by_mask = (activations(self.sizes, n, self.numerics, self.cluster.checkpointed) for n in self.masked)
        each = max(by_mask, key=lambda found: found.total)
        gradients = weights / (1 if self.cluster.accumulation > 1 else shards)
        return Memory(
            weights=weights / shards,
            gradients=gradients,
            early=gradients if self._gradients_stay else 0,
            optimizer=self.optimizer / shards,
            average=weights / shards,
            copies=self._copies(shards),
            buckets=self._buckets(shards),
            activations=Activations(*(images * part for part in vars(each).values())),
            update=(self.optimizer - weights) / shards,  # Muon has no second moment
        )

    @property
    def _gradients_stay(self) -> bool:
        """In DDP's buckets, which outlast their clearing; or from the parts of the batch before."""
        return self.cluster.accumulation > 1 or (self.cluster.gpus > 1 and not self.cluster.sharded)

    def _copies(self, shards: int) -> float:
        if shards > 1:
            return self.numerics.half * (2 * self.parameters.block + self.parameters.outside_blocks)
        if not self.numerics.bf16:
            return 0
        # autocast keeps them from the forward to the backward; with checkpointing, those of one block
        return self.numerics.half * (self.parameters.block if self.cluster.checkpointed else self.parameters.total)

    def _buckets(self, shards: int) -> float:
        return FULL * (self.parameters.block + self.parameters.outside_blocks) if shards > 1 else 0

    def largest(self, limit: float) -> int:
        """Most images at once within ``limit`` bytes; 0 if not even one fits. By bisection."""
        if self.at(1).total > limit:
            return 0
        low, high = 1, 2
        while self.at(high).total <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).total <= limit else (low, middle)
        return low

    def parts(self, images: int, limit: float) -> int:
        """Fewest parts of ``images`` that fit one at a time; 0 if not even one image does.

        More than one part takes room for the gradients of the parts before.
        """
        whole, parted = (replace(self, cluster=replace(self.cluster, accumulation=count)) for count in (1, 2))
        if whole.at(images).total <= limit:
            return 1
        largest = parted.largest(limit)
        return max(2, -(-images // largest)) if largest else 0

    def checkpointing(self) -> "MemoryModel":
        return replace(self, cluster=replace(self.cluster, checkpointed=True))

    def sharding(self) -> "MemoryModel":
        return replace(self, cluster=replace(self.cluster, sharded=True))
