"""Splits of image files, local or remote: division into train and test, mixing, parallel reading and checking."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from tokenbridge.base.threads import threads_of_stream
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.images.decoding import check_bytes, checked_file
from tokenbridge.images.splits import Encoded, Split
from tokenbridge.images.weight import groups
from tokenbridge.sources.places import StoredFile

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # images read at a time: enough to keep all threads busy
READ_AHEAD_BYTES = 2**28  # read at a time, unless a single image has more
THREADS = max(16, os.cpu_count() or 1)  # may be more than the cores, because threads wait for a remote store


ClassFiles = dict[str, list[StoredFile]]  # class name -> its images


def divide(classes: ClassFiles, test_fraction: float) -> dict[str, ClassFiles]:
    """Divide every class into train and test; ``test_fraction`` of its images, at least one, go to test.

    The hash of an image's name decides.

    Raises:
        DataError: if a class has only one image.
    """
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


def shuffle_key(image: StoredFile) -> str:
    """Return the sort key of an image. It mixes classes, is the same on every machine, and ignores other images."""
    return hashlib.sha256(image.name.encode()).hexdigest()


def make_split(classes: ClassFiles, names: list[str], config: DataConfig) -> Split:
    """Return a split of all images, in the order of their hashes; labels are indices into ``names``."""
    labelled = [(image, label) for label, name in enumerate(names) for image in classes[name]]
    labelled.sort(key=lambda each: shuffle_key(each[0]))
    labels = np.array([label for _, label in labelled], dtype=np.int64)
    return Split(labels, lambda indices: read_side_by_side((labelled[index][0] for index in indices), config))


def read_side_by_side(images: Iterable[StoredFile], config: DataConfig) -> Iterator[tuple[Encoded, str]]:
    """Yield each image's content and name in order. Threads read a group of images at a time."""
    with threads_of_stream(THREADS) as pool:
        for group in groups(images, READ_AHEAD, lambda image: image.size, READ_AHEAD_BYTES):
            for image, content in zip(group, pool.map(partial(read_whole, config=config), group), strict=True):
                yield content, image.name


def read_whole(image: StoredFile, config: DataConfig) -> Encoded:
    """Return what is stored of an image, after decoding the whole image as a check, or the error if it is broken.

    Raises:
        DataError: if the file cannot be read; then the image itself may be whole.
    """
    try:
        check_bytes(image.size, image.place, config.limits)
    except DataError as broken:
        return broken
    content = image.read(0, image.size)
    try:
        return checked_file(content, image.place, config.limits, config.background)
    except DataError as broken:
        return broken
