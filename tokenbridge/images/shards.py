"""Images as Parquet shards that Hugging Face ``datasets`` loads with their types, and a manifest that describes them.

A folder holds ``<split>-00000-of-00006.parquet`` files and ``manifest.json``. The files have the columns ``image`` (the
encoded file and its path) and ``label``. The manifest has name, licence, citation, image_size, label_names, splits and
digest.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from tokenbridge.base.files import read_json, sha256_file, sha256_json, write_json
from tokenbridge.base.threads import in_threads
from tokenbridge.images import DataError
from tokenbridge.images.decoding import decode_rgb
from tokenbridge.images.rowgroups import RowGroups
from tokenbridge.images.weight import groups

MANIFEST = "manifest.json"
ROW_GROUP = 100  # images that are read from disk together: 10 MB of ImageNet
ROW_GROUP_BYTES = 2**26  # unless a single image has more
DECODED_TOGETHER = 16  # images that a thread decodes at a time
Example = tuple[bytes, str, int]  # encoded image, path, label


@dataclass
class Shard:
    """An entry of the manifest, as ``write_shard`` returns it."""

    file: str
    count: int
    sha256: str


@dataclass
class Split:
    """A split in the manifest."""

    count: int
    shards: list[Shard]


@dataclass
class Manifest:
    """What readers need of the manifest."""

    image_size: int
    label_names: list[str]
    splits: dict[str, Split]


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
    written = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=["label"],
        write_statistics=["label"],
        write_page_checksum=True,
    ) as writer:
        for rows in groups(examples, ROW_GROUP, lambda example: len(example[0]), ROW_GROUP_BYTES):
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
    converted: dict[str, list[str]] | None = None,
    drawn: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and return the manifest of a folder of shards.

    Args:
        splits: split -> the shards that ``write_shards`` returned.
        left_out: split -> paths of the images that were broken; recorded if there are any.
        converted: split -> paths of the images that were written again (``decoding.Converted``); recorded likewise.
        drawn: how generated images were computed: precision and batch size.
    """
    content = {
        "image_size": image_size,
        "label_names": label_names,
        "splits": {split: {"count": count_images(shards), "shards": shards} for split, shards in splits.items()},
    }
    manifest = {"name": name, "licence": licence, "citation": citation, **content, "digest": sha256_json(content)}
    for key, paths in (("left_out", left_out), ("converted", converted)):
        if any((paths or {}).values()):
            manifest[key] = paths
    manifest |= drawn or {}
    write_json(folder / MANIFEST, manifest)
    return manifest


def count_images(shards: list[dict[str, Any]]) -> int:
    return sum(shard["count"] for shard in shards)


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
        self.digest = sha256_json(shards)
        self.paths = [folder / shard["file"] for shard in shards]
        self.rows = RowGroups([(str(path), partial(Path, path)) for path in self.paths], remedy(folder))
        schema, footers = shard_schema(self.label_names), self.rows.footers
        if any(not footer.schema.to_arrow_schema().equals(schema) for footer in footers):
            raise DataError(f"{folder} has shards of {split} with other columns than {schema.names}: {remedy(folder)}")
        if len(self) != manifest["splits"][split]["count"]:
            raise DataError(
                f"{folder} has {len(self):,} images of {split}, and its manifest another number: {remedy(folder)}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N]. No image is decoded."""
        return np.concatenate([column.to_numpy() for column in self.rows.columns("label")])

    def read(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Do the same as ``take`` for the images start..stop-1."""
        return self.take(np.arange(start, stop))

    def take(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images with the ascending ``indices`` as uint8 [n, 3, H, W], and their labels int64 [n].

        Only these images are decoded, by several threads.
        """
        images = np.empty((len(indices), 3, self.image_size, self.image_size), np.uint8)
        labels = np.empty(len(indices), np.int64)
        batches = groups(self.examples(indices), DECODED_TOGETHER, lambda example: len(example[0]), ROW_GROUP_BYTES)
        done = 0
        for pixels, classes in in_threads(self._decode, batches):
            images[done : done + len(pixels)], labels[done : done + len(pixels)] = pixels, classes
            done += len(pixels)
        return images, labels

    def _decode(self, examples: list[Example]) -> tuple[NDArray[np.uint8], list[int]]:
        pixels = [decode_rgb(content, path, self.image_size) for content, path, _ in examples]
        return np.stack(pixels), [label for *_, label in examples]

    def examples(self, indices: NDArray[np.int64]) -> Iterator[Example]:
        """Yield the encoded images with the ascending ``indices``, with one row group at a time in memory."""
        if len(indices) and not 0 <= indices[0] <= indices[-1] < len(self):
            raise IndexError(
                f"images {indices[0]} to {indices[-1]} were asked for, but there are {len(self)}: choose others"
            )
        for rows in self.rows.take(indices, ["image", "label"]):
            for image, label in zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True):
                yield image["bytes"], image["path"], label


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of shards.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        TypeAdapter(Manifest).validate_python(manifest)
    except (OSError, ValueError, RecursionError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise DataError(f"{folder / MANIFEST} is missing or damaged ({reason}): {remedy(folder)}") from error
    return dict(manifest)


def image_counts(manifest: dict[str, Any]) -> dict[str, int]:
    """Return split -> number of its images."""
    return {split: content["count"] for split, content in manifest["splits"].items()}


def remedy(folder: Path) -> str:
    return f"restore it with `dvc checkout {folder}`, or delete it and run `dvc repro`"
