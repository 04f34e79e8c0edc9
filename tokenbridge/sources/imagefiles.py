"""Image files, wherever they lie, as splits: set aside, mixed, read side by side and proven whole."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tokenbridge.images import DataError
from tokenbridge.images.decoding import open_whole
from tokenbridge.images.splits import Encoded, Split

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # images read at a time: enough for all threads, little enough for memory
THREADS = max(16, os.cpu_count() or 1)  # more than cores, since a distant store lets them wait
MAX_FILE_BYTES = 2**26  # of one image from a store or archive; decoding limits its pixels


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that was found, and not yet read."""

    path: str  # in the source, so that it is the same wherever that lies; its hash decides the image's place
    place: str  # for messages
    read: Callable[[], bytes]


ClassFiles = dict[str, list[ImageFile]]  # class name: its images


def divide(classes: ClassFiles, test_fraction: float) -> dict[str, ClassFiles]:
    """Set ``test_fraction`` of every class aside, at least one image, chosen by the hash of its path."""
    files: dict[str, ClassFiles] = {"train": {}, "test": {}}
    for name, images in classes.items():
        if len(images) < 2:
            raise DataError(
                f"class {name} has one image: add another beside {images[0].place}, so that both splits get one"
            )
        held_out = min(max(1, round(test_fraction * len(images))), len(images) - 1)
        shuffled = sorted(images, key=shuffle_key)
        files["test"][name], files["train"][name] = shuffled[:held_out], shuffled[held_out:]
    return files


def shuffle_key(image: ImageFile) -> str:
    """Mixes classes, the same on every machine, and moves no other image when one is added."""
    return hashlib.sha256(image.path.encode()).hexdigest()


def make_split(classes: ClassFiles, names: list[str]) -> Split:
    """All images in the order of their hashes; labels are places in ``names``."""
    labelled = [(image, label) for label, name in enumerate(names) for image in classes[name]]
    labelled.sort(key=lambda each: shuffle_key(each[0]))
    labels = np.array([label for _, label in labelled], dtype=np.int64)
    return Split(labels, lambda indices: read_side_by_side(labelled[index][0] for index in indices))


def read_side_by_side(images: Iterable[ImageFile]) -> Iterator[tuple[Encoded, str]]:
    """Each image's content and path, in their order, ``READ_AHEAD`` of them at a time."""
    remaining = iter(images)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(remaining, READ_AHEAD)):
            for image, content in zip(chunk, pool.map(read_whole, chunk), strict=True):
                yield content, image.path


def read_whole(image: ImageFile) -> Encoded:
    """The file as it is, after one full decode that proves it; or why it is broken.

    Raises:
        DataError: when it cannot be read at all, which is no fault of the image.
    """
    try:
        content = image.read()
    except OSError as error:
        raise DataError(f"{image.place} cannot be read ({error.strerror}): restore it or its permissions") from error
    try:
        open_whole(content, image.place)
    except DataError as broken:
        return broken
    return content


def check_size(size: int, place: str, largest: int | None = None) -> None:
    """Raises DataError for a file too large to be one image, before it is read; or of less than nothing."""
    largest = largest or MAX_FILE_BYTES
    if not 0 <= size <= largest:
        raise DataError(f"{place} says it has {size:,} bytes: an image may have {largest:,}, so shrink it")
