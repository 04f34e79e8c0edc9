"""The manifest of an uploaded folder: paths, sizes and digests, in one object that is written last."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from tokenbridge.base.files import sha256_file
from tokenbridge.base.progress import Progress
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.client import THREADS
from tokenbridge.infra.storage.paths import is_plain

MANIFEST = "_manifest.json"  # not manifest.json: folders of images and moments have a file of that name
FORMAT = 1
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file."""

    path: str  # relative, with slashes
    size: int  # bytes
    sha256: str  # hexadecimal


def scan(folder: Path) -> list[Entry]:
    """Return the files below ``folder``, sorted by path. Empty folders are ignored.

    Raises:
        StorageError: if ``folder`` is not a folder, has no file, or has a file that cannot be stored under its name.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder: name one that holds files")
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for path in files:
        if not is_plain(path) or path == MANIFEST:
            raise StorageError(f"{folder / path!r} cannot be stored under that name: rename it")
    if not files:
        raise StorageError(f"{folder} holds no file: name one that does")
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(sha256_file, files.values())
        entries = [Entry(path, files[path].stat().st_size, digest) for path, digest in zip(files, digests, strict=True)]
    return sorted(entries, key=lambda entry: entry.path)


def encode(entries: Sequence[Entry]) -> bytes:
    content = {"format": FORMAT, "files": [asdict(entry) for entry in entries]}
    return (json.dumps(content, indent=1) + "\n").encode()


def decode(content: bytes, place: str) -> list[Entry]:
    """Return the entries of a manifest. No entry's path can leave the folder that the files are downloaded to.

    Raises:
        StorageError: if the manifest is damaged, has another format, or names a path that leaves the folder.
    """
    try:
        manifest = json.loads(content)
        form = manifest["format"]
        entries = [Entry(**entry) for entry in manifest["files"]]
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{place} is damaged ({error!r}): upload the folder again") from error
    if form != FORMAT:
        raise StorageError(f"{place} has format {form}, this version knows {FORMAT}: upgrade TokenBridge")
    for entry in entries:
        if not (isinstance(entry.path, str) and is_plain(entry.path) and entry.path != MANIFEST):
            raise StorageError(f"{place} names {entry.path!r}, which is no path below a folder: do not trust it")
        if type(entry.size) is not int or entry.size < 0 or not SHA256.fullmatch(str(entry.sha256)):
            raise StorageError(f"{place} has no size or digest of {entry.path}: upload the folder again")
    check_distinct([entry.path for entry in entries], place)
    return entries


def check_distinct(paths: list[str], place: str) -> None:
    """Raise a StorageError if a path appears twice, or as both a file and a folder."""
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if len(set(paths)) < len(paths) or folders & set(paths):
        raise StorageError(f"{place} names a path twice, or as both file and folder: upload the folder again")


def transfer_progress(label: str, entries: Sequence[Entry], missing: Sequence[Entry], every: float) -> Progress:
    """Return a progress that counts the bytes of all entries. Entries that are not missing count as done."""
    total, left = (sum(entry.size for entry in some) for some in (entries, missing))
    return Progress(label, total, "bytes", every, done=total - left)
