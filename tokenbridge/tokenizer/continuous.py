"""No quantizer: a token is the normalised latents themselves, as in MAR (arXiv 2406.11838) and GIVT (2312.02116).

Shapes: C dimensions. A slot is a dimension: G = C.
"""

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.finite import check_finite
from tokenbridge.tokenizer.latents import Quantizer


class ContinuousLatents(Quantizer):
    """The normalisation alone. Tokens are real numbers, for heads that predict a density.

    Args:
        dimensions: C, the dimensions of one patch.
        patch_size: p.
    """

    @register_to_config
    def __init__(self, dimensions: int, patch_size: int = 1) -> None:
        super().__init__()
        self._register(dimensions)

    @property
    def slots(self) -> int:
        return len(self.loc)

    @property
    def classes(self) -> None:
        return None

    @property
    def values(self) -> Tensor:
        return self.loc.new_empty(len(self.loc), 0)

    def encode(self, latents: Tensor) -> Tensor:
        """Return the latents, float32 [..., C], as they are.

        Raises:
            UserError: if a latent is NaN or infinite.
        """
        check_finite("latents", latents, self)
        return latents.float()

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the tokens, float32 [..., C], as they are."""
        return tokens
