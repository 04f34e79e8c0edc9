"""Files that can be read in parts: in a local folder, on S3 or on the Hub; named by a folder or a pattern."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from tokenbridge.config import StorageConfig
from tokenbridge.images import DataError

REMOTE = "s3://"
HUB = "hf://"
WILDCARDS = frozenset("*?[")
TAR = ".tar"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was found, and not yet read."""

    name: str  # relative to the folder that was named, so that it is the same wherever that lies
    place: str  # for messages
    size: int  # bytes
    version: str  # ETag or time of the last change: differs when the content does
    read: Callable[[int, int], bytes]  # of (start, size)


def list_files(location: str, storage: StorageConfig) -> list[StoredFile]:
    """The files of a folder and of all below it, or those that a pattern names; sorted. Hidden ones are passed over.

    Args:
        location: /folder, /folder/train-*.tar, /folder/file.tar, or the same on S3, s3://bucket/prefix..., or on the
            Hub, hf://datasets/owner/name[@revision]...

    Raises:
        DataError: when there is no such folder, or the Hub refuses.
        StorageError: when S3 refuses or does not answer.
    """
    base, pattern = split_pattern(location)
    found = files_below(base, storage)
    files = [file for file in found if not hidden(file.name) and (not pattern or fits(file.name, pattern))]
    return sorted(files, key=lambda file: file.name)


def files_below(base: str, storage: StorageConfig) -> Iterator[StoredFile]:
    if base.startswith(REMOTE):
        return remote_files(base, storage)
    return files_of_hub(base) if base.startswith(HUB) else local_files(Path(base).expanduser())


def split_pattern(location: str) -> tuple[str, str]:
    """The folder, and the pattern below it, which is empty if the folder as a whole is meant."""
    parts = location.rstrip("/").split("/")
    special = [
        n for n, part in enumerate(parts) if WILDCARDS & set(part) or (n == len(parts) - 1 and part.endswith(TAR))
    ]
    cut = special[0] if special else len(parts)
    return "/".join(parts[:cut]) or ("/" if location.startswith("/") else "."), "/".join(parts[cut:])


def fits(name: str, pattern: str) -> bool:
    """A wildcard stands for no slash."""
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


def files_of_hub(address: str) -> Iterator[StoredFile]:
    from tokenbridge.sources.hub import hub_files  # huggingface_hub takes a while to import, too

    for (name, place, size, version), read in hub_files(address):
        yield StoredFile(name, place, size, version, read)
