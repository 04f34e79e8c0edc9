"""ImageNet-1k from its original archives, read in place: nothing is unpacked.

ILSVRC2012_img_train.tar holds one <wnid>.tar for each class. ILSVRC2012_img_val.tar holds the validation images.
ILSVRC2012_devkit_t12.tar.gz holds the classes of the validation images.
"""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from tokenbridge.base.progress import Progress
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import SUFFIXES, THREADS, ClassFiles, make_split
from tokenbridge.sources.imagenet_classes import names_of
from tokenbridge.sources.places import TAR, StoredFile, list_files, root_of
from tokenbridge.sources.tars import MAX_READ, files_of, member_file, open_tar

TRAIN, VALIDATION, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
CHUNK = 2**24  # bytes read at a time for a digest
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"


def load_imagenet_tars(
    config: DataConfig, storage: StorageConfig, every: float, proven: bool
) -> tuple[list[str], dict[str, Split]]:
    """Return readable label names, in the order of wnids, and both splits.

    Every archive is read once for its MD5 and once for names. Each image is read by its place when it is encoded.

    Args:
        every: seconds between progress lines.
        proven: whether the MD5 of these files were checked before.

    Raises:
        DataError: if an archive is missing, has another MD5 than data.md5, or is damaged or unsafe, or if the classes
            of the archives and of data.num_classes are not the same.
    """
    root = root_of(config)
    archives = {file.name: file for file in list_files(root, storage)}
    missing = [name for name in (TRAIN, VALIDATION, DEVKIT) if name not in archives]
    if missing:
        raise DataError(f"{root} lacks {', '.join(missing)}: get it from image-net.org, or correct data.root")
    if not proven:
        check_digests(archives, config, every)
    wnids, truth = read_devkit(archives[DEVKIT])
    train = index_train(archives[TRAIN], every)
    if not sorted(train) == sorted(set(wnids.values())) or len(train) != config.num_classes:
        raise DataError(
            f"{TRAIN} has {len(train)} classes, {DEVKIT} {len(set(wnids.values()))}, and data.num_classes is "
            f"{config.num_classes}: they must be the same"
        )
    test = index_validation(archives[VALIDATION], wnids, truth)
    order = sorted(train)
    empty = [wnid for wnid in order if wnid not in test]
    if empty:
        raise DataError(
            f"{VALIDATION} has no image of {', '.join(empty[:10])}: {DEVKIT} is for other images, so get both again"
        )
    splits = {"train": make_split(train, order, config), "test": make_split(test, order, config)}
    return names_of(order, TRAIN), splits


def check_digests(archives: dict[str, StoredFile], config: DataConfig, every: float) -> None:
    """Compare the MD5 of every archive that data.md5 names.

    Raises:
        DataError: at the first archive that differs.
    """
    checked = {name: archives[name] for name in (DEVKIT, VALIDATION, TRAIN) if name in config.md5}
    total = sum(file.size for file in checked.values())
    progress, read = Progress("check MD5 of the archives", max(total // 10**6, 1), "MB", every), 0
    for name, file in checked.items():
        digest = hashlib.md5(usedforsecurity=False)
        for start in range(0, file.size, CHUNK):
            content = file.read(start, min(CHUNK, file.size - start))
            digest.update(content)
            read += len(content)
            progress.advance(read // 10**6 - progress.done)
        if digest.hexdigest() != config.md5[name]:
            raise DataError(
                f"{file.place} has the MD5 {digest.hexdigest()}, not {config.md5[name]}: get it again, or correct "
                f"data.md5 if it is the right file"
            )


def index_train(archive: StoredFile, every: float) -> ClassFiles:
    """Return the images of each wnid in the archive of training images."""
    with open_tar(archive) as outer:
        members = [member_file(archive, member, member.name) for member in files_of(outer, archive)]
    progress = Progress("read names of ImageNet", len(members), "classes", every)
    classes: ClassFiles = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for member, images in zip(members, pool.map(index_class, members), strict=True):
            classes[PurePosixPath(member.name).stem] = images
            progress.advance(1)
    return classes


def index_class(tar: StoredFile) -> list[StoredFile]:
    wnid = PurePosixPath(tar.name).stem
    if not tar.name.endswith(TAR):
        raise DataError(f"{tar.place} is not a {TAR}: {TRAIN} holds one <wnid>{TAR} for each class, and nothing else")
    images = images_of(tar, f"train/{wnid}/")
    if not images:
        raise DataError(f"{tar.place} has no images: get {TRAIN} again")
    return images


def images_of(tar: StoredFile, prefix: str) -> list[StoredFile]:
    with open_tar(tar) as archive:
        images = [
            member_file(tar, member, prefix + PurePosixPath(member.name).name) for member in files_of(archive, tar)
        ]
    for image in images:
        if not image.name.lower().endswith(SUFFIXES):
            raise DataError(f"{image.place} is not an image file ({', '.join(SUFFIXES)}): get the archive again")
    return images


def index_validation(archive: StoredFile, wnids: dict[int, str], truth: list[int]) -> ClassFiles:
    """Return the images of each wnid in the archive of validation images.

    Image ILSVRC2012_val_<i>.JPEG, counted from 1, has the class truth[i - 1].
    """
    images = images_of(archive, "")
    if len(images) != len(truth):
        raise DataError(f"{archive.place} has {len(images):,} images, but {TRUTH} {len(truth):,} lines: get both again")
    classes: ClassFiles = {}
    for image in images:
        number = re.search(r"_(\d+)\.\w+$", image.name)
        if number is None or not 1 <= int(number[1]) <= len(truth):
            raise DataError(
                f"{image.place} is not an ILSVRC2012_val_<number>.JPEG with a line in {TRUTH}: get both again"
            )
        wnid = wnids[truth[int(number[1]) - 1]]
        classes.setdefault(wnid, []).append(replace(image, name=f"val/{wnid}/{image.name}"))
    return classes


def read_devkit(archive: StoredFile) -> tuple[dict[int, str], list[int]]:
    """Return ILSVRC2012_ID -> wnid, and the ID of each validation image."""
    contents = read_gzipped(archive, (META, TRUTH))
    with explained(META):
        meta = read_meta(contents[META])
    with explained(TRUTH):
        truth = [int(line) for line in contents[TRUTH].decode().split()]
    unknown = sorted(set(truth) - set(meta))
    if unknown:
        raise DataError(f"{archive.place}: {TRUTH} has the ID {unknown[0]}, which {META} does not know: get it again")
    return meta, truth


@contextmanager
def explained(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # scipy raises many types on damaged files
        raise DataError(f"{DEVKIT}: {name} cannot be read ({error}): get it again") from error


def read_meta(content: bytes) -> dict[int, str]:
    """Return ID -> wnid of the leaves in the struct array ``synsets``. Inner nodes of WordNet have children."""
    import scipy.io  # slow to import, and the other sources do not need it

    synsets = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
    leaves = np.atleast_1d(synsets)
    return {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in leaves if int(each["num_children"]) == 0}


def read_gzipped(archive: StoredFile, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return file name -> content, for the files with these names in a small .tar.gz. Folders in it are ignored."""
    try:
        with gzip.open(io.BytesIO(archive.read(0, min(archive.size, MAX_READ)))) as stream:
            content = stream.read(MAX_READ + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive.place} is not a .tar.gz, or is cut short ({error}): get it again") from error
    if len(content) > MAX_READ:
        raise DataError(f"{archive.place} holds more than {MAX_READ:,} bytes: get it again")
    inner = replace(archive, size=len(content), read=lambda start, size: content[start : start + size])
    with open_tar(inner) as tar:
        members = {PurePosixPath(member.name).name: member for member in files_of(tar, inner)}
    missing = [name for name in names if name not in members]
    if missing:
        raise DataError(f"{archive.place} lacks {', '.join(missing)}: get it again")
    return {name: inner.read(members[name].offset_data, members[name].size) for name in names}
