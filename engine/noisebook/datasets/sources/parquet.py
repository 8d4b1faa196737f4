"""Parquet files with image bytes, in the layout of Hugging Face: a column of bytes, or of {"bytes", "path"}."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from noisebook.datasets.sources.base import Failure, File, Item, Source, filesystem, refuse_changed
from noisebook.errors import DatasetError, first_line

if TYPE_CHECKING:
    import pyarrow as pa


class Parquet(Source):
    kind = "parquet"
    suffixes = (".parquet",)

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None) -> Self:
        import pyarrow as pa

        items: list[Item] = []
        schema, column = None, image_column
        for i, file in enumerate(files):
            try:
                if file.problem:
                    raise OSError(file.problem)
                opened = open_parquet(file)
            except (pa.ArrowException, OSError, ValueError) as error:
                items.append(Item(file.name, i, problem=f"unreadable: {first_line(error)}"))
                continue
            if schema is None:
                schema = opened.schema_arrow
                column = _image_column(schema, file, image_column)
            elif not opened.schema_arrow.equals(schema):
                raise DatasetError(f"{file.path}: its columns are not those of {files[0].path}: tokenise them apart")
            stem = file.name.removesuffix(".parquet")
            items += [Item(f"{stem}/{row}", i, row) for row in range(opened.metadata.num_rows)]
        if schema is None:
            raise DatasetError(f"{files[0].path}: none of the Parquet files can be read")
        columns = {field.name: str(field.type) for field in schema if field.name != column}
        return cls(files, items, columns, column or "")

    def image_bytes(self, items: Sequence[Item]) -> Sequence[bytes | Failure | None]:
        """Row groups are read here, once, and not by each worker anew."""
        import pyarrow as pa

        images: dict[tuple[int, int], bytes | Failure] = {}
        for index in {item.file: None for item in items if not item.problem}:
            rows = [item.start for item in items if item.file == index and not item.problem]
            try:
                values = parquet_images(self.files[index], self.image_column, rows[0], rows[-1] + 1)
                for row, value in zip(range(rows[0], rows[-1] + 1), values, strict=True):
                    images[index, row] = _bytes_or_failure(value)
            except (pa.ArrowException, OSError, ValueError) as error:
                for row in rows:
                    images.setdefault((index, row), Failure.of_reading(error))
        return [images.get((item.file, item.start)) for item in items]

    def carried(self, items: Sequence[Item]) -> "pa.Table":
        import pyarrow as pa

        names, parts = list(self.columns), []
        rows_of: dict[int, list[int]] = {}
        for item in items:
            rows_of.setdefault(item.file, []).append(item.start)
        for index, rows in rows_of.items():  # items are in the order of files
            opened, first = open_parquet(self.files[index], "columns"), 0
            for group in range(opened.metadata.num_row_groups):
                count = opened.metadata.row_group(group).num_rows
                inside = [row - first for row in rows if first <= row < first + count]
                if inside:
                    parts.append(opened.read_row_group(group, columns=names).take(pa.array(inside)))
                first += count
        if not parts:  # every image of the shard has failed: columns of the right types all the same
            parts = [self._schema().empty_table().select(names)]
        return pa.concat_tables(parts).replace_schema_metadata(None)

    def _schema(self) -> "pa.Schema":
        """That of the first file that can be read. Raises DatasetError where none can any more."""
        import pyarrow as pa

        indices = list(dict.fromkeys(item.file for item in self.items if not item.problem))
        for index in indices:
            with contextlib.suppress(pa.ArrowException, OSError, ValueError):
                return open_parquet(self.files[index], "columns").schema_arrow
        file = self.files[indices[0]]
        try:  # all have changed: as it was when the plan was made
            return _opened(file.path, file.stamp, "images").schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{file.path}: cannot be read any more: {first_line(error)}") from error


def _image_column(schema: "pa.Schema", file: File, wanted: str | None) -> str:
    """The column of the images: the one that is `wanted`, else the first that can be. Raises DatasetError where none can."""
    column = wanted or next((field.name for field in schema if _holds_images(field.type)), None)
    if column is None or column not in schema.names or not _holds_images(schema.field(column).type):
        raise DatasetError(
            f"{file.path}: no column of image bytes{f' {wanted!r}' if wanted else ''}: "
            f"there are {', '.join(schema.names)}; name it with --image-column"
        )
    return column


def _holds_images(kind: "pa.DataType") -> bool:
    """Whether a column of that type can hold images: bytes, or a struct with `bytes` inside."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_images(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def open_parquet(file: File, use: str = "images") -> Any:
    """A ParquetFile. Raises OSError and what Arrow raises; Changed where it is not the one of the plan. `use` keeps the
    threads that read images and other columns apart."""
    refuse_changed(file)
    return _opened(file.path, file.stamp, use)


@lru_cache(maxsize=16)
def _opened(path: str, stamp: str, use: str) -> Any:  # the stamp keeps versions of a file apart
    import pyarrow.parquet as pq

    fs, inside = filesystem(path)
    return pq.ParquetFile(fs.open(inside, "rb"), page_checksum_verification=True)


def parquet_images(file: File, column: str, first: int, last: int) -> Iterator[bytes | Exception | None]:
    """The image bytes of rows first ... last - 1, row group by row group; None where there are none, an exception for each
    row of a group that cannot be read. Raises as `open_parquet`."""
    import pyarrow as pa

    opened, at = open_parquet(file), 0
    for group in range(opened.metadata.num_row_groups):
        rows = opened.metadata.row_group(group).num_rows
        begin, end = max(0, first - at), min(rows, last - at)
        at += rows
        if begin >= end:
            continue
        try:
            table = opened.read_row_group(group, columns=[column])
            refuse_changed(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield from [error] * (end - begin)
            continue
        for scalar in table[column].slice(begin, end - begin):
            value = scalar.as_py()
            yield value.get("bytes") if isinstance(value, dict) else value


def _bytes_or_failure(value: bytes | Exception | None) -> bytes | Failure:
    if value is None:
        return Failure("no_image", "the row has no bytes")
    return Failure.of_reading(value) if isinstance(value, Exception) else value
