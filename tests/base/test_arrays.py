"""Folders of labelled arrays."""

from pathlib import Path

import numpy as np
import pytest

from tokenbridge.base.arrays import (
    LABELS,
    MANIFEST,
    SHARD_ROWS,
    ArraysError,
    LabelledArrays,
    row_shards,
    shard_name,
    write_manifest,
    write_shard,
)
from tokenbridge.base.files import read_json, write_json

ROWS = np.arange(5 * 2 * 3, dtype=np.int16).reshape(5, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five rows in shards of three and two."""
    write_shard(tmp_path, 0, 3, [ROWS[:2], ROWS[2:3]])
    write_shard(tmp_path, 1, 2, [ROWS[3:]])
    write_manifest(tmp_path, np.array([4, 3, 2, 1, 0]), num_classes=5, colour="grey")
    return tmp_path


def test_a_shard_written_in_parts_has_the_bytes_of_a_whole_one(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", ROWS[:3])
    assert (folder / shard_name(0)).read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_shard_that_ends_early_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="2 of 3 rows"):
        write_shard(tmp_path, 0, 3, [ROWS[:2]])
    assert list(tmp_path.iterdir()) == []


def test_rows_of_several_shards_are_read_in_the_order_asked(folder: Path) -> None:
    arrays = LabelledArrays(folder, "stage")
    rows = np.array([4, 0, 3, 2, 2])
    assert np.array_equal(arrays.read(rows), ROWS[rows])
    assert arrays.labels.tolist() == [4, 3, 2, 1, 0]
    assert (len(arrays), arrays.row_shape) == (5, (2, 3))


def test_an_inner_index_is_chosen_for_each_row(folder: Path) -> None:
    rows, inner = np.array([4, 0, 4]), np.array([0, 1, 1])
    assert np.array_equal(LabelledArrays(folder, "stage").read(rows, inner), ROWS[rows, inner])


def test_the_manifest_counts_and_keeps_what_it_was_given(folder: Path) -> None:
    assert LabelledArrays(folder, "stage").manifest == {"images": 5, "shards": 2, "num_classes": 5, "colour": "grey"}


def test_rows_make_equal_shards_and_a_rest(tmp_path: Path) -> None:
    shards = row_shards(tmp_path, 2 * SHARD_ROWS + 7)
    assert [len(shard.span) for shard in shards] == [SHARD_ROWS, SHARD_ROWS, 7]
    write_shard(tmp_path, 1, len(ROWS), [ROWS])
    assert [shard.path.exists() for shard in shards] == [False, True, False]


def test_a_folder_that_is_not_whole_is_refused(folder: Path) -> None:
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"shards": 1})
    with pytest.raises(ArraysError, match=r"holds 3 of 5 images\): delete it and run `dvc repro stage`"):
        LabelledArrays(folder, "stage")
    (folder / MANIFEST).unlink()
    with pytest.raises(ArraysError, match="run `dvc repro stage`"):
        LabelledArrays(folder, "stage")


@pytest.mark.parametrize("name", [MANIFEST, LABELS, shard_name(1)])
@pytest.mark.parametrize("content", [b"", b"[]", bytes(500), b"\x93NUMPY\x01\x00\xff\xff", b"{}"])
def test_a_damaged_file_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ArraysError, match=r"is damaged .*: delete it and run `dvc repro stage`"):
        LabelledArrays(folder, "stage")
