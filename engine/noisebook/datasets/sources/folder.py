"""Folders of pictures: a picture is an item, the first folder of its path its label, as in ImageFolder."""

from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Items, Source, bad_key
from noisebook.images.io import SUFFIXES
from noisebook.runtime.limits import DEFAULT, Limits


class Folder(Source):
    kind = "pictures"
    suffixes = SUFFIXES

    @classmethod
    def enumerated(cls, files: list[File], image_column: str | None, limits: Limits = DEFAULT) -> Self:
        columns = {"label": "string"} if any("/" in file.name for file in files) else {}
        items = (Item(file.name, i, problem=file.problem or bad_key(file.name)) for i, file in enumerate(files))
        return cls(files, Items.of(items), columns)

    def extras(self, item: Item) -> dict[str, Any]:
        return {"label": item.key.split("/")[0]} if "/" in item.key else {}
