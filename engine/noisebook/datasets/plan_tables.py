"""The tables of a plan as Parquet files. One from elsewhere is not believed: what reading it costs is known before."""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from noisebook.datasets.pages import DICTIONARY_ENCODINGS, PLAIN, cost, first_page
from noisebook.datasets.sources.rows import CHUNK, Column, Repeated, Rows, arrow_type, compute, packed
from noisebook.errors import FormatError, first_line, printable
from noisebook.runtime.limits import Limits, too_much

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 1 << 20  # rows of a row group
MIB = 1 << 20

# What a table may be, by its bytes B. Plans of a million items that noisebook wrote took 0.8 to 3.4 bytes per row, and at
# most 80 times their bytes uncompressed (tests/datasets/test_plan_tables.py): these bounds are four times as wide, or more.
ROWS_PER_BYTE, ROWS_FREE = 5, 1000
EXPANSION, FREE = 400, 64 * MIB  # uncompressed: FREE, and EXPANSION times what is above one MiB
REPEATED = 4  # texts that are made may be that many times as many: those that repeat are not held
PAGE = 16 * MIB  # of a page, uncompressed
FOOTER_SHARE, FOOTER_FREE = 32, 32 << 10  # of the footer: FOOTER_FREE and B / FOOTER_SHARE
BATCH = 16 * MIB  # of the texts of a column that are made at once

T = TypeVar("T", bound=Rows)


def table_bytes(rows: Rows) -> bytes:
    """The file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, arrow_type(kind)) for name, kind in rows.fields.items()])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, write_page_checksum=True, compression="zstd") as writer:
        for first in range(0, max(1, len(rows)), GROUP):
            writer.write_table(rows.arrow(first, min(len(rows), first + GROUP)), GROUP)
    return buffer.getvalue()


def read_table(kind: type[T], data: bytes, unread: Sequence[str], limits: Limits) -> T:
    """The rows of a table; columns of texts named in `unread` are empty. Raises FormatError for another table, a damaged
    one, and one that would cost far more than its bytes can honestly hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = int.from_bytes(data[-8:-4], "little")
        if footer > FOOTER_FREE + len(data) // FOOTER_SHARE:
            raise FormatError("its footer is too long")
        options: dict[str, Any] = {"thrift_string_size_limit": MIB, "thrift_container_size_limit": 1 << 14}
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, **options)
        _refuse_other_columns(kind, parquet)
        _refuse_many_rows(parquet.metadata, len(data), limits)
        names = [name for name in kind.fields if name not in unread]
        sizes = _batch_sizes(data, parquet, kind, names)
        return kind(_chunks(parquet, kind, names, sizes, len(data)))
    except FormatError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise FormatError(first_line(error)) from error


def _refuse_other_columns(kind: type[Rows], parquet: Any) -> None:
    import pyarrow as pa

    wanted = pa.schema([(name, arrow_type(of)) for name, of in kind.fields.items()])
    columns = (
        [parquet.schema.column(i) for i in range(len(kind.fields))] if parquet.metadata.num_columns == len(wanted) else []
    )
    plain = all(c.max_repetition_level == 0 and c.max_definition_level <= 1 for c in columns)
    if not columns or not plain or not parquet.schema_arrow.equals(wanted):
        raise FormatError(f"its columns are not {', '.join(kind.fields)}")


def _refuse_many_rows(metadata: Any, size: int, limits: Limits) -> None:
    rows, groups = metadata.num_rows, range(metadata.num_row_groups)
    counts = [metadata.row_group(group).num_rows for group in groups]
    if min([rows, *counts]) < 0 or sum(counts) != rows:
        raise FormatError("its counts of rows do not agree")
    if problem := too_much("its rows:", rows, limits, "rows"):
        raise FormatError(problem)
    if rows > ROWS_FREE + ROWS_PER_BYTE * size:
        raise FormatError(f"{rows:,} rows in {size:,} bytes: no plan is like that")


def _batch_sizes(data: bytes, parquet: Any, kind: type[Rows], names: Sequence[str]) -> list[int]:
    """For each row group the rows that may be read at once. Raises FormatError for pages that noisebook does not write."""
    total, sizes, places = 0, [], {name: i for i, name in enumerate(kind.fields)}
    for group in range(parquet.metadata.num_row_groups):
        size = CHUNK
        for name in names if parquet.metadata.row_group(group).num_rows else ():  # without rows there may be no pages
            column = parquet.metadata.row_group(group).column(places[name])
            pages = cost(data, first_page(column), column.total_compressed_size)
            total += pages.total
            if total > FREE + EXPANSION * max(0, len(data) - MIB) or pages.largest > PAGE:
                raise FormatError(f"its column {name} would take more memory than a plan does")
            if not pages.encodings <= {PLAIN, *DICTIONARY_ENCODINGS}:
                raise FormatError(f"its column {name} is written as no plan is")
            if pages.dictionary > 64 and kind.fields[name] is str:  # each of its texts may stand in many rows
                size = min(size, max(1, BATCH // _longest(data, group, name)))
        sizes.append(size)
    return sizes


def _longest(data: bytes, group: int, name: str) -> int:
    """Bytes of the longest text in the dictionary of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(pa.BufferReader(data), read_dictionary=[name], page_checksum_verification=True)
    for batch in parquet.iter_batches(1, [group], [name], use_threads=False):
        return max(1, compute().max(compute().binary_length(batch.column(0).dictionary)).as_py() or 1)
    return 1


def _chunks(
    parquet: Any, kind: type[Rows], names: Sequence[str], sizes: Sequence[int], size: int
) -> Iterator[dict[str, Column]]:
    held, made, most = 0, 0, FREE + EXPANSION * max(0, size - MIB)
    texts = [name for name in names if kind.fields[name] is str]
    for group, rows in enumerate(sizes):
        if not parquet.metadata.row_group(group).num_rows:
            continue
        for batch in parquet.iter_batches(rows, [group], list(names), use_threads=False):
            columns = {name: _checked(batch.column(name), name) for name in names}
            held += sum(c.nbytes for c in columns.values() if not isinstance(c, Repeated))
            made += sum(compute().sum(compute().binary_length(batch.column(name))).as_py() for name in texts)
            if held > most or made > REPEATED * most:
                raise FormatError("it would take more memory than a plan does")
            yield {name: columns.get(name, Repeated("", len(batch))) for name in kind.fields}


def _checked(column: "pa.Array", name: str) -> Column:
    if column.null_count:
        raise FormatError(f"there is a row without {printable(name)}")
    column.validate(full=True)  # texts are UTF-8
    return packed(column)
