"""Shards: written streaming, read by parts, typed for Hugging Face datasets."""

import pickle
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import CLASSES, encode
from tests.support.patience import PATIENCE
from tokenbridge.base.threads import THREADS
from tokenbridge.images import DataError, shards
from tokenbridge.images.decoding import decode_rgb
from tokenbridge.images.shards import Example, ImageShards, write_manifest, write_shards


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def examples(images: np.ndarray) -> list[Example]:
    return [(encode(Image.fromarray(image)), f"{index}.png", index % 3) for index, image in enumerate(images)]


def write(folder: Path, examples: list[Example]) -> str:
    """Write shards of 10 images, and return the manifest's digest."""
    folder.mkdir()
    written = {"train": write_shards(folder, "train", examples, CLASSES, 10, len(examples))}
    return write_manifest(folder, name="noise", image_size=8, label_names=CLASSES, splits=written)["digest"]


@pytest.fixture
def folder(tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> Path:
    """23 images in shards of 10, in row groups of 4, so that reads cross both."""
    monkeypatch.setattr(shards, "ROW_GROUP", 4)
    write(tmp_path / "images", examples)
    return tmp_path / "images"


def test_files_are_named_and_counted_as_the_manifest_says(folder: Path) -> None:
    manifest = shards.read_manifest(folder)
    entries = manifest["splits"]["train"]["shards"]
    assert [(entry["file"], entry["count"]) for entry in entries] == [
        ("train-00000-of-00003.parquet", 10),
        ("train-00001-of-00003.parquet", 10),
        ("train-00002-of-00003.parquet", 3),
    ]
    assert manifest["splits"]["train"]["count"] == 23
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *(entry["file"] for entry in entries)]


@pytest.mark.parametrize(("start", "stop"), [(0, 23), (0, 1), (3, 5), (9, 11), (7, 22), (22, 23), (5, 5), (23, 23)])
def test_any_range_reads_back_its_own_pixels_and_labels(
    folder: Path, images: np.ndarray, start: int, stop: int
) -> None:
    pixels, labels = ImageShards(folder, "train").read(start, stop)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, images[start:stop].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(labels, np.arange(start, stop) % 3)


@pytest.mark.parametrize("indices", [[0, 3, 4, 9, 10, 22], [1, 2, 3], [22]])
def test_chosen_images_are_read_with_each_row_group_once(
    folder: Path, images: np.ndarray, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    split, read = ImageShards(folder, "train"), []
    group = split.rows.group
    monkeypatch.setattr(
        split.rows, "group", lambda position, columns: read.append(position) or group(position, columns)
    )
    pixels, labels = split.take(np.array(indices))
    np.testing.assert_array_equal(pixels, images[indices].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(labels, np.array(indices) % 3)
    assert len(read) == len(set(read))


def test_images_are_decoded_by_all_threads(folder: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Barrier(THREADS)

    def decode(content: bytes, path: str, size: int) -> np.ndarray:
        together.wait(PATIENCE)
        return decode_rgb(content, path, size)

    monkeypatch.setattr(shards, "DECODED_TOGETHER", 1)
    monkeypatch.setattr(shards, "decode_rgb", decode)
    assert np.array_equal(ImageShards(folder, "train").read(0, THREADS)[0], images[:THREADS].transpose(0, 3, 1, 2))


def test_a_range_outside_of_the_split_is_refused(folder: Path) -> None:
    with pytest.raises(IndexError, match=r"20 to 23 were asked for, but there are 23"):
        ImageShards(folder, "train").read(20, 24)


def test_row_groups_are_small_in_bytes(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 3 * max(len(content) for content, *_ in examples))
    write(tmp_path / "images", examples)
    split = ImageShards(tmp_path / "images", "train")
    assert np.diff(split.rows.starts).tolist() == [3, 3, 3, 1] * 2 + [3]
    assert list(split.examples(np.arange(23))) == examples


def test_attributes(folder: Path) -> None:
    split = ImageShards(folder, "train")
    assert (len(split), split.image_size, split.label_names) == (23, 8, CLASSES)
    assert split.labels.dtype == np.int64
    np.testing.assert_array_equal(split.labels, np.arange(23) % 3)


def test_a_reader_can_be_sent_to_another_process(folder: Path) -> None:
    split = ImageShards(folder, "train")
    twin = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(twin.read(8, 12)[0], split.read(8, 12)[0])


def test_the_same_images_give_the_same_bytes_and_other_images_another_digest(
    tmp_path: Path, examples: list[Example]
) -> None:
    first, again = (write(tmp_path / name, examples) for name in "ab")
    assert first == again != write(tmp_path / "c", examples[::-1])


@pytest.mark.parametrize("count", [20, 22, 24, 31])
def test_a_wrong_count_is_refused(tmp_path: Path, examples: list[Example], count: int) -> None:
    with pytest.raises(DataError, match=r"ended early|more than"):
        write_shards(tmp_path, "train", examples, CLASSES, 10, count)


def test_a_missing_split_names_those_that_exist(folder: Path) -> None:
    with pytest.raises(DataError, match="no split 'test': choose one of train"):
        ImageShards(folder, "test")


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing.*dvc repro"):
        ImageShards(tmp_path / "images", "train")


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "train-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet is missing or damaged.*dvc checkout"):
        ImageShards(folder, "train")


def test_a_flipped_bit_anywhere_is_refused_or_does_not_matter(folder: Path, examples: list[Example]) -> None:
    shard, refused = folder / "train-00001-of-00003.parquet", 0
    whole = shard.read_bytes()
    for place in range(0, len(whole), 7):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert list(ImageShards(folder, "train").examples(np.arange(10, 20))) == examples[10:20]
        except DataError:
            refused += 1
    assert refused > len(whole) / 7 / 2


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"splits": {"train": []}}', "[" * 100_000])
def test_a_damaged_manifest_is_named(folder: Path, text: str) -> None:
    (folder / shards.MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is missing or damaged .*dvc checkout"):
        ImageShards(folder, "train")


def test_a_shard_lost_after_opening_is_named(folder: Path) -> None:
    split = ImageShards(folder, "train")
    (folder / "train-00002-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00002-of-00003\.parquet is missing"):
        split.read(19, 22)


def test_hugging_face_datasets_loads_images_and_class_names(
    folder: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features == datasets.Features(
        {"image": datasets.Image(mode="RGB"), "label": datasets.ClassLabel(names=CLASSES)}
    )
    assert loaded.num_rows == 23
    np.testing.assert_array_equal(np.asarray(loaded[12]["image"]), images[12])
    assert loaded.features["label"].int2str(loaded[11]["label"]) == "Shirt"
