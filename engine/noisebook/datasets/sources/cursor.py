"""Reads rows of Parquet files forward, a few at a time: a row group may be larger than the memory, and what follows on what
was read before is not read again from the beginning of its group."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from noisebook.datasets.sources.base import File, open_file, refuse_changed

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER = 1 << 20  # bytes of a column that are read at once, beside the page they belong to
FEW = 8  # rows of the columns that go along, at once


class Opened:
    """A Parquet file: its schema, and where its row groups end. Raises ValueError where its counts of rows cannot be."""

    def __init__(self, handle: Any):
        import pyarrow.parquet as pq

        self.parquet = pq.ParquetFile(handle, page_checksum_verification=True, buffer_size=BUFFER)
        metadata = self.parquet.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if any(count < 0 for count in counts) or sum(counts) != metadata.num_rows:
            raise ValueError("damaged: its counts of rows do not agree")
        self.ends: list[int] = list(accumulate(counts))  # of the row groups, in rows
        self.rows: int = metadata.num_rows
        self.schema: pa.Schema = self.parquet.schema_arrow


def opened(file: File, use: str = "images") -> Opened:
    """A file of the input. `use` keeps those apart that read images and other columns. Raises OSError, ValueError and what
    Arrow raises; Changed where it is not the one of the plan."""
    refuse_changed(file)
    return as_recorded(file, use)


def as_recorded(file: File, use: str = "images") -> Opened:
    """It as it was when it was opened first, if it was."""
    return _opened(file, use, threading.get_ident())


@lru_cache(maxsize=16)
def _opened(file: File, use: str, thread: int) -> Opened:  # the file's stamp keeps its versions apart
    return Opened(open_file(file))


def reader(file: File, columns: Sequence[str], use: str) -> "ColumnReader":
    """Reads columns of a file, going on where this thread has stopped. Raises as `opened`."""
    refuse_changed(file)
    return _reader(file, tuple(columns), use, threading.get_ident())


@lru_cache(maxsize=16)
def _reader(file: File, columns: tuple[str, ...], use: str, thread: int) -> "ColumnReader":
    return ColumnReader(as_recorded(file, use), columns)


class ColumnReader:
    """Some columns of a file, read forward."""

    def __init__(self, source: Opened, columns: Sequence[str]):
        self.source, self.columns = source, list(columns)
        self._close()

    def _close(self) -> None:
        self._stream: Any = None
        self._held: Any = None  # the batch that was read last
        self._group, self._size, self._at = -1, 0, 0  # _at: the row after that batch

    def groups(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """These rows, which ascend, cut where a row group ends."""
        at = 0
        while at < len(rows):
            group = bisect_right(self.source.ends, rows[at])
            end = bisect_left(rows, self.source.ends[group], at) if group < len(self.source.ends) else len(rows)
            yield rows[at:end]
            at = end

    def batches(self, rows: Sequence[int], size: int = FEW) -> "Iterator[pa.Table | Exception]":
        """Tables of up to `size` rows that together are these rows, which ascend. For each row that cannot be read, or comes
        after one in its row group that cannot, the reason."""
        import pyarrow as pa

        for part in self.groups(rows):
            done = 0
            try:
                for table in self._of_group(part, size):
                    yield table
                    done += len(table)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                self._close()
                yield from [error] * (len(part) - done)

    def _of_group(self, rows: Sequence[int], size: int) -> "Iterator[pa.Table]":
        import pyarrow as pa

        ends, done = self.source.ends, 0
        group = bisect_right(ends, rows[0])
        if group == len(ends):
            raise ValueError(f"it has {self.source.rows:,} rows, and the plan names row {rows[0]:,}")
        held = len(self._held) if self._held is not None else 0
        if (self._group, self._size) != (group, size) or rows[0] < self._at - held:
            self._close()
            self._group, self._size, self._at = group, size, ends[group - 1] if group else 0
            self._stream = self.source.parquet.iter_batches(size, [group], self.columns, use_threads=False)
        while done < len(rows):
            while self._held is None or rows[done] >= self._at:
                self._held = None  # before the next is read
                self._held = next(self._stream, None)
                if self._held is None or not len(self._held):
                    raise ValueError("damaged: a row group ends too early")
                self._at += len(self._held)
            begin = self._at - len(self._held)
            inside = [row - begin for row in rows[done : bisect_left(rows, self._at, done)]]
            yield _picked(pa.Table.from_batches([self._held]), inside)
            done += len(inside)


def _picked(table: "pa.Table", rows: Sequence[int]) -> "pa.Table":
    """These rows, which ascend."""
    import pyarrow as pa

    if len(rows) == len(table):
        return table
    try:
        return table.take(pa.array(rows))
    except pa.ArrowNotImplementedError:  # of views
        return pa.concat_tables([table.slice(row, 1) for row in rows])
