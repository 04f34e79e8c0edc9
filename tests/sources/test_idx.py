"""IDX files: a bad header, size or label stops the fetch with the file's name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import idx_bytes
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.sources.idx import load_split, pad, read_idx

Make = Callable[..., DataConfig]


def test_an_array_reads_back(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "a", rank=3), array)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"<html>not found</html>", idx_bytes(np.zeros(3)), b"\0\0\x0d\x03" + bytes(12)],
    ids=["empty", "cut in the header", "web page", "other rank", "floats"],
)
def test_an_unreadable_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images has no readable IDX header.*get it again"):
        read_idx(tmp_path / "train-images", rank=3)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_length_that_disagrees_with_the_header_is_named(tmp_path: Path, change: int) -> None:
    content = idx_bytes(np.zeros((2, 3, 4))) + b"\0"
    (tmp_path / "train-images").write_bytes(content[: len(content) - 1 + change])
    with pytest.raises(DataError, match=r"train-images says 2 x 3 x 4 items but holds"):
        read_idx(tmp_path / "train-images", rank=3)


def write_pair(folder: Path, images: int, labels: list[int]) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((images, 6, 6))))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.array(labels)))


def test_as_many_labels_as_images(tmp_path: Path, idx_config: Make) -> None:
    write_pair(tmp_path, 4, [0, 1, 2])
    with pytest.raises(DataError, match="train-images-idx3-ubyte holds 4 images but train-labels-idx1-ubyte 3 labels"):
        load_split(idx_config(), tmp_path, "train")


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 1, 0], [0, 2, 2, 3]])
def test_classes_that_disagree_with_the_config(tmp_path: Path, idx_config: Make, labels: list[int]) -> None:
    write_pair(tmp_path, 4, labels)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte has the classes .* but data\.num_classes is 3"):
        load_split(idx_config(), tmp_path, "train")


def test_padding_is_centred_and_black() -> None:
    padded = pad(np.full((28, 27), 9, np.uint8), 32)
    assert padded.shape == (32, 32)
    assert (padded[2:30, 2:29] == 9).all()
    assert padded.sum() == 28 * 27 * 9
