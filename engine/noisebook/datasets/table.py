"""A shard: one Parquet file with page checksums; its bytes depend on rows, specification and versions only."""

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noisebook.errors import FormatError, first_line
from noisebook.format.container import pack, unpack
from noisebook.spec.spec import CodecSpec

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER = b"noisebook"
OWN = ("key", "tokens", "payload", "height", "width", "original_height", "original_width")
ROW_GROUP = 1024


def token_dtype(spec: CodecSpec, height: int, width: int) -> np.dtype:
    """The smallest unsigned type that holds every token of an image of that size."""
    largest = max((run.vocab_size for _, run in spec.runs_for(height, width)), default=1) - 1
    return np.dtype(next(f"u{n}" for n in (1, 2, 4, 8) if largest < 1 << 8 * n))


def largest_dtype(spec: CodecSpec) -> np.dtype:
    """The smallest unsigned type that holds the tokens of any image."""
    return np.dtype(max(np.dtype(token_dtype(spec, side, side)) for side in (64, 512)))


def token_count(spec: CodecSpec, height: int, width: int) -> int:
    """Tokens of an image of that size."""
    return sum(run.count for _, run in spec.runs_for(height, width))


def token_column_name(spec: CodecSpec) -> str:
    """`tokens`, or `payload` for a rule whose codes vary in length."""
    return "tokens" if spec.rule_type.fixed_length else "payload"


def token_column(
    rows: Sequence[np.ndarray], spec: CodecSpec, sizes: Sequence[tuple[int, int]], fixed: int | None
) -> "pa.Array":
    """Tokens, int64 [L] per row -> lists of the smallest unsigned type, all of the size `fixed` unless that is None; for a
    rule whose codes vary in length, the packed bytes."""
    import pyarrow as pa

    if not spec.rule_type.fixed_length:
        packed = [pack(row, [run for _, run in spec.runs_for(*size)]) for row, size in zip(rows, sizes, strict=True)]
        return pa.array(packed, pa.binary())
    dtype = largest_dtype(spec)
    values = pa.array(np.concatenate(rows).astype(dtype) if rows else np.empty(0, dtype))
    if fixed is not None:
        return pa.FixedSizeListArray.from_arrays(values, fixed)
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values)


def shard_bytes(columns: dict[str, "pa.Array"], carried: "pa.Table", footer: dict[str, Any]) -> bytes:
    """The file. Columns of the input that have a name of noisebook's own get a trailing underscore."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    for name in carried.column_names:
        table = table.append_column(name + "_" * (name in OWN), carried[name])
    text = json.dumps(footer, sort_keys=True, separators=(",", ":")).encode()
    table = table.replace_schema_metadata({FOOTER: text})
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=ROW_GROUP,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=True,
    )
    return buffer.getvalue()


def read_shard(data: bytes, name: str, columns: list[str] | None = None) -> "tuple[pa.Table, dict[str, Any]]":
    """(rows, footer) of a shard, its page checksums verified. Raises FormatError for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        footer = json.loads(opened.schema_arrow.metadata[FOOTER])
        names = None if columns is None else [c for c in columns if c in opened.schema_arrow.names]
        return opened.read(columns=names), footer
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise FormatError(f"{name}: damaged, or not a shard of noisebook's: {first_line(error)}") from error


def tokens_of(table: "pa.Table", spec: CodecSpec) -> list[np.ndarray] | np.ndarray:
    """The tokens of a shard's rows, unsigned: [N, L] where all rows have L, else a list of [L]. Raises FormatError where
    they do not fit the specification."""
    if "payload" in table.column_names:
        sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
        return [
            unpack(payload, [run for _, run in spec.runs_for(*size)])
            for payload, size in zip(table["payload"].to_pylist(), sizes, strict=True)
        ]
    column = table["tokens"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if hasattr(column.type, "list_size") and column.type.list_size >= 0:
        return values.reshape(len(column), column.type.list_size)
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
    return [values[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]


def check_tokens(tokens: np.ndarray, spec: CodecSpec, height: int, width: int, name: str) -> None:
    """Raises FormatError unless these [L] are tokens of an image of that size."""
    runs = [run for _, run in spec.runs_for(height, width)]
    if len(tokens) != sum(run.count for run in runs):
        raise FormatError(f"{name}: {len(tokens)} tokens where its codec has {sum(run.count for run in runs)}")
    limits = np.repeat([run.vocab_size for run in runs], [run.count for run in runs])
    if (tokens >= limits).any():
        raise FormatError(f"{name}: a token is outside its vocabulary")
