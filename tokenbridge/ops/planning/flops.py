"""Floating-point operations for one image, as torch counts them on the meta device. A multiply-add counts as two.

Attention counts in full, although a fused causal kernel does only half of the head's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cache, partial, singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tokenbridge.config import Config
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.causal import CausalTransformer
from tokenbridge.model.schedule import masked_counts
from tokenbridge.ops.planning.sizes import deepened, meta_vae, step_inputs
from tokenbridge.sampling.guidance import needed_until, refreshed
from tokenbridge.sampling.sampler import draw_rows, guidance_scales


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, by part of the model."""

    encoder: float
    decoder: float
    head: float

    @property
    def total(self) -> float:
        return self.encoder + self.decoder + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.encoder + other.encoder, self.decoder + other.decoder, self.head + other.head)

    def __sub__(self, other: "Flops") -> "Flops":
        return Flops(self.encoder - other.encoder, self.decoder - other.decoder, self.head - other.head)


def sample_flops(model: AutoregressiveModel, settings: SamplingSettings) -> Flops:
    """Return the operations for sampling the tokens of one image.

    Guidance doubles the trunk in the steps that compute both halves, and guidance on the output doubles the head in
    guided steps. With a larger ``guidance_refresh``, the first also compute the positions of the steps that take their
    difference. Speculative sampling counts as plain sampling, because its passes depend on the weights.
    """
    after = masked_counts(model.units, settings.steps_for(model.trunk, model.units))
    before = [model.units, *after[:-1]]
    scales = guidance_scales(settings, model.units, after)
    both = refreshed(scales, settings.guidance_refresh, model.causal)
    halves = [2 if each else 1 for each in both]
    drawn = wanted = before
    if settings.order != "confidence":
        until = needed_until(both, after, settings.guidance_refresh)
        drawn, wanted = ([first - last for first, last in zip(before, each, strict=True)] for each in (after, until))
    head = deepened(model, lambda one: Flops(0, 0, head_flops(one))).head
    if settings.guidance_on == "output":
        drawn = [count * (1 + (scale != 1)) for count, scale in zip(drawn, scales, strict=True)]
    return trunk_flops(model, before, wanted, halves) + Flops(0, 0, sum(drawn) * head)


@singledispatch
def trunk_flops(
    model: AutoregressiveModel, masked: Sequence[int], wanted: Sequence[int], halves: Sequence[int]
) -> Flops:
    """Return the operations of encoder and decoder for the steps of sampling one image.

    Args:
        masked: positions that are still masked before each step.
        wanted: positions of which each step computes the features.
        halves: 2 where a step computes both halves of guidance, else 1.
    """
    places = (1, (1 + model.units) // 2, model.units)
    features = summed(lambda count: deepened(model, partial(features_flops, masked=count)), places, masked, halves)
    one, two = (deepened(model, partial(features_flops, masked=2, wanted=count)).decoder for count in (1, 2))
    further = (two - one) * sum(half * (count - 1) for half, count in zip(halves, wanted, strict=True))
    return features + Flops(0, further, 0)


@trunk_flops.register
def causal_flops(
    model: CausalTransformer, masked: Sequence[int], wanted: Sequence[int], halves: Sequence[int]
) -> Flops:
    """Return the same for a causal trunk, which reads each place once, and each query of a burst.

    A row of a pass costs the same in every layer, and as much again for each key that it is compared with.
    """
    sizes = [model.buffer_size + count - 1 for count in (1, 2)]  # rows, and keys, of the first pass
    costs = [deepened(model, partial(first_pass_flops, queries=count)).decoder for count in (1, 2)]
    one, two = (cost / size for cost, size in zip(costs, sizes, strict=True))
    each_key = (two - one) / (sizes[1] - sizes[0])
    total, read = 0.0, 0
    for hidden, queries, half in zip(masked, wanted, halves, strict=True):
        known = model.buffer_size + model.positions - hidden
        rows, keys = known - 1 - read + queries, known - 1 + queries
        total += half * rows * (one + (keys - sizes[0]) * each_key)
        read = known - (queries > 1)
    return Flops(0, total, 0)


@cache
def first_pass_flops(model: CausalTransformer, queries: int) -> Flops:
    """Return the operations of a causal trunk for one image's first step, which wants ``queries`` positions."""
    values, _, labels, order = step_inputs(model, 1)
    _, found = counted(lambda: model.reader()(values, labels, order[:, :0], order[:, :queries]))
    return Flops(0, found, 0)


@cache
def features_flops(model: AutoregressiveModel, masked: int, wanted: int = 1) -> Flops:
    """Return the operations of encoder and decoder for one image, for the features of ``wanted`` masked positions."""
    values, _, labels, order = step_inputs(model, 1)
    encoded, encoder = counted(lambda: model.encode(values, labels, order[:, masked:]))
    _, decoder = counted(lambda: model.decode(encoded, order[:, masked:], order[:, :wanted]))
    return Flops(encoder, decoder, 0)


@cache
def head_flops(model: AutoregressiveModel) -> int:
    """Return the head's operations for drawing the token of one position."""
    z, uniforms = (torch.zeros(1, size, device=model.device) for size in (model.config.width, model.head.draw_numbers))
    return counted(lambda: draw_rows(model, SamplingSettings(), z, uniforms)[0])[1]


def vae_flops(config: Config) -> tuple[int, int]:
    """Return the operations for encoding one image and for decoding it."""
    vae = meta_vae(config)
    image = torch.empty(1, 3, config.data.image_size, config.data.image_size, device="meta")
    latents, encode = counted(lambda: vae.encode(image).latent_dist.mean)
    _, decode = counted(lambda: vae.decode(latents).sample)
    return encode, decode


def counted(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return the result of ``run`` without gradients, and its operations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def summed(
    count: Callable[[int], Flops], places: Iterable[int], masked: Sequence[int], weights: Sequence[float] | float = 1.0
) -> Flops:
    """Return the weighted sum of ``count`` over the numbers of masked positions in ``masked``.

    The operations are a polynomial of that number, quadratic because of attention. They are counted at ``places`` only:
    three places make the sum exact.
    """
    nodes = sorted(set(places))
    polynomial = np.polynomial.polynomial.polyfit(nodes, [astuple(count(node)) for node in nodes], len(nodes) - 1)
    values = np.polynomial.polynomial.polyval(np.asarray(masked), polynomial)
    return Flops(*(values * weights).sum(axis=-1).tolist())
