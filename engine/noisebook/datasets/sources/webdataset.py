"""WebDataset tars: samples are files that share all of their name up to its first dot."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Items, Source, Wanted, bad_key, open_file, refuse_changed
from noisebook.datasets.sources.members import ENDINGS, Member, read_sparse, read_tar, refuse_compressed
from noisebook.datasets.sources.places import or_os_error
from noisebook.datasets.sources.samples import Keys, Row, Samples
from noisebook.errors import DatasetError, first_line, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

COLUMNS = {"cls": "label", "txt": "txt", "json": "json"}  # files of a sample that go along -> their column
SPANS = 4096  # characters of the JSON that says where these are, at most
INT64 = range(-(1 << 63), 1 << 63)
SPARSE = 1 << 26  # bytes of one of these, where it has holes, at most


class WebDataset(Source):
    kind = "webdataset"
    suffixes = (".tar", *ENDINGS)  # those that are compressed are refused by their names

    @classmethod
    def enumerated(cls, files: list[File], wanted: Wanted, limits: Limits = DEFAULT) -> Self:
        refuse_compressed(files)
        parts: list[Items] = []
        labels = _Labels()
        for i, file in enumerate(files):
            parts.append(Items.of(_tar_items(i, file, wanted, labels)))
            if problem := too_much(f"{printable(file.path)}: images so far", sum(map(len, parts)), limits, "rows"):
                raise DatasetError(problem)
        items = Items(chunk for part in parts for chunk in part.chunks)
        if _repeated(items):  # numbered anew in each tar
            items = Items.of(x._replace(key=f"{files[x.file].name.removesuffix('.tar')}/{x.key}") for x in items)
        _refuse_repeated_keys(files, items)
        items = Items.of(x._replace(problem=x.problem or bad_key(x.key)) for x in items)
        kinds = {kind for item in items if item.extra for kind in json.loads(item.extra)}
        types = {kind: labels.type if kind == "cls" else "string" for kind in COLUMNS}
        return cls(files, items, {column: types[kind] for kind, column in COLUMNS.items() if kind in kinds})

    def extras(self, item: Item) -> dict[str, Any]:
        if not item.extra:
            return {}
        file = self.files[item.file]
        spans, values = _spans(item, file), dict[str, Any]()
        with open_file(file) as f:
            for kind, (start, size, sparse) in spans.items():
                text = or_os_error(lambda: _text(f, start, size, sparse))  # noqa: B023 - it is called here
                if kind == "cls":
                    values["label"] = _number(text) if self.columns["label"] == "int64" else text.strip() or None
                else:
                    values[COLUMNS[kind]] = text
        refuse_changed(file)
        return values


def _text(f: Any, start: int, size: int, sparse: bool) -> str:
    if sparse:
        return read_sparse(f, start, size).decode("utf-8", "replace")
    f.seek(start)
    return f.read(size).decode("utf-8", "replace")


class _Labels:
    """What the `.cls` files of all tars hold: whole numbers, or one of them words."""

    type = "int64"

    def see(self, member: Member) -> None:
        text = b"?" if member.text is None else member.text.strip()
        if text and not member.problem and _number(text.decode("utf-8", "replace")) is None:
            self.type = "string"


def _number(text: str) -> int | None:
    """A class as a number, if it is one that a column can hold."""
    with contextlib.suppress(ValueError):
        return number if (number := int(text)) in INT64 else None


def _spans(item: Item, file: File) -> dict[str, tuple[int, int, bool]]:
    """Where what goes along with an item lies: {ending: (start, size, whether it is sparse)}. Raises ValueError for what
    cannot be."""
    try:
        if len(item.extra) > SPANS:
            raise ValueError(f"more than {SPANS:,} characters")
        places = json.loads(item.extra)
        sparse = places.pop("sparse", [])
        spans = {kind: (start, size, kind in sparse) for kind, (start, size) in places.items()}
        for kind, (start, size, holes) in spans.items():
            if kind not in COLUMNS or type(start) is not int or type(size) is not int:
                raise ValueError(f"no place of {printable(kind, 20)}")
            if start < 0 or size < 0 or (size > SPARSE if holes else start + size > file.size):
                raise ValueError(f"{kind} lies outside of the file")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the plan does not say where it is: {first_line(error)}") from error
    return spans


def _tar_items(index: int, file: File, wanted: Wanted, labels: _Labels) -> Iterator[Item]:
    """The rows of a tar, and an item with a problem for what comes after damage."""
    tar, keys = read_tar(file, ".cls"), Keys()
    wanted.passed.others.update(tar.others)
    for row in Samples(wanted.passed, wanted.image_suffix).rows(tar.members):
        if "cls" in row.sidecars:
            labels.see(row.sidecars["cls"])
        yield _item(index, keys.of(row.key, row.name), row)
    if tar.problem:
        yield Item(keys.of(file.name, file.name), index, problem=tar.problem)


def _item(index: int, key: str, row: Row) -> Item:
    extra: dict[str, Any] = {kind: (m.start, m.size) for kind, m in row.sidecars.items() if not m.problem}
    problem = row.problem or next(
        (f"too_large: its .{k} has {m.size:,} bytes" for k, m in row.sidecars.items() if m.sparse and m.size > SPARSE), ""
    )
    picture = row.picture
    if picture is None:
        return Item(key, index, 0, 0, "", "", problem)
    if sparse := sorted(kind for kind, m in {**row.sidecars, "picture": picture}.items() if m.sparse):
        extra["sparse"] = sparse
    text = json.dumps(extra, sort_keys=True) if extra else ""
    ending = row.name[len(row.name.rpartition(".")[0]) :]
    return Item(key, index, picture.start, picture.size, ending, text, problem)


def _keys(items: Items) -> Iterator[str]:
    return (key for column in items.column("key") for key in column.to_pylist())


def _repeated(items: Items) -> str | None:
    """A key that stands twice."""
    seen: set[str] = set()
    return next((key for key in _keys(items) if key in seen or seen.add(key)), None)


def _refuse_repeated_keys(files: list[File], items: Items) -> None:
    if (key := _repeated(items)) is not None:
        file = [item.file for item in items if item.key == key][1]
        raise DatasetError(f"the key {printable(repr(key), 200)} stands twice in {printable(files[file].path)}: rename one")
