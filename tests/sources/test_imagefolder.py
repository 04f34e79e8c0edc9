"""Folders of images: split, labelled and checked before anything is written."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import CLASSES, Make, encode, picture
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.config.data import ImageLimits
from tokenbridge.images import DataError
from tokenbridge.images.decoding import decode_rgb
from tokenbridge.images.shards import ImageShards
from tokenbridge.images.splits import Split
from tokenbridge.sources import imagefiles, imagefolder
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.sources.imagefolder import load_imagefolder
from tokenbridge.sources.state import source_state

Divide = Callable[..., Path]


def load(config: DataConfig) -> tuple[list[str], dict[str, Split]]:
    return load_imagefolder(config, StorageConfig())


def paths(split: Split) -> list[str]:
    return [path for _, path in split.encode(range(len(split.labels)))]


@pytest.fixture
def divided(image_root: Path, tmp_path: Path) -> Divide:
    """A function that makes a root with the given folders, each with all images."""

    def make(*folders: str) -> Path:
        for name in folders:
            shutil.copytree(image_root, tmp_path / "divided" / name)
        return tmp_path / "divided"

    return make


def test_a_share_of_each_class_is_set_aside(folder_config: Make, image_root: Path) -> None:
    names, splits = load(folder_config(test_fraction=0.4))
    assert names == CLASSES
    assert np.bincount(splits["train"].labels).tolist() == [3, 3, 3]
    assert np.bincount(splits["test"].labels).tolist() == [2, 2, 2]
    everything = {file.relative_to(image_root).as_posix() for file in image_root.rglob("*.*")}
    assert {*paths(splits["train"]), *paths(splits["test"])} == everything


def test_split_and_order_do_not_depend_on_where_the_folder_lies(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(image_root, tmp_path / "elsewhere")
    here, there = (load(folder_config(root=str(root)))[1] for root in (image_root, moved))
    assert all(paths(here[split]) == paths(there[split]) for split in ("train", "test"))


def test_label_names_set_the_order(folder_config: Make) -> None:
    names, splits = load(folder_config(label_names=["Shirt", "Bag", "Coat"]))
    assert names == ["Shirt", "Bag", "Coat"]
    assert all(path.startswith(f"{names[label]}/") for _, path, label in splits["train"].examples())


def test_hidden_files_are_skipped_and_counted(
    folder_config: Make, image_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_root / "Bag" / ".DS_Store").write_bytes(b"x")
    (image_root / ".git").mkdir()
    (image_root / ".git" / "config").touch()
    manifest = fetch_images(folder_config(), tmp_path / "images")
    assert sum(split["count"] for split in manifest["splits"].values()) == 15
    assert f"{image_root}: 2 hidden files or folders are skipped\n" in capsys.readouterr().out


def test_what_is_no_image_file_is_broken_and_never_opened(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    os.mkfifo(image_root / "Bag/pipe.png")
    (image_root / "Bag/device.png").symlink_to("/dev/zero")
    (image_root / "Coat/sparse.png").touch()
    os.truncate(image_root / "Coat/sparse.png", 3 * 10**9)
    (image_root / "Coat/eps.png").write_bytes(encode(picture(1), "EPS"))
    (image_root / "Shirt/bits.png").write_bytes(encode(Image.fromarray(np.full((8, 8), 4095, np.uint16))))
    (image_root / "Shirt/line.png").write_bytes(encode(picture(1, 300, 2)))
    manifest = fetch_images(folder_config(max_broken=0.5, test_fraction=0.4), tmp_path / "images")
    left_out = {PurePath(path).stem for paths in manifest["left_out"].values() for path in paths}
    assert left_out == {"pipe", "device", "sparse", "eps", "bits", "line"}
    with pytest.raises(DataError, match=r"(0|1|2|3|4)\.(jpg|png) has \d+ bytes, more than data\.limits\.megabytes"):
        fetch_images(folder_config(limits=ImageLimits(megabytes=1e-5)), tmp_path / "other")


def test_images_that_are_written_again_are_named(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        (image_root / name / "clear.png").write_bytes(encode(Image.new("RGBA", (8, 8), (9, 9, 9, 0))))
        (image_root / name / "opaque.png").write_bytes(encode(picture(1).convert("RGBA")))
    manifest = fetch_images(folder_config(background="#123456", shard_size=2), tmp_path / "images")
    assert {path for paths in manifest["converted"].values() for path in paths} == {f"{n}/clear.png" for n in CLASSES}
    splits = [ImageShards(tmp_path / "images", split) for split in manifest["splits"]]
    stored = {path: content for split in splits for content, path, _ in split.examples(np.arange(len(split)))}
    for name in CLASSES:
        assert decode_rgb(stored[f"{name}/clear.png"], "", 8)[:, 0, 0].tolist() == [0x12, 0x34, 0x56]
        assert stored[f"{name}/opaque.png"] == (image_root / name / "opaque.png").read_bytes()


def test_few_bytes_are_read_ahead(folder_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefiles, "READ_AHEAD_BYTES", 2000)
    read, sizes, passed_on = imagefolder.read_local, list[int](), 0

    def counted(path: Path, start: int, size: int) -> bytes:
        content = read(path, start, size)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(imagefolder, "read_local", counted)
    for content, _, _ in load(folder_config())[1]["train"].examples():
        assert isinstance(content, bytes)
        assert 0 < sum(sizes) - passed_on <= 2000
        passed_on += len(content)


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [("train", "test", "val"), ("Train", "test", "valid"), ("TRAIN", "Test", "Validation")],
)
def test_folders_of_splits_are_used_whatever_their_case(
    folder_config: Make, divided: Divide, train: str, test: str, validation: str
) -> None:
    root = divided(train, test, validation)
    (root / validation / "Bag" / "0.jpg").unlink()
    _, splits = load(folder_config(root=str(root)))
    counts = {split: len(images.labels) for split, images in splits.items()}
    assert counts == {"train": 15, "test": 15, "validation": 14}
    assert all(path.startswith(f"{test}/") for path in paths(splits["test"]))


@pytest.mark.parametrize("other", ["Coat", "test"])
def test_a_class_may_be_called_train(folder_config: Make, image_root: Path, other: str) -> None:
    (image_root / "Bag").rename(image_root / "train")
    (image_root / "Coat").rename(image_root / other)
    assert load(folder_config())[0] == sorted(["train", "Shirt", other])


@pytest.mark.parametrize(
    ("name", "stored"), [("cafe\u0301".encode(), "caf\u00e9"), (b"caf\xe9", r"caf\xe9"), (b"a\\b", r"a\b")]
)
def test_names_are_stored_in_one_form(
    folder_config: Make, image_root: Path, tmp_path: Path, name: bytes, stored: str
) -> None:
    folder = image_root / os.fsdecode(name)
    (image_root / "Bag").rename(folder)
    (folder / "0.jpg").rename(folder / os.fsdecode(name + b".jpg"))
    config = folder_config(label_names=[stored, "Coat", "Shirt"])
    assert fetch_images(config, tmp_path / "images")["label_names"] == [stored, "Coat", "Shirt"]
    assert f"{stored}/{stored}.jpg" in {path for split in load(config)[1].values() for path in paths(split)}


def test_the_same_class_in_two_forms_is_one_class(folder_config: Make, divided: Divide) -> None:
    root = divided("train", "test")
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        (root / split / "Bag").rename(root / split / name)
    names = ["Coat", "Shirt", "cafe\u0301"]
    assert load(folder_config(root=str(root), label_names=names))[0] == ["Coat", "Shirt", "caf\u00e9"]
    (root / "train" / "Coat").rename(root / "train" / "cafe\u0301")
    with pytest.raises(DataError, match="two folders of class caf\u00e9: move all images into one"):
        load(folder_config(root=str(root)))


def test_a_dangling_link_is_a_broken_file(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    (image_root / "Bag" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    manifest = fetch_images(folder_config(max_broken=0.2), tmp_path / "images")
    assert [path for paths in manifest["left_out"].values() for path in paths] == ["Bag/gone.png"]
    with pytest.raises(DataError, match=r"Bag/gone\.png is a pipe, a device or a dangling link"):
        fetch_images(folder_config(), tmp_path / "again")
    (image_root / "Hat").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"pictures/Hat is a link to nothing: restore"):
        load(folder_config())


def test_a_folder_that_test_is_a_link_to_is_not_for_validation(folder_config: Make, divided: Divide) -> None:
    root = divided("train", "val")
    (root / "test").symlink_to("val")
    assert set(load(folder_config(root=str(root)))[1]) == {"train", "test"}


def test_folders_of_splits_that_disagree_are_named(folder_config: Make, divided: Divide) -> None:
    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message):
            load(folder_config(root=str(root)))

    root = divided("train")
    fails("divided/test is missing: make it, or link it")
    divided("test", "val", "valid")
    fails(r"val, .*valid are both folders of validation images: keep one")
    shutil.rmtree(root / "valid")
    (root / "test" / "Bag").rename(root / "test" / "Hat")
    fails(r"splits train and test of .* differ in their class folders \(Bag, Hat\)")


def empty_class(root: Path) -> None:
    for file in (root / "Coat").iterdir():
        file.unlink()


def leave_one(root: Path) -> None:
    for file in sorted((root / "Coat").iterdir())[1:]:
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, r"pictures is not a folder: set data\.root"),
        (empty_class, r"class folder .*pictures/Coat is empty: put its images in"),
        (
            lambda root: shutil.rmtree(root / "Coat"),
            r"2 class folders \(Bag, Shirt\) but data\.num_classes is 3: set data\.num_classes=2",
        ),
        (
            lambda root: (root / "Coat/notes.txt").write_text("nice coats"),
            r"Coat/notes\.txt is not an image file .*move it away or convert",
        ),
        (lambda root: (root / "Coat/more").mkdir(), r"Coat/more is not an image file"),
        (
            lambda root: picture(0).save(root / "stray.png"),
            r"pictures/stray\.png lies outside of a class folder: move it",
        ),
        (leave_one, r"Coat has one image: add another"),
    ],
    ids=["no root", "empty class", "missing class", "text", "nested folder", "stray image", "one image"],
)
def test_a_bad_folder_is_named_with_the_remedy(
    folder_config: Make, image_root: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(image_root)
    with pytest.raises(DataError, match=message):
        load(folder_config())


def test_a_folder_that_cannot_be_read_is_named(
    folder_config: Make, image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    config = folder_config()
    for name, owner in (("iterdir", Path), ("scandir", os)):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=r"pictures cannot be read \(Permission"):
            patch.setattr(owner, name, refuses)
            source_state(config, StorageConfig()) if owner is os else load(config)


def test_an_image_that_cannot_be_read_is_named(folder_config: Make, image_root: Path) -> None:
    _, splits = load(folder_config())
    shutil.rmtree(image_root)
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\): restore it or its permissions"):
        paths(splits["train"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0.0}, r"no train folder and data\.test_fraction is 0"),
        (
            {"label_names": ["Bag", "Coat", "Hat"]},
            r"data\.label_names and the class folders of .* differ \(Hat, Shirt\)",
        ),
    ],
    ids=["no test split", "other names"],
)
def test_a_setting_that_disagrees_is_named(folder_config: Make, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(folder_config(**settings))
