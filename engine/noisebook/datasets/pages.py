"""What reading a small Parquet file would cost, from the headers of its pages: they say it before a page is read."""

from dataclasses import dataclass, field
from typing import Any

from noisebook.errors import FormatError

DATA, INDEX, DICTIONARY, DATA_V2 = range(4)  # kinds of pages
PLAIN, DICTIONARY_ENCODINGS = 0, (2, 8)  # encodings of values that a page cannot expand, but by its dictionary
DEPTH = 4  # of structs in the header of a page
HEADER = 1 << 16  # bytes of a header, at most: statistics may be in it


@dataclass
class Cost:
    """Bytes of the pages of a column in a row group, uncompressed; of its largest page, and of its dictionary; how many
    values they have, those that are null included."""

    total: int = 0
    values: int = 0
    largest: int = 0
    dictionary: int = 0
    encodings: set[int] = field(default_factory=set)


def first_page(column: Any) -> int:
    """Where the pages of a column of a row group begin in the file, as its metadata says."""
    start = column.data_page_offset
    return min(start, column.dictionary_page_offset) if column.has_dictionary_page else start


def cost(data: bytes, start: int, size: int) -> Cost:
    """Of the pages in `data[start : start + size]`, a column of a row group. Raises FormatError where these are no pages."""
    out, at, end = Cost(), start, start + size
    if not 0 <= start <= end <= len(data):
        raise FormatError("a column lies outside of the file")
    while at < end:
        header, at = _struct(data, at, min(end, at + HEADER), DEPTH)
        kind, uncompressed, compressed = (_number(header, number) for number in (1, 2, 3))
        at += compressed
        if at > end:
            raise FormatError("a page ends after its column")
        out.total += uncompressed
        out.largest = max(out.largest, uncompressed)
        if kind == DICTIONARY:
            out.dictionary += uncompressed
        about = header.get({DATA: 5, DATA_V2: 8}.get(kind, 0))
        if isinstance(about, dict):
            out.encodings.add(about.get(4 if kind == DATA_V2 else 2, -1))
            out.values += _number(about, 1)
    return out


def _number(header: dict[int, Any], number: int) -> int:
    value = header.get(number)
    if type(value) is not int or value < 0:
        raise FormatError("a page without a size")
    return value


def _struct(data: bytes, at: int, end: int, depth: int) -> tuple[dict[int, Any], int]:
    """(fields by their number, where it ends) of a struct in Thrift's compact protocol; texts and lists are passed over."""
    if depth == 0:
        raise FormatError("the header of a page is nested too deep")
    fields, number = dict[int, Any](), 0
    while True:
        byte, at = _byte(data, at, end)
        if byte == 0:
            return fields, at
        step, kind = byte >> 4, byte & 15
        if step:
            number += step
        else:
            number, at = _integer(data, at, end)
        fields[number], at = _value(data, at, end, kind, depth)


def _value(data: bytes, at: int, end: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false
        return kind == 1, at
    if kind == 3:
        return _byte(data, at, end)
    if kind in (4, 5, 6):
        return _integer(data, at, end)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at, end)
        return None, at + size
    if kind == 12:
        return _struct(data, at, end, depth - 1)
    raise FormatError("the header of a page holds what it never does")


def _byte(data: bytes, at: int, end: int) -> tuple[int, int]:
    if not 0 <= at < end:
        raise FormatError("the header of a page ends too early")
    return data[at], at + 1


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = _byte(data, at, end)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise FormatError("a number in the header of a page is too long")


def _integer(data: bytes, at: int, end: int) -> tuple[int, int]:
    value, at = _varint(data, at, end)
    return value >> 1 ^ -(value & 1), at
