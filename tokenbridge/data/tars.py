"""Tar archives from elsewhere, read in place: nothing is extracted, and what looks like an attack is refused."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from tokenbridge.data import DataError
from tokenbridge.data.imagefiles import MAX_FILE_BYTES, check_size
from tokenbridge.data.places import StoredFile

BUFFER = 2**22  # bytes that are asked for at a time
MAX_MEMBERS = 1_000_000  # of one archive


class Raw(io.RawIOBase):
    """A stored file as a stream that can seek."""

    def __init__(self, file: StoredFile) -> None:
        self.file, self.position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self.file.read(self.position, max(min(len(buffer), self.file.size - self.position), 0))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class Stream(io.BufferedReader):
    """Refuses to bring more into memory than an image may have: headers of an archive can ask for any length."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__(Raw(file), BUFFER)
        self.place = file.place

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_FILE_BYTES:
            raise DataError(f"{self.place} has a header that asks for {size} bytes: do not trust it")
        return super().read(size)


@contextmanager
def open_tar(file: StoredFile) -> Iterator[tarfile.TarFile]:
    """An uncompressed archive.

    Raises:
        DataError: whatever is wrong with its form, naming it.
    """
    try:
        with Stream(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise DataError(
            f"{file.place} is no tar, is compressed, or is cut short ({error}): get it again, or unpack the .gz"
        ) from error


def files_of(archive: tarfile.TarFile, place: str) -> Iterator[tarfile.TarInfo]:
    """Its files, one by one; folders and hidden files are passed over.

    Raises:
        DataError: for a name outside of the archive, a link or a device, a member that is too large, too many members,
            or damage.
    """
    count = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
        count += 1
        check_member(member, count, place)
        if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
            yield member
    check_end(archive, place)


def check_end(archive: tarfile.TarFile, place: str) -> None:
    """tarfile takes a damaged header for the end, and would leave out what follows."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise DataError(f"{place} is damaged at byte {archive.offset:,}: get it again")


def check_member(member: tarfile.TarInfo, count: int, place: str) -> None:
    name = f"{place}: {member.name}"
    if count > MAX_MEMBERS:
        raise DataError(f"{place} has more than {MAX_MEMBERS:,} members: divide it into several")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise DataError(f"{name} is a name outside of the archive: do not trust it")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{name} is a link, a device or a sparse file: write plain files into the archive")
    check_size(member.size, name)
