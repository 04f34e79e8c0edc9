"""Images as Parquet shards that Hugging Face ``datasets`` loads with their types, and a manifest that describes them.

A folder holds ``<split>-00000-of-00006.parquet`` files and ``manifest.json``. The files have the columns ``image`` (the
encoded file and its path) and ``label``. The manifest has name, licence, citation, image_size, label_names, splits and
digest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenbridge.base.files import read_json, sha256_file, write_json
from tokenbridge.images import DataError
from tokenbridge.images.decoding import decode_rgb
from tokenbridge.images.rowgroups import RowGroups

MANIFEST = "manifest.json"
ROW_GROUP = 100  # images that are read from disk together: 10 MB of ImageNet
Example = tuple[bytes, str, int]  # encoded image, path, label


def shard_schema(label_names: list[str]) -> pa.Schema:
    """Return the columns, with metadata that makes ``datasets`` recognise images (read as RGB) and class names."""
    features = {"image": {"mode": "RGB", "_type": "Image"}, "label": {"names": label_names, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)


def write_shards(
    folder: Path, split: str, examples: Iterable[Example], label_names: list[str], shard_size: int, count: int
) -> list[dict[str, Any]]:
    """Write ``count`` examples as a stream. Return each shard's file, count and sha256.

    Raises:
        DataError: if there are fewer or more than ``count`` examples.
    """
    remaining, schema, shards = iter(examples), shard_schema(label_names), []
    for file, span in shard_spans(split, count, shard_size).items():
        shards.append(write_shard(folder / file, islice(remaining, len(span)), schema))
        if shards[-1]["count"] < len(span):
            raise DataError(f"{file} has {shards[-1]['count']:,} of {len(span):,} images: split {split} ended early")
    if next(remaining, None) is not None:
        raise DataError(f"split {split} has more than the expected {count:,} images")
    return shards


def shard_spans(split: str, count: int, shard_size: int) -> dict[str, range]:
    """Return file name -> the images of that shard, for ``count`` images."""
    spans = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
    return {f"{split}-{number:05d}-of-{len(spans):05d}.parquet": span for number, span in enumerate(spans)}


def write_shard(path: Path, examples: Iterable[Example], schema: pa.Schema) -> dict[str, Any]:
    """Write one shard as a stream. Return its file, count and sha256.

    Images are already compressed, so the columns are stored without compression.
    """
    remaining, written = iter(examples), 0
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=["label"], write_statistics=["label"]
    ) as writer:
        while rows := list(islice(remaining, ROW_GROUP)):
            images = [{"bytes": content, "path": name} for content, name, _ in rows]
            table = pa.table({"image": images, "label": [label for *_, label in rows]}, schema=schema)
            writer.write_table(table)
            written += len(rows)
    return {"file": path.name, "count": written, "sha256": sha256_file(path)}


def write_manifest(
    folder: Path,
    *,
    name: str,
    image_size: int,
    label_names: list[str],
    splits: dict[str, list[dict[str, Any]]],
    licence: str = "",
    citation: str = "",
    left_out: dict[str, list[str]] | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Write and return the manifest of a folder of shards.

    Args:
        splits: split -> the shards that ``write_shards`` returned.
        left_out: split -> paths of the images that were broken; recorded if there are any.
        precision: the precision in which generated images were computed.
    """
    content = {
        "image_size": image_size,
        "label_names": label_names,
        "splits": {split: {"count": count_images(shards), "shards": shards} for split, shards in splits.items()},
    }
    manifest = {"name": name, "licence": licence, "citation": citation, **content, "digest": digest_of(content)}
    if any((left_out or {}).values()):
        manifest["left_out"] = left_out
    if precision is not None:
        manifest["precision"] = precision
    write_json(folder / MANIFEST, manifest)
    return manifest


def count_images(shards: list[dict[str, Any]]) -> int:
    return sum(shard["count"] for shard in shards)


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ImageShards:
    """A reader of one split of a folder of shards. It holds no open file: it can be pickled, and survives a fork.

    Attributes:
        label_names: class names, by label.
        image_size: height and width, in pixels, of the images that ``read`` returns.
        digest: a digest of the split's files.

    Raises:
        DataError: if the folder, the split or a shard is missing or damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise DataError(f"{folder} has no split {split!r}: choose one of {', '.join(manifest['splits'])}")
        shards = manifest["splits"][split]["shards"]
        self.label_names: list[str] = manifest["label_names"]
        self.image_size: int = manifest["image_size"]
        self.digest = digest_of(shards)
        self.paths = [folder / shard["file"] for shard in shards]
        self.rows = RowGroups([(str(path), partial(Path, path)) for path in self.paths], remedy(folder))
        if len(self) != manifest["splits"][split]["count"]:
            raise DataError(
                f"{folder} has {len(self):,} images of {split}, and its manifest another number: {remedy(folder)}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N]. No image is decoded."""
        return self.rows.column("label")

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images start..stop-1 as uint8 [n, 3, H, W], and their labels int64 [n].

        Only these images are decoded.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"images {start}..{stop} were asked for, but there are {len(self)}")
        images = np.empty((stop - start, 3, self.image_size, self.image_size), np.uint8)
        labels = np.empty(stop - start, np.int64)
        for n, (content, path, label) in enumerate(self.examples(start, stop)):
            images[n], labels[n] = decode_rgb(content, path, self.image_size), label
        return images, labels

    def examples(self, start: int, stop: int) -> Iterator[Example]:
        """Yield the encoded images start..stop-1, with one row group at a time in memory."""
        for rows in self.rows.rows(start, stop, ["image", "label"]):
            for image, label in zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True):
                yield image["bytes"], image["path"], label


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of shards.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST} is missing or damaged ({error}): {remedy(folder)}") from error
    return dict(manifest)


def image_counts(manifest: dict[str, Any]) -> dict[str, int]:
    """Return split -> number of its images."""
    return {split: content["count"] for split, content in manifest["splits"].items()}


def remedy(folder: Path) -> str:
    return f"restore it with `dvc checkout {folder}`, or delete it and run `dvc repro`"
