"""What every kind of input shares: files, items, and a source, which is all items of an input in a fixed order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from noisebook.datasets.sources.places import Place, unsafe_name
from noisebook.datasets.sources.rows import Rows, bounds
from noisebook.errors import first_line
from noisebook.images.folders import PassedOver
from noisebook.runtime.limits import DEFAULT, Limits

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class File:
    """A file of the input: its name in the plan, and what shows whether it changed.

    `place` is where the user said on this run that it lies. A plan that is read gives none: a recorded path is never opened.
    """

    path: str  # for messages, and as the plan records it
    name: str  # relative to the input, so that a plan does not depend on where the input lies
    size: int
    stamp: str  # size and time of change; on object stores the ETag
    problem: str = ""  # why it cannot be read: the code of the failure, and words
    place: Place | None = None


class NotLocated(OSError):
    """Nobody has said on this run where the file lies."""


CHANGED = "the file is not the one of the plan any more"
NOT_LOCATED = "nobody has said where the inputs are now: what a plan records is not opened"


class Changed(OSError):
    """The file is no longer the one of the plan."""


class Item(NamedTuple):
    """One image: where its bytes lie. `problem`: there are none; the code of the failure, and why."""

    key: str
    file: int
    start: int = 0  # of its bytes; in Parquet the row
    size: int = -1  # of its bytes; -1: the whole file
    ending: str = ""  # of the picture's name, where the key has none
    extra: str = ""  # WebDataset: JSON of {kind: [start, size]} of what is carried through, and of which are "sparse"
    problem: str = ""

    @property
    def sparse(self) -> bool:
        """Whether its bytes lie in a tar with holes: `start` is then where its header begins."""
        return '"picture"' in self.extra


class Items(Rows[Item]):
    """Items as columns."""

    fields: ClassVar[dict[str, type]] = {
        "key": str,
        "file": int,
        "start": int,
        "size": int,
        "ending": str,
        "extra": str,
        "problem": str,
    }

    make = Item  # pyright: ignore[reportAssignmentType] (a call less for each of millions)

    def with_problems(self) -> bool:
        """Whether any of them cannot be read."""
        return any(bounds(column)[1] for column in self.column("problem"))


class Files(Rows[File]):
    """Files as columns, without a place."""

    fields: ClassVar[dict[str, type]] = {"path": str, "name": str, "size": int, "stamp": str, "problem": str}

    def make(self, *values: Any) -> File:
        return File(*values)


@dataclass(frozen=True)
class Failure:
    """Why an item has no tokens.

    missing, unreadable, changed  its file; bad_key  its name leads out of a folder; no_image  its sample or row has none;
    empty  no bytes; not_an_image, damaged  what Pillow says; too_large  for the limits, or for memory; other_size  not the
    size of the data set; codec  the codec does not take it; fault  noisebook itself failed; worker_died, timeout  the
    process that read it; poisoned  its shard failed on every try
    """

    code: str
    message: str

    @classmethod
    def of_reading(cls, error: Exception, about: str = "") -> "Failure":
        """What an error while a file was read says; `about` is put before it."""
        return cls("changed" if isinstance(error, Changed) else "unreadable", about + first_line(error))


@dataclass(frozen=True)
class Wanted:
    """What is to be taken of the files of an input.

    image_column  Parquet: the column of the images; None: the first that can be
    image_suffix  pictures and tars: the ending of the pictures, without a dot in front; empty: any
    drop_columns  columns that do not go along
    passed        counts what is passed over
    """

    image_column: str | None = None
    image_suffix: str = ""
    drop_columns: Sequence[str] = ()
    passed: PassedOver = field(default_factory=PassedOver)


@dataclass
class Source:
    """All items of an input, in order: base of the kinds of input, one file each. It is enumerated once; nothing is read
    for it but names, sizes, the headers of tars and Parquet files, and the first values of columns that could be pictures.

    A kind sets the class attributes and implements `enumerated`, and `extras` or `carried` if its items have columns that
    go along.
    """

    kind: ClassVar[str]  # what plans and `input_format` call it
    suffixes: ClassVar[tuple[str, ...]]  # of its files, in lower case

    files: Sequence[File]
    items: Items
    columns: dict[str, str] = field(default_factory=dict)  # names and Arrow types of the columns that go along
    image_column: str = ""  # Parquet: the column of the images
    passed_over: dict[str, int] = field(default_factory=dict)  # why -> how many pictures there are no items for
    other_files: dict[str, int] = field(default_factory=dict)  # ending -> how many files are no pictures

    @classmethod
    def enumerated(cls, files: list[File], wanted: Wanted, limits: Limits = DEFAULT) -> Self:
        """The source that these files make. Raises DatasetError where they make none, or more rows than may be."""
        raise NotImplementedError

    def image_bytes(self, items: Iterable[Item]) -> "Iterator[bytes | Failure | None]":
        """The bytes of these items, one by one as they are asked for, a Failure where there are none; None where they are to
        be read from the item's file."""
        return (None for _ in items)

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


def open_file(file: File) -> Any:
    """A file of the input, opened for reading: every file of a data set's input is opened here. Raises OSError, and
    NotLocated where the user has not said on this run where it lies."""
    return _place(file).open()


def stamp_of(info: dict[str, Any]) -> str:
    """What distinguishes versions of a file, in what `Place.info` says: its size, and a tag or time of change."""
    for key in ("ETag", "etag", "LastModified", "last_modified", "mtime", "CRC"):
        if info.get(key) is not None:
            return f"{info['size']} {info[key]}"
    return str(info["size"])


def refuse_changed(file: File) -> None:
    """Raises Changed where the file is not the one of the plan, and as `open_file`."""
    place = _place(file)
    if place.plain:
        try:
            return refuse_other(file, os.stat(place.path))
        except ValueError as error:  # a NUL in its name
            raise OSError(first_line(error)) from error
    info = place.info()
    if stamp_of(info) != file.stamp or info["size"] != file.size:
        raise Changed(CHANGED)


def refuse_other(file: File, about: os.stat_result) -> None:
    """Raises Changed where this is not what the system said of the file when the plan was made."""
    if about.st_size != file.size or f"{about.st_size} {about.st_mtime}" != file.stamp:
        raise Changed(CHANGED)


def _place(file: File) -> Place:
    if file.place is None:
        raise NotLocated(file.problem.partition(": ")[2] or NOT_LOCATED)
    return file.place


def bad_key(key: str) -> str:
    """Why no file or member of an archive can have this key as its name, as the problem of an item: it would lead elsewhere.
    Empty for a good key."""
    problem = unsafe_name(key)
    return f"bad_key: {problem}" if problem else ""


def utf8(name: str) -> str:
    """A name as it can be written down: bytes that are no UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Whether the bytes of a name are UTF-8, whatever this process takes the names of files for."""
    try:
        name.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return False
    return True
