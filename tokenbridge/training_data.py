"""What a model is trained on: the tokens of each training image, drawn anew at every step.

Shapes: N images, S = h x w positions, C dimensions; with a quantizer of patches, one patch is one position.
"""

from typing import Protocol

import torch
from torch import Tensor

from tokenbridge.moments import Moments
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.tokens import posterior_tokens, token_grid


class TrainingData(Protocol):
    """``FreshTokens`` from moments, or ``tokenbridge.tokens.StoredTokens``."""

    labels: Tensor  # [N]
    num_classes: int
    height: int
    width: int

    def __len__(self) -> int: ...

    def draw(self, indices: Tensor) -> Tensor:
        """Tokens [n, S, C], in natural order, of images ``indices`` [n]; random by torch's current seed."""
        ...


class FreshTokens:
    """Tokens of a fresh posterior sample of each image, mirrored at random where moments hold both flips."""

    def __init__(self, moments: Moments, quantizer: DimensionwiseQuantizer) -> None:
        self.moments, self.quantizer = moments, quantizer
        self.labels, self.num_classes = moments.labels, moments.num_classes
        self.height, self.width = token_grid(moments, quantizer)

    def __len__(self) -> int:
        return len(self.moments)

    def draw(self, indices: Tensor) -> Tensor:
        posterior = self.moments.read(indices, torch.randint(2, indices.shape))
        noise = torch.randn_like(posterior[:, : self.moments.dimensions])
        return posterior_tokens(posterior, noise, self.quantizer)
