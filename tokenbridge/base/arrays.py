"""Folders of labelled arrays with one row per image: written shard by shard, and read by memory map."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenbridge.base.chunks import Chunk, cut
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path, read_json, write_json

MANIFEST = "manifest.json"
LABELS = "labels.npy"
SHARD_ROWS = 5000


class ArraysError(UserError):
    """A folder with missing files or rows."""


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.npy"


def row_shards(folder: Path, rows: int) -> list[Chunk]:
    """Return the shards of ``rows`` rows, SHARD_ROWS in each but the last."""
    return cut(rows, SHARD_ROWS, lambda index: folder / shard_name(index))


def write_shard(folder: Path, index: int, rows: int, parts: Iterable[np.ndarray]) -> None:
    """Write a shard of ``rows`` rows, one part at a time.

    The shard appears whole or not at all. Its bytes are those that np.save writes for all parts together.
    """
    with atomic_path(folder / shard_name(index)) as target, target.open("wb") as file:
        written = 0
        for part in parts:
            if written == 0:
                header = np.lib.format.header_data_from_array_1_0(part) | {"shape": (rows, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            np.ascontiguousarray(part).tofile(file)
            written += len(part)
        assert written == rows, f"{written} of {rows} rows"


def write_manifest(folder: Path, labels: np.ndarray, num_classes: int, **content: Any) -> None:
    """Complete a folder of shards: write the labels, then the manifest."""
    np.save(folder / LABELS, labels)
    counts = {"images": len(labels), "shards": len(list(folder.glob("shard-*.npy"))), "num_classes": num_classes}
    write_json(folder / MANIFEST, counts | content)


class LabelledArrays:
    """Random access to a folder that ``write_manifest`` completed; a row is read only when it is asked for.

    Attributes:
        manifest: the content that ``write_manifest`` wrote.
        labels: int64 [N].
        row_shape: the shape of one row.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        """Open the folder. ``stage`` is the stage that makes it; errors name it.

        Raises:
            ArraysError: if files or rows are missing or damaged.
        """
        if not (folder / MANIFEST).exists():
            raise ArraysError(f"{folder} has no {MANIFEST}: run `dvc repro {stage}`")
        try:
            self._open(folder)
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise ArraysError(f"{folder} is damaged ({error}): delete it and run `dvc repro {stage}`") from error

    def _open(self, folder: Path) -> None:
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
        self.labels = torch.from_numpy(np.load(folder / LABELS))
        shards = range(self.manifest["shards"])
        # indexing a memmap returns another memmap: convert it to a plain array first
        self._shards = [np.asarray(np.load(folder / shard_name(i), mmap_mode="r")) for i in shards]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.row_shape: tuple[int, ...] = self._shards[0].shape[1:]
        if not self._starts[-1] == len(self) == self.manifest["images"]:
            raise ValueError(f"it holds {self._starts[-1]} of {self.manifest['images']} images")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, *inner: np.ndarray) -> np.ndarray:
        """Return the elements ``[rows[i], inner[0][i], ...]``, stacked over i; each has the remaining axes of a row."""
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty((len(rows), *self.row_shape[len(inner) :]), dtype=self._shards[0].dtype)
        places = zip((rows - self._starts[shard_of]).tolist(), *(index.tolist() for index in inner), strict=True)
        for n, (shard, place) in enumerate(zip(shard_of.tolist(), places, strict=True)):
            out[n] = self._shards[shard][place]
        return out
