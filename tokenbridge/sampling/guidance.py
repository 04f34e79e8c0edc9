"""Guidance: features of the class and of no class, mixed as z_uncond + s (z_cond - z_uncond) before the head (MAR).

Guidance on the output leaves both for the head, whose logits or predictions are mixed in the same way.

Shapes: N images, S positions, K wanted positions, C dimensions, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenbridge.base.slices import slices
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.layers import gather
from tokenbridge.model.transformer import Reader

HELD = 16  # numbers for each of the features that encoder and decoder hold at once, at most
CACHED = 2  # numbers for each feature that a causal block keeps from step to step: a key and a value


def refreshed(scales: Sequence[float], refresh: int, causal: bool = False) -> list[bool]:
    """Return for each step whether it computes both halves: the first guided step and every ``refresh``-th after it.

    With a ``causal`` trunk it is every step if one is guided, because the cache of each half needs all tokens.
    """
    if causal:
        return [any(scale != 1 for scale in scales)] * len(scales)
    guided, both = 0, []
    for scale in scales:
        both.append(scale != 1 and guided % refresh == 0)
        guided += scale != 1
    return both


def needed_until(both: Sequence[bool], counts: Sequence[int], refresh: int) -> list[int]:
    """Return for each step how many positions are still masked after the last step that needs its features.

    A step that computes both halves is needed up to the next such step; any other, by itself alone.

    Args:
        both: as ``refreshed``.
        counts: as ``masked_counts``.
    """
    last = len(counts) - 1
    return [counts[min(step + refresh - 1, last) if each else step] for step, each in enumerate(both)]


def held_values(model: AutoregressiveModel) -> int:
    """Return a bound on the numbers that exist at once for the features of one image, of both halves."""
    kept = CACHED * len(model.decoder) if model.causal else 0
    return 2 * (HELD + kept) * (model.buffer_size + model.units) * model.config.width


class Guidance:
    """The features of N images from step to step.

    Steps that compute both halves keep their difference d = z_cond - z_uncond. Other guided steps compute only z_cond,
    and mix z_cond + (s - 1) d.

    Differs: LazyMAR keeps the difference before the decoder's last norm. Here it is that of z, which is what is mixed.

    Args:
        on_output: return both halves of z, for the head, where they would be mixed.
    """

    def __init__(self, model: AutoregressiveModel, labels: Tensor, refresh: int, on_output: bool = False) -> None:
        self.model, self.labels, self.refresh, self.on_output = model, labels, refresh, on_output
        self.readers = [(part, model.reader()) for part in slices(len(labels), held_values(model))]
        self.difference: Tensor | None = None  # [N, S, D]

    def features(self, values: Tensor, visible: Tensor, wanted: Tensor, scale: float, both: bool, later: int) -> Tensor:
        """Return the features [N, K, D] at the ``wanted`` positions [N, later + K], except the first ``later`` of them.

        With ``on_output``, guided steps return [N, K, 2 D]: the features of the class, and of no class.

        Args:
            values: dequantized latents [N, S, C].
            visible: [N, V], as ``visible_positions`` gives them.
            both: compute both halves, and keep their difference at all of ``wanted``.
            later: how many of the wanted positions are only needed by later steps.
        """
        drawn = wanted[:, later:]
        if not both:
            z = self._halves(values, self.labels, visible, drawn)
            if scale == 1 or self.difference is None:
                return z
            kept = gather(self.difference, drawn)
            return torch.cat([z, z - kept], dim=-1) if self.on_output else z + (scale - 1) * kept
        doubled = torch.stack([self.labels, torch.full_like(self.labels, self.model.num_classes)], dim=1)
        z = self._halves(values, doubled, visible, wanted)
        conditional, unconditional = z.chunk(2, dim=-1)
        difference = conditional - unconditional
        if self.refresh > 1:
            places = wanted[..., None].expand_as(difference)
            full = difference.new_zeros(len(difference), self.model.units, difference.shape[-1])
            self.difference = full.scatter(1, places, difference)
        if self.on_output:
            return (conditional if scale == 1 else z)[:, later:]
        return unconditional[:, later:] + scale * difference[:, later:]

    def _halves(self, values: Tensor, labels: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
        """Return the features for labels [N] as [N, K, D], or for both labels [N, 2] of an image as [N, K, 2 D]."""

        def computed(read: Reader, values: Tensor, labels: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
            if labels.dim() == 1:
                return read(values, labels, visible, wanted)
            both = read(values.repeat(2, 1, 1), labels.T.flatten(), visible.repeat(2, 1), wanted.repeat(2, 1))
            return torch.cat(both.chunk(2), dim=-1)

        inputs = (values, labels, visible, wanted)
        return torch.cat([computed(read, *(each[part] for each in inputs)) for part, read in self.readers])
