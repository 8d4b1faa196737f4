"""A shard: one Parquet file with page checksums; its bytes depend on rows, specification and versions only."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noisebook.datasets.ledger import read_json_object
from noisebook.datasets.memory import LARGE_FROM
from noisebook.datasets.pages import PLAIN, cost
from noisebook.errors import FormatError, SpecError, first_line, printable
from noisebook.format.container import pack, unpack
from noisebook.format.runs import Run
from noisebook.runtime.limits import DEFAULT, Limits, too_much
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER = b"noisebook"
# What a shard may be. Token columns hardly pack at all; what noisebook writes is plain, in pages of about one MiB.
READ = 1 << 30  # bytes unpacked that a shard may have in any case, and `TIMES` those of its file
TIMES = 32
PAGE, PAGE_TIMES = 32 << 20, 4  # the same for a page, and for what its column has packed
RLE = 3  # the encoding of flags
HELD, MANY = 1 << 22, 1 << 16  # bytes, and rows, that are looked at together
WORK, WORK_OF_STEP = 20, 2  # microseconds to work out what a size of image has
OWN = ("key", "tokens", "payload", "height", "width", "original_height", "original_width")
ROW_GROUP = 1024
KINDS = 4  # vocabularies that are named
SIDES = (64, 512)  # of images that between them have all vocabularies of a codec


def token_dtype(spec: CodecSpec, height: int, width: int) -> np.dtype:
    """The smallest unsigned type that holds every token of an image of that size."""
    largest = _vocab_size(spec, height, width) - 1
    return np.dtype(next(f"u{n}" for n in (1, 2, 4, 8) if largest < 1 << 8 * n))


def _vocab_size(spec: CodecSpec, height: int, width: int) -> int:
    return max((run.vocab_size for _, run in spec.runs_for(height, width)), default=1)


def largest_vocabulary(spec: CodecSpec) -> int:
    """The largest number of values that a token of any image has."""
    return max(_vocab_size(spec, side, side) for side in SIDES)


def largest_dtype(spec: CodecSpec) -> np.dtype:
    """The smallest unsigned type that holds the tokens of any image."""
    return np.dtype(max(np.dtype(token_dtype(spec, side, side)) for side in SIDES))


def token_count(spec: CodecSpec, height: int, width: int) -> int:
    """Tokens of an image of that size."""
    return sum(run.count for _, run in spec.runs_for(height, width))


def token_words(spec: CodecSpec, height: int, width: int) -> str:
    """How many tokens an image of that size has, and of how many values: "33 tokens an image: 1 of 65,536 values (start), 32
    of 4,096 values; 400 bits". "" where codes vary in length, or there are no tokens."""
    counts: Counter[tuple[int, str]] = Counter()
    for step_index, run in spec.runs_for(height, width) if spec.rule_type.fixed_length else ():
        counts[run.vocab_size, f" ({StepIndex(step_index).name.lower()})" if step_index < 0 else ""] += run.count
    if not counts:
        return ""
    kinds = [f"{count:,} of {values:,} values{where}" for (values, where), count in counts.items()]
    if len(kinds) > KINDS:
        kinds = [f"of {min(counts)[0]:,} to {max(counts)[0]:,} values"]
    bits = sum(count * math.log2(values) for (values, _), count in counts.items())
    return f"{counts.total():,} tokens an image: {', '.join(kinds)}; {round(bits):,} bits"


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
    """The file. Columns of the input have the names of `names_beside_own`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    for name, column in zip(names_beside_own(carried.column_names), carried.columns, strict=True):
        table = table.append_column(name, column)
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


def names_beside_own(names: Sequence[str]) -> list[str]:
    """The names under which columns of the input, all different, stand in a shard: their own. One that is noisebook's gets
    underscores until no other column has it: of `key` and `key_` the former is `key__`."""
    taken = {*OWN, *names}
    given: list[str] = []
    for name in names:
        if name in OWN:
            while name in taken:
                name += "_"
            taken.add(name)
        given.append(name)
    return given


def open_shard(
    data: bytes, name: str, columns: Sequence[str] | None = None, most: int = READ
) -> "tuple[Any, dict[str, Any]]":
    """(a ParquetFile, the footer) of a shard that can be read: it has noisebook's own columns, of the types that they have,
    and those of `columns` (None: all) take at most `most` bytes unpacked, and `TIMES` times the file's. What the file says
    of itself is held against the headers of its pages, which say what Arrow would unpack. Raises FormatError for another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, thrift_container_size_limit=1 << 16)
        schema = opened.schema_arrow
        footer = read_json_object((schema.metadata or {})[FOOTER], name)
        _check_types(schema)
        _check_cost(data, opened.metadata, columns, most)
        return opened, footer
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, FormatError) and str(error).startswith(name):
            raise
        raise FormatError(f"{name}: damaged, or not a shard of noisebook's: {first_line(error)}") from error


def read_shard(
    data: bytes, name: str, columns: list[str] | None = None, limits: Limits = DEFAULT
) -> "tuple[pa.Table, dict[str, Any]]":
    """(rows, footer) of a shard, its page checksums verified. Raises FormatError for a damaged one, and for one that cannot
    be."""
    import pyarrow as pa

    opened, footer = open_shard(data, name, columns)
    names = None if columns is None else [c for c in columns if c in opened.schema_arrow.names]
    tables = list(batches_of(opened, name, names, limits))
    empty = opened.schema_arrow.empty_table().select(opened.schema_arrow.names if names is None else names)
    return pa.concat_tables([empty, *tables]), footer


def batches_of(opened: Any, name: str, columns: list[str] | None, limits: Limits = DEFAULT) -> "Iterator[pa.Table]":
    """The rows of a shard that `open_shard` gave, about `HELD` bytes at a time, the values of noisebook's own columns
    checked: none is null, sizes are at least 1 x 1 and at most `limits.pixels`. Raises FormatError."""
    import pyarrow as pa

    total = sum(opened.metadata.row_group(i).total_byte_size for i in range(opened.metadata.num_row_groups))
    each = max(1, total // max(1, opened.metadata.num_rows))
    try:
        for batch in opened.iter_batches(max(1, min(MANY, HELD // each)), columns=columns, use_threads=False):
            table = pa.Table.from_batches([batch]).replace_schema_metadata(opened.schema_arrow.metadata)
            _check_values(table, limits)
            yield table
    except (pa.ArrowException, OSError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, FormatError):
            raise FormatError(f"{name}: {error}") from error
        raise FormatError(f"{name}: damaged, or not a shard of noisebook's: {first_line(error)}") from error


def _check_types(schema: "pa.Schema") -> None:
    import pyarrow as pa

    names = [name for name in OWN if name in schema.names]
    if {"key", "height", "width"} - set(names) or ("tokens" in names) == ("payload" in names):
        raise FormatError("it has not the columns of a shard")
    for name in names:
        kind = schema.field(name).type
        if name == "tokens":
            lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
            good = lists and pa.types.is_unsigned_integer(kind.value_type)
        else:
            good = kind == {"key": pa.string(), "payload": pa.binary()}.get(name, pa.int32())
        if not good or schema.get_all_field_indices(name)[1:]:
            raise FormatError(f"its column {name} is of type {printable(kind, 60)}")


def _check_cost(data: bytes, metadata: Any, columns: Sequence[str] | None, most: int) -> None:
    """Raises FormatError unless the pages of these columns are as noisebook writes them, and within `most` bytes."""
    most, held = most + TIMES * len(data), 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for index in range(rows.num_columns):
            chunk = rows.column(index)
            if columns is not None and chunk.path_in_schema.split(".")[0] not in columns:
                continue
            if chunk.has_dictionary_page or chunk.compression not in ("ZSTD", "UNCOMPRESSED"):
                raise FormatError("its pages have a dictionary, or are packed in another way")
            pages = cost(data, chunk.data_page_offset, chunk.total_compressed_size)
            held += pages.total
            if pages.dictionary or not pages.encodings <= {PLAIN, *({RLE} if chunk.physical_type == "BOOLEAN" else ())}:
                raise FormatError("its pages are not plain")
            if held > most or pages.largest > PAGE + PAGE_TIMES * chunk.total_compressed_size:
                raise FormatError(f"its pages take more than {held:,} bytes unpacked: no shard of {len(data):,} bytes does")
            if max(pages.values, chunk.num_values) > rows.num_rows + pages.total:
                raise FormatError("it has more values than bytes")
    if sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) != metadata.num_rows:
        raise FormatError("its counts of rows do not agree")


def _check_values(table: "pa.Table", limits: Limits) -> None:
    for name in OWN:
        if name in table.column_names:
            column = table[name]
            if column.null_count or (name == "tokens" and any(chunk.flatten().null_count for chunk in column.chunks)):
                raise FormatError(f"a value of its column {name} is missing")
    if {"height", "width"} <= set(table.column_names) and len(table):
        heights, widths = (table[name].to_numpy().astype(np.int64) for name in ("height", "width"))
        if min(heights.min(), widths.min()) < 1:
            raise FormatError("an image has a side below 1")
        if refusal := too_much("an image has pixels:", int((heights * widths).max()), limits, "pixels"):
            raise FormatError(refusal)


def tokens_of(
    table: "pa.Table", spec: CodecSpec, limits: Limits = DEFAULT, known: "Vocabularies | None" = None
) -> list[np.ndarray] | np.ndarray:
    """The tokens of a shard's rows, unsigned: [N, L] where all rows have L, else a list of [L]. Raises FormatError where
    they do not fit the specification, or packed ones take more work than `limits` allow for a file. `known`: for tables of
    one shard."""
    name = token_column_name(spec)
    if name not in table.column_names:
        raise FormatError(f"it has no column {name}, which the rule {spec.rule} needs")
    if name == "payload":
        return list(_unpacked(table, known or Vocabularies(spec, "it", limits), limits))
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if hasattr(column.type, "list_size") and column.type.list_size >= 0:
        return values.reshape(len(column), column.type.list_size)
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
    return [values[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]


def _unpacked(table: "pa.Table", known: "Vocabularies", limits: Limits) -> Iterator[np.ndarray]:
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
    for payload, size in zip(table["payload"], sizes, strict=True):
        yield unpack(payload.as_py(), known.runs_of(*size), limits)


class Vocabularies:
    """Checks the tokens of rows against the specification, whose answer for each size of image is worked out once.

    Raises FormatError where that alone takes more work than `limits` allow for a file: a specification may have many steps,
    and each row another size."""

    def __init__(self, spec: CodecSpec, name: str, limits: Limits = DEFAULT):
        self.spec, self.name, self.limits = spec, name, limits
        self.runs: dict[tuple[int, int], list[Run]] = {}

    def check(self, tokens: np.ndarray, height: int, width: int) -> None:
        """Raises FormatError unless these, [L] or [N, L], are tokens of images of that size."""
        runs = self.runs_of(height, width, tokens.shape[-1])
        wanted = sum(run.count for run in runs)
        if tokens.shape[-1] != wanted:
            raise FormatError(f"{self.name}: {tokens.shape[-1]} tokens where its codec has {wanted}")
        first = 0
        for run in runs:
            part = tokens[..., first : first + run.count]
            first += run.count
            if part.size and int(part.max()) >= run.vocab_size:
                raise FormatError(f"{self.name}: a token is outside its vocabulary")

    def runs_of(self, height: int, width: int, length: int | None = None) -> list[Run]:
        """The runs of an image of that size. Of a large picture only its backbone knows in how many blocks it is cut: the
        number that `length` tokens fit."""
        if (height, width) not in self.runs:
            work = (len(self.runs) + 1) * (WORK + WORK_OF_STEP * len(self.spec.schedule))
            if refusal := too_much("its images of many sizes take about", work, self.limits, "work"):
                raise FormatError(f"{self.name}: {refusal}")
            self.runs[height, width] = [run for _, run in self.spec.runs_for(height, width)]
            if length is not None and height * width > LARGE_FROM and not self.spec.resolutions:
                self._cut(height, width, length)
        return self.runs[height, width]

    def _cut(self, height: int, width: int, length: int) -> None:
        for blocks in range(2, 2 + height * width // (LARGE_FROM // 4)):
            if sum(run.count for run in self.runs[height, width]) == length:
                return
            try:
                runs = [run for _, run in self.spec.cut(1, blocks).runs_for(height, width)]
            except SpecError:  # a codec that takes no large picture
                return
            if sum(run.count for run in runs) == length:
                self.runs[height, width] = runs
