"""What every kind of input shares: files, items, and a source, which is all items of an input in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from noisebook.errors import DatasetError, first_line

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class File:
    """A file of the input: its path, its name in the plan, and what shows whether it changed."""

    path: str
    name: str  # relative to the input, so that a plan does not depend on where the input lies
    size: int
    stamp: str  # size and time of change; on object stores the ETag
    problem: str = ""  # why it cannot be read: the code of the failure, and words


class Changed(OSError):
    """The file is no longer the one of the plan."""


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


@dataclass(frozen=True)
class Failure:
    """Why an item has no tokens.

    missing, unreadable, changed  its file; no_image  its sample or row has none; empty  no bytes; not_an_image, damaged,
    too_large  what Pillow says; other_size  not the size of the data set; codec  the codec does not take it;
    worker_died, timeout  the process that read it; poisoned  its shard failed on every try
    """

    code: str
    message: str

    @classmethod
    def of_reading(cls, error: Exception, about: str = "") -> "Failure":
        """What an error while a file was read says; `about` is put before it."""
        return cls("changed" if isinstance(error, Changed) else "unreadable", about + first_line(error))


@dataclass
class Source:
    """All items of an input, in order: base of the kinds of input, one file each. It is enumerated once; nothing is read
    for it but names, sizes, and the headers of tars and Parquet files.

    A kind sets the class attributes and implements `enumerated`, and `extras` or `carried` if its items have columns that
    go along.
    """

    kind: ClassVar[str]  # what plans and `input_format` call it
    suffixes: ClassVar[tuple[str, ...]]  # of its files, in lower case

    files: list[File]
    items: list[Item]
    columns: dict[str, str] = field(default_factory=dict)  # names and Arrow types of the columns that go along
    image_column: str = ""  # Parquet: the column of the images

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None) -> Self:
        """The source that these files make. Raises DatasetError where they make none."""
        raise NotImplementedError

    def image_bytes(self, items: Sequence[Item]) -> "Sequence[bytes | Failure | None]":
        """The bytes of these items, a Failure where there are none; None where they are to be read from the item's file."""
        return [None] * len(items)

    def extras(self, item: Item) -> dict[str, Any]:
        """The values of `columns` that go with an item, as far as it has them. Raises OSError where its file cannot be read
        or has changed."""
        return {}

    def carried(self, items: Sequence[Item]) -> "pa.Table":
        """The columns that go with these items into a shard, row by row. Raises OSError, ValueError and what Arrow raises
        where they cannot be read."""
        import pyarrow as pa

        types = {"string": pa.string(), "int64": pa.int64()}
        rows = [self.extras(item) for item in items]
        return pa.table(
            {name: pa.array([row.get(name) for row in rows], types[kind]) for name, kind in self.columns.items()}
        )


def filesystem(url: str) -> "tuple[Any, str]":
    """(file system, path in it) of a path or URL. Raises DatasetError where fsspec cannot open it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise DatasetError(f"{url}: cannot be opened: {first_line(error)}") from error


def is_local(fs: Any) -> bool:
    """Whether a file system of fsspec is the one of this machine."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def stamp_of(info: dict[str, Any]) -> str:
    """What distinguishes versions of a file, in what `fs.info` says: its size, and a tag or time of change."""
    for key in ("ETag", "etag", "LastModified", "last_modified", "mtime"):
        if info.get(key) is not None:
            return f"{info['size']} {info[key]}"
    return str(info["size"])


def refuse_changed(file: File) -> None:
    """Raises Changed where the file is not the one of the plan."""
    fs, path = filesystem(file.path)
    if stamp_of(fs.info(path)) != file.stamp:
        raise Changed("the file is not the one of the plan any more")


def utf8(name: str) -> str:
    """A name as it can be written down: bytes that are no UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
