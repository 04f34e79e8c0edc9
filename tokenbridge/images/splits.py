"""A split of a data set before it is written: its labels are known, and images are encoded when they are needed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenbridge.images import DataError

Labels = NDArray[np.int64]
Encoded = bytes | DataError  # an image file, or why it is broken


@dataclass(frozen=True)
class Split:
    """The images of a split, in their final order.

    Attributes:
        labels: int64 [N].
        encode: takes ascending indices, and yields the encoded file and path of each image.
    """

    labels: Labels
    encode: Callable[[Iterable[int]], Iterator[tuple[Encoded, str]]]

    def examples(self, indices: Labels | None = None) -> Iterator[tuple[Encoded, str, int]]:
        """Yield (encoded image, path, label) of the images with the ascending ``indices``, or of all images."""
        indices = np.arange(len(self.labels)) if indices is None else indices
        for index, (content, path) in zip(indices, self.encode(indices.tolist()), strict=True):
            yield content, path, int(self.labels[index])


MAX_VALIDATION_SHARE = 0.1  # the largest share of a class's training images that is used for validation


def cut_validation(labels: Labels, count: int, seed: int) -> NDArray[np.bool_]:
    """Choose about ``count`` images for validation; return a boolean [N].

    Each class gives the same share of its images, at least one and at most a tenth. ``seed`` decides the choice.

    Raises:
        DataError: if a class has a single image.
    """
    chosen = np.zeros(len(labels), bool)
    share = min(MAX_VALIDATION_SHARE, count / len(labels))
    random = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class {label} has one training image, but training and validation need one each: add one")
        chosen[members[: max(1, round(share * len(members)))]] = True
    return chosen


def balanced_subset(labels: Labels, limit: int | None) -> Labels:
    """Return the ascending indices of ``limit`` examples, balanced over classes as far as possible.

    The first examples of each class are taken. Where not every class can have one more, those that do are spread evenly
    over the classes. None: all examples.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank_in_class = np.empty_like(labels)
    rank_in_class[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    by_round = np.lexsort((labels, rank_in_class))  # the first example of every class, then the second ones
    last = rank_in_class[by_round[limit - 1]]
    start, end = np.searchsorted(rank_in_class[by_round], [last, last + 1])
    spread = np.arange(limit - start) * (end - start) // (limit - start)
    return np.sort(np.concatenate([by_round[:start], by_round[start:end][spread]]))
