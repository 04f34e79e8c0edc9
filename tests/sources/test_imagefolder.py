"""Folders of images: split, labelled and checked before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import CLASSES, picture
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefolder import load_imagefolder

Make = Callable[..., DataConfig]


def paths(split: Split) -> list[str]:
    return [path for _, path in split.encode(range(len(split.labels)))]


def test_a_share_of_each_class_is_set_aside(folder_config: Make, image_root: Path) -> None:
    names, splits = load_imagefolder(folder_config(test_fraction=0.4))
    assert names == CLASSES
    assert np.bincount(splits["train"].labels).tolist() == [3, 3, 3]
    assert np.bincount(splits["test"].labels).tolist() == [2, 2, 2]
    everything = {file.relative_to(image_root).as_posix() for file in image_root.rglob("*.*")}
    assert {*paths(splits["train"]), *paths(splits["test"])} == everything


def test_split_and_order_do_not_depend_on_where_the_folder_lies(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(image_root, tmp_path / "elsewhere")
    here, there = (load_imagefolder(folder_config(root=str(root)))[1] for root in (image_root, moved))
    assert all(paths(here[split]) == paths(there[split]) for split in ("train", "test"))


def test_classes_are_mixed(folder_config: Make) -> None:
    labels = load_imagefolder(folder_config())[1]["train"].labels
    assert labels.tolist() != sorted(labels)


def test_files_are_kept_byte_for_byte_with_their_label(folder_config: Make, image_root: Path) -> None:
    _, splits = load_imagefolder(folder_config())
    for content, path, label in splits["train"].examples():
        assert content == (image_root / path).read_bytes()
        assert CLASSES[label] == Path(path).parent.name


def test_given_split_folders_are_used(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    shutil.copytree(image_root, root / "train")
    shutil.copytree(image_root, root / "test")
    _, splits = load_imagefolder(folder_config(root=str(root)))
    assert len(splits["train"].labels) == len(splits["test"].labels) == 15
    assert all(path.startswith("test/") for path in paths(splits["test"]))


def test_label_names_set_the_order(folder_config: Make) -> None:
    names, splits = load_imagefolder(folder_config(label_names=["Shirt", "Bag", "Coat"]))
    assert names == ["Shirt", "Bag", "Coat"]
    assert all(path.startswith("Shirt/") == (label == 0) for _, path, label in splits["train"].examples())


def test_hidden_files_are_passed_over(folder_config: Make, image_root: Path) -> None:
    (image_root / "Bag" / ".DS_Store").write_bytes(b"x")
    (image_root / ".git").mkdir()
    assert len(load_imagefolder(folder_config())[1]["train"].labels) == 12


def lose_root(root: Path) -> None:
    shutil.rmtree(root)


def empty_class(root: Path) -> None:
    for file in (root / "Coat").iterdir():
        file.unlink()


def lose_class(root: Path) -> None:
    shutil.rmtree(root / "Coat")


def add_text(root: Path) -> None:
    (root / "Coat" / "notes.txt").write_text("nice coats")


def nest_folder(root: Path) -> None:
    (root / "Coat" / "more").mkdir()


def stray_image(root: Path) -> None:
    picture(0).save(root / "stray.png")


def leave_one(root: Path) -> None:
    for file in sorted((root / "Coat").iterdir())[1:]:
        file.unlink()


def add_train_only(root: Path) -> None:
    shutil.copytree(root, root.with_name("copy"))
    lose_root(root)
    shutil.move(root.with_name("copy"), root / "train")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_root, r"pictures is not a folder: set data\.root"),
        (empty_class, r"class folder .*pictures/Coat is empty: put its images in"),
        (lose_class, r"2 class folders \(Bag, Shirt\) but data\.num_classes is 3: set data\.num_classes=2"),
        (add_text, r"Coat/notes\.txt is not an image file .*move it away or convert"),
        (nest_folder, r"Coat/more is not an image file"),
        (stray_image, r"pictures/stray\.png lies outside of a class folder: move it"),
        (leave_one, r"Coat has one image: add another"),
        (add_train_only, r"pictures/test is missing: make it, or link it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_folder_is_named_with_the_remedy(
    folder_config: Make, image_root: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(image_root)
    with pytest.raises(DataError, match=message):
        load_imagefolder(folder_config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": None}, r"data\.root is not set: name your folder"),
        ({"test_fraction": 0.0}, r"no train folder and data\.test_fraction is 0"),
        (
            {"label_names": ["Bag", "Coat", "Hat"]},
            r"data\.label_names and the class folders of .* differ \(Hat, Shirt\)",
        ),
    ],
    ids=["no root", "no test split", "other names"],
)
def test_a_setting_that_disagrees_is_named(folder_config: Make, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_imagefolder(folder_config(**settings))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_for_validation_is_used(folder_config: Make, image_root: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "divided"
    for split in ("train", "test", name):
        shutil.copytree(image_root, root / split)
    (root / name / "Bag" / "0.jpg").unlink()
    _, splits = load_imagefolder(folder_config(root=str(root)))
    assert {split: len(images.labels) for split, images in splits.items()} == {
        "train": 15,
        "test": 15,
        "validation": 14,
    }


def test_a_folder_that_test_is_a_link_to_is_not_for_validation(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ILSVRC2012"
    for split in ("train", "val"):
        shutil.copytree(image_root, root / split)
    (root / "test").symlink_to("val")
    _, splits = load_imagefolder(folder_config(root=str(root)))
    assert set(splits) == {"train", "test"}


def test_two_folders_for_validation_are_one_too_many(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    for split in ("train", "test", "val", "valid"):
        shutil.copytree(image_root, root / split)
    with pytest.raises(DataError, match=r"val, .*valid are both folders of validation images: keep one"):
        load_imagefolder(folder_config(root=str(root)))


def test_splits_with_different_classes_are_refused(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    shutil.copytree(image_root, root / "train")
    shutil.copytree(image_root, root / "test")
    (root / "test" / "Bag").rename(root / "test" / "Hat")
    with pytest.raises(DataError, match=r"splits train and test of .* differ in their class folders \(Bag, Hat\)"):
        load_imagefolder(folder_config(root=str(root)))
