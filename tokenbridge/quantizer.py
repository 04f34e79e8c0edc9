"""The post-training, dimension-wise quantizer (paper Sec. 3.2): latents <-> tokens.

Shapes: N images, C dimensions, h x w positions, B levels. This one object holds all that connects the
VAE's units to tokens: loc and scale, levels, and the order in which dimensions are predicted.
"""

import math
from collections.abc import Callable

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.distributions import Normal

from tokenbridge.config import QuantizerConfig
from tokenbridge.errors import UserError

OUTER_EDGE = 3.0  # where the released quantizer cuts the tails of N(0, 1)
LOW_BAND = 0.25  # cycles per position: frequencies up to half of Nyquist count as low


def gaussian_levels(levels: int) -> Tensor:
    """Level values [B] of N(0, 1): the conditional mean of each equal-probability interval (paper Eq. 3).

    The outermost intervals are cut at +-3, as the released code does.
    """
    normal = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    inner = normal.icdf(torch.arange(1, levels, dtype=torch.float64) / levels)
    edge = torch.tensor([OUTER_EDGE], dtype=torch.float64)
    edges = torch.cat([-edge, inner, edge])
    density = normal.log_prob(edges).exp()
    return (density[:-1] - density[1:]) / (normal.cdf(edges[1:]) - normal.cdf(edges[:-1]))


def low_frequency_share(latents: Tensor) -> Tensor:
    """Share [C] of each dimension's spectral energy that lies in the low band, from latents [N, C, h, w].

    Each dimension's map is taken as a grey image (paper Sec. 3.3); a dimension that carries the layout
    of the picture has a share near 1.
    """
    energy = torch.fft.fft2(latents.double()).abs().square().mean(0)
    vertical, horizontal = (torch.fft.fftfreq(size, dtype=torch.float64) for size in latents.shape[-2:])
    low = (vertical[:, None].square() + horizontal[None, :].square()).sqrt() <= LOW_BAND
    return (energy[:, low].sum(-1) / energy.sum((-2, -1)).clamp_min(1e-30)).float()


class DimensionwiseQuantizer(ModelMixin, ConfigMixin):
    """Levels, normalisation and dimension order, fitted, saved and loaded as one.

    Buffers (float32 on every device and under every ``to(dtype)``):
        loc, scale [C]: latents = (vae latents - loc) / scale
        levels [C, B]: ascending values, in units of normalised latents
        dimension_order [C]: dimension that the head predicts first, second, ...
    """

    loc: Tensor
    scale: Tensor
    levels: Tensor
    dimension_order: Tensor

    @register_to_config
    def __init__(self, dimensions: int, num_levels: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        self.register_buffer("levels", torch.zeros(dimensions, num_levels))
        self.register_buffer("dimension_order", torch.arange(dimensions))

    @classmethod
    def build(cls, loc: Tensor, scale: Tensor, levels: Tensor, dimension_order: Tensor) -> "DimensionwiseQuantizer":
        """A quantizer of the given parts, each checked.

        Raises:
            UserError: if levels do not ascend, a scale is not positive, or the order is no permutation.
        """
        dimensions, num_levels = levels.shape
        if not (levels.diff(dim=1) > 0).all():
            raise UserError("levels must ascend strictly in every dimension: are there fewer distinct latents than B?")
        if not (scale > 0).all():
            raise UserError(f"scales must be positive, got {scale.tolist()}: a dimension of the VAE is constant")
        if sorted(dimension_order.tolist()) != list(range(dimensions)):
            raise UserError(f"{dimension_order.tolist()} is not an order of {dimensions} dimensions")
        quantizer = cls(dimensions=dimensions, num_levels=num_levels)
        for name, value in (("loc", loc), ("scale", scale), ("levels", levels), ("dimension_order", dimension_order)):
            getattr(quantizer, name).copy_(value)
        return quantizer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DimensionwiseQuantizer":
        """Move between devices, but keep float32: levels rounded to bf16 would be other levels."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self

    def normalize(self, vae_latents: Tensor) -> Tensor:
        """VAE units to latents, both [N, C, h, w]."""
        return (vae_latents.float() - self.loc[:, None, None]) / self.scale[:, None, None]

    def denormalize(self, latents: Tensor) -> Tensor:
        """Latents to VAE units, both [N, C, h, w]."""
        return latents * self.scale[:, None, None] + self.loc[:, None, None]

    def encode(self, latents: Tensor) -> Tensor:
        """Index of the nearest level, int64 [..., C], of latents [..., C]; ties go to the lower level.

        Differs: found by binary search among the C x (B - 1) midpoints, where the released code keeps a
        distance to every level; the indices are the same in a B-th of the memory.

        Raises:
            UserError: if a latent is NaN.
        """
        if latents.isnan().any():
            raise UserError("latents hold NaN: look at the VAE and at its moments")
        midpoints = (self.levels[:, 1:] + self.levels[:, :-1]) / 2
        by_dimension = latents.float().movedim(-1, 0)
        columns = by_dimension.reshape(len(by_dimension), -1).contiguous()
        return torch.searchsorted(midpoints, columns).reshape(by_dimension.shape).movedim(0, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Level values, float32 [..., C], of tokens [..., C]."""
        dimensions = torch.arange(self.levels.shape[0], device=tokens.device)
        return self.levels[dimensions, tokens]

    def to_head_order(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] with dimensions in the order in which the head predicts them."""
        return tokens[..., self.dimension_order]

    def from_head_order(self, tokens: Tensor) -> Tensor:
        """Inverse of ``to_head_order``."""
        return tokens[..., self.dimension_order.argsort()]


def to_sequence(latents: Tensor) -> Tensor:
    """Maps [N, C, h, w] as a sequence of positions [N, S, C], row by row."""
    return latents.flatten(2).transpose(1, 2)


def to_maps(sequence: Tensor, height: int, width: int) -> Tensor:
    """Inverse of ``to_sequence``."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def fit_quantizer(
    vae_latents: Tensor, config: QuantizerConfig, num_levels: int | None = None
) -> DimensionwiseQuantizer:
    """Fit loc, scale, levels and order to posterior samples [N, C, h, w] in VAE units.

    ``num_levels`` overrides ``config.levels``, for studies of B.
    """
    dimensions = vae_latents.shape[1]
    loc, scale = _statistics(vae_latents, config)
    # gaussian levels lie in [-3, 3] and cover latents in [-range, range] (released code)
    levels = gaussian_levels(num_levels or config.levels).float() * (config.range / OUTER_EDGE)
    return DimensionwiseQuantizer.build(
        loc=loc,
        scale=scale,
        levels=levels.expand(dimensions, -1),
        dimension_order=_dimension_order((vae_latents - loc[:, None, None]) / scale[:, None, None], config),
    )


def _statistics(vae_latents: Tensor, config: QuantizerConfig) -> tuple[Tensor, Tensor]:
    dimensions = vae_latents.shape[1]
    values = vae_latents.double().transpose(0, 1).flatten(1)  # [C, N h w]
    if config.statistics == "fixed":
        return torch.full((dimensions,), config.fixed_loc), torch.full((dimensions,), config.fixed_scale)
    if config.statistics == "global":
        return values.mean().float().expand(dimensions), values.std().float().expand(dimensions)
    return values.mean(1).float(), values.std(1).float()


def _dimension_order(latents: Tensor, config: QuantizerConfig) -> Tensor:
    dimensions = latents.shape[1]
    if config.order == "given":
        return torch.tensor(config.given_order)
    if config.order == "frequency":
        return low_frequency_share(latents).argsort(descending=True, stable=True)
    return torch.arange(dimensions)


def quantizer_report(quantizer: DimensionwiseQuantizer, vae_latents: Tensor) -> list[dict[str, float]]:
    """How well each dimension is quantized, from latents [N, C, h, w] in VAE units.

    Rows of: dimension, its place in the order, loc, scale, mse (of normalised latents), sqnr_db,
    entropy_bits of the index, and saturation (share of latents beyond the outermost levels).
    """
    sequence = to_sequence(quantizer.normalize(vae_latents)).flatten(0, 1)  # [M, C]
    tokens = quantizer.encode(sequence)
    error = (sequence - quantizer.decode(tokens)).square().mean(0)
    outside = (sequence < quantizer.levels[:, 0]) | (sequence > quantizer.levels[:, -1])
    places = quantizer.dimension_order.argsort()
    rows = []
    for i in range(sequence.shape[1]):
        used = tokens[:, i].bincount(minlength=quantizer.levels.shape[1]).double() / len(tokens)
        rows.append(
            {
                "dimension": i,
                "place": int(places[i]),
                "loc": float(quantizer.loc[i]),
                "scale": float(quantizer.scale[i]),
                "mse": float(error[i]),
                "sqnr_db": float(10 * (sequence[:, i].square().mean() / error[i]).log10()),
                "entropy_bits": float(torch.special.entr(used).sum() / math.log(2)),
                "saturation": float(outside[:, i].float().mean()),
            }
        )
    return rows
