"""Folders of image files, a folder per class: root/train/<class>/* and root/test/<class>/*, or root/<class>/*.

A folder root/val, valid or validation beside root/train holds the images for validation. The case of these names does
not matter.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from tokenbridge.base.names import stored_name
from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION, DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import SUFFIXES, ClassFiles, divide, make_split
from tokenbridge.sources.imagenet_classes import names_of
from tokenbridge.sources.places import StoredFile, hidden, list_files, local_path, read_local, readable, root_of
from tokenbridge.sources.s3_folder import Node, tree_of

SPLITS = {TRAIN: ("train",), TEST: ("test",), VALIDATION: ("val", "valid", "validation")}
Folder = Path | Node  # a folder or file, local or on S3


def load_imagefolder(config: DataConfig, storage: StorageConfig) -> tuple[list[str], dict[str, Split]]:
    """Return label names and the splits. A prefix on S3 gives the same as a local copy of it.

    Only names are read. Images are read and checked when they are encoded, ``imagefiles.READ_AHEAD`` at a time. An
    image is written to disk only as part of its shard.
    """
    root = find_root(config, storage)
    with readable(str(root)):
        files = find_files(root, config)
    names = label_names(config, sorted(files["train"]), root)
    for split, classes in files.items():
        if sorted(classes) != sorted(names):
            differing = ", ".join(sorted(set(classes) ^ set(names)))
            raise DataError(
                f"splits {TRAIN} and {split} of {root} differ in their class folders ({differing}): "
                "give both the same folders"
            )
    splits = {split: make_split(classes, names, config) for split, classes in files.items()}
    return names_of(names, str(root)) if config.class_names == IMAGENET else names, splits


def find_files(root: Folder, config: DataConfig) -> dict[str, ClassFiles]:
    """Return the images of each split."""
    if folders := split_folders(root):
        return {split: class_files(each, config, f"{stored_name(each.name)}/") for split, each in folders.items()}
    if config.test_fraction == 0:
        raise DataError(f"{root} has no train folder and data.test_fraction is 0: set data.test_fraction=0.1")
    return divide(class_files(root, config), config.test_fraction)


def split_folders(root: Folder) -> dict[str, Folder]:
    """Return the folder of each split. Return {} if the root holds class folders, even if one of them is called train.

    root/val is left out if root/test is a link to it, as usual for ImageNet.

    Raises:
        DataError: if there are several folders for a split.
    """
    folders = [entry for entry in visible(root) if entry.is_dir()]
    found = {split: [folder for folder in folders if folder.name.lower() in names] for split, names in SPLITS.items()}
    classes = [entry for folder in found[TRAIN] for entry in visible(folder) if entry.is_dir()]
    if not found[TRAIN] or (not classes and len(folders) > sum(map(len, found.values()))):
        return {}
    for split, several in found.items():
        if len(several) > 1:
            listed = ", ".join(str(folder) for folder in several)
            raise DataError(f"{listed} are both folders of {split} images: keep one of them")
    chosen = {TEST: root / "test"} | {split: only[0] for split, only in found.items() if only}
    test, validation = chosen[TEST], chosen.get(VALIDATION)
    if isinstance(test, Path) and isinstance(validation, Path) and test.resolve() == validation.resolve():
        del chosen[VALIDATION]
    return {split: chosen[split] for split in SPLITS if split in chosen}


def find_root(config: DataConfig, storage: StorageConfig) -> Folder:
    location = root_of(config)
    if config.source == "s3":
        return tree_of(location.rstrip("/"), list_files(location, storage))
    root = local_path(location)
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
    if lost := [entry for entry in entries if is_dangling(entry)]:
        raise DataError(f"{lost[0]} is a link to nothing: restore what it names, or delete it")
    if stray:
        raise DataError(f"{stray[0]} lies outside of a class folder: move it into {folder}/<class>/")
    if len(folders) != config.num_classes:
        shown = ", ".join(entry.name for entry in folders[:10]) + (", ..." if len(folders) > 10 else "")
        raise DataError(
            f"{folder} has {len(folders)} class folders ({shown or 'none'}) but data.num_classes is "
            f"{config.num_classes}: set data.num_classes={len(folders)} or correct data.root"
        )
    named = {stored_name(entry.name): entry for entry in folders}
    if len(named) < len(folders):
        twice = next(entry for entry in folders if entry not in named.values())
        raise DataError(f"{folder} has two folders of class {stored_name(twice.name)}: move all images into one")
    return {name: images_of(entry, f"{prefix}{name}/") for name, entry in named.items()}


def images_of(folder: Folder, prefix: str) -> list[StoredFile]:
    files = visible(folder)
    if not files:
        raise DataError(f"class folder {folder} is empty: put its images in, or delete it and lower data.num_classes")
    for file in files:
        if not is_image(file) or file.is_dir():
            raise DataError(f"{file} is not an image file ({', '.join(SUFFIXES)}): move it away or convert it")
    return [stored_file(file, prefix + stored_name(file.name)) for file in files]


def stored_file(file: Folder, name: str) -> StoredFile:
    """Return a file with the given name. Its size is -1 if it is a pipe, a device or a dangling link."""
    if isinstance(file, Node):
        assert file.file is not None  # only folders have none
        return replace(file.file, name=name, place=str(file))
    size = file.stat().st_size if file.is_file() else -1
    return StoredFile(name, str(file), size, "", partial(read_local, file))


def is_dangling(file: Folder) -> bool:
    return isinstance(file, Path) and file.is_symlink() and not file.exists()


def is_image(file: Folder) -> bool:
    return PurePath(file.name).suffix.lower() in SUFFIXES


def visible(folder: Folder) -> list[Folder]:
    return sorted((each for each in folder.iterdir() if not hidden(each.name)), key=lambda each: each.name)


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
