"""Untrusted tar archives, read in place: nothing is extracted, and unsafe members are refused."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath

from tokenbridge.images import DataError
from tokenbridge.sources.imagefiles import MAX_FILE_BYTES, ImageFile, check_size
from tokenbridge.sources.places import StoredFile
from tokenbridge.sources.streams import Stream

BUFFER = 2**22  # bytes in one request to the store
MAX_MEMBERS = 1_000_000  # of one archive


def member_file(file: StoredFile, member: tarfile.TarInfo) -> StoredFile:
    """Return a member as a stored file, which is read from its place in the archive."""
    start = member.offset_data

    def read(position: int, size: int) -> bytes:
        return file.read(start + position, size)

    return StoredFile(member.name, f"{file.place}: {member.name}", member.size, file.version, read)


def member_image(file: StoredFile, member: tarfile.TarInfo, path: str) -> ImageFile:
    """Return a member as an image with the given path, which is read from its place in the archive."""
    return ImageFile(path, f"{file.place}: {member.name}", partial(file.read, member.offset_data, member.size))


@contextmanager
def open_tar(file: StoredFile) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed archive.

    Raises:
        DataError: if it is not a tar, is compressed, or is cut short; the message names it.
    """
    try:
        with Stream(file, BUFFER, MAX_FILE_BYTES) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise DataError(
            f"{file.place} is not a tar, is compressed, or is cut short ({error}): get it again, or unpack the .gz"
        ) from error


def files_of(archive: tarfile.TarFile, place: str, largest: int = MAX_FILE_BYTES) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive. Folders and hidden files are ignored.

    Args:
        largest: the most bytes of one file.

    Raises:
        DataError: if a member has a name outside of the archive, is a link or a device, or is too large; if there are
            too many members; if the archive is damaged.
    """
    count = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        count += 1
        check_member(member, count, place, largest)
        if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
            yield member
    check_end(archive, place)


def check_end(archive: tarfile.TarFile, place: str) -> None:
    """Check that the archive ends here. tarfile treats a damaged header as the end, and would skip the rest.

    Raises:
        DataError: if it does not.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise DataError(f"{place} is damaged at byte {archive.offset:,}: get it again")


def check_member(member: tarfile.TarInfo, count: int, place: str, largest: int) -> None:
    name = f"{place}: {member.name}"
    if count > MAX_MEMBERS:
        raise DataError(f"{place} has more than {MAX_MEMBERS:,} members: divide it into several")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise DataError(f"{name} is a name outside of the archive: do not use it")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{name} is a link, a device or a sparse file: write plain files into the archive")
    check_size(member.size, name, largest)
