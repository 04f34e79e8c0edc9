"""The lattice E8 as a quantizer of 8 dimensions at a time, for tokens that are entropy-coded (Conway and Sloane 1982).

D8 is the integer vectors of even sum, and E8 is D8 together with D8 + 1/2. Its cells are nearer to balls than cubes
are. So at equal error and high rate, it needs 0.109 bits less for each dimension than equal steps do.

Shapes: C dimensions, C / 8 blocks of 9 slots. The slots of a block are its coset and 8 integers.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.config import E8_DIMENSIONS
from tokenbridge.tokenizer.latents import Quantizer

SHIFT = 0.5  # of the second coset


class E8Quantizer(Quantizer):
    """A scaled lattice, normalisation and dimension order. Block b covers the b-th 8 dimensions of the order.

    The sum of a block's integers is even. So the last slot holds the half of its integer, and a slot's index has no bit
    that the others tell already. Integers beyond the reach become the outermost ones.

    Args:
        dimensions: C, the dimensions of one patch; a multiple of 8.
        step: the scale of the lattice, in units of normalised latents.
        reach: the largest integer.
        patch_size: p.
    """

    @register_to_config
    def __init__(self, dimensions: int, step: float, reach: int, patch_size: int = 1) -> None:
        super().__init__()
        if dimensions % E8_DIMENSIONS:
            raise UserError(
                f"a token has {dimensions} dimensions, and quantizer.family=e8 needs a multiple of {E8_DIMENSIONS}"
            )
        self._register(dimensions)

    @property
    def slots(self) -> int:
        return len(self.loc) // E8_DIMENSIONS * (1 + E8_DIMENSIONS)

    @property
    def classes(self) -> int:
        return 2 * self.config.reach + 1

    @property
    def values(self) -> Tensor:
        multiples = torch.arange(-self.config.reach, self.config.reach + 1, SHIFT, device=self.loc.device)
        return (multiples * self.config.step).expand(len(self.loc), -1)

    @property
    def told(self) -> Tensor:
        block = torch.cat([torch.ones(1, E8_DIMENSIONS), torch.eye(E8_DIMENSIONS)])
        blocks = torch.block_diag(*[block] * (len(self.loc) // E8_DIMENSIONS))
        return blocks[:, self.dimension_order.argsort()]

    def encode(self, latents: Tensor) -> Tensor:
        """Return the tokens, int64 [..., 9 C / 8], of the nearest lattice points of latents [..., C].

        Raises:
            UserError: if a latent is NaN or infinite.
        """
        check_finite("latents", latents, self)
        blocks = latents.float()[..., self.dimension_order].unflatten(-1, (-1, E8_DIMENSIONS)) / self.config.step
        coset, integers = nearest_e8(blocks)
        integers = integers.clamp(-self.config.reach, self.config.reach)
        first, last = integers[..., :-1], integers[..., -1:]
        halved = (last - _parity(first)).div(2, rounding_mode="floor")
        return torch.cat([coset, torch.cat([first, halved], -1) + self.config.reach], -1).flatten(-2)

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the lattice points, float32 [..., C], of tokens [..., 9 C / 8]."""
        coset, first, halved = tokens.unflatten(-1, (-1, 1 + E8_DIMENSIONS)).split([1, E8_DIMENSIONS - 1, 1], -1)
        first, halved = first - self.config.reach, halved - self.config.reach
        integers = torch.cat([first, 2 * halved + _parity(first)], -1)
        points = (integers + coset.clamp_max(1) * SHIFT) * self.config.step
        return points.flatten(-2)[..., self.dimension_order.argsort()]


def nearest_e8(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coset [..., 1] and the integers [..., 8], int64, of the lattice points nearest to points [..., 8]."""
    shifts = points.new_tensor([0, SHIFT]).view(-1, *[1] * points.ndim)
    candidates = nearest_d8(points - shifts)
    coset = (candidates + shifts - points).square().sum(-1, keepdim=True).argmin(0)
    return coset, candidates.gather(0, coset.expand_as(points)[None])[0].long()


def nearest_d8(points: Tensor) -> Tensor:
    """Return the integers [..., 8] of even sum that are nearest to points [..., 8].

    If the sum of the rounded coordinates is odd, the one of largest error is rounded the other way.
    """
    rounded = points.round()
    errors = points - rounded
    largest = errors.abs().argmax(-1, keepdim=True)
    other_way = torch.where(errors.gather(-1, largest) < 0, -1.0, 1.0)
    return rounded.scatter_add(-1, largest, other_way * _parity(rounded))


def _parity(integers: Tensor) -> Tensor:
    """Return 1 where the sum of integers [..., n] is odd, else 0: [..., 1]."""
    return integers.sum(-1, keepdim=True) % 2
