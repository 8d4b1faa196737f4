"""Many records as columns: a million items are a few arrays, and an object only while somebody looks at one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 1 << 16  # rows in one array
PIECE = 1 << 12  # rows that are objects, or text, at once
PLAIN = r"[^ !#-\[\]-~]"  # matches what JSON escapes
R = TypeVar("R")


@dataclass(frozen=True)
class Repeated:
    """A column that has one value in all rows."""

    value: str | int
    count: int

    def __len__(self) -> int:
        return self.count

    def slice(self, offset: int, length: int) -> "Repeated":
        return Repeated(self.value, max(0, min(length, self.count - offset)))

    def to_pylist(self) -> list[Any]:
        return [self.value] * self.count


Column = Any  # a pa.Array of strings or integers, or Repeated


class Rows(Sequence[R], Generic[R]):
    """A sequence of records that is held as columns, in chunks of rows. A slice shares the columns of the whole.

    A kind says which fields there are (`fields`: name -> str or int) and makes a record of their values.
    """

    fields: ClassVar[dict[str, type]]

    def __init__(self, chunks: Iterable[dict[str, Column]] = ()):
        self.chunks = [chunk for chunk in chunks if _count(chunk)]
        self.ends = list(accumulate(_count(chunk) for chunk in self.chunks))

    def make(self, *values: Any) -> R:
        """The record of these values, in the order of `fields`."""
        raise NotImplementedError

    @classmethod
    def of(cls, records: Iterable[R]) -> Self:
        """These records as columns."""
        import pyarrow as pa

        remaining, chunks = iter(records), []
        while part := list(islice(remaining, CHUNK)):
            columns = {name: [getattr(record, name) for record in part] for name in cls.fields}
            chunks.append({name: packed(pa.array(v, arrow_type(cls.fields[name]))) for name, v in columns.items()})
        return cls(chunks)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Rows[R]":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            return self._with(self._cut(first, max(first, last)) if step == 1 else self._picked(range(first, last, step)))
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        return next(iter(self[(start := index % len(self)) : start + 1]))

    def __iter__(self) -> Iterator[R]:
        for chunk in self.chunks:
            for start in range(0, _count(chunk), PIECE):
                yield from map(self.make, *(chunk[name].slice(start, PIECE).to_pylist() for name in self.fields))

    def _with(self, chunks: Iterable[dict[str, Column]]) -> Self:
        """Rows of the same kind."""
        return type(self)(chunks)

    def _cut(self, first: int, last: int) -> Iterator[dict[str, Column]]:
        from bisect import bisect_right

        for number in range(bisect_right(self.ends, first), len(self.chunks)):
            chunk, begin = self.chunks[number], self.ends[number - 1] if number else 0
            if begin >= last:
                return
            start = max(0, first - begin)
            length = min(last - begin, _count(chunk)) - start
            yield chunk if length == _count(chunk) else {name: c.slice(start, length) for name, c in chunk.items()}

    def _picked(self, rows: Iterable[int]) -> Iterator[dict[str, Column]]:
        for row in rows:
            yield from self._cut(row, row + 1)

    def column(self, name: str) -> Iterator[Column]:
        """A column, chunk by chunk."""
        return (chunk[name] for chunk in self.chunks)

    def arrow(self, first: int, last: int) -> "pa.Table":
        """Rows `first` ... `last` - 1 as a table, each column one array."""
        import pyarrow as pa

        kinds, chunks = {name: arrow_type(kind) for name, kind in self.fields.items()}, list(self._cut(first, last))
        columns = {name: pa.chunked_array([whole(c[name], t) for c in chunks], t) for name, t in kinds.items()}
        return pa.table(columns).combine_chunks()

    def json(self, names: Sequence[str], before: str = "") -> Iterator[bytes]:
        """The text of `json.dumps` of the fields `names` of each row, a list; `before` is put before each."""
        for chunk in self.chunks:
            for start in range(0, _count(chunk), PIECE):
                yield _json([chunk[name].slice(start, PIECE) for name in names], before)


def _count(chunk: dict[str, Column]) -> int:
    return len(next(iter(chunk.values())))


def arrow_type(kind: type) -> "pa.DataType":
    """The type that a field has in a file."""
    import pyarrow as pa

    return pa.string() if kind is str else pa.int64()


def packed(column: "pa.Array") -> Column:
    """A column without nulls, as small as its values allow: integers in the smallest type, one value once."""
    import pyarrow as pa

    if not len(column):
        return column
    least, most = compute().min_max(column).as_py().values()
    if least == most:
        return Repeated(least, len(column))
    if pa.types.is_integer(column.type):
        bits = next(b for b in (8, 16, 32, 64) if -(1 << b - 1) <= least and most < 1 << b - 1)
        return column.cast(getattr(pa, f"int{bits}")())
    return column


def whole(column: Column, kind: "pa.DataType") -> "pa.Array":
    """A column as an array of its type in a file."""
    import pyarrow as pa

    return pa.repeat(pa.scalar(column.value, kind), len(column)) if isinstance(column, Repeated) else column.cast(kind)


def compute() -> Any:
    """Arrow's functions on columns; its module makes their names as it is imported."""
    import pyarrow.compute

    return pyarrow.compute


def bounds(column: Column) -> tuple[Any, Any]:
    """The least and the largest value."""
    if isinstance(column, Repeated):
        return column.value, column.value
    least, most = compute().min_max(column).as_py().values()
    return least, most


def _json(columns: Sequence[Column], before: str) -> bytes:
    """Rows of these columns as lists of JSON, one after the other."""
    parts: list[Any] = [f"{before}["]
    for i, column in enumerate(columns):
        text = json.dumps(column.value) if isinstance(column, Repeated) else _quoted(column)
        parts += [", ", text] if i else [text]
    joined = compute().binary_join_element_wise(*parts, "]", "")
    if not hasattr(joined, "buffers"):  # every column has one value only
        return joined.as_py().encode() * len(columns[0])
    data = joined.buffers()[2]
    return data.to_pybytes()[: compute().sum(compute().binary_length(joined)).as_py()]


def _quoted(column: "pa.Array") -> "pa.Array":
    """Each value as JSON."""
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if not compute().any(compute().match_substring_regex(column, PLAIN)).as_py():
        return compute().binary_join_element_wise('"', column, '"', "")
    coded = column.dictionary_encode()  # texts that repeat are escaped once
    return pa.array([encode_basestring_ascii(value) for value in coded.dictionary.to_pylist()]).take(coded.indices)
