"""The rows of several Parquet files as one table, read one row group at a time."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenbridge.images import DataError

MAX_ROWS = 2**28  # of all files: their labels fit into memory
MAX_GROUP_BYTES = 2**32  # of a row group, decompressed
File = tuple[str, Callable[[], Any]]  # its place, for messages; and a function that returns a path or stream to open


class RowGroups:
    """All rows, in the order of the files. The object holds no open file, so it survives a fork.

    Args:
        files: the Parquet files, local or remote.
        remedy: for messages: what to do about a damaged file.

    Raises:
        DataError: here and when rows are read, if a file is missing or damaged.
    """

    def __init__(self, files: Sequence[File], remedy: str) -> None:
        self.files, self.remedy = list(files), remedy
        self.footers: list[pq.FileMetaData] = [self._footer(file) for file in self.files]
        self.groups = [(n, group) for n, footer in enumerate(self.footers) for group in range(footer.num_row_groups)]
        sizes = [self._rows(n, group) for n, group in self.groups]
        if sum(sizes) > MAX_ROWS:
            raise DataError(f"{files[0][0]} and others have {sum(sizes):,} rows, not {MAX_ROWS:,} or fewer: {remedy}")
        self.starts: list[int] = [0, *np.cumsum(sizes, dtype=int).tolist()]  # the first row of each group, and the end
        groups = np.cumsum([0, *(footer.num_row_groups for footer in self.footers)], dtype=int).tolist()
        self.firsts = [self.starts[group] for group in groups]  # the first row of each file, and the end

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, row: int) -> str:
        """Return the place of the file that holds a row, and the row's number there, counted from 0."""
        number = bisect_right(self.firsts, row) - 1
        return f"{self.files[number][0]}, row {row - self.firsts[number]:,}"

    def schema(self) -> pa.Schema:
        """Return the columns of the first file."""
        with self._opened(self.files[0], self.footers[0]) as file:
            return file.schema_arrow

    def columns(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield the whole column of each file."""
        for number in range(len(self.files)):
            yield self._read(number, None, [name])[name]

    def take(self, rows: NDArray[np.int64], columns: list[str]) -> Iterator[pa.Table]:
        """Yield the ascending ``rows`` as tables, with one row group at a time in memory."""
        group_of = np.searchsorted(self.starts, rows, side="right") - 1
        for position in np.unique(group_of).tolist():
            first, end = np.searchsorted(group_of, [position, position + 1])
            yield self.group(position, columns).take(rows[first:end] - self.starts[position])

    def group(self, position: int, columns: list[str]) -> pa.Table:
        """Return the row group with the rows from ``starts[position]`` up to ``starts[position + 1]``."""
        return self._read(*self.groups[position], columns)

    def _footer(self, file: File) -> pq.FileMetaData:
        with self._opened(file, None) as opened:
            return opened.metadata

    def _rows(self, number: int, group: int) -> int:
        """Return the number of rows of a row group that is not too large to be read."""
        about = self.footers[number].row_group(group)  # not its columns: pyarrow 25 aborts on a damaged one
        if not (0 <= about.num_rows <= MAX_ROWS and 0 <= about.total_byte_size <= MAX_GROUP_BYTES):
            raise DataError(
                f"{self.files[number][0]} has a row group of {about.num_rows:,} rows and {about.total_byte_size:,} "
                f"bytes, not 0 to {MAX_ROWS:,} and 0 to {MAX_GROUP_BYTES:,}: {self.remedy}"
            )
        return about.num_rows

    def _read(self, number: int, group: int | None, columns: list[str]) -> pa.Table:
        with self._opened(self.files[number], self.footers[number]) as file:
            table = file.read(columns) if group is None else file.read_row_group(group, columns)
            rows = self.firsts[number + 1] - self.firsts[number] if group is None else self._rows(number, group)
            if table.num_rows != rows:
                raise ValueError(f"it has {table.num_rows:,} of {rows:,} rows")
            return table.select(columns)

    @contextmanager
    def _opened(self, file: File, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
        place, source = file
        try:
            with pq.ParquetFile(source(), metadata=metadata, page_checksum_verification=True) as opened:
                yield opened
        except DataError:
            raise
        except (OSError, pa.ArrowException, ValueError, LookupError, ArithmeticError) as error:
            raise DataError(f"{place} is missing or damaged ({error}): {self.remedy}") from error
