"""WebDataset tars: samples are files that follow each other and share all of their name up to its first dot."""

import json
import posixpath
import tarfile
from dataclasses import replace
from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Source, filesystem, refuse_changed, utf8
from noisebook.errors import DatasetError
from noisebook.images.io import SUFFIXES

COLUMNS = {"cls": "label", "txt": "txt", "json": "json"}  # files of a sample that go along -> their column


class WebDataset(Source):
    kind = "webdataset"
    suffixes = (".tar",)

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None) -> Self:
        items = [item for i, file in enumerate(files) for item in _tar_items(i, file)]
        keys = [item.key for item in items]
        if len(set(keys)) < len(keys):  # numbered anew in each tar
            items = [replace(x, key=f"{files[x.file].name.removesuffix('.tar')}/{x.key}") for x in items]
        _refuse_repeated_keys(files, items)
        kinds = {kind for item in items if item.extra for kind in json.loads(item.extra)}
        columns = {column: "int64" if kind == "cls" else "string" for kind, column in COLUMNS.items() if kind in kinds}
        return cls(files, items, columns)

    def extras(self, item: Item) -> dict[str, Any]:
        if not item.extra:
            return {}
        file = self.files[item.file]
        fs, path = filesystem(file.path)
        values: dict[str, Any] = {}
        with fs.open(path, "rb") as f:
            for kind, (start, size) in json.loads(item.extra).items():
                f.seek(start)
                text = f.read(size).decode("utf-8", "replace")
                try:
                    values[COLUMNS[kind]] = int(text) if kind == "cls" else text
                except ValueError:
                    values[COLUMNS[kind]] = None  # a class that is no number is none; the image is there
        refuse_changed(file)
        return values


def _tar_items(index: int, file: File) -> list[Item]:
    """The samples of a tar, and an item with a problem for what comes after damage."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}  # key -> {ending: (start, size)}
    broken, cut = [], ""
    try:
        if file.problem:
            raise OSError(file.problem)
        fs, path = filesystem(file.path)
        with fs.open(path, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
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
        broken.append(Item(file.name, index, problem=f"damaged: the tar, from here on: {error}"))
    return [_item(index, key, parts, key == cut) for key, parts in samples.items()] + broken


def _item(index: int, key: str, parts: dict[str, tuple[int, int]], cut: bool) -> Item:
    """A sample, of which the file number `index` has these parts; `cut`: the tar ends within it."""
    images = [ending for ending in parts if ("." + ending).endswith(SUFFIXES)]
    extra = {kind: parts[kind] for kind in COLUMNS if kind in parts}
    text = json.dumps(extra, sort_keys=True) if extra else ""
    start, size = parts[images[0]] if images else (0, 0)
    ending, problem = ("." + images[0], "") if images else ("", "no_image: no picture in this sample")
    return Item(key, index, start, size, ending, text, "damaged: the tar ends within this sample" if cut else problem)


def _refuse_repeated_keys(files: list[File], items: list[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise DatasetError(f"the key {item.key!r} stands twice in {files[item.file].path}: rename one")
        seen.add(item.key)
