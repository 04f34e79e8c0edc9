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
        sizes = [self.footers[n].row_group(group).num_rows for n, group in self.groups]
        self.starts: list[int] = [0, *np.cumsum(sizes, dtype=int).tolist()]  # the first row of each group, and the end

    def __len__(self) -> int:
        return self.starts[-1]

    def column(self, name: str) -> NDArray[Any]:
        """Return all values [N] of a column of numbers."""
        return np.concatenate([self._read(n, None, [name])[name].to_numpy() for n in range(len(self.files))])

    def rows(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the rows start..stop-1 as tables, with one row group at a time in memory."""
        for position in range(bisect_right(self.starts, start) - 1, len(self.groups)):
            first = self.starts[position]
            if first >= stop:
                return
            yield self.group(position, columns).slice(max(start - first, 0), stop - max(start, first))

    def group(self, position: int, columns: list[str]) -> pa.Table:
        """Return the row group with the rows from ``starts[position]`` up to ``starts[position + 1]``."""
        return self._read(*self.groups[position], columns)

    def _footer(self, file: File) -> pq.FileMetaData:
        with self._opened(file, None) as opened:
            return opened.metadata

    def _read(self, number: int, group: int | None, columns: list[str]) -> pa.Table:
        with self._opened(self.files[number], self.footers[number]) as file:
            return file.read(columns) if group is None else file.read_row_group(group, columns)

    @contextmanager
    def _opened(self, file: File, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
        place, source = file
        try:
            with pq.ParquetFile(source(), metadata=metadata) as opened:
                yield opened
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{place} is missing or damaged ({error}): {self.remedy}") from error
