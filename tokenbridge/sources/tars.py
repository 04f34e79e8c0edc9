"""Untrusted tar archives, read in place: nothing is extracted, and unsafe members are refused."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath

from tokenbridge.base.names import stored_name
from tokenbridge.images import DataError
from tokenbridge.sources.places import StoredFile, note_hidden
from tokenbridge.sources.streams import Stream

BUFFER = 2**22  # bytes in one request to the store
MAX_READ = 2**26  # bytes of a header, or of a member that is read at once; images are read from their places
MAX_END = 2**20  # bytes of zeros at the end that are checked
MAX_MEMBERS = 1_000_000  # of one archive


def member_file(file: StoredFile, member: tarfile.TarInfo, name: str) -> StoredFile:
    """Return a member as a stored file with the given name, which is read from its place in the archive."""
    read = partial(read_member, file, member.offset_data)  # smaller than a lambda: there are millions
    return StoredFile(name, f"{file.place}: {member.name}", member.size, file.version, read)


def read_member(file: StoredFile, offset: int, start: int, size: int) -> bytes:
    return file.read(offset + start, size)


@contextmanager
def open_tar(file: StoredFile) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed archive.

    Raises:
        DataError: if it is not a tar, is compressed, or is cut short; the message names it.
    """
    try:
        with Stream(file, BUFFER, MAX_READ) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive
    except DataError:  # a ValueError too
        raise
    except (tarfile.TarError, EOFError, ArithmeticError, LookupError, RecursionError, ValueError) as error:
        raise DataError(
            f"{file.place} is not a tar, is compressed, or is cut short ({error}): get it again, or unpack the .gz"
        ) from error


def files_of(archive: tarfile.TarFile, tar: StoredFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive, which ``tar`` holds, with stored names. Folders and hidden files are skipped.

    Raises:
        DataError: if a member has a name outside of the archive, is a link or a device, or does not fit into the
            archive; if there are too many members; if the archive is damaged.
    """
    count = skipped = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        count += 1
        member.name = stored_name(member.name)
        check_member(member, count, tar)
        if member.isreg() and PurePosixPath(member.name).name.startswith("."):
            skipped += 1
        elif member.isreg():
            yield member
    check_end(archive, tar.place)
    note_hidden(tar.place, skipped)


def check_end(archive: tarfile.TarFile, place: str) -> None:
    """Check that the archive ends here, with zeros. tarfile treats a damaged header as the end and skips the rest.

    Raises:
        DataError: if it does not.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    rest = archive.fileobj.read(MAX_END)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        fault = "damaged, or followed by another archive," if rest else "cut short"
        raise DataError(f"{place} is {fault} at byte {archive.offset:,}: get it again")


def check_member(member: tarfile.TarInfo, count: int, tar: StoredFile) -> None:
    name = f"{tar.place}: {member.name}"
    if count > MAX_MEMBERS:
        raise DataError(f"{tar.place} has more than {MAX_MEMBERS:,} members: divide it into several")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise DataError(f"{name} is a name outside of the archive: do not use it")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{name} is a link, a device or a sparse file: write plain files into the archive")
    if not 0 <= member.size <= tar.size - member.offset_data:
        raise DataError(f"{name} has {member.size:,} bytes, which the archive does not hold: get it again")
