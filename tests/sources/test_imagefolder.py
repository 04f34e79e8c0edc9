"""Folders of images: split, labelled and checked before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import CLASSES, Make, picture
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefolder import load_imagefolder

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


def test_hidden_files_are_passed_over(folder_config: Make, image_root: Path) -> None:
    (image_root / "Bag" / ".DS_Store").write_bytes(b"x")
    (image_root / ".git").mkdir()
    assert len(load(folder_config())[1]["train"].labels) == 12


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders_of_splits_are_used(folder_config: Make, divided: Divide, name: str) -> None:
    root = divided("train", "test", name)
    (root / name / "Bag" / "0.jpg").unlink()
    _, splits = load(folder_config(root=str(root)))
    counts = {split: len(images.labels) for split, images in splits.items()}
    assert counts == {"train": 15, "test": 15, "validation": 14}
    assert all(path.startswith("test/") for path in paths(splits["test"]))


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
