"""Folders of image files, a folder per class: root/train/<class>/* and root/test/<class>/*, or root/<class>/*."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from tokenbridge.config import DataConfig
from tokenbridge.data import DataError
from tokenbridge.data.decoding import open_whole
from tokenbridge.data.splits import Split

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # images decoded at a time: enough for all threads, little enough for memory

ClassFiles = dict[str, list[Path]]  # class name: its images


def load_imagefolder(config: DataConfig) -> tuple[list[str], dict[str, Split]]:
    """Label names and both splits. Looks at names only; images are read, and checked, when they are encoded."""
    root = find_root(config)
    if (root / "train").is_dir():
        files = {split: class_files(root / split, config) for split in ("train", "test")}
    else:
        files = divide(class_files(root, config), config.test_fraction, root)
    names = label_names(config, sorted(files["train"]), root)
    if sorted(files["test"]) != sorted(names):
        differing = ", ".join(sorted(set(files["test"]) ^ set(names)))
        raise DataError(f"{root}/train and {root}/test differ in their class folders ({differing}): give both the same")
    return names, {split: make_split(root, classes, names) for split, classes in files.items()}


def find_root(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError("data.root is not set: name your folder of images, data.root=/path/to/images")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set data.root to the folder that holds your class folders")
    return root


def class_files(folder: Path, config: DataConfig) -> ClassFiles:
    """The images of every class folder; hidden files (.DS_Store and the like) are passed over."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: make it, or link it (`ln -s val {folder}`), beside the other split")
    entries = visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    stray = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    if stray:
        raise DataError(f"{stray[0]} lies outside of a class folder: move it into {folder}/<class>/")
    if len(folders) != config.num_classes:
        shown = ", ".join(entry.name for entry in folders[:10]) + (", ..." if len(folders) > 10 else "")
        raise DataError(
            f"{folder} has {len(folders)} class folders ({shown or 'none'}) but data.num_classes is "
            f"{config.num_classes}: set data.num_classes={len(folders)} or correct data.root"
        )
    return {entry.name: images_of(entry) for entry in folders}


def images_of(folder: Path) -> list[Path]:
    files = visible(folder)
    if not files:
        raise DataError(f"class folder {folder} is empty: put its images in, or delete it and lower data.num_classes")
    for file in files:
        if file.suffix.lower() not in SUFFIXES or file.is_dir():
            raise DataError(f"{file} is not an image file ({', '.join(SUFFIXES)}): move it away or convert it")
    return files


def visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def divide(classes: ClassFiles, test_fraction: float, root: Path) -> dict[str, ClassFiles]:
    """Set ``test_fraction`` of every class aside, at least one image, chosen by the hash of its name."""
    if test_fraction == 0:
        raise DataError(f"{root} has no train folder and data.test_fraction is 0: set data.test_fraction=0.1")
    files: dict[str, ClassFiles] = {"train": {}, "test": {}}
    for name, images in classes.items():
        if len(images) < 2:
            raise DataError(f"class folder {root / name} has one image: add another, so that both splits get one")
        held_out = min(max(1, round(test_fraction * len(images))), len(images) - 1)
        shuffled = sorted(images, key=lambda path: shuffle_key(path, root))
        files["test"][name], files["train"][name] = shuffled[:held_out], shuffled[held_out:]
    return files


def shuffle_key(path: Path, root: Path) -> str:
    """Mixes classes, the same on every machine, and moves no other image when one is added."""
    return hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest()


def label_names(config: DataConfig, found: list[str], root: Path) -> list[str]:
    """data.label_names, which sets the order, or the folders' sorted names."""
    if config.label_names is None:
        return found
    if sorted(config.label_names) != found:
        differing = ", ".join(sorted(set(config.label_names) ^ set(found)))
        raise DataError(
            f"data.label_names and the class folders of {root} differ ({differing}): correct one, or set null"
        )
    return config.label_names


def make_split(root: Path, classes: ClassFiles, names: list[str]) -> Split:
    label_of = {name: label for label, name in enumerate(names)}
    files = sorted((path for images in classes.values() for path in images), key=lambda path: shuffle_key(path, root))
    labels = np.array([label_of[path.parent.name] for path in files], dtype=np.int64)

    def encode(indices: Iterable[int]) -> Iterator[tuple[bytes, str]]:
        remaining = iter(indices)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := [files[index] for index in islice(remaining, READ_AHEAD)]:
                for path, content in zip(chunk, pool.map(read_whole, chunk), strict=True):
                    yield content, path.relative_to(root).as_posix()

    return Split(labels, encode)


def read_whole(path: Path) -> bytes:
    """The file as it is, after one full decode that proves it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it or its permissions") from error
    open_whole(content, str(path))
    return content
