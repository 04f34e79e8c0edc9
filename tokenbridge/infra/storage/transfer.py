"""Upload and download a folder. boto3's transfer manager moves the files in parallel, large ones in parts."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager

from tokenbridge.base.files import explain_disk_error, publish
from tokenbridge.base.locks import locked
from tokenbridge.base.progress import Progress
from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import DIGEST, S3Folder
from tokenbridge.infra.storage.client import THREADS, explained
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, Entry, decode, encode, scan

logger = logging.getLogger(__name__)

SETTINGS = TransferConfig(max_concurrency=THREADS, preferred_transfer_client="classic")
BATCH = 1000  # files that the transfer manager gets at once, so that an error ends the others soon


def upload(folder: Path, uri: str, config: StorageConfig) -> None:
    """Store every file below ``folder`` under ``uri``, and then the manifest that makes the upload complete.

    Raises:
        StorageError: if S3 refuses or does not answer, or a file changes meanwhile. What was sent stays there for
            the next upload. ``download`` refuses it until an upload is complete.
    """
    place = S3Folder(uri, config)
    place.list()  # to find mistakes in the settings before files are read
    logger.info(f"upload {folder}: reading its files")
    before = _times(folder)
    entries = scan(folder)
    if not entries:
        raise StorageError(f"{folder} holds no file: name one that does")
    missing = _missing(place, entries)
    manifest = encode(entries)
    if not missing and _read_manifest(place) == manifest:
        logger.info(f"upload {folder}: is at {place} already")
        return
    place.delete(MANIFEST)
    _transfer("upload", place, folder, missing, f"upload {folder}")
    if _times(folder) != before or _missing(place, missing):
        raise StorageError(f"{folder} or {place} changed during the upload: repeat when nothing else writes to them")
    place.put(MANIFEST, manifest)
    logger.info(f"upload {folder}: {place} is whole; {len(missing):,} of {len(entries):,} files were sent")


def download(uri: str, folder: Path, config: StorageConfig) -> None:
    """Download what ``upload`` stored under ``uri``. ``folder`` appears when it is complete and all digests are right.

    Raises:
        StorageError: if there is no complete upload, S3 refuses or does not answer, a digest is wrong, the disk is
            too small, or ``folder`` exists with other files. Downloaded files stay beside ``folder``, in a hidden
            folder, for the next download.
    """
    place = S3Folder(uri, config)
    content = _read_manifest(place)
    if not content:
        raise StorageError(f"{place} has no {MANIFEST}, so it is no whole upload: correct the address, or upload again")
    entries = decode(content, place.address(MANIFEST))
    if folder.exists():
        if scan(folder) != entries:
            raise StorageError(f"{folder} is there already, with other files: remove it, or name another folder")
        logger.info(f"download {folder}: is there already, as in {place}")
        return
    aside = folder.with_name(f".{folder.name}.download")
    with locked(aside / "lock", str(aside), wait=False), explain_disk_error(folder):
        _receive(place, aside / "files", entries, f"download {folder}")
        publish(aside / "files", folder)
    shutil.rmtree(aside)
    logger.info(f"download {folder}: {len(entries):,} files, all with the right digest")


def _receive(place: S3Folder, folder: Path, entries: list[Entry], label: str) -> None:
    """Download ``entries`` into ``folder``. Keep a file of an earlier attempt only if it has the right digest."""
    folder.mkdir(exist_ok=True)
    found = set(scan(folder))
    for stale in found - set(entries):
        (folder / stale.path).unlink()
    missing = [entry for entry in entries if entry not in found]
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder} needs {needed / 2**20:,.0f} MiB, and its disk has {free / 2**20:,.0f} MiB: free some"
        )
    for entry in missing:
        (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
    _transfer("download", place, folder, missing, label)
    for entry in set(missing) - set(scan(folder)):
        raise StorageError(f"{place.address(entry.path)} is not what {MANIFEST} says: repeat `tokenbridge upload`")


def _read_manifest(place: S3Folder) -> bytes:
    """Return the content of the manifest, or nothing if there is none."""
    return b"".join(place.read(item) for item in place.list() if item.path == MANIFEST)


def _times(folder: Path) -> dict[Path, int]:
    """Return when each file and folder below ``folder`` was last changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _missing(place: S3Folder, entries: list[Entry]) -> list[Entry]:
    """Return the entries that S3 does not have with their size and digest."""
    sizes = {item.path: item.size for item in place.list()}

    def is_there(entry: Entry) -> bool:
        return sizes.get(entry.path) == entry.size and place.digest(entry.path) == entry.sha256

    with ThreadPoolExecutor(THREADS) as pool:
        return [entry for entry, found in zip(entries, pool.map(is_there, entries), strict=True) if not found]


def _transfer(operation: str, place: S3Folder, folder: Path, entries: list[Entry], label: str) -> None:
    """Send or receive files in parallel. On the first error, or on Ctrl-C, cancel the transfers that are not done.

    Args:
        operation: ``upload`` or ``download``.
    """
    progress, lock = Progress(label, sum(entry.size for entry in entries), "bytes"), Lock()

    def advance(count: int) -> None:  # many threads call it; the count is negative when a request is repeated
        with lock:
            progress.advance(count)

    def begin(entry: Entry) -> Any:
        extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {DIGEST: entry.sha256}} if operation == "upload" else {}
        where = {"bucket": place.bucket, "key": place.prefix + entry.path, "fileobj": str(folder / entry.path)}
        return getattr(manager, operation)(**where, extra_args=extra, subscribers=[ProgressCallbackInvoker(advance)])

    with create_transfer_manager(place.client, SETTINGS) as manager:
        for first in range(0, len(entries), BATCH):
            batch = entries[first : first + BATCH]
            futures = [begin(entry) for entry in batch]
            for entry, future in zip(batch, futures, strict=True):
                with explained(place.address(entry.path), place.config):
                    future.result()
