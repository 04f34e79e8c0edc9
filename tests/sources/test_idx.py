"""IDX files: a bad header, size or label stops the fetch with the file's name."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import data_config, idx_bytes
from tokenbridge.images import DataError
from tokenbridge.sources.idx import load_split, pad, read_idx


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"<html>not found</html>", idx_bytes(np.zeros(3)), b"\0\0\x0d\x03" + bytes(12)],
    ids=["empty", "cut in the header", "web page", "other rank", "floats"],
)
def test_an_unreadable_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images has no readable IDX header.*get it again"):
        read_idx(tmp_path / "train-images", rank=3)


@pytest.mark.parametrize("shape", [(2**31, 2**31, 4), (0, 28, 28), (5, 0, 28)], ids=["2^64", "no images", "no rows"])
def test_sizes_that_fit_only_by_overflow_are_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "train-images").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape))
    with pytest.raises(DataError, match=r"train-images says .* items but holds 0 bytes"):
        read_idx(tmp_path / "train-images", rank=3)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_length_that_disagrees_with_the_header_is_named(tmp_path: Path, change: int) -> None:
    content = idx_bytes(np.zeros((2, 3, 4))) + b"\0"
    (tmp_path / "train-images").write_bytes(content[: len(content) - 1 + change])
    with pytest.raises(DataError, match=r"train-images says 2 x 3 x 4 items but holds"):
        read_idx(tmp_path / "train-images", rank=3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "train-images-idx3-ubyte holds 4 images but train-labels-idx1-ubyte 3 labels"),
        ([0, 1, 2, 3], r"train-labels-idx1-ubyte has the classes 0, 1, 2, 3 but data\.num_classes is 3"),
        ([0, 1, 1, 0], r"train-labels-idx1-ubyte has the classes 0, 1 but"),
        ([0, 2, 2, 3], r"train-labels-idx1-ubyte has the classes 0, 2, 3 but"),
    ],
)
def test_labels_that_disagree_are_named(tmp_path: Path, labels: list[int], message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((4, 6, 6))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.array(labels)))
    with pytest.raises(DataError, match=message):
        load_split(data_config(source="idx"), tmp_path, "train")


def test_padding_is_centred_and_black() -> None:
    padded = pad(np.full((28, 27), 9, np.uint8), 32)
    assert padded.shape == (32, 32)
    assert (padded[2:30, 2:29] == 9).all()
    assert padded.sum() == 28 * 27 * 9
