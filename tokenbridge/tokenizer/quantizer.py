"""The post-training, dimension-wise quantizer (paper Sec. 3.2): a token has one level index for each dimension.

Shapes: C dimensions, B levels. A slot is a dimension: G = C.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.tokenizer.latents import Quantizer


class DimensionwiseQuantizer(Quantizer):
    """Levels, normalisation and dimension order, fitted, saved and loaded together.

    A further buffer:
        levels [C, B]: ascending values, in units of normalised latents

    Args:
        dimensions: C, the dimensions of one patch.
        num_levels: B.
        patch_size: p.
    """

    levels: Tensor

    @register_to_config
    def __init__(self, dimensions: int, num_levels: int, patch_size: int = 1) -> None:
        super().__init__()
        self._register(dimensions, levels=torch.zeros(dimensions, num_levels))

    @classmethod
    def build(
        cls, loc: Tensor, scale: Tensor, levels: Tensor, dimension_order: Tensor, patch_size: int = 1
    ) -> "DimensionwiseQuantizer":
        """Return a quantizer with the given parts.

        Raises:
            UserError: as ``check``.
        """
        dimensions, num_levels = levels.shape
        quantizer = cls(dimensions=dimensions, num_levels=num_levels, patch_size=patch_size)
        return quantizer.filled({"loc": loc, "scale": scale, "levels": levels, "dimension_order": dimension_order})

    @property
    def slots(self) -> int:
        return len(self.levels)

    @property
    def classes(self) -> int:
        return self.levels.shape[1]

    @property
    def values(self) -> Tensor:
        return self.levels

    def check(self) -> None:
        """Check the buffers, which others may have written.

        Raises:
            UserError: as ``Quantizer.check``, or if levels do not ascend.
        """
        super().check()
        if not (self.levels.diff(dim=1) > 0).all():
            raise UserError(
                "levels do not ascend strictly in every dimension: lower quantizer.levels or raise quantizer.fit_images"
            )

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
