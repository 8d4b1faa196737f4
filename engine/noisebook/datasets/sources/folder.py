"""Folders of pictures: a picture is an item, the first folder of its path its label, as in ImageFolder."""

from typing import Any, Self

from noisebook.datasets.sources.base import File, Item, Items, Source, Wanted, bad_key
from noisebook.errors import DatasetError, printable
from noisebook.images.folders import SUFFIXES
from noisebook.runtime.limits import DEFAULT, Limits


class Folder(Source):
    kind = "pictures"
    suffixes = SUFFIXES

    @classmethod
    def enumerated(cls, files: list[File], wanted: Wanted, limits: Limits = DEFAULT) -> Self:
        if wanted.image_suffix:
            taken = [file for file in files if file.name.lower().endswith(f".{wanted.image_suffix}")]
            if not taken:
                count = "picture has" if len(files) == 1 else "pictures have"
                raise DatasetError(f"{len(files):,} {count} another ending than {printable(wanted.image_suffix, 100)}")
            if len(taken) < len(files):
                wanted.passed.picture("other suffix", len(files) - len(taken))
            files = taken
        columns = {"label": "string"} if any("/" in file.name for file in files) else {}
        items = (Item(file.name, i, problem=file.problem or bad_key(file.name)) for i, file in enumerate(files))
        return cls(files, Items.of(items), columns)

    def extras(self, item: Item) -> dict[str, Any]:
        return {"label": item.key.split("/")[0]} if "/" in item.key else {}
