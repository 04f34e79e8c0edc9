"""The rule for broken images of all sources: they are named and counted, and a small share may be left out."""

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from tokenbridge.images import DataError
from tokenbridge.images.decoding import Converted
from tokenbridge.images.shards import Example
from tokenbridge.images.splits import Encoded, Labels

logger = logging.getLogger(__name__)

MAX_SHOWN = 10  # the most names in an error message
LeftOut = tuple[str, int]  # path and label


class Tolerance:
    """A filter that passes whole images on, and leaves out broken images, up to ``share`` of all images.

    Args:
        labels: the labels of all images of the split, broken images included.
        left_out: broken images that an interrupted fetch found.

    Attributes:
        converted: paths of the images that were passed on but written again.
    """

    def __init__(self, split: str, share: float, labels: Labels, left_out: Iterable[LeftOut] = ()) -> None:
        self.split, self.share, self.count = split, share, len(labels)
        self.left_out_elsewhere, self.every_class = 0, True
        self.left_out, self.converted = list(left_out), list[str]()
        self.remaining = np.bincount(labels)
        np.subtract.at(self.remaining, [label for _, label in self.left_out], 1)

    @property
    def limit(self) -> int:
        """The number of images that may be left out."""
        return int(self.share * self.count)

    def share_with(self, count: int, left_out: int) -> None:
        """Apply the share to this split and another split together.

        Args:
            count: the number of images of the other split.
            left_out: the number of images that the other split has left out so far.
        """
        self.count += count
        self.left_out_elsewhere = left_out

    def whole(self, examples: Iterable[tuple[Encoded, str, int]]) -> Iterator[Example]:
        """Yield the images that are whole.

        Raises:
            DataError: if an image is broken and none may be left out, if more are broken than ``limit``, or if a class
                loses its last image.
        """
        for content, path, label in examples:
            if isinstance(content, Converted):
                self.converted.append(path)
            if isinstance(content, bytes):
                yield content, path, label
            else:
                self._leave_out(content, path, label)

    def _leave_out(self, broken: DataError, path: str, label: int) -> None:
        if self.limit == 0:
            raise broken
        logger.info(f"left out: {broken}")
        self.left_out.append((path, label))
        self.remaining[label] -= 1
        if len(self.left_out) + self.left_out_elsewhere > self.limit:
            shown = ", ".join(path for path, _ in self.left_out[-MAX_SHOWN:])
            raise DataError(
                f"split {self.split} has more than {self.limit} broken images, which data.max_broken ({self.share:g} "
                f"of all) allows; the last are {shown}: replace or delete them, or raise data.max_broken"
            )
        if self.every_class and self.remaining[label] == 0:
            raise DataError(f"{path} was the last image of its class in split {self.split}, and is broken: replace it")
