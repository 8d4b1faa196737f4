"""The columns of Parquet files: which one holds the pictures, and the types of the others where files differ."""

import csv
import io
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from noisebook.errors import DatasetError, first_line, printable
from noisebook.images.formats import FORMATS, HEAD, kind_of, known

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("image", "jpg", "png")  # of columns of bytes that are taken for pictures whatever is in them
LOOKED_AT = 8  # values of a column that say whether they are pictures
Variants = Mapping[str, "pa.Schema"]  # the schemas that there are, each under the first file that has it
Types = dict[str, "pa.DataType"]


def variant(schema: "pa.Schema") -> tuple[tuple[str, str], ...]:
    """Equal for schemas with equal columns in equal order; whether values may be null is left out."""
    return tuple((field.name, str(field.type)) for field in schema)


# ---- the pictures ------------------------------------------------------------------------------------------------------
def image_column(
    variants: Variants, wanted: str | None, dropped: Collection[str], values: Callable[[str], Iterable[bytes]]
) -> str:
    """The column of the pictures: the one that is `wanted`; else, of those that can be, the first that is a struct with
    bytes, or has a name of `NAMES`, or has pictures by the first bytes of its `values` (name -> the first that are there).
    Of the former two kinds one whose values are something else comes after one with pictures.

    Raises DatasetError where none can be, or not in every file."""
    first, schema = next(iter(variants.items()))
    if wanted is not None and wanted in dropped:
        raise DatasetError(f"--drop-columns leaves out {_shown(wanted)}, the column of the images")
    name = wanted if wanted is not None else _found(variants, dropped, values)
    if name is None:
        why = [f"{_shown(n)} {why}" for n, why in _refusals(variants, dropped).items()]
        there = f"there are {printable(', '.join(schema.names), 500)}" + "".join(f"; {text}" for text in why[:3])
        raise DatasetError(f"{first}: no column of image bytes: {there}; name it with --image-column")
    for file, schema in variants.items():
        if name not in schema.names:
            there = f"there are {printable(', '.join(schema.names), 500)}; --image-column names another"
            other = next((f for f, s in variants.items() if name in s.names), None)
            both = f"which {other} has: " if other else ""
            raise DatasetError(
                f"{file}: no column of image bytes {_shown(name)}, {both}{there}; --image-column names another"
            )
    kinds = [(file, field.type) for file, schema in variants.items() for field in schema if field.name == name]
    if all(_is_null(kind) for _, kind in kinds):
        raise DatasetError(f"{first}: no image bytes: all values of the column {_shown(name)} are null")
    for file, kind in kinds:
        if why := "" if _is_null(kind) else _refusal(kind):
            raise DatasetError(f"{file}: its column {_shown(name)} {why}: name the column of the images with --image-column")
    return name


def _found(variants: Variants, dropped: Collection[str], values: Callable[[str], Iterable[bytes]]) -> str | None:
    structs: dict[str, bool] = {}
    for schema in variants.values():
        for field in schema:
            if field.name not in dropped and not _refusal(field.type):
                structs[field.name] = structs.get(field.name, False) or _is_struct(field.type)
    by_name = [n for wanted in NAMES for n in structs if n.lower() == wanted]
    ordered = dict.fromkeys([n for n in by_name if structs[n]])
    ordered |= dict.fromkeys(n for n in structs if structs[n])
    ordered |= dict.fromkeys(by_name)
    likely = list(ordered)
    if likely and len(structs) == 1:
        return likely[0]
    for name in [*likely, *(n for n in structs if n not in ordered)]:
        heads = [value[:HEAD] for value, _ in zip(values(name), range(LOOKED_AT), strict=False)]
        if 2 * sum(map(is_picture, heads)) >= max(1, len(heads)) or (name in ordered and not heads):
            return name
    return likely[0] if likely else None


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture by its first bytes: one that is read, or HEIC."""
    from PIL import Image

    def accepts(name: str) -> bool:
        accept: Any = Image.OPEN[name][1]
        try:
            return accept is not None and bool(accept(head))
        except (SyntaxError, IndexError, TypeError, ValueError, struct.error):  # too few bytes
            return False

    return kind_of(head) == "HEIC" or any(map(accepts, known(FORMATS)))


def _refusals(variants: Variants, dropped: Collection[str]) -> dict[str, str]:
    """Why columns that look as if they held pictures do not."""
    fields = [f for schema in variants.values() for f in schema if f.name not in dropped]
    of_bytes = {f.name: "has no pictures in its first rows" for f in fields if not _refusal(f.type)}
    return of_bytes | {f.name: why for f in fields if "list" in (why := _refusal(f.type))}


def _refusal(kind: "pa.DataType") -> str:
    """Why a column of that type holds no pictures; empty where it can: bytes of any kind, or a struct with `bytes`."""
    import pyarrow as pa

    kind = _stored(kind)
    if _is_struct(kind):
        inside = [kind.field(i).type for i in range(kind.num_fields) if kind.field(i).name == "bytes"]
        return "" if inside and all(_is_null(i) or not _refusal(i) for i in inside) else "has no bytes inside"
    if pa.types.is_dictionary(kind):
        return _refusal(kind.value_type)
    if any(is_bytes(kind) for is_bytes in _bytes_checks()):
        return ""
    if pa.types.is_nested(kind):
        return f"has lists ({printable(kind, 60)}), and a row is one picture of bytes: write a row for each picture"
    return f"is of type {printable(kind, 60)}, not bytes"


def _bytes_checks() -> Iterator[Callable[["pa.DataType"], bool]]:
    import pyarrow as pa

    for name in ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view"):
        if hasattr(pa.types, name):
            yield getattr(pa.types, name)


def _stored(kind: "pa.DataType") -> Any:
    """The type that an extension's values have."""
    return getattr(kind, "storage_type", kind)


def _is_struct(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_struct(_stored(kind))


def _is_null(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_null(kind)


def leaf(schema: "pa.Schema", column: str, name: str = "bytes") -> str:
    """The column of the bytes themselves, without what lies beside them in a struct. `name`: of another of its fields;
    empty where it has none."""
    path, kind = column, _stored(schema.field(column).type)
    if name != "bytes":
        return f"{column}.{name}" if _is_struct(kind) and kind.get_field_index(name) >= 0 else ""
    while _is_struct(kind):
        path, kind = f"{path}.bytes", _stored(kind.field("bytes").type)
    return path


# ---- the others --------------------------------------------------------------------------------------------------------
def refuse_twice(variants: Variants, dropped: Collection[str]) -> None:
    """Raises DatasetError where two columns, or two fields of one, have the same name: no reader can tell them apart."""
    for file, schema in variants.items():
        names = [name for name, count in Counter(schema.names).items() if count > 1 and name not in dropped]
        if names:
            way = f"rename one, or leave both out with --drop-columns {option(names)}"
            raise DatasetError(f"{file}: two of its columns are called {_shown(names[0])}: {way}")
        for field in schema:
            if field.name not in dropped and (twice := _twice(field.type)):
                way = f"rename one, or leave the column out with --drop-columns {option([field.name])}"
                raise DatasetError(
                    f"{file}: two fields of its column {_shown(field.name)} are called {_shown(twice)}: {way}"
                )


def _twice(kind: "pa.DataType") -> str:
    """The name that two fields of one struct have, somewhere in a type."""
    stored = _stored(kind)
    fields = [stored.field(i) for i in range(stored.num_fields)]
    again = [name for name, count in Counter(f.name for f in fields).items() if count > 1]
    return again[0] if again and _is_struct(kind) else next((t for f in fields if (t := _twice(f.type))), "")


def merged(variants: Variants, left_out: Collection[str]) -> Types:
    """The types under which all columns of all files go along, but those that are `left_out`, in the order in which they
    first come. Dictionaries and views become plain values; types that differ the one that Arrow promotes both to.

    Raises DatasetError that names all columns for which there is none."""
    types: Types = {}
    files: dict[str, str] = {}  # the first of each column
    refused: dict[str, str] = {}
    for file, schema in variants.items():
        for field in schema:
            name, kind = field.name, plain(field.type)
            if name in left_out or name in refused:
                continue
            both = kind if types.get(name, kind) == kind else promoted(types[name], kind)
            if both is None:
                ours, theirs = printable(types[name], 60), printable(kind, 60)
                refused[name] = f"{_shown(name)} is of type {theirs} in {file}, and {ours} in {files[name]}"
            else:
                types[name] = both
                files.setdefault(name, file)
    if refused:
        some = "; ".join(list(refused.values())[:3]) + ("; ..." if len(refused) > 3 else "")
        way = f"tokenise these files apart, or leave out what differs with --drop-columns {option(refused)}"
        raise DatasetError(f"columns of which no one type can be made: {some}: {way}")
    return types


def plain(kind: "pa.DataType") -> "pa.DataType":
    """The type of the values of a dictionary or view; all others as they are."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    views = {"string_view": pa.string(), "binary_view": pa.binary()}
    return views.get(str(kind), kind)


def promoted(one: "pa.DataType", other: "pa.DataType") -> "pa.DataType | None":
    """The type that holds both; None where there is none."""
    import pyarrow as pa

    try:
        schemas = [pa.schema([pa.field("x", kind)]) for kind in (one, other)]
        both = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
        for kind in (one, other):  # Arrow names types to which it does not cast: of decimals and integers
            if converted(pa.chunked_array([pa.nulls(1, kind)]), both).type != both:
                return None
    except pa.ArrowException:
        return None
    return both


def converted(column: "pa.ChunkedArray", kind: "pa.DataType") -> "pa.ChunkedArray":
    """A column under a type that `merged` gave. Raises ArrowException for a value that it cannot hold."""
    import pyarrow as pa

    while pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if column.type != plain(column.type):
        column = column.cast(plain(column.type))
    if column.type == kind:
        return column
    parts = [pa.table({"x": pa.array([], kind)}), pa.table({"x": column})]  # it casts structs whose fields differ, too
    return pa.concat_tables(parts, promote_options="permissive")["x"]


def conformed(table: "pa.Table", recorded: Mapping[str, str], types: Callable[[], Types]) -> "pa.Table":
    """Some rows of a file with the columns of the plan, whose types are `recorded` as text; `types` is asked only where the
    file has others. A column that the file has not is null. Raises ValueError for a value that the type cannot hold."""
    import pyarrow as pa

    columns: dict[str, pa.ChunkedArray] = {}
    for name, text in recorded.items():
        if name not in table.column_names:
            columns[name] = pa.chunked_array([pa.nulls(len(table), types()[name])])
        elif str(table[name].type) == text:
            columns[name] = table[name]
        else:
            try:
                columns[name] = converted(table[name], types()[name])
            except pa.ArrowException as error:
                why = f"a value of its column {_shown(name)} cannot be {printable(text, 60)} as in other files"
                raise ValueError(f"{why} ({first_line(error)}): --drop-columns {option([name])} leaves it out") from error
    return pa.table(columns)


def types_of(recorded: Mapping[str, str], schemas: Iterable["pa.Schema"]) -> Types:
    """The types that a plan has recorded as text, found in its files. Raises ValueError where they do not tell."""
    types: Types = {}
    variants: dict[str, pa.Schema] = {}
    for schema in schemas:
        for field in schema:
            for kind in (field.type, plain(field.type)):
                if str(kind) == recorded.get(field.name):
                    types.setdefault(field.name, kind)
        if types.keys() == recorded.keys():
            return {name: types[name] for name in recorded}
        variants[str(len(variants))] = schema
    both = merged(variants, {f.name for s in variants.values() for f in s} - recorded.keys())
    if {name: str(kind) for name, kind in both.items()} != dict(recorded):
        raise ValueError("its files do not have the columns of the plan any more")
    return {name: both[name] for name in recorded}


def refuse_unknown(dropped: Collection[str], there: Iterable[str], where: str) -> None:
    """Raises DatasetError for a column that is to be left out and is not there: it may be a slip of the pen."""
    names = list(dict.fromkeys(there))
    if missing := [name for name in dropped if name not in names]:
        has = printable(", ".join(names), 500) or "none"
        raise DatasetError(f"{where}: --drop-columns {option(missing)}: no such column: there are {has}")


def option(names: Iterable[str]) -> str:
    """Names as the option takes them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return printable(text.getvalue(), 500)


def _shown(name: str) -> str:
    return printable(repr(name), 100)
