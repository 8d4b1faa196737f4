"""WebDataset tars: samples are files that follow each other and share all of their name up to its first dot."""

import contextlib
import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Items, Source, bad_key, open_file, refuse_changed, utf8
from noisebook.errors import DatasetError, first_line, printable
from noisebook.images.io import SUFFIXES
from noisebook.runtime.limits import DEFAULT, Limits, too_much

COLUMNS = {"cls": "label", "txt": "txt", "json": "json"}  # files of a sample that go along -> their column
SPANS = 4096  # characters of the JSON that says where these are, at most
INT64 = range(-(1 << 63), 1 << 63)


class WebDataset(Source):
    kind = "webdataset"
    suffixes = (".tar",)

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None, limits: Limits = DEFAULT) -> Self:
        parts: list[Items] = []
        for i, file in enumerate(files):
            parts.append(Items.of(_tar_items(i, file)))
            if problem := too_much(f"{printable(file.path)}: images so far", sum(map(len, parts)), limits, "rows"):
                raise DatasetError(problem)
        items = Items(chunk for part in parts for chunk in part.chunks)
        if _repeated(items):  # numbered anew in each tar
            items = Items.of(replace(x, key=f"{files[x.file].name.removesuffix('.tar')}/{x.key}") for x in items)
        _refuse_repeated_keys(files, items)
        items = Items.of(replace(x, problem=x.problem or bad_key(x.key)) for x in items)
        kinds = {kind for item in items if item.extra for kind in json.loads(item.extra)}
        columns = {column: "int64" if kind == "cls" else "string" for kind, column in COLUMNS.items() if kind in kinds}
        return cls(files, items, columns)

    def extras(self, item: Item) -> dict[str, Any]:
        if not item.extra:
            return {}
        file = self.files[item.file]
        spans, values = _spans(item, file), dict[str, Any]()
        with open_file(file) as f:
            for kind, (start, size) in spans.items():
                f.seek(start)
                text = f.read(size).decode("utf-8", "replace")
                values[COLUMNS[kind]] = _class(text) if kind == "cls" else text
        refuse_changed(file)
        return values


def _class(text: str) -> int | None:
    """A class that is no number, or a larger one than there are, is none; the image is there."""
    with contextlib.suppress(ValueError):
        return number if (number := int(text)) in INT64 else None


def _spans(item: Item, file: File) -> dict[str, tuple[int, int]]:
    """Where what goes along with an item lies: {ending: (start, size)}. Raises ValueError for what cannot be."""
    try:
        if len(item.extra) > SPANS:
            raise ValueError(f"more than {SPANS:,} characters")
        spans = {kind: (start, size) for kind, (start, size) in json.loads(item.extra).items()}
        for kind, (start, size) in spans.items():
            if kind not in COLUMNS or type(start) is not int or type(size) is not int:
                raise ValueError(f"no place of {printable(kind, 20)}")
            if start < 0 or size < 0 or start + size > file.size:
                raise ValueError(f"{kind} lies outside of the file")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the plan does not say where it is: {first_line(error)}") from error
    return spans


def _tar_items(index: int, file: File) -> list[Item]:
    """The samples of a tar, and an item with a problem for what comes after damage."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}  # key -> {ending: (start, size)}
    broken, cut = [], ""
    try:
        if file.problem:
            raise OSError(file.problem)
        with open_file(file) as f, tarfile.open(fileobj=f, mode="r:") as tar:
            for member in tar:
                folder, name = posixpath.split(utf8(member.name))
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
        broken.append(Item(file.name, index, problem=f"damaged: the tar, from here on: {first_line(error)}"))
    return [_item(index, key, parts, key == cut) for key, parts in samples.items()] + broken


def _item(index: int, key: str, parts: dict[str, tuple[int, int]], cut: bool) -> Item:
    """A sample, of which the file number `index` has these parts; `cut`: the tar ends within it."""
    images = [ending for ending in parts if ("." + ending).endswith(SUFFIXES)]
    extra = {kind: parts[kind] for kind in COLUMNS if kind in parts}
    text = json.dumps(extra, sort_keys=True) if extra else ""
    start, size = parts[images[0]] if images else (0, 0)
    ending, problem = ("." + images[0], "") if images else ("", "no_image: no picture in this sample")
    return Item(key, index, start, size, ending, text, "damaged: the tar ends within this sample" if cut else problem)


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
