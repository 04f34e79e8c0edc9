"""Files that can be read in parts, in a local folder, on S3 or on the Hub. A folder or a pattern names them."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError

REMOTE = "s3://"
HUB = "hf://"
WILDCARDS = frozenset("*?[")
TAR = ".tar"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was found but is not read yet."""

    name: str  # relative to the folder that was named, so it does not depend on the folder's place
    place: str  # for messages
    size: int  # bytes
    version: str  # ETag, digest or time of the last change: it changes when the content changes
    read: Callable[[int, int], bytes]  # takes (start, size)


def root_of(data: DataConfig) -> str:
    """Return ``data.root``.

    Raises:
        DataError: if it is not set.
    """
    if data.root is None:
        raise DataError("data.root is not set: name the folder or prefix of your images")
    return data.root


def list_files(location: str, storage: StorageConfig) -> list[StoredFile]:
    """Return the sorted files of a folder and its subfolders, or the files that a pattern names, without hidden files.

    Args:
        location: /folder, /folder/train-*.tar, /folder/file.tar, or the same on S3, s3://bucket/prefix..., or on the
            Hub, hf://datasets/owner/name[@revision]...

    Raises:
        DataError: if there is no such folder, or the Hub refuses.
        StorageError: if S3 refuses or does not answer.
    """
    base, pattern = split_pattern(location)
    found = files_below(base, storage)
    files = [file for file in found if not hidden(file.name) and (not pattern or fits(file.name, pattern))]
    return sorted(files, key=lambda file: file.name)


def files_below(base: str, storage: StorageConfig) -> Iterator[StoredFile]:
    if base.startswith(REMOTE):
        return remote_files(base, storage)
    if base.startswith(HUB):
        from tokenbridge.sources.hub import hub_files  # huggingface_hub takes a while to import

        return hub_files(base)
    return local_files(Path(base).expanduser())


def split_pattern(location: str) -> tuple[str, str]:
    """Split a location into a folder and the pattern below it. The pattern is empty if ``location`` is a folder."""
    parts = location.rstrip("/").split("/")
    special = [
        n for n, part in enumerate(parts) if WILDCARDS & set(part) or (n == len(parts) - 1 and part.endswith(TAR))
    ]
    cut = special[0] if special else len(parts)
    return "/".join(parts[:cut]) or ("/" if location.startswith("/") else "."), "/".join(parts[cut:])


def fits(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern. A wildcard does not match a slash."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def local_files(folder: Path) -> Iterator[StoredFile]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: correct data.root or data.test_root")
    for parent, _, names in os.walk(folder, followlinks=True):
        for path in (Path(parent, name) for name in names):
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}): restore or delete it") from error
            if stat.S_ISREG(status.st_mode):
                name, version = path.relative_to(folder).as_posix(), str(status.st_mtime_ns)
                yield StoredFile(name, str(path), status.st_size, version, partial(read_local, path))


def read_local(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def remote_files(uri: str, storage: StorageConfig) -> Iterator[StoredFile]:
    from tokenbridge.infra.storage.bucket import S3Folder  # boto3 takes a while to import, and most sources are local

    folder = S3Folder(uri, storage)
    for item in folder.list():
        yield StoredFile(item.path, folder.address(item.path), item.size, item.etag, partial(folder.read, item))
