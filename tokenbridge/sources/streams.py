"""Stored files as streams, for libraries that seek in a file."""

import io

from tokenbridge.images import DataError
from tokenbridge.sources.places import StoredFile


class Raw(io.RawIOBase):
    """A stored file as an unbuffered stream that can seek."""

    def __init__(self, file: StoredFile) -> None:
        self.file, self.position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

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
    """A buffered stream that refuses to read more than ``largest`` bytes at once: a header can ask for any length.

    Args:
        buffer: bytes in one request to the store.
    """

    def __init__(self, file: StoredFile, buffer: int, largest: int) -> None:
        super().__init__(Raw(file), buffer)
        self.place, self.largest = file.place, largest

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.largest:
            raise DataError(
                f"{self.place} has a header that asks for {size} bytes, but at most {self.largest} are allowed: "
                "do not use it"
            )
        return super().read(size)
