"""Folders of image files, a folder per class: root/train/<class>/* and root/test/<class>/*, or root/<class>/*.

A folder root/val, valid or validation beside root/train holds the images for validation.
"""

from pathlib import Path, PurePath

from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION, DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import SUFFIXES, ClassFiles, ImageFile, divide, make_split
from tokenbridge.sources.imagenet_classes import names_of
from tokenbridge.sources.places import list_files, root_of
from tokenbridge.sources.s3_folder import Node, tree_of

VALIDATION_FOLDERS = ("val", "valid", "validation")
Folder = Path | Node  # a folder or file, local or on S3


def load_imagefolder(config: DataConfig, storage: StorageConfig) -> tuple[list[str], dict[str, Split]]:
    """Return label names and the splits. A prefix on S3 gives the same as a local copy of it.

    Only names are read. Images are read and checked when they are encoded, ``imagefiles.READ_AHEAD`` at a time. An
    image is written to disk only as part of its shard.
    """
    root = find_root(config, storage)
    if (root / "train").is_dir():
        folders = {TRAIN: root / "train", TEST: root / "test"}
        if (found := validation_folder(root)) is not None:
            folders[VALIDATION] = found
        files = {split: class_files(folder, config, f"{folder.name}/") for split, folder in folders.items()}
    else:
        if config.test_fraction == 0:
            raise DataError(f"{root} has no train folder and data.test_fraction is 0: set data.test_fraction=0.1")
        files = divide(class_files(root, config), config.test_fraction)
    names = label_names(config, sorted(files["train"]), root)
    for split, classes in files.items():
        if sorted(classes) != sorted(names):
            differing = ", ".join(sorted(set(classes) ^ set(names)))
            raise DataError(
                f"splits {TRAIN} and {split} of {root} differ in their class folders ({differing}): "
                "give both the same folders"
            )
    splits = {split: make_split(classes, names) for split, classes in files.items()}
    return names_of(names, str(root)) if config.class_names == IMAGENET else names, splits


def validation_folder(root: Folder) -> Folder | None:
    """Return root/val, root/valid or root/validation. Return None if root/test is a link to it, as usual for ImageNet.

    Raises:
        DataError: if there are several of these folders.
    """
    found = [folder for name in VALIDATION_FOLDERS if (folder := root / name).is_dir()]
    if len(found) > 1:
        listed = ", ".join(str(folder) for folder in found)
        raise DataError(f"{listed} are both folders of validation images: keep one of them")
    if found and isinstance(root, Path) and (root / "test").resolve() == (root / found[0].name).resolve():
        return None
    return found[0] if found else None


def find_root(config: DataConfig, storage: StorageConfig) -> Folder:
    location = root_of(config)
    if config.source == "s3":
        return tree_of(location.rstrip("/"), list_files(location, storage))
    root = Path(location).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set data.root to the folder that holds your class folders")
    return root


def class_files(folder: Folder, config: DataConfig, prefix: str = "") -> ClassFiles:
    """Return the images of every class folder. Hidden files, such as .DS_Store, are ignored.

    Args:
        prefix: the start of the images' paths.

    Raises:
        DataError: if a folder is missing or empty, if a file is not an image or lies outside of a class folder, or if
            the number of folders is not data.num_classes.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: make it, or link it (`ln -s val {folder}`), beside the other split")
    entries = visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    stray = [entry for entry in entries if is_image(entry) and not entry.is_dir()]
    if stray:
        raise DataError(f"{stray[0]} lies outside of a class folder: move it into {folder}/<class>/")
    if len(folders) != config.num_classes:
        shown = ", ".join(entry.name for entry in folders[:10]) + (", ..." if len(folders) > 10 else "")
        raise DataError(
            f"{folder} has {len(folders)} class folders ({shown or 'none'}) but data.num_classes is "
            f"{config.num_classes}: set data.num_classes={len(folders)} or correct data.root"
        )
    return {entry.name: images_of(entry, f"{prefix}{entry.name}/") for entry in folders}


def images_of(folder: Folder, prefix: str) -> list[ImageFile]:
    files = visible(folder)
    if not files:
        raise DataError(f"class folder {folder} is empty: put its images in, or delete it and lower data.num_classes")
    for file in files:
        if not is_image(file) or file.is_dir():
            raise DataError(f"{file} is not an image file ({', '.join(SUFFIXES)}): move it away or convert it")
    return [ImageFile(prefix + file.name, str(file), file.read_bytes) for file in files]


def is_image(file: Folder) -> bool:
    return PurePath(file.name).suffix.lower() in SUFFIXES


def visible(folder: Folder) -> list[Folder]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda each: each.name)


def label_names(config: DataConfig, found: list[str], root: Folder) -> list[str]:
    """Return data.label_names, which sets the order of the classes, or the sorted names of the folders."""
    if config.label_names is None:
        return found
    if sorted(config.label_names) != found:
        differing = ", ".join(sorted(set(config.label_names) ^ set(found)))
        raise DataError(
            f"data.label_names and the class folders of {root} differ ({differing}): "
            "correct one, or set data.label_names=null"
        )
    return config.label_names
