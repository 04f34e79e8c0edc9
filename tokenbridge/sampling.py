"""Sampling (paper Sec. 3.3; MAR): masked positions are revealed in random order, each token dimension by dimension.

Shapes: N images, S positions, C dimensions, B levels, M positions revealed in one step.
All randomness enters as ``Draws``, a function of each image's own generator: neither batch size nor
step count changes what an image draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tokenbridge.config import GUIDANCE_SCHEDULES
from tokenbridge.errors import UserError
from tokenbridge.model.transformer import TokenBridgeTransformer, gather, split_order
from tokenbridge.quantizer import DimensionwiseQuantizer


@dataclass(frozen=True)
class Draws:
    """The randomness of N images.

    Attributes:
        order: [N, S] permutations; the tail is revealed first.
        uniforms: [N, S, C] in [0, 1), one for each index that will be drawn; dimensions in head order.
    """

    order: Tensor
    uniforms: Tensor

    @classmethod
    def from_generators(cls, generators: Sequence[torch.Generator], positions: int, dimensions: int) -> "Draws":
        order = [torch.randperm(positions, generator=g, device=g.device) for g in generators]
        uniforms = [torch.rand(positions, dimensions, generator=g, device=g.device) for g in generators]
        return cls(torch.stack(order), torch.stack(uniforms))

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.order.to(device), self.uniforms.to(device))


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn.

    Raises:
        UserError: naming the setting that cannot work.
    """

    steps: int
    guidance_scale: float = 1.0
    guidance_schedule: str = "linear"
    temperature: float = 1.0  # of the logits; 0 takes the likeliest level

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: at least one step is needed")
        if self.guidance_scale < 1:
            raise UserError(f"guidance_scale is {self.guidance_scale}: 1 (no guidance) is the least")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise UserError(f"guidance_schedule is {self.guidance_schedule!r}: choose one of {GUIDANCE_SCHEDULES}")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}: it cannot be negative")


def masked_counts(positions: int, steps: int) -> list[int]:
    """Positions still masked after each step: S cos(pi/2 (i + 1)/n), at least one revealed a step, 0 at the end.

    Raises:
        UserError: if there are more steps than positions.
    """
    if steps > positions:
        raise UserError(f"{steps} steps for {positions} positions: use at most {positions} steps")
    counts, masked = [], positions
    for i in range(steps - 1):
        masked = max(1, min(masked - 1, math.floor(positions * math.cos(math.pi / 2 * (i + 1) / steps))))
        counts.append(masked)
    return [*counts, 0]


def guidance_at(settings: SamplingSettings, positions: int, masked_after: int) -> float:
    """Guidance scale of one step: ``linear`` grows with the share of revealed positions.

    As released, the last step counts one position as still masked, so that linear never quite reaches the scale.
    """
    if settings.guidance_schedule == "constant":
        return settings.guidance_scale
    return 1 + (settings.guidance_scale - 1) * (positions - max(1, masked_after)) / positions


def choose_levels(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Levels [M] drawn from logits [M, B] by inverting the cumulative distribution at ``uniforms`` [M].

    Differs: the released code calls ``multinomial`` on the whole batch, whose draws depend on the batch.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    return (cumulative[:, :-1] <= uniforms.double()[:, None] * cumulative[:, -1:]).sum(dim=-1)


def _choose_from(uniforms: Tensor, temperature: float, logits: Tensor, dimension: int) -> Tensor:
    return choose_levels(logits.float(), uniforms[:, dimension], temperature)


@torch.no_grad()
def sample_tokens(
    model: TokenBridgeTransformer,
    quantizer: DimensionwiseQuantizer,
    labels: Tensor,
    draws: Draws,
    settings: SamplingSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Tokens [N, S, C], dimensions in natural order, for labels [N].

    Args:
        on_step: called with (steps done, steps in all).
    """
    images, positions, _ = draws.uniforms.shape
    tokens = torch.zeros_like(draws.uniforms, dtype=torch.long)  # head order
    counts = masked_counts(positions, settings.steps)
    masked_before = positions
    for step, masked_after in enumerate(counts):
        _, visible = split_order(draws.order, masked_before)
        values = quantizer.decode(quantizer.from_head_order(tokens))
        revealed = draws.order[:, masked_after:masked_before]
        scale = guidance_at(settings, positions, masked_after)
        z = gather(_guided_features(model, values, labels, visible, scale), revealed)
        uniforms = gather(draws.uniforms, revealed).flatten(0, 1)
        choose = partial(_choose_from, uniforms, settings.temperature)
        drawn = model.head.sample(z.flatten(0, 1), choose)
        tokens.scatter_(1, revealed[..., None].expand(-1, -1, tokens.shape[-1]), drawn.unflatten(0, (images, -1)))
        masked_before = masked_after
        if on_step is not None:
            on_step(step + 1, settings.steps)
    return quantizer.from_head_order(tokens)


def _guided_features(
    model: TokenBridgeTransformer, values: Tensor, labels: Tensor, visible: Tensor, scale: float
) -> Tensor:
    """Decoder features [N, S, D], mixed as z_uncond + s (z_cond - z_uncond), before the head (released code)."""
    if scale == 1:
        return model.features(values, labels, visible)
    dropped = torch.full_like(labels, model.num_classes)
    both = model.features(values.repeat(2, 1, 1), torch.cat([labels, dropped]), visible.repeat(2, 1))
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)
