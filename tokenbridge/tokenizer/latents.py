"""Latents, and what every quantizer does with them: patches, normalisation, the order of dimensions.

Shapes: N images, C dimensions, h x w positions, S = h w, G slots of a token. VAE latents are [N, C0, H, W]. With
patches of p x p of their positions, C = p * p * C0, h = H / p, w = W / p.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.config import QuantizerConfig

LOW_BAND = 0.25  # cycles per position: frequencies up to half of Nyquist count as low


class Quantizer(ModelMixin, ConfigMixin, ABC):
    """Everything that connects the VAE's units to tokens. A subclass says what a token is.

    Its config has ``dimensions`` (C, of one patch) and ``patch_size`` (p). Buffers stay float32 on every device and
    under every ``to(dtype)``:
        loc, scale [C]: latents = (vae latents in patches - loc) / scale
        dimension_order [C]: the dimension that comes first, second, ... in a token
    """

    loc: Tensor
    scale: Tensor
    dimension_order: Tensor

    @property
    @abstractmethod
    def slots(self) -> int:
        """G, the numbers of a token. The head predicts one after the other."""

    @property
    @abstractmethod
    def classes(self) -> int | None:
        """The number of values that a slot can take; None: any real number."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """The values that the latents of each dimension can take, [C, V]; without columns: all, or too many to list."""

    @property
    def told(self) -> Tensor:
        """Which dimensions a slot tells about, [G, C]: 1 or 0. A subclass whose slots are no dimensions says it."""
        return torch.eye(self.slots)

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Return the token [..., G], in natural order, whose latents are nearest to latents [..., C].

        Raises:
            UserError: if a latent is NaN or infinite.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Return the latents, float32 [..., C], of tokens [..., G] in natural order."""

    def to_head_order(self, tokens: Tensor) -> Tensor:
        """Return tokens [..., G] with slots in the order in which the head predicts them."""
        return tokens

    def from_head_order(self, tokens: Tensor) -> Tensor:
        """Return tokens [..., G] with slots in natural order: the inverse of ``to_head_order``."""
        return tokens

    def check(self) -> None:
        """Check the buffers, which others may have written.

        Raises:
            UserError: if a scale is not positive, a value is not finite, or the order is not a permutation.
        """
        for name, values in self.state_dict().items():
            check_finite(f"the quantizer's {name}", values)
        if not (self.scale > 0).all():
            raise UserError(
                f"scales are {self.scale.tolist()}, but must be positive: a dimension of the VAE is constant, so train "
                "it again"
            )
        order, dimensions = self.dimension_order.tolist(), len(self.loc)
        if sorted(order) != list(range(dimensions)):
            raise UserError(
                f"{order} is not an order of {dimensions} dimensions: "
                f"set quantizer.given_order to a permutation of 0 to {dimensions - 1}"
            )

    def filled(self, buffers: Mapping[str, Tensor]) -> Self:
        """Take values for all buffers, and check them.

        Raises:
            UserError: as ``check``.
        """
        for name, value in buffers.items():
            setattr(self, name, value.to(getattr(self, name).dtype).contiguous())
        self.check()
        return self

    def normalize(self, vae_latents: Tensor) -> Tensor:
        """Return the latents [N, C, h, w] of VAE latents [N, C0, H, W] in the VAE's units.

        Raises:
            UserError: if H or W is not a multiple of the patch size.
        """
        return standardise(to_patches(vae_latents.float(), self.config.patch_size), self.loc, self.scale)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Return the VAE latents of latents: the inverse of ``normalize``."""
        return F.pixel_shuffle(latents * self.scale[:, None, None] + self.loc[:, None, None], self.config.patch_size)

    def _register(self, dimensions: int, **others: Tensor) -> None:
        self.register_buffer("loc", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        for name, buffer in others.items():
            self.register_buffer(name, buffer)
        self.register_buffer("dimension_order", torch.arange(dimensions))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move between devices, but keep float32: rounding to bf16 would change the values of tokens."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self


def to_sequence(latents: Tensor) -> Tensor:
    """Return maps [N, C, h, w] as a sequence of positions [N, S, C], row by row."""
    return latents.flatten(2).transpose(1, 2)


def to_maps(sequence: Tensor, height: int, width: int) -> Tensor:
    """Return a sequence [N, S, C] as maps [N, C, h, w]: the inverse of ``to_sequence``."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def to_patches(vae_latents: Tensor, patch_size: int) -> Tensor:
    """Return VAE latents [N, C0, H, W] as patches [N, C, h, w].

    Dimension c * p * p + i * p + j is the VAE's dimension c at row i, column j of the patch.
    """
    height, width = vae_latents.shape[-2:]
    if height % patch_size or width % patch_size:
        raise UserError(f"quantizer.patch_size is {patch_size}: it must divide the VAE's grid, {height} x {width}")
    return F.pixel_unshuffle(vae_latents, patch_size)


def standardise(patches: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return (patches - loc) / scale."""
    return (patches - loc[:, None, None]) / scale[:, None, None]


def normalisation(patches: Tensor, config: QuantizerConfig) -> tuple[Tensor, Tensor]:
    """Return loc and scale [C] of patches [N, C, h, w]."""
    dimensions = patches.shape[1]
    if config.statistics == "fixed":
        return torch.full((dimensions,), config.fixed_loc), torch.full((dimensions,), config.fixed_scale)
    values = patches.double().transpose(0, 1).flatten(1)  # [C, N h w]
    if config.statistics == "global":
        return values.mean().float().expand(dimensions), values.std().float().expand(dimensions)
    return values.mean(1).float(), values.std(1).float()


def low_frequency_share(latents: Tensor) -> Tensor:
    """Return the share [C] of each dimension's spectral energy in the low band, from latents [N, C, h, w].

    Each dimension's map is treated as a grey image (paper Sec. 3.3). A dimension that carries the layout of the picture
    has a share near 1.
    """
    energy = torch.fft.fft2(latents.double()).abs().square().mean(0)
    vertical, horizontal = (torch.fft.fftfreq(size, dtype=torch.float64) for size in latents.shape[-2:])
    low = (vertical[:, None].square() + horizontal[None, :].square()).sqrt() <= LOW_BAND
    return (energy[:, low].sum(-1) / energy.sum((-2, -1)).clamp_min(1e-30)).float()


def order_of_dimensions(latents: Tensor, config: QuantizerConfig) -> Tensor:
    """Return the order [C] in which the head predicts the dimensions of latents [N, C, h, w]."""
    if config.order == "given":
        return torch.tensor(config.given_order)
    if config.order == "frequency":
        return low_frequency_share(latents).argsort(descending=True, stable=True)
    return torch.arange(latents.shape[1])
