"""Residual codes: each of several codebooks codes what the ones before it left (Juang and Gray 1982).

A slot is a stage, and the head predicts the stages in turn, from coarse to fine.

Shapes: C dimensions, R stages (the slots of a token), V codewords in each, M latents.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.finite import check_finite
from tokenbridge.tokenizer.codebook import Codebooks, fit_codebooks, nearest


class ResidualQuantizer(Codebooks):
    """Codebooks of whole latents, whose codewords are added, and the normalisation.

    A further buffer:
        codebooks [R, V, C]: codewords in units of normalised latents

    Args:
        dimensions: C, the dimensions of one patch.
        num_codebooks: R.
        num_codewords: V.
        patch_size: p.
    """

    @register_to_config
    def __init__(self, dimensions: int, num_codebooks: int, num_codewords: int, patch_size: int = 1) -> None:
        super().__init__()
        self._register(dimensions, codebooks=torch.zeros(num_codebooks, num_codewords, dimensions))

    @property
    def values(self) -> Tensor:
        return self.loc.new_empty(len(self.loc), 0)  # V ** R sums are too many to list

    @property
    def told(self) -> Tensor:
        return torch.ones(self.slots, len(self.loc))

    def encode(self, latents: Tensor) -> Tensor:
        """Return the indices, int64 [..., R], of latents [..., C]: at each stage, that of the nearest codeword.

        This greedy search does not find the nearest of all V ** R sums. So the token of a decoded token can be another.

        Raises:
            UserError: if a latent is NaN or infinite.
        """
        check_finite("latents", latents, self)
        left, indices = latents.float().reshape(-1, latents.shape[-1]), []
        for book in self.codebooks:
            indices.append(nearest(left, book)[0])
            left = left - book[indices[-1]]
        return torch.stack(indices, -1).view(*latents.shape[:-1], self.slots)

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the sums of codewords, float32 [..., C], of tokens [..., R]."""
        return torch.stack(self._codewords(tokens)).sum(0)


def fit_stages(latents: Tensor, stages: int, codewords: int) -> Tensor:
    """Return codebooks [R, V, C]: each is fitted by k-means to what the earlier ones leave of latents [M, C].

    Raises:
        UserError: as ``fit_codebooks``.
    """
    order, books = torch.arange(latents.shape[1]), []
    for _ in range(stages):
        (book,) = fit_codebooks(latents, order, 1, codewords)
        latents = latents - book[nearest(latents, book)[0]]
        books.append(book)
    return torch.stack(books)
