"""Files that can be read in parts, in a local folder, on S3 or on the Hub. A folder or a pattern names them."""

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

from tokenbridge.base.names import normalized, printable, stored_name
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError

logger = logging.getLogger(__name__)

REMOTE = "s3://"
HUB = "hf://"
WILDCARDS = frozenset("*?[")
TAR = ".tar"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was found but is not read yet."""

    name: str  # relative to the source, so it does not depend on the source's place; its hash sets an image's order
    place: str  # for messages
    size: int  # bytes; less than 0: an image that is not a regular file
    version: str  # ETag, digest or time of the last change: it changes when the content changes; "": not known
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
    """Return the sorted files of a folder and its subfolders, or the files that a pattern names, with stored names.

    Hidden files and folders are skipped; the log says how many there are.

    Args:
        location: /folder, /folder/train-*.tar, /folder/file.tar, or the same on S3, s3://bucket/prefix..., or on the
            Hub, hf://datasets/owner/name[@revision]...

    Raises:
        DataError: if there is no such folder, or the Hub refuses.
        StorageError: if S3 refuses or does not answer.
    """
    with readable(location):  # a folder's name may look like a pattern
        whole = local_path(location).is_dir()
    base, pattern = (location, "") if whole else split_pattern(location)
    found = [replace(file, name=stored_name(file.name)) for file in files_below(base, storage)]
    shown = [file for file in found if not hidden(file.name)]
    note_hidden(base, len(found) - len(shown))
    files = [file for file in shown if not pattern or fits(file.name, normalized(pattern))]
    return sorted(files, key=lambda file: file.name)


@cache  # a source is listed for its state, and again for its images
def note_hidden(place: str, count: int) -> None:
    """Report once how many hidden files and folders of a place are skipped."""
    if count:
        logger.info(f"{printable(place)}: {count:,} hidden files or folders are skipped")


def files_below(base: str, storage: StorageConfig) -> Iterable[StoredFile]:
    if base.startswith(REMOTE):
        return remote_files(base, storage)
    if base.startswith(HUB):
        from tokenbridge.sources.hub import hub_files  # huggingface_hub takes a while to import

        return hub_files(base)
    return local_files(local_path(base))


def local_path(location: str) -> Path:
    """Return the path of a local location, which may start with ~ or ~user."""
    try:
        return Path(location).expanduser()
    except RuntimeError as error:
        raise DataError(f"{location} names the home of an unknown user: write the whole path") from error


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
    """Yield the files of a folder and its subfolders, dangling links and special files too. Links are followed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: correct data.root or data.test_root")
    for path, status in walk(folder, ()):
        name = path.relative_to(folder).as_posix()
        size, version = (0, "dangling") if status is None else (status.st_size, str(status.st_mtime_ns))
        yield StoredFile(name, str(path), size, version, partial(read_local, path))


def walk(folder: Path, above: tuple[os.stat_result, ...]) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Yield what is in a folder and its subfolders, and its status, but not what is in hidden folders.

    Args:
        above: the status of each folder above it.

    Raises:
        DataError: if it cannot be read, or is one of the folders above it, through a link.
    """
    with readable(folder):
        own, entries = folder.stat(), list(os.scandir(folder))
    if any(os.path.samestat(own, other) for other in above):
        raise DataError(f"{folder} is a link to a folder that holds it: delete it")
    for entry in entries:
        path = Path(entry.path)
        with readable(path):
            status = None if entry.is_symlink() and not path.exists() else path.stat()
        if status is not None and stat.S_ISDIR(status.st_mode) and not hidden(path.name):
            yield from walk(path, (*above, own))
        else:
            yield path, status


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Name a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read ({error.strerror}): restore it or its permissions"
        ) from error


def read_local(path: Path, start: int, size: int) -> bytes:
    with readable(path):
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is a device or a pipe: replace it with a file")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)


def remote_files(uri: str, storage: StorageConfig) -> Iterator[StoredFile]:
    from tokenbridge.infra.storage.bucket import S3Folder  # boto3 takes a while to import, and most sources are local

    folder = S3Folder(uri, storage)
    for item in folder.list():
        yield StoredFile(item.path, folder.address(item.path), item.size, item.etag, partial(folder.read, item))
