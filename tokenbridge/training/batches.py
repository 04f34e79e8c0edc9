"""The batch of one training step, its random draws, and the loss on it (paper Sec. 3.3).

Shapes: N images, S positions, C dimensions, G slots of a token, U units that are masked: the positions, or their
numbers (``AutoregressiveModel.units``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tokenbridge.config import TrainConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.training.datasets import ALL, TrainingData


@dataclass(frozen=True)
class Batch:
    """The input of one step. Only ``draw_batch`` and the validation draw its random values."""

    tokens: Tensor  # [N, S, G], slots in natural order
    labels: Tensor  # [N]; num_classes where the class was dropped
    order: Tensor  # [N, U]
    num_masked: Tensor  # [N], always on the CPU; the same within a mask group
    uniforms: Tensor  # [N, U, R] in [0, 1), for the head's loss

    def to(self, device: torch.device) -> "Batch":
        moved = {name: each.to(device, non_blocking=True) for name, each in vars(self).items() if name != "num_masked"}
        return replace(self, **moved)

    def split(self, sizes: Sequence[int]) -> list["Batch"]:
        """Split the images into consecutive batches of the given sizes."""
        return [Batch(*part) for part in zip(*(each.split(sizes) for each in vars(self).values()), strict=True)]


def num_masked_positions(uniforms: Tensor, positions: int, config: TrainConfig) -> Tensor:
    """Return ceil(S r), at least 1, for ratios r from a normal truncated to [mask_ratio_min, 1] (MAR).

    The normal is inverted at ``uniforms``. The result is int64 and has their shape.
    """
    normal = Normal(config.mask_ratio_mean, config.mask_ratio_std)
    low, high = normal.cdf(torch.tensor(config.mask_ratio_min)), normal.cdf(torch.tensor(1.0))
    ratios = normal.icdf(low + uniforms * (high - low)).clamp(config.mask_ratio_min, 1.0)
    return (positions * ratios).ceil().long().clamp(min=1)


def draw_batch(
    data: TrainingData,
    indices: Tensor,
    config: TrainConfig,
    random: torch.Generator,
    model: AutoregressiveModel,
    part: slice = ALL,
) -> Batch:
    """Draw tokens, class dropout, masks, and the numbers of the loss, of the images ``indices[part]``, for a model.

    Everything is drawn from ``random`` for all of ``indices`` [N]. So the values of an image depend on its place in the
    whole batch, but not on ``part``.
    """
    count, units = len(indices), model.units
    tokens = data.draw(indices, random, part)
    dropped = torch.rand(count, generator=random) < config.label_dropout
    labels = torch.where(dropped, data.num_classes, data.labels[indices])
    order = torch.rand(count, units, generator=random)[part].argsort(dim=1)
    groups = torch.rand(count // config.mask_group, generator=random)
    num_masked = num_masked_positions(groups, units, config).repeat_interleave(config.mask_group)
    uniforms = torch.rand(count, units, model.head.loss_numbers, generator=random)[part]
    return Batch(tokens, labels[part], order, num_masked[part], uniforms)


def predicted_positions(masked: int, head_share: float) -> int:
    """Return of how many of the masked positions the head computes the loss: at least one."""
    return math.ceil(head_share * masked)


def batch_loss(model: nn.Module, quantizer: Quantizer, batch: Batch, head_share: float = 1.0) -> Tensor:
    """Return the loss for each number of a token, of images of one mask group: of levels, the cross-entropy in nats.

    With a smaller ``head_share``, only so many of each image's masked positions count. They are the first of its order,
    which is random: so each choice of them is as likely, and the expected loss and gradient are those of all.
    """
    values, targets = quantizer.decode(batch.tokens), quantizer.to_head_order(batch.tokens)
    masked = int(batch.num_masked[0])
    predicted = predicted_positions(masked, head_share)
    loss: Tensor = model(values, targets, batch.labels, batch.order, masked, predicted, batch.uniforms)
    return loss
