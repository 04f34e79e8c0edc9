"""The batch of one training step, its random draws, and the loss on it (paper Sec. 3.3).

Shapes: N images, S positions, C dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tokenbridge.config import TrainConfig
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import ALL, TrainingData


@dataclass(frozen=True)
class Batch:
    """The input of one step. Only ``draw_batch`` and the validation draw its random values."""

    tokens: Tensor  # [N, S, C], dimensions in natural order
    labels: Tensor  # [N]; num_classes where the class was dropped
    order: Tensor  # [N, S]
    num_masked: int  # the same for all images of the batch, as in MAR

    def to(self, device: torch.device) -> "Batch":
        tokens, labels, order = (each.to(device, non_blocking=True) for each in (self.tokens, self.labels, self.order))
        return Batch(tokens, labels, order, self.num_masked)

    def split(self, count: int) -> list["Batch"]:
        """Split the images into ``count`` consecutive batches."""
        tokens, labels, order = (each.tensor_split(count) for each in (self.tokens, self.labels, self.order))
        return [Batch(*part, self.num_masked) for part in zip(tokens, labels, order, strict=True)]


def num_masked_positions(uniform: Tensor, positions: int, config: TrainConfig) -> int:
    """Return ceil(S r), with r from a normal truncated to [mask_ratio_min, 1], by inversion of ``uniform`` (MAR)."""
    normal = Normal(config.mask_ratio_mean, config.mask_ratio_std)
    low, high = normal.cdf(torch.tensor(config.mask_ratio_min)), normal.cdf(torch.tensor(1.0))
    ratio = normal.icdf(low + uniform * (high - low)).clamp(config.mask_ratio_min, 1.0)
    return int((positions * ratio).ceil())


def draw_batch(
    data: TrainingData, indices: Tensor, config: TrainConfig, random: torch.Generator, part: slice = ALL
) -> Batch:
    """Draw tokens, class dropout and masks of the images ``indices[part]``.

    Everything is drawn from ``random`` for all of ``indices`` [N]. So the values of an image depend on its place in the
    whole batch, but not on ``part``.
    """
    count, positions = len(indices), data.height * data.width
    tokens = data.draw(indices, random, part)
    dropped = torch.rand(count, generator=random) < config.label_dropout
    labels = torch.where(dropped, data.num_classes, data.labels[indices])
    order = torch.rand(count, positions, generator=random)[part].argsort(dim=1)
    num_masked = num_masked_positions(torch.rand((), generator=random), positions, config)
    return Batch(tokens, labels[part], order, num_masked)


def batch_loss(model: nn.Module, quantizer: DimensionwiseQuantizer, batch: Batch) -> Tensor:
    """Return the cross-entropy per dimension, in nats, of one batch."""
    values, targets = quantizer.decode(batch.tokens), quantizer.to_head_order(batch.tokens)
    loss: Tensor = model(values, targets, batch.labels, batch.order, batch.num_masked)
    return loss
