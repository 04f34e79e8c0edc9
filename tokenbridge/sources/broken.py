"""What is done about broken images, of whatever source: they are named and counted, and few may be left out."""

from collections.abc import Iterable, Iterator

import numpy as np

from tokenbridge.images import DataError
from tokenbridge.images.shards import Example
from tokenbridge.images.splits import Encoded, Labels

SHOWN = 10  # names in the message of refusal
LeftOut = tuple[str, int]  # path and label


class Tolerance:
    """Passes whole images on, and leaves out broken ones, up to ``share`` of all.

    Args:
        labels: of all images of the split, broken or not.
        left_out: broken images that an interrupted fetch has found.
    """

    def __init__(self, split: str, share: float, labels: Labels, left_out: Iterable[LeftOut] = ()) -> None:
        self.split, self.share, self.count = split, share, len(labels)
        self.elsewhere, self.every_class = 0, True
        self.left_out = list(left_out)
        self.remaining = np.bincount(labels)
        np.subtract.at(self.remaining, [label for _, label in self.left_out], 1)

    @property
    def limit(self) -> int:
        """How many images may be left out."""
        return int(self.share * self.count)

    def share_with(self, count: int, left_out: int) -> None:
        """Take the share of this split together with ``count`` images more, of which so many are left out already."""
        self.count += count
        self.elsewhere = left_out

    def whole(self, examples: Iterable[tuple[Encoded, str, int]]) -> Iterator[Example]:
        """Raises DataError: at the first broken image if none may be left out, at the first too many, or at a class's
        last image."""
        for content, path, label in examples:
            if isinstance(content, bytes):
                yield content, path, label
            else:
                self._leave_out(content, path, label)

    def _leave_out(self, broken: DataError, path: str, label: int) -> None:
        if self.limit == 0:
            raise broken
        print(f"left out: {broken}", flush=True)
        self.left_out.append((path, label))
        self.remaining[label] -= 1
        if len(self.left_out) + self.elsewhere > self.limit:
            shown = ", ".join(path for path, _ in self.left_out[-SHOWN:])
            raise DataError(
                f"split {self.split} has more than {self.limit} broken images, which data.max_broken ({self.share:g} "
                f"of all) allows; the last are {shown}: replace or delete them, or allow more"
            )
        if self.every_class and self.remaining[label] == 0:
            raise DataError(f"{path} was the last image of its class in split {self.split}, and is broken: replace it")
