"""Upload a folder to S3."""

from functools import partial
from pathlib import Path

from tokenbridge.base.progress import Progress
from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import Head, S3Folder, checksum_of
from tokenbridge.infra.storage.multipart import PART_SIZE, send_in_parts
from tokenbridge.infra.storage.parallel import in_parallel
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, Entry, encode, scan, transfer_progress


def upload(folder: Path, uri: str, config: StorageConfig, every: float = 5.0) -> None:
    """Store every file below ``folder`` under ``uri``, and then the manifest that makes the upload complete.

    Args:
        every: seconds between progress lines.

    Raises:
        StorageError: if S3 refuses or does not answer, or a file changes meanwhile. What was sent stays there for
            the next upload. ``download`` refuses it until an upload is complete.
    """
    place = S3Folder(uri, config)
    there = {item.path: item for item in place.list()}  # first, to find mistakes in the settings early
    print(f"upload {folder}: reading its files", flush=True)
    entries = scan(folder)
    candidates = [entry for entry in entries if entry.path in there and there[entry.path].size == entry.size]
    kept = {entry for entry, same in in_parallel(partial(_compare, place), candidates) if same}
    missing = [entry for entry in entries if entry not in kept]
    manifest = encode(entries)
    if not missing and MANIFEST in there and place.read(there[MANIFEST]) == manifest:
        print(f"upload {folder}: is at {place} already", flush=True)
        return
    place.delete(MANIFEST)
    _send(place, folder, missing, transfer_progress(f"upload {folder}", entries, missing, every))
    place.put(MANIFEST, manifest)
    print(f"upload {folder}: {place} is whole; {len(missing):,} of {len(entries):,} files were sent", flush=True)


def _compare(place: S3Folder, entry: Entry) -> tuple[Entry, bool]:
    return entry, _matches(place.head(entry.path), entry)


def _matches(head: Head | None, entry: Entry) -> bool:
    return head is not None and (head.size, head.sha256) == (entry.size, entry.sha256)


def _send(place: S3Folder, folder: Path, entries: list[Entry], progress: Progress) -> None:
    """Send small files in parallel, then large files one by one, with their parts in parallel."""
    small = [entry for entry in entries if entry.size <= PART_SIZE]
    for size in in_parallel(partial(_send_whole, place, folder), small):
        progress.advance(size)
    for entry in entries:
        if entry.size > PART_SIZE:
            _send_large(place, folder / entry.path, entry, progress)


def _send_whole(place: S3Folder, folder: Path, entry: Entry) -> int:
    content = (folder / entry.path).read_bytes()
    place.put(entry.path, content)
    _check_stored(place, entry, checksum_of(content))
    return entry.size


def _send_large(place: S3Folder, file: Path, entry: Entry, progress: Progress) -> None:
    before = file.stat().st_mtime_ns
    checksum = send_in_parts(place, entry.path, file, entry.sha256, progress.advance)
    head = place.head(entry.path)
    if head is not None and head.sha256 != entry.sha256:  # it continued an upload of the file's earlier content
        checksum = send_in_parts(place, entry.path, file, entry.sha256, lambda _: None)
    if file.stat().st_mtime_ns != before:
        raise StorageError(f"{file} changed while it was uploaded: upload it again when it is at rest")
    _check_stored(place, entry, checksum)


def _check_stored(place: S3Folder, entry: Entry, checksum: str) -> None:
    """Check what S3 has now. Some servers keep no checksum of their own, but ours is in the metadata."""
    head = place.head(entry.path)
    if head is None or not _matches(head, entry) or head.checksum not in (None, checksum):
        raise StorageError(
            f"{place.address(entry.path)} is not what was sent, its size or SHA-256 differs: the file changed, or "
            "another upload to this place is under way; repeat"
        )
