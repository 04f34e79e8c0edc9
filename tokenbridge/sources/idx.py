"""The IDX files of MNIST and similar data sets: grey images and their labels, as two arrays per split."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.images.decoding import encode_png
from tokenbridge.images.splits import Split
from tokenbridge.sources.mirrors import fetch_files

IDX_FILES = {  # split: images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 8  # the third byte of an IDX header: the type of the items
REPLACE = "the file is corrupt or of another kind: get it again, or correct data.sha256 if it is the right file"


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """Return the array in an uncompressed IDX file: two zero bytes, type, rank, sizes (big-endian), then the items.

    Raises:
        DataError: if the header is not that of unsigned bytes in ``rank`` axes, or does not agree with the file's size.
    """
    content = path.read_bytes()
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
        raise DataError(f"{path.name} has no readable IDX header (bytes in {rank} axes): {REPLACE}")
    shape = np.frombuffer(content, ">u4", rank, offset=4).tolist()
    if len(content) - header != math.prod(shape) or 0 in shape:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path.name} says {sizes} items but holds {len(content) - header:,} bytes: {REPLACE}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx(config: DataConfig, scratch: Path) -> tuple[list[str], dict[str, Split]]:
    """Return label names and both splits. The four files are put into ``scratch``."""
    files = [name for pair in IDX_FILES.values() for name in pair]
    unproven = [name for name in files if name not in config.sha256]
    if unproven:
        raise DataError(f"data.sha256 lacks {', '.join(unproven)}: give the SHA-256 of each decompressed IDX file")
    fetch_files(config.name, config.mirrors, {name: config.sha256[name] for name in files}, scratch)
    label_names = config.label_names or [str(label) for label in range(config.num_classes)]
    return label_names, {split: load_split(config, scratch, split) for split in IDX_FILES}


def load_split(config: DataConfig, folder: Path, split: str) -> Split:
    image_file, label_file = IDX_FILES[split]
    images = read_idx(folder / image_file, rank=3)
    labels = read_idx(folder / label_file, rank=1).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images):,} images but {label_file} {len(labels):,} labels: {REPLACE}")
    found = np.unique(labels)
    if not np.array_equal(found, np.arange(config.num_classes)):
        raise DataError(
            f"{label_file} has the classes {', '.join(map(str, found))} but data.num_classes is {config.num_classes}: "
            f"set data.num_classes and data.label_names to what the file holds"
        )

    def encode(indices: Iterable[int]) -> Iterator[tuple[bytes, str]]:
        for index in indices:
            image = Image.fromarray(pad(images[index], config.image_size))  # grey; reading converts it to RGB
            yield encode_png(image), f"{split}/{index:05d}.png"

    return Split(labels, encode)


def pad(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre an image [H, W] on a black square of ``size`` pixels; sides that are at least as large do not change."""
    margins = [max(size - side, 0) for side in image.shape]
    return np.pad(image, [(margin // 2, margin - margin // 2) for margin in margins])
