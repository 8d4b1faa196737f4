"""Reads rows of Parquet files forward, a few at a time: a row group may be larger than the memory, and what follows on what
was read before is not read again from the beginning of its group."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from noisebook.datasets.pages import DICTIONARY_ENCODINGS, PLAIN, cost, first_page
from noisebook.datasets.sources.base import File, open_file, refuse_changed
from noisebook.errors import FormatError

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER = 1 << 20  # bytes of a column that are read at once, beside the page they belong to
FEW = 8  # rows of the columns that go along, at once
MANY, HELD = 32, 16 << 20  # images that are read at once at most, and the bytes that they may take together


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
    return ColumnReader(as_recorded(file, use), columns, file)


class ColumnReader:
    """Some columns of a file, read forward."""

    def __init__(self, source: Opened, columns: Sequence[str], file: File):
        self.source, self.columns, self.file = source, list(columns), file
        self._sized = (-1, 1)  # a row group, and how many of its rows are read at once
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

    def batches(self, rows: Sequence[int], size: int | None = FEW) -> "Iterator[pa.Table | Exception]":
        """Tables of up to `size` rows (None: as many as surely take no more than `HELD` bytes) that together are these rows,
        which ascend. For each row that cannot be read, or comes after one in its row group that cannot, the reason."""
        import pyarrow as pa

        for part in self.groups(rows):
            done, many = 0, size or self._at_once(part[0])
            while True:
                try:
                    for table in self._of_group(part[done:], many):
                        yield table
                        done += len(table)
                    break
                except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                    self._close()
                    if size is None and many > 1:  # one by one, so that those before a damaged page are read
                        many = 1
                        self._sized = self._sized[0], many
                        continue
                    yield from [error] * (len(part) - done)
                    break

    def _at_once(self, row: int) -> int:
        """Rows of the group of that row that are read at once: as many as fit if the value of each were the group's whole
        dictionary, beside all other pages. The headers of the pages say how large these are; they are looked at in files of
        this machine."""
        group, place = bisect_right(self.source.ends, row), self.file.place
        if group == self._sized[0]:
            return self._sized[1]
        if group == len(self.source.ends) or not (place and place.local):
            return 1
        about = self.source.parquet.metadata.row_group(group)
        parts = [about.column(i) for i in range(about.num_columns)]
        repeated = others = 0  # bytes of pages
        try:
            with open_file(self.file) as f:
                for part in filter(self._wants, parts):
                    start, size = first_page(part), part.total_compressed_size
                    if start < 0 or not 0 <= size <= HELD:
                        raise FormatError("a column too large to be looked at")
                    f.seek(start)
                    pages = cost(f.read(size), 0, size)
                    if not pages.encodings <= {PLAIN, *DICTIONARY_ENCODINGS}:
                        raise FormatError("pages that may hold more than their size")
                    repeated, others = repeated + pages.dictionary, others + pages.total - pages.dictionary
        except (FormatError, OSError, ValueError):
            others = HELD  # what is wrong is said where the rows are read
        self._sized = group, max(1, min(MANY, (HELD - others) // max(1, repeated)))
        return self._sized[1]

    def _wants(self, part: Any) -> bool:
        """Whether a column of the file is one of those that are read, or lies in one."""
        return any(f"{part.path_in_schema}.".startswith(f"{name}.") for name in self.columns)

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
