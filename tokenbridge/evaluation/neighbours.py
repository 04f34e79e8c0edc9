"""Nearest training images of samples in feature space: the check that a model draws images and does not recall them."""

from collections.abc import Iterable

import torch
from torch import Tensor

QUERIES = 5000  # whose distances are in memory at a time
CLOSE = 0.01  # share of real images that are called close to a training image


def nearest(queries: Tensor, parts: Iterable[Tensor], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the distances [Q, count] and the indices [Q, count] of the nearest features, the nearest one first.

    Args:
        queries: features [Q, D].
        parts: the features [n, D] to search, at least ``count`` together, one part after the other.
    """
    distances = torch.full((len(queries), count), torch.inf)
    indices = torch.zeros(len(queries), count, dtype=torch.long)
    start = 0
    for part in parts:
        searched = part.to(device)
        for rows in torch.arange(len(queries)).split(QUERIES):
            near = torch.cdist(queries[rows].to(device), searched).topk(min(count, len(part)), largest=False)
            candidates = torch.cat([distances[rows], near.values.cpu()], dim=1)
            distances[rows], places = candidates.topk(count, largest=False)
            indices[rows] = torch.cat([indices[rows], start + near.indices.cpu()], dim=1).gather(1, places)
        start += len(part)
    return distances, indices


def memorisation(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Compare the distances of samples to the nearest training image with those of real images that were held out.

    Args:
        samples, real: distances [N] and [M].

    Returns:
        ``nearest_train``: the median of the samples; ``test_nearest_train``: the median of the real images;
        ``memorised``: the share of samples that are closer to a training image than 99 % of the real images are,
        about 0.01 for a model that recalls none.
    """
    close = real.quantile(CLOSE)
    return {
        "nearest_train": float(samples.median()),
        "test_nearest_train": float(real.median()),
        "memorised": float((samples < close).float().mean()),
    }
