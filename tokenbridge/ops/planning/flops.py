"""Floating-point operations for one image, in matrix products and convolutions. A multiply-add counts as two.

The formulas are compared with torch's FlopCounterMode in the tests, and the VAE is counted by FlopCounterMode itself.
Attention counts in full, as in the counter, although a fused causal kernel does only half of the head's.

Shapes: S positions, C dimensions, P buffer positions, V visible and K masked ones, D width; the head's G slots,
J classes, W width.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenbridge.config import Config, TrainConfig
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model.layers import MLP_RATIO
from tokenbridge.ops.planning.sizes import Sizes, meta_vae
from tokenbridge.sampling.sampler import guidance_at, masked_counts
from tokenbridge.training.batches import num_masked_positions

BLOCK = 2 * (3 + 1 + 2 * MLP_RATIO)  # linear layers of a block, for each token and D squared: qkv, out, MLP
MODULATION = 2 * 6  # the condition's layer in a head block, in the same units
FINAL_MODULATION = 2 * 2
DRAWS = 1000  # draws of the masked share, evenly spaced in probability


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

    def __mul__(self, factor: float) -> "Flops":
        return Flops(self.encoder * factor, self.decoder * factor, self.head * factor)


NOTHING = Flops(0, 0, 0)


def forward_flops(sizes: Sizes, masked: int) -> Flops:
    """Return the forward's operations for one image whose ``masked`` positions are predicted from the others."""
    visible = sizes.positions - masked
    return Flops(encoder_flops(sizes, visible), decoder_flops(sizes, visible), head_flops(sizes) * masked)


def blocks_flops(depth: int, length: int, width: int) -> float:
    return depth * (BLOCK * length * width**2 + 4 * length**2 * width)


def encoder_flops(sizes: Sizes, visible: int) -> float:
    blocks = blocks_flops(sizes.encoder_depth, sizes.buffer + visible, sizes.width)
    return _token_in(sizes) + blocks


def decoder_flops(sizes: Sizes, visible: int) -> float:
    entry = 2 * (sizes.buffer + visible) * sizes.width**2
    return entry + blocks_flops(sizes.decoder_depth, sizes.buffer + sizes.positions, sizes.width)


def head_flops(sizes: Sizes, cached: bool = False) -> float:
    """Return the head's operations for one position.

    If ``cached``, the head computes slot by slot, and each slot attends only to itself and the slots before it.
    """
    slots, width = sizes.slots, sizes.head_width
    pairs = slots * (slots + 1) / 2 if cached and sizes.autoregressive else slots**2
    linear = (sizes.head_depth * (BLOCK + MODULATION) + FINAL_MODULATION) * slots * width**2
    return 2 * sizes.width * width + linear + sizes.head_depth * 4 * pairs * width + 2 * slots * width * sizes.classes


def _token_in(sizes: Sizes) -> float:
    return 2 * sizes.positions * sizes.dimensions * sizes.width


def masked_shares(sizes: Sizes, recipe: TrainConfig) -> dict[int, float]:
    """Return the probability of each number of masked positions."""
    uniforms = (torch.arange(DRAWS) + 0.5) / DRAWS
    counts = Counter(num_masked_positions(uniform, sizes.positions, recipe) for uniform in uniforms)
    return {masked: count / DRAWS for masked, count in counts.items()}


def train_flops(sizes: Sizes, recipe: TrainConfig) -> Flops:
    """Return the operations of forward and backward for one image, as the mean over the recipe's masks.

    The backward costs twice the forward: gradients of weights and of inputs. Tokens need no gradient.
    """
    shares = masked_shares(sizes, recipe).items()
    mean = sum((forward_flops(sizes, masked) * share for masked, share in shares), NOTHING)
    return mean * 3 + Flops(-_token_in(sizes), 0, 0)


def recomputed_flops(sizes: Sizes, recipe: TrainConfig) -> Flops:
    """Return the operations that ``launcher.checkpoint_activations`` adds: a second forward of every block."""
    shares = masked_shares(sizes, recipe).items()
    visible = [(sizes.positions - masked, share) for masked, share in shares]
    lengths = [(sizes.buffer + seen, share) for seen, share in visible]
    encoder = sum(blocks_flops(sizes.encoder_depth, length, sizes.width) * share for length, share in lengths)
    decoder = blocks_flops(sizes.decoder_depth, sizes.buffer + sizes.positions, sizes.width)
    block = BLOCK + MODULATION
    slot = sizes.head_depth * (block * sizes.head_width**2 + 4 * sizes.slots * sizes.head_width)
    masked = sum(count * share for count, share in shares)
    return Flops(encoder, decoder, slot * sizes.slots * masked)


def sample_flops(sizes: Sizes, settings: SamplingSettings) -> Flops:
    """Return the operations for sampling the tokens of one image.

    Guidance doubles encoder and decoder in the steps where it acts, but never the head.
    """
    counts = masked_counts(sizes.positions, settings.steps_for(sizes.positions))
    total = NOTHING
    for before, after in pairwise([sizes.positions, *counts]):
        visible = sizes.positions - before
        halves = 1 if guidance_at(settings, sizes.positions, before, after) == 1 else 2
        drawn = before if settings.order == "confidence" else before - after
        features = Flops(encoder_flops(sizes, visible), decoder_flops(sizes, visible), 0)
        total += features * halves + Flops(0, 0, head_flops(sizes, cached=True) * drawn)
    return total


def vae_flops(config: Config) -> tuple[float, float]:
    """Return the operations for encoding one image and for decoding it."""
    vae = meta_vae(config)
    size = config.data.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as encode:
        latents = vae.encode(torch.empty(1, 3, size, size, device="meta")).latent_dist.mean
    with torch.no_grad(), FlopCounterMode(display=False) as decode:
        vae.decode(latents)
    return encode.get_total_flops(), decode.get_total_flops()
