"""Parquet files with image bytes, in the layout of Hugging Face: a column of bytes, or of {"bytes", "path"}."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from noisebook.datasets.sources.base import Failure, File, Item, Items, Source, Wanted, bad_key, refuse_changed
from noisebook.datasets.sources.columns import (
    Types,
    conformed,
    image_column,
    leaf,
    merged,
    refuse_twice,
    refuse_unknown,
    types_of,
    variant,
)
from noisebook.datasets.sources.cursor import as_recorded, opened, reader
from noisebook.datasets.sources.rows import CHUNK, Column, Repeated, compute, packed
from noisebook.errors import DatasetError, first_line, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

if TYPE_CHECKING:
    import pyarrow as pa

HELD = 64 << 20  # bytes of images that are read before it is seen that the file did not change meanwhile, about
MANY = 256  # or that many images
PEEKED_FILES, PEEKED_ROWS = 16, 64  # whose values are looked at to find the column of the images
CONVERTED = 64  # rows whose columns get another type at once: of a dictionary, each may have a large value
CARRIED = 1 << 30  # bytes of the columns that go along with a shard, at most


@dataclass
class Parquet(Source):
    kind = "parquet"
    suffixes = (".parquet", ".parq", ".pq")

    types: Types | None = None  # of `columns`; None: to be found in the files

    @classmethod
    def enumerated(cls, files: list[File], wanted: Wanted, limits: Limits = DEFAULT) -> Self:
        import pyarrow as pa

        chunks: list[dict[str, Column]] = []
        first: dict[Any, str] = {}  # of each variant of columns the file that has it first
        variants: dict[str, pa.Schema] = {}
        readable: list[tuple[File, int]] = []
        total = 0
        for i, file in enumerate(files):
            try:
                if file.problem:
                    raise OSError(file.problem)
                parquet = opened(file)
                rows = parquet.rows
            except (pa.ArrowException, OSError, ValueError) as error:
                chunks += Items.of([Item(file.name, i, problem=f"unreadable: {first_line(error)}")]).chunks
                continue
            total += rows
            if problem := too_much(f"{printable(file.path)}: rows so far", total, limits, "rows"):
                raise DatasetError(problem)
            if (columns := variant(parquet.schema)) not in first:
                first[columns] = printable(file.path)
                variants[first[columns]] = parquet.schema
            readable.append((file, rows))
            chunks += _items(file, i, rows)
        if not readable:
            raise DatasetError(f"{printable(files[0].path)}: none of the Parquet files can be read")
        if not total and len(readable) == len(files):
            raise DatasetError(f"{printable(files[0].path)}: the Parquet files have no rows: there are no images")
        dropped = wanted.drop_columns
        refuse_unknown(dropped, (name for schema in variants.values() for name in schema.names), next(iter(variants)))
        refuse_twice(variants, dropped)
        column = image_column(variants, wanted.image_column, dropped, lambda name: _first_values(readable, name))
        types = merged(variants, {column, *dropped})
        recorded = {name: str(kind) for name, kind in types.items()}
        return cls(files, Items(chunks), recorded, column, types=types)

    def image_bytes(self, items: Iterable[Item]) -> Iterator[bytes | Failure | None]:
        """Rows are read here, once, and not by each worker anew; about `HELD` bytes of them at a time."""
        for run in _runs(items):
            if run[0].problem:
                yield None
                continue
            yield from _images(self.files[run[0].file], self.image_column, [item.start for item in run])

    def carried(self, items: Sequence[Item]) -> "pa.Table":
        import pyarrow as pa

        parts, size = list[pa.Table](), 0
        for run in _runs(items):  # of equal files
            file = self.files[run[0].file]
            kinds = {field.name: str(field.type) for field in opened(file, "columns").schema}
            there = [name for name in self.columns if name in kinds]
            if self.columns and not there:  # a table without columns forgets how many rows it has
                parts.append(conformed(pa.table({"": pa.nulls(len(run))}), self.columns, self._types))
                continue
            as_planned = all(kinds.get(name) == kind for name, kind in self.columns.items())
            columns = reader(file, there, "columns")
            batches: list[pa.Table] = []
            for rows in columns.groups([item.start for item in run]):
                for batch in columns.batches(rows):
                    if isinstance(batch, Exception):
                        raise batch
                    batches.append(batch.select(there))
                    size += batches[-1].nbytes
                    if not as_planned and sum(map(len, batches)) >= CONVERTED:
                        parts.append(conformed(pa.concat_tables(batches), self.columns, self._types))
                        size += parts[-1].nbytes - sum(batch.nbytes for batch in batches)
                        batches = []
                    if size > CARRIED:
                        what = f"the columns of {len(items):,} rows take more than {CARRIED:,} bytes"
                        raise DatasetError(f"{printable(file.path)}: {what}: give a smaller --shard-size")
                if as_planned:
                    table = pa.concat_tables(batches).combine_chunks()
                    parts.append(pa.Table.from_arrays(table.columns, there))  # whatever may be null, or is noted there
                    batches = []
            if batches:
                parts.append(conformed(pa.concat_tables(batches), self.columns, self._types))
            refuse_changed(file)
        if not parts:  # every image of the shard has failed: columns of the right types all the same
            types = self._types()
            parts = [pa.schema([(name, types[name]) for name in self.columns]).empty_table()]
        return pa.concat_tables(parts).replace_schema_metadata(None)

    def _types(self) -> Types:
        """Those of the columns that go along. Raises DatasetError where the files do not tell any more."""
        if self.types is None:
            import pyarrow as pa

            try:
                self.types = types_of(self.columns, self._schemas())
            except (pa.ArrowException, OSError, ValueError, DatasetError) as error:
                path = printable(next(iter(self.files)).path)
                raise DatasetError(
                    f"{path}: the types of its columns cannot be read any more: {first_line(error)}"
                ) from error
        return self.types

    def _schemas(self) -> "Iterator[pa.Schema]":
        """Of all files that can be read; then of those that have changed, as they were when they were opened first."""
        import pyarrow as pa

        for read in (opened, as_recorded):
            for file in self.files:
                with contextlib.suppress(pa.ArrowException, OSError, ValueError):
                    yield read(file, "columns").schema


def _items(file: File, index: int, rows: int) -> Iterator[dict[str, Column]]:
    """An item for each row of a file, named by its number."""
    import numpy as np
    import pyarrow as pa

    stem = file.name.removesuffix(".parquet")
    problem = bad_key(f"{stem}/0")
    for first in range(0, rows, CHUNK):
        numbers = pa.array(np.arange(first, min(rows, first + CHUNK)))
        same = {"size": -1, "ending": "", "extra": "", "problem": problem}
        keys = compute().binary_join_element_wise(stem, numbers.cast(pa.string()), "/")
        count = len(numbers)
        yield {
            "key": packed(keys),
            "file": Repeated(index, count),
            "start": packed(numbers),
            **{name: Repeated(value, count) for name, value in same.items()},
        }


def _first_values(files: Sequence[tuple[File, int]], column: str) -> Iterator[bytes]:
    """The first images in a column, of the first rows of each file."""
    for file, rows in files[:PEEKED_FILES]:
        for value in parquet_images(file, column, range(min(rows, PEEKED_ROWS))):
            if isinstance(value, bytes):
                yield value


def _runs(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items that follow each other: those with rows of one file, which ascend, and those with a problem one by one."""
    run: list[Item] = []
    for item in items:
        if run and (item.problem or run[-1].problem or item.file != run[-1].file or item.start <= run[-1].start):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _images(file: File, column: str, rows: Sequence[int]) -> Iterator[bytes | Failure]:
    """The image bytes of these rows, which ascend."""
    held: list[bytes | Failure] = []
    size = 0
    for value in parquet_images(file, column, rows):
        held.append(_bytes_or_failure(value))
        size += len(value) if isinstance(value, bytes) else 0
        if size >= HELD or len(held) == MANY:
            yield from _unless_changed(file, held)
            held, size = [], 0
    yield from _unless_changed(file, held)


def _unless_changed(file: File, values: list[bytes | Failure]) -> list[bytes | Failure]:
    try:
        refuse_changed(file)
    except OSError as error:  # while they were read
        return [v if isinstance(v, Failure) else Failure.of_reading(error) for v in values]
    return values


def parquet_images(file: File, column: str, rows: Sequence[int]) -> Iterator[bytes | Exception | str | None]:
    """The image bytes of these rows, which ascend; None where there are none, the path where the row has that only, an
    exception for a row that cannot be read."""
    import pyarrow as pa

    try:
        schema = opened(file).schema
        if column not in schema.names:
            raise ValueError(f"it has no column {printable(repr(column), 100)}")
        columns, path = reader(file, [leaf(schema, column)], "images"), leaf(schema, column, "path")
    except (pa.ArrowException, OSError, ValueError) as error:
        yield from [error] * len(rows)
        return
    done = 0
    for batch in columns.batches(rows, size=None):  # an array of two values holds both
        if isinstance(batch, Exception):
            yield batch
            done += 1
            continue
        whole, values = batch[column], _values(batch[column])
        for i, value in enumerate(values):
            only_path = value is None and path and whole[i].is_valid
            yield _path_of(file, column, path, rows[done]) if only_path else value
            done += 1


def _values(column: "pa.ChunkedArray") -> list[bytes | None]:
    """The bytes in a column of bytes, or of structs with a field `bytes`, however deep."""
    import pyarrow as pa

    while pa.types.is_struct(column.type):
        if column.type.get_field_index("bytes") < 0:
            return [None] * len(column)
        column = compute().struct_field(column, "bytes")
    return column.to_pylist()


def _path_of(file: File, column: str, path: str, row: int) -> str | None:
    """The path that a row has in place of its bytes."""
    import pyarrow as pa

    try:
        (batch,) = reader(file, [path], "paths").batches([row], size=1)
    except (pa.ArrowException, OSError, ValueError) as error:
        batch = error
    value: Any = None if isinstance(batch, Exception) else batch[column][0].as_py()
    text = value.get("path") if isinstance(value, dict) else None
    return text if isinstance(text, str) and text else None


def _bytes_or_failure(value: bytes | Exception | str | None) -> bytes | Failure:
    if isinstance(value, str):
        text = f"the row has no bytes, only the path {printable(repr(value), 200)}, which is not opened"
        return Failure("no_image", f"{text}: write the data set with the pictures in it, or tokenise their folder")
    if value is None:
        return Failure("no_image", "the row has no bytes")
    return Failure.of_reading(value) if isinstance(value, Exception) else value
