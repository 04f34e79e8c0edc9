"""Codebooks fitted after the VAE's training: k-means, and product codes of several codebooks (Jegou et al. 2011).

One codebook makes one index of a whole token, as in the one-index models that TokenBridge is compared with (VQ). Theirs
are trained with the tokenizer. G codebooks of C / G dimensions each make G indices. With G = C, this is a quantizer of
each dimension by itself, and k-means is Lloyd's iteration.

Shapes: C dimensions, G codebooks (the slots of a token), V codewords in each, M latents.
"""

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.base.seeding import generator
from tokenbridge.tokenizer.latents import Quantizer

ROUNDS = 30  # of k-means, at most
NEGLIGIBLE_GAIN = 1e-4  # k-means stops when a round reduces the squared error by at most this share
# distances between latents and codewords at once: on a CPU 4 MiB, which stay in its cache, and on any other device
DISTANCES_ON_CPU, DISTANCES = 2**20, 2**24


class Codebooks(Quantizer):
    """A quantizer whose slots are indices into codebooks: one for each slot, all of equally many codewords."""

    codebooks: Tensor  # [G, V, D]

    @property
    def slots(self) -> int:
        return len(self.codebooks)

    @property
    def classes(self) -> int:
        return self.codebooks.shape[1]

    def _codewords(self, tokens: Tensor) -> list[Tensor]:
        """Return the codewords [..., D] of each slot of tokens [..., G]."""
        return [book[indices] for book, indices in zip(self.codebooks, tokens.unbind(-1), strict=True)]


class CodebookQuantizer(Codebooks):
    """Codebooks, normalisation and dimension order. Codebook g covers the g-th C / G dimensions of the order.

    A further buffer:
        codebooks [G, V, C / G]: codewords in units of normalised latents

    Args:
        dimensions: C, the dimensions of one patch.
        num_codebooks: G; must divide C.
        num_codewords: V.
        patch_size: p.
    """

    @register_to_config
    def __init__(self, dimensions: int, num_codebooks: int, num_codewords: int, patch_size: int = 1) -> None:
        super().__init__()
        if dimensions % num_codebooks:
            raise UserError(
                f"quantizer.codebooks is {num_codebooks}: it must divide the {dimensions} dimensions of a token"
            )
        self._register(dimensions, codebooks=torch.zeros(num_codebooks, num_codewords, dimensions // num_codebooks))

    @property
    def values(self) -> Tensor:
        return self.codebooks.transpose(1, 2).flatten(0, 1)[self.dimension_order.argsort()]

    @property
    def told(self) -> Tensor:
        covered = torch.eye(self.slots).repeat_interleave(self.codebooks.shape[2], 1)
        return covered[:, self.dimension_order.argsort()]

    def encode(self, latents: Tensor) -> Tensor:
        """Return the indices of the nearest codewords, int64 [..., G], of latents [..., C].

        Raises:
            UserError: if a latent is NaN or infinite.
        """
        check_finite("latents", latents, self)
        parts = latents.float()[..., self.dimension_order].unflatten(-1, (self.slots, -1)).movedim(-2, 0)
        indices = [nearest(part.flatten(0, -2), book)[0] for part, book in zip(parts, self.codebooks, strict=True)]
        return torch.stack(indices, -1).view(*latents.shape[:-1], self.slots)

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the codewords, float32 [..., C], of tokens [..., G]."""
        return torch.cat(self._codewords(tokens), -1)[..., self.dimension_order.argsort()]


def fit_codebooks(latents: Tensor, dimension_order: Tensor, codebooks: int, codewords: int) -> Tensor:
    """Return codebooks [G, V, C / G], fitted by k-means to latents [M, C].

    Raises:
        UserError: if there are fewer latents than codewords.
    """
    if len(latents) < codewords:
        raise UserError(
            f"{len(latents):,} latents for quantizer.codewords={codewords}: lower it, or raise quantizer.fit_images"
        )
    parts = latents[:, dimension_order].unflatten(-1, (codebooks, -1)).unbind(1)
    return torch.stack([kmeans(part, codewords, generator("codebook", number)) for number, part in enumerate(parts)])


def kmeans(points: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return the means [V, D] of ``count`` clusters of points [M, D], by Lloyd's iteration from random points.

    A cluster without a point begins again at one of the points that are farthest from their means.
    """
    means, last_error = points[torch.randperm(len(points), generator=random)[:count]], torch.inf
    for _ in range(ROUNDS):
        indices, errors = nearest(points, means)
        error = float(errors.double().sum())
        if last_error - error <= NEGLIGIBLE_GAIN * last_error < torch.inf:
            break
        last_error = error
        sizes = indices.bincount(minlength=count)
        means = torch.zeros_like(means).index_add_(0, indices, points) / sizes.clamp_min(1)[:, None]
        empty = sizes == 0
        means[empty] = points[errors.topk(int(empty.sum())).indices]
    return means


def nearest(points: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index [M] of each point's nearest codeword, and their squared distance [M].

    Args:
        points: [M, D].
        codewords: [V, D].
    """
    found = list(_nearest_parts(points, codewords))
    return torch.cat([indices for indices, _ in found]), torch.cat([errors for _, errors in found])


def _nearest_parts(points: Tensor, codewords: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    energy = codewords.square().sum(-1)
    most = DISTANCES_ON_CPU if points.device.type == "cpu" else DISTANCES
    for part in points.split(max(1, most // len(codewords))):
        without_own, indices = torch.addmm(energy, part, codewords.T, alpha=-2).min(-1)
        yield indices, (without_own + part.square().sum(-1)).clamp_min(0)
