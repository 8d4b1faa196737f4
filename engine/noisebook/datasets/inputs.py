"""What is to be tokenised: folders of pictures, WebDataset tars, Parquet files with image bytes, local or through fsspec.

A source is enumerated once, in a fixed order, into items: a key, and where its bytes lie. Nothing is read but names, sizes
and the headers of tars and Parquet files.
"""

import contextlib
import json
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from noisebook.errors import DatasetError, first_line
from noisebook.images.io import SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {"pictures": SUFFIXES, "webdataset": (".tar",), "parquet": (".parquet",)}
EXTRAS = {"cls": "label", "txt": "txt", "json": "json"}  # files of a WebDataset sample that are carried through


@dataclass(frozen=True)
class File:
    """A file of the input: its path, how it is named in the plan, and what tells whether it changed."""

    path: str
    name: str  # relative to the input, so that a plan does not depend on where the input lies
    size: int
    stamp: str  # size and time of change; on object stores the ETag
    problem: str = ""  # why it cannot be read: the code of the failure, and words


class Changed(OSError):
    """A file that is not the one of the plan any more."""


@dataclass(frozen=True)
class Item:
    """One image: where its bytes lie. `problem`: there are none; the code of the failure, and why."""

    key: str
    file: int
    start: int = 0  # of its bytes; in Parquet the row
    size: int = -1  # of its bytes; -1: the whole file
    ending: str = ""  # of the picture's name, where the key has none
    extra: str = ""  # WebDataset: JSON of {kind: [start, size]} of what is carried through
    problem: str = ""


@dataclass
class Source:
    """All items of an input, in order. `columns`: names and Arrow types of what is carried through."""

    kind: str
    files: list[File]
    items: list[Item]
    columns: dict[str, str] = field(default_factory=dict)
    image_column: str = ""

    def carried(self, items: Sequence[Item]) -> "pa.Table":
        """The columns that go with these items into a shard, row by row."""
        import pyarrow as pa

        if self.kind == "parquet":
            return _parquet_columns(self, items)
        values: dict[str, list[Any]] = {name: [] for name in self.columns}
        for item in items:
            found = _sidecars(self.files[item.file], item) if self.kind == "webdataset" else _folder(item.key)
            for name, column in values.items():
                column.append(found.get(name))
        return pa.table({name: pa.array(column, _arrow(self.columns[name])) for name, column in values.items()})


def _arrow(name: str) -> "pa.DataType":
    import pyarrow as pa

    return {"string": pa.string(), "int64": pa.int64()}[name]


def filesystem(url: str) -> "tuple[Any, str]":
    """(file system, path in it) of a path or URL. Raises DatasetError where fsspec cannot open it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise DatasetError(f"{url}: cannot be opened: {first_line(error)}") from error


def stamp_of(info: dict[str, Any]) -> str:
    """Size and what else tells one version of a file from another, of what `fs.info` says."""
    for key in ("ETag", "etag", "LastModified", "last_modified", "mtime"):
        if info.get(key) is not None:
            return f"{info['size']} {info[key]}"
    return str(info["size"])


# ---- enumerating --------------------------------------------------------------------------------------------------------
def enumerate_inputs(
    inputs: Sequence[str], kind: str | None = None, image_column: str | None = None, known: Source | None = None
) -> Source:
    """The source that the inputs, all of one kind, make.

    kind          pictures, webdataset or parquet; None: by the names of the files
    image_column  Parquet: the column of the images; None: the first with `bytes` inside, or of bytes
    known         what was found before: files that are still the same are not read again

    Raises DatasetError where nothing is there, or several kinds are.
    """
    found = [file for url in inputs for file in _files(url)]
    by_kind = {k: [f for f in found if f.path.lower().endswith(suffixes)] for k, suffixes in KINDS.items()}
    present = [k for k, files in by_kind.items() if files and kind in (None, k)]
    if not present:
        raise DatasetError(f"{', '.join(inputs)}: no {kind or 'pictures, .tar or .parquet files'} there")
    if len(present) > 1:
        raise DatasetError(f"{', '.join(inputs)}: there are {' and '.join(present)}: say which with --input-format")
    files = by_kind[present[0]]
    doubled = {f.name for f in files} if len({f.name for f in files}) < len(files) else set()
    if doubled:
        raise DatasetError("two inputs have a file of the same name: give the folder above them")
    if known is not None and _same(known, present[0], files, image_column):
        return replace(known, files=files)
    return {"pictures": _pictures, "webdataset": _webdataset, "parquet": _parquet}[present[0]](files, image_column)


def _same(known: Source, kind: str, files: list[File], image_column: str | None) -> bool:
    """Whether these are the files of `known`, by name, size and time of change, and nothing was wrong with them."""
    if known.kind != kind or image_column not in (None, known.image_column):
        return False
    facts = [[(f.name, f.size, f.stamp, f.problem) for f in some] for some in (known.files, files)]
    return facts[0] == facts[1] and not any(one.problem for one in (*files, *known.items))


def _files(url: str) -> Iterator[File]:
    """All files of an input, by name."""
    fs, path = filesystem(url)
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    protocol = "" if local else f"{url.split('://')[0]}://"
    try:
        if "*" in path:
            found, root = {p: fs.info(p) for p in fs.glob(path)}, posixpath.dirname(path.split("*")[0])
        elif fs.isfile(path):
            found, root = {path: fs.info(path)}, posixpath.dirname(path)
        elif local:
            found, root = dict(_below(fs, path)), path
        else:
            found, root = fs.find(path, detail=True), path
    except OSError as error:
        raise DatasetError(f"{url}: cannot be listed: {error.strerror or error}") from error
    for p in sorted(found):
        name, info = posixpath.relpath(p, root), found[p]
        problem = info.get("problem", "")
        if _utf8(p) != p:
            problem = "unreadable: its name is not UTF-8: rename it"
        if info["type"] == "file" or problem:
            yield File(f"{protocol}{_utf8(p)}", _utf8(name), info["size"], "" if problem else stamp_of(info), problem)


def _below(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, what the file system says) of all below a local folder. Links are followed, though not in circles, and what
    has the name of a picture but is none (a folder, a pipe, a link to nothing) is not passed over in silence."""

    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be read would be pictures lost

    above = {root: {os.path.realpath(root)}}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=stop):
        for name in list(folders):
            path = posixpath.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else posixpath.join(os.path.realpath(folder), name)
            if real in above[folder]:
                folders.remove(name)
            above[path] = above[folder] | {real}
            if name.lower().endswith(SUFFIXES):
                yield path, {"type": "directory", "size": 0, "problem": "unreadable: a folder, not a picture"}
        for name in files:
            path = posixpath.join(folder, name)
            try:
                info = fs.info(path)
            except OSError as error:
                info = {"type": "other", "size": 0, "problem": f"missing: {error.strerror or error}"}
            if info["type"] != "file":
                info = {"problem": "unreadable: not a regular file", **info}
            yield path, info


def _utf8(name: str) -> str:
    """A name as it can be written down: bytes that are no UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _folder(key: str) -> dict[str, str]:
    """The first folder in a picture's key: its class, as in ImageFolder."""
    return {"label": key.split("/")[0]} if "/" in key else {}


def _pictures(files: list[File], _: str | None) -> Source:
    columns = {"label": "string"} if any("/" in f.name for f in files) else {}
    return Source("pictures", files, [Item(f.name, i, problem=f.problem) for i, f in enumerate(files)], columns)


def _webdataset(files: list[File], _: str | None) -> Source:
    """Samples are files that follow each other and share all up to the first dot of their name."""
    items: list[Item] = []
    for i, file in enumerate(files):
        items += _tar_items(i, file)
    keys = [item.key for item in items]
    if len(set(keys)) < len(keys):  # numbered anew in each tar
        items = [replace(x, key=f"{files[x.file].name.removesuffix('.tar')}/{x.key}") for x in items]
    kinds = {kind for item in items if item.extra for kind in json.loads(item.extra)}
    columns = {column: "int64" if kind == "cls" else "string" for kind, column in EXTRAS.items() if kind in kinds}
    return _unique(Source("webdataset", files, items, columns))


def _tar_items(index: int, file: File) -> list[Item]:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    broken, cut = [], ""
    try:
        if file.problem:
            raise OSError(file.problem)
        fs, path = filesystem(file.path)
        with fs.open(path, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
            for member in tar:
                folder, name = posixpath.split(_utf8(member.name))
                if member.isfile() and not name.startswith("."):
                    stem, _, ending = name.partition(".")
                    key = posixpath.join(folder, stem)
                    samples.setdefault(key, {})[ending.lower()] = member.offset_data, member.size
                    if member.offset_data + member.size > file.size:
                        cut = key
                        raise tarfile.ReadError("it ends too early")
            f.seek(tar.offset)  # tarfile takes a damaged header for the end
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end mark: cut short, or a damaged header")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        broken.append(Item(file.name, index, problem=f"damaged: the tar, from here on: {error}"))
    items = []
    for key, parts in samples.items():
        images = [ending for ending in parts if ("." + ending).endswith(SUFFIXES)]
        extra = {kind: parts[kind] for kind in EXTRAS if kind in parts}
        text = json.dumps(extra, sort_keys=True) if extra else ""
        start, size = parts[images[0]] if images else (0, 0)
        ending, problem = ("." + images[0], "") if images else ("", "no_image: no picture in this sample")
        problem = "damaged: the tar ends within this sample" if key == cut else problem
        items.append(Item(key, index, start, size, ending, text, problem))
    return items + broken


def _sidecars(file: File, item: Item) -> dict[str, Any]:
    """Raises OSError where the tar cannot be read or has changed."""
    if not item.extra:
        return {}
    fs, path = filesystem(file.path)
    out: dict[str, Any] = {}
    with fs.open(path, "rb") as f:
        for kind, (start, size) in json.loads(item.extra).items():
            f.seek(start)
            text = f.read(size).decode("utf-8", "replace")
            try:
                out[EXTRAS[kind]] = int(text) if kind == "cls" else text
            except ValueError:
                out[EXTRAS[kind]] = None  # a class that is no number is none; the image is there
    refuse_changed(file)
    return out


def _parquet(files: list[File], image_column: str | None) -> Source:
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
            column = column or next((f.name for f in schema if _holds_images(f.type)), None)
            if column is None or column not in schema.names or not _holds_images(schema.field(column).type):
                raise DatasetError(
                    f"{file.path}: no column of image bytes{f' {image_column!r}' if image_column else ''}: "
                    f"there are {', '.join(schema.names)}; name it with --image-column"
                )
        elif not opened.schema_arrow.equals(schema):
            raise DatasetError(f"{file.path}: its columns are not those of {files[0].path}: tokenise them apart")
        stem = file.name.removesuffix(".parquet")
        items += [Item(f"{stem}/{row}", i, row) for row in range(opened.metadata.num_rows)]
    if schema is None:
        raise DatasetError(f"{files[0].path}: none of the Parquet files can be read")
    columns = {f.name: str(f.type) for f in schema if f.name != column}
    return Source("parquet", files, items, columns, column or "")


def _unique(source: Source) -> Source:
    seen: set[str] = set()
    for item in source.items:
        if item.key in seen:
            raise DatasetError(f"the key {item.key!r} stands twice in {source.files[item.file].path}: rename one")
        seen.add(item.key)
    return source


# ---- Parquet ------------------------------------------------------------------------------------------------------------
def _holds_images(kind: "pa.DataType") -> bool:
    """Bytes, or the struct of Hugging Face: {bytes, path}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_images(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def refuse_changed(file: File) -> None:
    """Raises Changed where the file is not the one of the plan."""
    fs, path = filesystem(file.path)
    if stamp_of(fs.info(path)) != file.stamp:
        raise Changed("the file is not the one of the plan any more")


def open_parquet(file: File, use: str = "images") -> Any:
    """A ParquetFile. Raises OSError and what Arrow raises; Changed where it is not the one of the plan. `use` keeps the
    threads that read images and other columns apart."""
    refuse_changed(file)
    return _opened(file.path, file.stamp, use)


@lru_cache(maxsize=16)
def _opened(path: str, _: str, __: str) -> Any:  # the stamp keeps versions of a file apart
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
        for value in table[column].slice(begin, end - begin):
            found = value.as_py()
            yield found.get("bytes") if isinstance(found, dict) else found


def _parquet_columns(source: Source, items: Sequence[Item]) -> "pa.Table":
    """The carried columns of some rows. Raises OSError and what Arrow raises."""
    import pyarrow as pa

    names, parts = list(source.columns), []
    by_file: dict[int, list[int]] = {}
    for item in items:
        by_file.setdefault(item.file, []).append(item.start)
    for index, rows in by_file.items():  # items are in the order of files
        opened, at = open_parquet(source.files[index], "columns"), 0
        wanted = []
        for group in range(opened.metadata.num_row_groups):
            count = opened.metadata.row_group(group).num_rows
            here = [row - at for row in rows if at <= row < at + count]
            if here:
                wanted.append(opened.read_row_group(group, columns=names).take(pa.array(here)))
            at += count
        parts += wanted
    if not parts:  # every image of the shard has failed: columns of the right types all the same
        parts = [_schema(source).empty_table().select(names)]
    return pa.concat_tables(parts).replace_schema_metadata(None)


def _schema(source: Source) -> "pa.Schema":
    """That of the first file that can be read. Raises DatasetError where none can any more."""
    import pyarrow as pa

    indices = list(dict.fromkeys(item.file for item in source.items if not item.problem))
    for index in indices:
        with contextlib.suppress(pa.ArrowException, OSError, ValueError):
            return open_parquet(source.files[index], "columns").schema_arrow
    try:  # all have changed: as it was when the plan was made
        file = source.files[indices[0]]
        return _opened(file.path, file.stamp, "images").schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{file.path}: cannot be read any more: {first_line(error)}") from error
