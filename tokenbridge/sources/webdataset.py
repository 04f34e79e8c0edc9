"""Tars of ``key.jpg|jpeg|png`` with ``key.cls`` or ``key.json``, as WebDataset writes them."""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

from tokenbridge.base.progress import Progress
from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import SUFFIXES, THREADS, ClassFiles, ImageFile, divide, make_split
from tokenbridge.sources.imagenet_classes import imagenet_names, names_of
from tokenbridge.sources.places import TAR, StoredFile, list_files, root_of
from tokenbridge.sources.tars import files_of, member_image, open_tar

LABEL_SUFFIXES = (".cls", ".json")  # a text with a class's name or index; an object with a name or index as "label"
Labelled = tuple[ImageFile, str]


def load_webdataset(
    config: DataConfig, storage: StorageConfig, every: float = 5.0
) -> tuple[list[str], dict[str, Split]]:
    """Return label names and both splits.

    Every tar is read once for names and labels. Each image is read by its place in its tar when it is encoded.

    Args:
        every: seconds between progress lines.

    Raises:
        DataError: if tars, images or labels are missing, damaged or unsafe.
    """
    root = root_of(config)
    names = config.label_names or classes_by_index(config)
    train = index_tars(root, names, config, storage, every)
    if config.test_root is not None:
        files = {"train": train, "test": index_tars(config.test_root, names, config, storage, every)}
    elif config.test_fraction > 0:
        files = divide(train, config.test_fraction)
    else:
        raise DataError(
            "data.test_root is not set and data.test_fraction is 0: set one of them, such as data.test_fraction=0.1"
        )
    splits = {split: make_split(classes, names) for split, classes in files.items()}
    return names_of(names, root) if config.class_names == IMAGENET else names, splits


def classes_by_index(config: DataConfig) -> list[str]:
    """Return the class names of labels if data.label_names is not set: ImageNet's wnids, or numbers as text."""
    if config.class_names == IMAGENET:
        return list(imagenet_names())
    return [str(label) for label in range(config.num_classes)]


def index_tars(location: str, names: list[str], config: DataConfig, storage: StorageConfig, every: float) -> ClassFiles:
    """Return the images of each class, in the order of the tars' names and of their members."""
    tars = [file for file in list_files(location, storage) if file.name.endswith(TAR)]
    if not tars:
        raise DataError(f"{location} has no {TAR} files: correct data.root or data.test_root")
    classes: ClassFiles = defaultdict(list)
    progress = Progress(f"read names and labels of {config.name}", len(tars), "tars", every)
    with ThreadPoolExecutor(THREADS) as pool:
        for labelled in pool.map(partial(index_tar, names=names), tars):
            for image, name in labelled:
                classes[name].append(image)
            progress.advance(1)
    missing = [name for name in names if name not in classes]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"{location} has no image of {shown}: correct data.num_classes and data.label_names, or get all tars"
        )
    return classes


def index_tar(tar: StoredFile, names: list[str]) -> list[Labelled]:
    images: dict[str, ImageFile] = {}
    labels: dict[str, str] = {}
    with open_tar(tar) as archive:
        for member in files_of(archive, tar.place):
            key, suffix = split_name(member.name)
            place = f"{tar.place}: {member.name}"
            found = images if suffix in SUFFIXES else labels
            if suffix not in (*SUFFIXES, *LABEL_SUFFIXES):
                continue
            if key in found:
                raise DataError(f"{place} is a second {'image' if found is images else 'label'} of its key: keep one")
            if found is images:
                images[key] = member_image(tar, member, f"{tar.name.removesuffix(TAR)}/{key}{suffix}")
            else:
                content = archive.extractfile(member)
                assert content is not None  # None only for members that are not files
                labels[key] = label_of(content.read(), suffix, place, names)
    unmatched = sorted(images.keys() ^ labels.keys())
    if unmatched:
        raise DataError(
            f"{tar.place}: {unmatched[0]} lacks its image ({', '.join(SUFFIXES)}) or its label "
            f"({', '.join(LABEL_SUFFIXES)}): write both into the same tar"
        )
    return [(image, labels[key]) for key, image in images.items()]


def split_name(name: str) -> tuple[str, str]:
    """Split a name into key and suffix. The key ends at the first dot of the last part."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    return str(path.with_name(stem)), (dot + suffix).lower()


def label_of(content: bytes, suffix: str, place: str, names: list[str]) -> str:
    """Return the class's name. The label may contain the name or the index of the class.

    Raises:
        DataError: if it contains neither.
    """
    try:
        label = json.loads(content)["label"] if suffix == ".json" else content.decode().strip()
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{place} holds no label ({error!r}): write {{"label": <name or index>}}') from error
    if label in names:
        return str(label)
    index = int(label) if str(label).isdecimal() else -1
    if not 0 <= index < len(names):
        raise DataError(
            f"{place} has the class {label!r}, not one of the {len(names)}: correct it, or data.num_classes and "
            "data.label_names"
        )
    return names[index]
