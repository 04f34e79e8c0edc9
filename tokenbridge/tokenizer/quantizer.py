"""The post-training, dimension-wise quantizer (paper Sec. 3.2): latents <-> tokens.

Shapes: N images, C dimensions, h x w positions, B levels. VAE latents are [N, C0, H, W]. With patches of p x p of their
positions, C = p * p * C0, h = H / p, w = W / p.

The quantizer holds everything that connects the VAE's units to tokens: patches, loc and scale, levels, and the order in
which dimensions are predicted.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.config import QuantizerConfig
from tokenbridge.tokenizer.levels import FIXED_FAMILIES, lloyd_max_levels

LOW_BAND = 0.25  # cycles per position: frequencies up to half of Nyquist count as low


def low_frequency_share(latents: Tensor) -> Tensor:
    """Return the share [C] of each dimension's spectral energy in the low band, from latents [N, C, h, w].

    Each dimension's map is treated as a grey image (paper Sec. 3.3). A dimension that carries the layout of the picture
    has a share near 1.
    """
    energy = torch.fft.fft2(latents.double()).abs().square().mean(0)
    vertical, horizontal = (torch.fft.fftfreq(size, dtype=torch.float64) for size in latents.shape[-2:])
    low = (vertical[:, None].square() + horizontal[None, :].square()).sqrt() <= LOW_BAND
    return (energy[:, low].sum(-1) / energy.sum((-2, -1)).clamp_min(1e-30)).float()


class DimensionwiseQuantizer(ModelMixin, ConfigMixin):
    """Levels, normalisation and dimension order, fitted, saved and loaded together.

    Buffers (float32 on every device and under every ``to(dtype)``):
        loc, scale [C]: latents = (vae latents in patches - loc) / scale
        levels [C, B]: ascending values, in units of normalised latents
        dimension_order [C]: the dimension that the head predicts first, second, ...

    Args:
        dimensions: C, the dimensions of one patch.
        num_levels: B.
        patch_size: p.
    """

    loc: Tensor
    scale: Tensor
    levels: Tensor
    dimension_order: Tensor

    @register_to_config
    def __init__(self, dimensions: int, num_levels: int, patch_size: int = 1) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        self.register_buffer("levels", torch.zeros(dimensions, num_levels))
        self.register_buffer("dimension_order", torch.arange(dimensions))

    @classmethod
    def build(
        cls, loc: Tensor, scale: Tensor, levels: Tensor, dimension_order: Tensor, patch_size: int = 1
    ) -> "DimensionwiseQuantizer":
        """Return a quantizer with the given parts.

        Raises:
            UserError: as ``check_parts``.
        """
        parts = {"loc": loc, "scale": scale, "levels": levels, "dimension_order": dimension_order}
        check_parts(**parts)
        dimensions, num_levels = levels.shape
        quantizer = cls(dimensions=dimensions, num_levels=num_levels, patch_size=patch_size)
        for name, value in parts.items():
            getattr(quantizer, name).copy_(value)
        return quantizer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DimensionwiseQuantizer":
        """Move between devices, but keep float32: rounding to bf16 would change the levels."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self

    def normalize(self, vae_latents: Tensor) -> Tensor:
        """Return the latents [N, C, h, w] of VAE latents [N, C0, H, W] in the VAE's units.

        Raises:
            UserError: if H or W is not a multiple of the patch size.
        """
        return _standardise(_to_patches(vae_latents.float(), self.config.patch_size), self.loc, self.scale)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Return the VAE latents of latents: the inverse of ``normalize``."""
        return F.pixel_shuffle(latents * self.scale[:, None, None] + self.loc[:, None, None], self.config.patch_size)

    def encode(self, latents: Tensor) -> Tensor:
        """Return the index of the nearest level, int64 [..., C], of latents [..., C]; ties go to the lower level.

        Differs: a binary search among the C x (B - 1) midpoints finds the index; the released code computes a distance
        to every level. The indices are the same, in a B-th of the memory.

        Raises:
            UserError: if a latent is NaN or infinite.
        """
        check_finite("latents", latents, self)
        midpoints = (self.levels[:, 1:] + self.levels[:, :-1]) / 2
        by_dimension = latents.float().movedim(-1, 0)
        columns = by_dimension.reshape(len(by_dimension), -1).contiguous()
        return torch.searchsorted(midpoints, columns).reshape(by_dimension.shape).movedim(0, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the level values, float32 [..., C], of tokens [..., C]."""
        return self.levels.expand(*tokens.shape, -1).gather(-1, tokens[..., None])[..., 0]

    def to_head_order(self, tokens: Tensor) -> Tensor:
        """Return tokens [..., C] with dimensions in the order in which the head predicts them."""
        return tokens[..., self.dimension_order]

    def from_head_order(self, tokens: Tensor) -> Tensor:
        """Return tokens [..., C] with dimensions in natural order: the inverse of ``to_head_order``."""
        return tokens[..., self.dimension_order.argsort()]


def check_parts(loc: Tensor, scale: Tensor, levels: Tensor, dimension_order: Tensor) -> None:
    """Check the buffers of a quantizer, which others may have written.

    Raises:
        UserError: if levels do not ascend, a scale is not positive, a value is not finite, or the order is not a
            permutation.
    """
    for name, values in (("loc", loc), ("scale", scale), ("levels", levels)):
        check_finite(f"the quantizer's {name}", values)
    dimensions = len(levels)
    if not (levels.diff(dim=1) > 0).all():
        raise UserError(
            "levels do not ascend strictly in every dimension: lower quantizer.levels or raise quantizer.fit_images"
        )
    if not (scale > 0).all():
        raise UserError(
            f"scales are {scale.tolist()}, but must be positive: a dimension of the VAE is constant, so train it again"
        )
    if sorted(dimension_order.tolist()) != list(range(dimensions)):
        raise UserError(
            f"{dimension_order.tolist()} is not an order of {dimensions} dimensions: "
            f"set quantizer.given_order to a permutation of 0 to {dimensions - 1}"
        )


def to_sequence(latents: Tensor) -> Tensor:
    """Return maps [N, C, h, w] as a sequence of positions [N, S, C], row by row."""
    return latents.flatten(2).transpose(1, 2)


def to_maps(sequence: Tensor, height: int, width: int) -> Tensor:
    """Return a sequence [N, S, C] as maps [N, C, h, w]: the inverse of ``to_sequence``."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def _to_patches(vae_latents: Tensor, patch_size: int) -> Tensor:
    """Return VAE latents [N, C0, H, W] as patches [N, C, h, w].

    Dimension c * p * p + i * p + j is the VAE's dimension c at row i, column j of the patch.
    """
    height, width = vae_latents.shape[-2:]
    if height % patch_size or width % patch_size:
        raise UserError(f"quantizer.patch_size is {patch_size}: it must divide the VAE's grid, {height} x {width}")
    return F.pixel_unshuffle(vae_latents, patch_size)


def _standardise(patches: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (patches - loc[:, None, None]) / scale[:, None, None]


def fit_quantizer(vae_latents: Tensor, config: QuantizerConfig) -> DimensionwiseQuantizer:
    """Fit loc, scale, levels and order to posterior samples [N, C0, H, W] in VAE units.

    Raises:
        UserError: if the settings do not fit the latents, or a latent is NaN or infinite.
    """
    check_finite("the latents to fit the quantizer to", vae_latents)
    patches = _to_patches(vae_latents, config.patch_size)
    loc, scale = _statistics(patches, config)
    latents = _standardise(patches, loc, scale)
    return DimensionwiseQuantizer.build(
        loc=loc,
        scale=scale,
        levels=_levels(latents, config),
        dimension_order=_dimension_order(latents, config),
        patch_size=config.patch_size,
    )


def _statistics(patches: Tensor, config: QuantizerConfig) -> tuple[Tensor, Tensor]:
    dimensions = patches.shape[1]
    if config.statistics == "fixed":
        return torch.full((dimensions,), config.fixed_loc), torch.full((dimensions,), config.fixed_scale)
    values = patches.double().transpose(0, 1).flatten(1)  # [C, N h w]
    if config.statistics == "global":
        return values.mean().float().expand(dimensions), values.std().float().expand(dimensions)
    return values.mean(1).float(), values.std(1).float()


def _levels(latents: Tensor, config: QuantizerConfig) -> Tensor:
    if config.family in FIXED_FAMILIES:
        return FIXED_FAMILIES[config.family](config.levels, config.range).expand(latents.shape[1], -1)
    return lloyd_max_levels(latents.transpose(0, 1).flatten(1), config.levels)


def _dimension_order(latents: Tensor, config: QuantizerConfig) -> Tensor:
    dimensions = latents.shape[1]
    if config.order == "given":
        return torch.tensor(config.given_order)
    if config.order == "frequency":
        return low_frequency_share(latents).argsort(descending=True, stable=True)
    return torch.arange(dimensions)


def quantizer_report(quantizer: DimensionwiseQuantizer, vae_latents: Tensor) -> list[dict[str, float]]:
    """Return a row of quality measures for each dimension, from latents [N, C0, H, W] in VAE units.

    Columns:
        dimension, place: the dimension, and its place in the order.
        loc, scale: the quantizer's normalisation.
        mse: the squared error of normalised latents.
        sqnr_db: signal over quantization noise, in dB.
        entropy_bits: the entropy of the index.
        bits_above_bound: entropy_bits - R(D), with R(D) = max(0, log2(variance / mse) / 2). R(D) is the rate that a
            Gaussian source needs at that mse. No source of equal variance needs more, so these bits do not reduce
            the mse.
        saturation: the share of latents beyond the outermost levels.
    """
    sequence = to_sequence(quantizer.normalize(vae_latents)).flatten(0, 1)  # [M, C]
    tokens = quantizer.encode(sequence)
    error = (sequence - quantizer.decode(tokens)).square().mean(0)
    outside = (sequence < quantizer.levels[:, 0]) | (sequence > quantizer.levels[:, -1])
    entropy = torch.stack([_entropy_bits(column, quantizer.levels.shape[1]) for column in tokens.unbind(1)])
    bound = (sequence.var(0, correction=0) / error).log2().clamp_min(0) / 2
    columns = {
        "dimension": torch.arange(sequence.shape[1]),
        "place": quantizer.dimension_order.argsort(),
        "loc": quantizer.loc,
        "scale": quantizer.scale,
        "mse": error,
        "sqnr_db": 10 * (sequence.square().mean(0) / error).log10(),
        "entropy_bits": entropy,
        "bits_above_bound": entropy - bound,
        "saturation": outside.float().mean(0),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _entropy_bits(indices: Tensor, levels: int) -> Tensor:
    used = indices.bincount(minlength=levels).double() / len(indices)
    return torch.special.entr(used).sum() / math.log(2)
