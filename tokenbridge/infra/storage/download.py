"""Download a folder from S3."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from tokenbridge.base.files import sha256_file
from tokenbridge.base.progress import Progress
from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import S3Folder, StoredObject
from tokenbridge.infra.storage.multipart import PART_SIZE, Part, split_file
from tokenbridge.infra.storage.parallel import in_parallel
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, Entry, decode, scan, transfer_progress

Objects = dict[str, StoredObject]  # by path


def download(uri: str, folder: Path, config: StorageConfig, every: float = 5.0) -> None:
    """Download what ``upload`` stored under ``uri``. ``folder`` appears when it is complete and all digests are right.

    Args:
        every: seconds between progress lines.

    Raises:
        StorageError: if there is no complete upload, S3 refuses or does not answer, a digest is wrong, the disk is
            too small, or ``folder`` exists with other files. Downloaded files stay beside ``folder``, in a hidden
            folder, for the next download.
    """
    place = S3Folder(uri, config)
    there = {item.path: item for item in place.list()}
    entries = _read_manifest(place, there)
    if folder.exists():
        if scan(folder) != entries:
            raise StorageError(f"{folder} is there already, with other files: remove it, or name another folder")
        print(f"download {folder}: is there already, as in {place}", flush=True)
        return
    aside = folder.with_name(f".{folder.name}.download")
    aside.mkdir(parents=True, exist_ok=True)
    with _only_writer(aside):
        _receive(place, there, aside / "files", entries, f"download {folder}", every)
        (aside / "files").replace(folder)
    shutil.rmtree(aside)
    print(f"download {folder}: {len(entries):,} files, all with the right digest", flush=True)


def _read_manifest(place: S3Folder, there: Objects) -> list[Entry]:
    if MANIFEST not in there:
        raise StorageError(
            f"{place} has no {MANIFEST}, so it is no whole upload: correct the address, or repeat `tokenbridge upload`"
        )
    entries = decode(place.read(there[MANIFEST]), place.address(MANIFEST))
    for entry in entries:
        if entry.path not in there or there[entry.path].size != entry.size:
            raise _damaged(place, entry)
    return entries


def _damaged(place: S3Folder, entry: Entry) -> StorageError:
    return StorageError(
        f"{place.address(entry.path)} is missing, or not what {MANIFEST} says: repeat `tokenbridge upload`"
    )


@contextmanager
def _only_writer(aside: Path) -> Iterator[None]:
    lock = FileLock(aside / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StorageError(f"another download is at work in {aside}: wait for its end") from error
    try:
        yield
    finally:
        lock.release()


def _receive(place: S3Folder, there: Objects, folder: Path, entries: list[Entry], label: str, every: float) -> None:
    """Download ``entries`` into ``folder``. Keep a file of an earlier attempt only if it has the right digest."""
    folder.mkdir(exist_ok=True)
    found = scan(folder) if any(file.is_file() for file in folder.rglob("*")) else []
    missing = sorted(set(entries) - set(found), key=lambda entry: entry.path)
    for stale in set(found) - set(entries):
        (folder / stale.path).unlink()
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(f"{needed:,} bytes are to come and {folder} has room for {free:,}: make room on that disk")
    progress = transfer_progress(label, entries, missing, every)
    for parent in {(folder / entry.path).parent for entry in missing}:
        parent.mkdir(parents=True, exist_ok=True)
    small = [entry for entry in missing if entry.size <= PART_SIZE]
    for size in in_parallel(partial(_receive_whole, place, there, folder), small):
        progress.advance(size)
    for entry in missing:
        if entry.size > PART_SIZE:
            _receive_large(place, there, folder, entry, progress)


def _receive_whole(place: S3Folder, there: Objects, folder: Path, entry: Entry) -> int:
    (folder / entry.path).write_bytes(place.read(there[entry.path]))
    _check_received(place, folder, entry)
    return entry.size


def _receive_large(place: S3Folder, there: Objects, folder: Path, entry: Entry, progress: Progress) -> None:
    with (folder / entry.path).open("wb") as file:
        descriptor = file.fileno()

        def receive(part: Part) -> int:
            return os.pwrite(descriptor, place.read(there[entry.path], part.start, part.size), part.start)

        for size in in_parallel(receive, split_file(entry.size)):
            progress.advance(size)
    _check_received(place, folder, entry)


def _check_received(place: S3Folder, folder: Path, entry: Entry) -> None:
    if sha256_file(folder / entry.path) != entry.sha256:
        raise _damaged(place, entry)
