"""A data set in the Hugging Face Hub's layout: Parquet files of each split, on the Hub, in a local folder or on S3.

Images are kept in the order of their rows, so that files are read from beginning to end, not at random.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from tokenbridge.base.files import parse_json
from tokenbridge.base.names import normalized, stored_name
from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION, DataError
from tokenbridge.images.rowgroups import RowGroups
from tokenbridge.images.splits import Labels, Split
from tokenbridge.sources.imagefiles import read_side_by_side
from tokenbridge.sources.imagenet_classes import imagenet_names, names_of
from tokenbridge.sources.labels import Label, column_labels, name_classes
from tokenbridge.sources.places import StoredFile, list_files, root_of
from tokenbridge.sources.streams import Stream

SUFFIX = ".parquet"
REMEDY = "get it again, or correct data.root"
MAX_COLUMN_BYTES = 2**31  # of one column of a row group
BUFFER = 2**16  # bytes; pyarrow reads a column of a row group in one request, which may be larger than the buffer


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
    found = train.found()
    names, known = name_classes({*found}, given_names(config, train), config, f"split {train.name!r} of {root}")
    if config.class_names == IMAGENET:
        names = names_of(names, root)
    labels = train.indices(found, known)
    wanted = {TEST: config.hub.test, VALIDATION: config.hub.validation}
    others = {name: HubSplit(config, files, split).whole(known) for name, split in wanted.items() if split is not None}
    if TEST in others:
        return names, {TRAIN: train.split(labels)} | others
    if config.test_fraction == 0:
        raise DataError(
            "data.hub.test is null and data.test_fraction is 0: set one of them, such as data.test_fraction=0.1"
        )
    aside = held_out(labels, config.test_fraction)
    divided = {TRAIN: np.flatnonzero(~aside), TEST: np.flatnonzero(aside)}
    return names, {split: train.split(labels, rows) for split, rows in divided.items()} | others


class HubSplit:
    """The Parquet files of one split, as one table."""

    def __init__(self, config: DataConfig, files: list[StoredFile], split: str) -> None:
        self.name, self.config, self.hub = split, config, config.hub
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
        columns = self.rows.schema().names
        missing = [name for name in (self.hub.image, self.hub.label) if name not in columns]
        if missing:
            raise DataError(
                f"{self.files[0].place} has the columns {', '.join(columns)}, not {', '.join(missing)}: "
                "correct data.hub.image and data.hub.label"
            )

    def found(self) -> list[Label]:
        """Return the labels as they are in the files."""
        labels: list[Label] = []
        for column in self.rows.columns(self.hub.label):
            labels.extend(column_labels(column, lambda row: self.rows.place(len(labels) + row)))
        return labels

    def indices(self, found: list[Label], known: dict[Label, int]) -> Labels:
        """Return the classes of all rows, int64 [N].

        Raises:
            DataError: if a label is not ``known``, or a class has no row.
        """
        labels = np.fromiter((known.get(label, -1) for label in found), np.int64, len(found))
        if not np.array_equal(np.unique(labels), np.arange(self.config.num_classes)):
            different = sorted({*found}, key=lambda label: (isinstance(label, str), label))
            shown = ", ".join(map(str, different[:10])) + (", ..." if len(different) > 10 else "")
            raise DataError(
                f"split {self.name!r} has the labels {shown} ({len(different)} of them) but data.num_classes is "
                f"{self.config.num_classes}: correct it, or choose a split that has labels of the same classes"
            )
        return labels

    def whole(self, known: dict[Label, int]) -> Split:
        """Return all images as a split."""
        return self.split(self.indices(self.found(), known))

    def split(self, labels: Labels, rows: Labels | None = None) -> Split:
        """Return all images as a split, or those of the ascending ``rows``."""
        kept = np.arange(len(labels)) if rows is None else rows
        return Split(
            labels[kept],
            lambda indices: read_side_by_side(self.images(kept[np.fromiter(indices, np.int64)]), self.config),
        )

    def images(self, rows: Labels) -> Iterator[StoredFile]:
        """Yield the images of ascending rows, with one row group at a time in memory."""
        bounds = np.searchsorted(rows, self.rows.starts)
        for position, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                start = self.rows.starts[position]
                column = self.rows.group(position, [self.hub.image])[self.hub.image]
                for row in rows[first:last].tolist():
                    yield self.image(row, column[row - start])

    def image(self, row: int, cell: pa.Scalar) -> StoredFile:
        path, place = f"{self.name}/{row:08d}", self.rows.place(row)
        content = cell_bytes(cell, "bytes") if cell.is_valid else b""  # a row without an image is a broken one
        name = PurePosixPath(stored_name(cell_bytes(cell, "path") or b"")).name
        if content is None:
            raise DataError(f"{place} holds no encoded image: {self.hub.image} must be a column of images, with bytes")
        path = f"{path}-{name}" if name else path
        return StoredFile(
            path, f"{place} ({name})", len(content), "", lambda start, size: content[start : start + size]
        )


def cell_bytes(cell: pa.Scalar, field: str) -> bytes | None:
    """Return the bytes of a field of an image. A path may be no UTF-8. None: the field is missing, null or no text."""
    fields = [field.name for field in cell.type] if isinstance(cell, pa.StructScalar) and cell.is_valid else []
    value = cell[field] if fields.count(field) == 1 else None
    buffer = value.as_buffer() if isinstance(value, pa.BinaryScalar) else None
    return None if buffer is None else buffer.to_pybytes()


def belongs(name: str, split: str) -> bool:
    """Return whether a file belongs to a split.

    Names of ``train``: data/train-00000-of-00010.parquet, train_0.parquet, train.parquet or train/0000.parquet.
    """
    path = PurePosixPath(name)
    return bool(re.fullmatch(rf"{re.escape(split)}(-.*|_\d+)?", path.stem)) or path.parent.name == split


def given_names(config: DataConfig, split: HubSplit) -> list[str] | None:
    """Return the names of the classes by which labels may name them, in the order of their indices.

    They are data.label_names if set, ImageNet's wnids if data.class_names asks for them, or those in the data set's
    features. None: none are given.

    Raises:
        DataError: if the data set's features do not name ``num_classes`` different classes, or are damaged.
    """
    if config.label_names is not None:
        return config.label_names
    if config.class_names == IMAGENET:
        return list(imagenet_names())
    features = (split.rows.schema().metadata or {}).get(b"huggingface", b"{}")
    try:
        given = parse_json(features).get("info", {}).get("features", {}).get(config.hub.label, {}).get("names")
        names = None if given is None else [normalized(name) for name in given]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{split.files[0].place} has damaged features ({error}): {REMEDY}, or set data.label_names"
        ) from error
    if names is not None and not len(names) == len(set(names)) == config.num_classes:
        raise DataError(
            f"{config.root} names {len(set(names))} classes but data.num_classes is {config.num_classes}: correct it, "
            "or set data.label_names"
        )
    return names


def held_out(labels: Labels, fraction: float) -> np.ndarray:
    """Choose ``fraction`` of each class, at least one row, by the hashes of row numbers; return a boolean [N]."""
    aside = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: hashlib.sha256(b"%d" % row).digest())
        if len(rows) < 2:
            raise DataError(f"class {label} has one image, but both splits need one: add another")
        aside[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return aside
