"""Tars of ``key.jpg|jpeg|png`` with ``key.cls`` or ``key.json``, as WebDataset writes them; see ``pair``."""

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

from tokenbridge.base.files import parse_json
from tokenbridge.base.progress import Progress
from tokenbridge.config import IMAGENET, DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import SUFFIXES, THREADS, ClassFiles, divide, make_split
from tokenbridge.sources.imagenet_classes import imagenet_names, names_of
from tokenbridge.sources.labels import Label, name_classes, number_or_name
from tokenbridge.sources.places import TAR, StoredFile, list_files, root_of
from tokenbridge.sources.tars import files_of, member_file, open_tar

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".cls", ".json")  # a text with a class's name or index; an object with a name or index as "label"
MAX_LABEL_BYTES = 2**20
Labelled = tuple[StoredFile, Label]


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
    given = list(imagenet_names()) if config.class_names == IMAGENET else config.label_names
    labelled = index_tars(root, given, config, storage, every)
    names, known = name_classes({label for _, label in labelled}, given, config, root)
    train = by_class(labelled, root, names, known)
    if config.test_root is not None:
        labelled = index_tars(config.test_root, names, config, storage, every)
        files = {"train": train, "test": by_class(labelled, config.test_root, names, known)}
    elif config.test_fraction > 0:
        files = divide(train, config.test_fraction)
    else:
        raise DataError(
            "data.test_root is not set and data.test_fraction is 0: set one of them, such as data.test_fraction=0.1"
        )
    splits = {split: make_split(classes, names, config) for split, classes in files.items()}
    return names_of(names, root) if config.class_names == IMAGENET else names, splits


def index_tars(
    location: str, names: list[str] | None, config: DataConfig, storage: StorageConfig, every: float
) -> list[Labelled]:
    """Return the images and their labels, in the order of the tars' names and of their members."""
    tars = [file for file in list_files(location, storage) if file.name.endswith(TAR)]
    if not tars:
        raise DataError(f"{location} has no {TAR} files: correct data.root or data.test_root")
    found: list[Labelled] = []
    progress = Progress(f"read names and labels of {config.name}", len(tars), "tars", every)
    with ThreadPoolExecutor(THREADS) as pool:
        for labelled in pool.map(partial(index_tar, names=names), tars):
            found += labelled
            progress.advance(1)
    return found


def by_class(labelled: list[Labelled], location: str, names: list[str], known: dict[Label, int]) -> ClassFiles:
    """Return the images of each class.

    Raises:
        DataError: if a label is not ``known``, or a class has no image.
    """
    classes: ClassFiles = defaultdict(list)
    for image, label in labelled:
        if label not in known:
            raise DataError(
                f"{image.place} has the class {label!r}, not one of the {len(names)}: correct it, or data.num_classes "
                "and data.label_names"
            )
        classes[names[known[label]]].append(image)
    missing = [name for name in names if name not in classes]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"{location} has no image of {shown}: correct data.num_classes and data.label_names, or get all tars"
        )
    return classes


def index_tar(tar: StoredFile, names: list[str] | None) -> list[Labelled]:
    images: dict[str, StoredFile] = {}  # by names without the last suffix
    labels: dict[str, Label | DataError] = {}
    with open_tar(tar) as archive:
        for member in files_of(archive, tar):
            path = PurePosixPath(member.name)
            name, suffix = str(path).removesuffix(path.suffix), path.suffix.lower()
            place = f"{tar.place}: {member.name}"
            found = images if suffix in SUFFIXES else labels
            if suffix not in (*SUFFIXES, *LABEL_SUFFIXES):
                continue
            if name in found:
                raise DataError(f"{place} is a second {'image' if found is images else 'label'} of its key: keep one")
            if found is images:
                images[name] = member_file(tar, member, f"{tar.name.removesuffix(TAR)}/{name}{suffix}")
            else:
                content = archive.extractfile(member)
                assert content is not None  # None only for members that are not files
                try:
                    labels[name] = label_of(content.read(MAX_LABEL_BYTES + 1), suffix, place, names)
                except DataError as error:
                    labels[name] = error
    pairs = pair(list(images), list(labels), tar.place)
    if unused := [name for name in images if name not in pairs]:
        logger.info(f"{tar.place}: {len(unused):,} images beside their keys' own are not used, such as {unused[0]}")
    return [(images[name], usable(labels[pairs[name]])) for name in images if name in pairs]


def usable(label: Label | DataError) -> Label:
    if isinstance(label, DataError):
        raise label
    return label


def pair(images: list[str], labels: list[str], place: str) -> dict[str, str]:
    """Return which label each image has, by their names without the last suffix.

    Equal names belong together. So do the only image and the only label of a key, which is the name up to its first
    dot, as in WebDataset. Other files of a key that is itself the name of an image and a label are not used: masks.

    Raises:
        DataError: if an image or a label has no counterpart, or several.
    """
    pairs = {name: name for name in set(images) & set(labels)}
    loose: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for column, names in enumerate((images, labels)):
        for name in names:
            if not {name, key_of(name)} & pairs.keys():
                loose[key_of(name)][column].append(name)
    for unlabelled, unused in loose.values():
        if not len(unlabelled) == len(unused) == 1:
            raise DataError(
                f"{place}: {(unlabelled + unused)[0]} lacks its image ({', '.join(SUFFIXES)}) or its label "
                f"({', '.join(LABEL_SUFFIXES)}): write both into the same tar, under the same name"
            )
        pairs[unlabelled[0]] = unused[0]
    return pairs


def key_of(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def label_of(content: bytes, suffix: str, place: str, names: list[str] | None) -> Label:
    """Return the name or the index of the class.

    Raises:
        DataError: if the file contains neither.
    """
    if len(content) > MAX_LABEL_BYTES:
        raise DataError(f"{place} has more than {MAX_LABEL_BYTES:,} bytes, too many for a label: make it smaller")
    try:
        label = parse_json(content)["label"] if suffix == ".json" else content.strip()
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{place} holds no label ({error!r}): write {{"label": <name or index>}}') from error
    if isinstance(label, bool) or not isinstance(label, str | bytes | int):
        raise DataError(f'{place} has a label that is {label!r:.100}: write {{"label": <name or index>}}')
    return label if isinstance(label, int) else number_or_name(label, names)
