"""A split of a data set before it is written: labels at hand, images encoded when asked for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenbridge.images import DataError

Labels = NDArray[np.int64]
Encoded = bytes | DataError  # an image file, or why it is broken


@dataclass(frozen=True)
class Split:
    """Images in their final order.

    Attributes:
        labels: int64 [N].
        encode: the encoded file and its path, for each of the given indices, which ascend, in their order.
    """

    labels: Labels
    encode: Callable[[Iterable[int]], Iterator[tuple[Encoded, str]]]

    def examples(self, indices: Labels | None = None) -> Iterator[tuple[Encoded, str, int]]:
        """(encoded image, path, label) of the images ``indices``, which ascend; of all without."""
        indices = np.arange(len(self.labels)) if indices is None else indices
        for index, (content, path) in zip(indices, self.encode(indices.tolist()), strict=True):
            yield content, path, int(self.labels[index])


MOST_CUT = 0.1  # of each class's training images, for validation


def cut_validation(labels: Labels, count: int, seed: int) -> NDArray[np.bool_]:
    """Boolean [N]: about ``count`` images, drawn by ``seed``, of each class its share and at most a tenth of it.

    Raises:
        DataError: when a class has a single image, or none is left to be cut.
    """
    chosen = np.zeros(len(labels), bool)
    share = min(MOST_CUT, count / len(labels))
    random = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class {label} has one training image: training and validation need one each")
        chosen[members[: max(1, round(share * len(members)))]] = True
    return chosen


def balanced_subset(labels: Labels, limit: int | None) -> Labels:
    """Ascending indices of ``limit`` examples, as evenly over the classes as they allow; the first of each class."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank_in_class = np.empty_like(labels)
    rank_in_class[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(np.lexsort((labels, rank_in_class))[:limit])
