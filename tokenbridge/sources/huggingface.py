"""A data set in the Hugging Face Hub's layout: Parquet files of each split, on the Hub, in a local folder or on S3.

Images are kept in the order of their rows, so that files are read from beginning to end, not at random.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION, DataError
from tokenbridge.images.rowgroups import RowGroups
from tokenbridge.images.splits import Labels, Split
from tokenbridge.sources.imagefiles import ImageFile, read_side_by_side
from tokenbridge.sources.imagenet_classes import imagenet_names
from tokenbridge.sources.places import StoredFile, list_files, root_of
from tokenbridge.sources.streams import Stream

SUFFIX = ".parquet"
REMEDY = "get it again, or correct data.root"
BUFFER = 2**16  # bytes; pyarrow reads a column of a row group in one request, which may be larger than the buffer
MAX_COLUMN_BYTES = 2**31  # of one column of a row group


def load_huggingface(config: DataConfig, storage: StorageConfig) -> tuple[list[str], dict[str, Split]]:
    """Return label names and the splits. Only footers and labels are read; images are read when they are encoded.

    Raises:
        DataError: if a data set, split or column is missing, if labels are not 0..num_classes-1, or if the Hub refuses.
    """
    root = root_of(config)
    named = [split for split in (config.hub.train, config.hub.test, config.hub.validation) if split is not None]
    if len({*named}) < len(named):
        raise DataError(
            f"data.hub.train, test and validation are {', '.join(named)}: name different splits, or set test or "
            "validation to null, so that it is cut from the training images"
        )
    files = [file for file in list_files(root, storage) if file.name.endswith(SUFFIX)]
    train = HubSplit(config, files, config.hub.train)
    names = label_names(config, train)
    wanted = {TEST: config.hub.test, VALIDATION: config.hub.validation}
    others = {name: HubSplit(config, files, split).split() for name, split in wanted.items() if split is not None}
    if TEST in others:
        return names, {TRAIN: train.split()} | others
    if config.test_fraction == 0:
        raise DataError(
            "data.hub.test is null and data.test_fraction is 0: set one of them, such as data.test_fraction=0.1"
        )
    aside = held_out(train.labels, config.test_fraction)
    return names, {TRAIN: train.split(np.flatnonzero(~aside)), TEST: train.split(np.flatnonzero(aside))} | others


class HubSplit:
    """The Parquet files of one split, as one table.

    Attributes:
        labels: int64 [N].
    """

    def __init__(self, config: DataConfig, files: list[StoredFile], split: str) -> None:
        self.name, self.hub = split, config.hub
        self.files = [file for file in files if belongs(file.name, split)]
        if not self.files:
            found = ", ".join(file.name for file in files[:10]) or "none"
            raise DataError(
                f"{config.root} has no {SUFFIX} files of split {split!r} (found: {found}): correct data.root, "
                "data.hub.train or data.hub.test"
            )
        folders = sorted({str(PurePosixPath(file.name).parent) for file in self.files})
        if len(folders) > 1:  # several configurations in one repository
            raise DataError(
                f"{config.root} has files of split {split!r} in {', '.join(folders)}: choose one by data.root, such as "
                f"{config.root}/{folders[0]}"
            )
        self.rows = RowGroups(
            [(file.place, partial(Stream, file, BUFFER, MAX_COLUMN_BYTES)) for file in self.files], REMEDY
        )
        columns = self.rows.footers[0].schema.to_arrow_schema().names
        missing = [name for name in (self.hub.image, self.hub.label) if name not in columns]
        if missing:
            raise DataError(
                f"{self.files[0].place} has the columns {', '.join(columns)}, not {', '.join(missing)}: "
                "correct data.hub.image and data.hub.label"
            )
        self.labels: Labels = self.rows.column(self.hub.label).astype(np.int64)
        self._check_labels(config.num_classes)

    def _check_labels(self, num_classes: int) -> None:
        found = np.unique(self.labels)
        if not np.array_equal(found, np.arange(num_classes)):
            shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
            raise DataError(
                f"split {self.name!r} has the labels {shown} ({len(found)} of them) but data.num_classes is "
                f"{num_classes}: correct it, or choose a split that has labels"
            )

    def split(self, rows: Labels | None = None) -> Split:
        """Return all images as a split, or those of the ascending ``rows``."""
        kept = np.arange(len(self.labels)) if rows is None else rows
        return Split(
            self.labels[kept],
            lambda indices: read_side_by_side(self.images(kept[np.fromiter(indices, np.int64)])),
        )

    def images(self, rows: Labels) -> Iterator[ImageFile]:
        """Yield the images of ascending rows, with one row group at a time in memory."""
        bounds = np.searchsorted(rows, self.rows.starts)
        for position, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                start = self.rows.starts[position]
                column = self.rows.group(position, [self.hub.image])[self.hub.image]
                for row in rows[first:last].tolist():
                    yield self.image(row, column[row - start].as_py())

    def image(self, row: int, content: Any) -> ImageFile:
        path = f"{self.name}/{row:08d}"
        place = f"{self.files[0].place}, row {row:,} of split {self.name}"
        if not isinstance(content, dict) or not isinstance(content.get("bytes"), bytes):
            raise DataError(f"{place} holds no encoded image: {self.hub.image} must be a column of images, with bytes")
        name = PurePosixPath(content.get("path") or "").name
        return ImageFile(f"{path}-{name}" if name else path, f"{place} ({name})", partial(bytes, content["bytes"]))


def belongs(name: str, split: str) -> bool:
    """Return whether a file belongs to a split.

    Names of ``train``: data/train-00000-of-00010.parquet, train_0.parquet, train.parquet or train/0000.parquet.
    """
    path = PurePosixPath(name)
    return bool(re.fullmatch(rf"{re.escape(split)}(-.*|_\d+)?", path.stem)) or path.parent.name == split


def label_names(config: DataConfig, split: HubSplit) -> list[str]:
    """Return the class names, by label.

    They are data.label_names if set, ImageNet's if data.class_names asks for them, those in the data set's features, or
    numbers.

    Raises:
        DataError: if the data set's features do not name ``num_classes`` different classes.
    """
    if config.label_names is not None:
        return config.label_names
    if config.class_names == IMAGENET:
        return list(imagenet_names().values())
    metadata = split.rows.footers[0].schema.to_arrow_schema().metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(config.hub.label, {}).get("names")
    if names is None:
        return [str(label) for label in range(config.num_classes)]
    if len(names) != config.num_classes or len(set(names)) != len(names):
        raise DataError(
            f"{config.root} names {len(set(names))} classes but data.num_classes is {config.num_classes}: correct it, "
            "or set data.label_names"
        )
    return list(names)


def held_out(labels: Labels, fraction: float) -> np.ndarray:
    """Choose ``fraction`` of each class, at least one row, by the hashes of row numbers; return a boolean [N]."""
    aside = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: hashlib.sha256(b"%d" % row).digest())
        if len(rows) < 2:
            raise DataError(f"class {label} has one image, but both splits need one: add another")
        aside[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return aside
