"""Folders of pictures: a picture is an item, the first folder of its path its label, as in ImageFolder."""

from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Source
from noisebook.images.io import SUFFIXES


class Folder(Source):
    kind = "pictures"
    suffixes = SUFFIXES

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None) -> Self:
        columns = {"label": "string"} if any("/" in file.name for file in files) else {}
        return cls(files, [Item(file.name, i, problem=file.problem) for i, file in enumerate(files)], columns)

    def extras(self, item: Item) -> dict[str, Any]:
        return {"label": item.key.split("/")[0]} if "/" in item.key else {}
