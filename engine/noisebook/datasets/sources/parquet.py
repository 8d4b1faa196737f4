"""Parquet files with image bytes, in the layout of Hugging Face: a column of bytes, or of {"bytes", "path"}."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from noisebook.datasets.sources.base import Failure, File, Item, Items, Source, Wanted, bad_key, refuse_changed
from noisebook.datasets.sources.cursor import as_recorded, opened, reader
from noisebook.datasets.sources.rows import CHUNK, Column, Repeated, compute, packed
from noisebook.errors import DatasetError, first_line, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

if TYPE_CHECKING:
    import pyarrow as pa

HELD = 64 << 20  # bytes of images that are read before it is seen that the file did not change meanwhile, about
MANY = 256  # or that many images
CARRIED = 1 << 30  # bytes of the columns that go along with a shard, at most


class Parquet(Source):
    kind = "parquet"
    suffixes = (".parquet", ".parq", ".pq")

    @classmethod
    def enumerated(cls, files: list[File], wanted: Wanted, limits: Limits = DEFAULT) -> Self:
        import pyarrow as pa

        chunks: list[dict[str, Column]] = []
        schema, column, total = None, wanted.image_column, 0
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
            if schema is None:
                schema = parquet.schema
                column = _image_column(schema, file, wanted.image_column)
            elif not parquet.schema.equals(schema):
                both = f"{printable(file.path)}: its columns are not those of {printable(files[0].path)}"
                raise DatasetError(f"{both}: tokenise them apart")
            chunks += _items(file, i, rows)
        if schema is None:
            raise DatasetError(f"{printable(files[0].path)}: none of the Parquet files can be read")
        columns = {field.name: str(field.type) for field in schema if field.name != column}
        return cls(files, Items(chunks), columns, column or "")

    def image_bytes(self, items: Iterable[Item]) -> Iterator[bytes | Failure | None]:
        """Rows are read here, once, and not by each worker anew; about `HELD` bytes of them at a time."""
        for run in _runs(items):
            if run[0].problem:
                yield None
                continue
            yield from _images(self.files[run[0].file], self.image_column, [item.start for item in run])

    def carried(self, items: Sequence[Item]) -> "pa.Table":
        import pyarrow as pa

        names, parts, size = list(self.columns), list[pa.Table](), 0
        for run in _runs(items):  # of equal files
            file = self.files[run[0].file]
            columns = reader(file, names, "columns")
            for rows in columns.groups([item.start for item in run]):
                batches: list[pa.Table] = []
                for batch in columns.batches(rows):
                    if isinstance(batch, Exception):
                        raise batch
                    size += batch.nbytes
                    if size > CARRIED:
                        what = f"the columns of {len(items):,} rows take more than {CARRIED:,} bytes"
                        raise DatasetError(f"{printable(file.path)}: {what}: give a smaller --shard-size")
                    batches.append(batch)
                parts.append(pa.concat_tables(batches).combine_chunks())
            refuse_changed(file)
        if not parts:  # every image of the shard has failed: columns of the right types all the same
            parts = [self._schema().empty_table().select(names)]
        return pa.concat_tables(parts).replace_schema_metadata(None)

    def _schema(self) -> "pa.Schema":
        """That of the first file that can be read. Raises DatasetError where none can any more."""
        import pyarrow as pa

        good = (c for c in self.items.chunks if any(not p for p in c["problem"].to_pylist()))
        indices = list(dict.fromkeys(index for chunk in good for index in chunk["file"].to_pylist()))
        for index in indices:
            with contextlib.suppress(pa.ArrowException, OSError, ValueError):
                return opened(self.files[index], "columns").schema
        file = self.files[indices[0]]
        try:  # all have changed: as it was when the plan was made
            return as_recorded(file).schema
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{printable(file.path)}: cannot be read any more: {first_line(error)}") from error


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


def _image_column(schema: "pa.Schema", file: File, wanted: str | None) -> str:
    """The column of the images: the one that is `wanted`, else the first that can be. Raises DatasetError where none can."""
    column = wanted or next((field.name for field in schema if _holds_images(field.type)), None)
    if column is None or column not in schema.names or not _holds_images(schema.field(column).type):
        raise DatasetError(
            f"{printable(file.path)}: no column of image bytes{f' {wanted!r}' if wanted else ''}: "
            f"there are {printable(', '.join(schema.names), 500)}; name it with --image-column"
        )
    return column


def _holds_images(kind: "pa.DataType") -> bool:
    """Whether a column of that type can hold images: bytes, or a struct with `bytes` inside."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_images(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


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


def parquet_images(file: File, column: str, rows: Sequence[int]) -> Iterator[bytes | Exception | None]:
    """The image bytes of these rows, which ascend; None where there are none, an exception for a row that cannot be read."""
    import pyarrow as pa

    try:
        columns = reader(file, [_leaf(opened(file).schema, column)], "images")
    except (pa.ArrowException, OSError, ValueError) as error:
        yield from [error] * len(rows)
        return
    for batch in columns.batches(rows, size=1):  # an array of two values would hold both
        if isinstance(batch, Exception):
            yield batch
            continue
        for scalar in batch[column]:
            value: Any = scalar.as_py()
            while isinstance(value, dict):
                value = value.get("bytes")
            yield value


def _leaf(schema: "pa.Schema", column: str) -> str:
    """The column of the bytes themselves, without what lies beside them in a struct."""
    import pyarrow as pa

    path, kind = column, schema.field(column).type
    while pa.types.is_struct(kind):
        path, kind = f"{path}.bytes", kind.field("bytes").type
    return path


def _bytes_or_failure(value: bytes | Exception | None) -> bytes | Failure:
    if value is None:
        return Failure("no_image", "the row has no bytes")
    return Failure.of_reading(value) if isinstance(value, Exception) else value
