"""The files of a plan that is read: where the user says on this run that they lie, and nowhere else."""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from noisebook.datasets.sources.base import File, Files, Source, stamp_of
from noisebook.datasets.sources.places import Place, unsafe_name
from noisebook.datasets.sources.roots import root_of
from noisebook.datasets.sources.rows import Column
from noisebook.errors import DatasetError, printable

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Root:
    """An input that the user gave: a folder; or one file, which has this name in the plan."""

    place: Place
    name: str | None = None

    def place_of(self, name: str) -> Place | None:
        """Where the file of that recorded name lies; None where it cannot be here. Reads nothing."""
        if self.name is not None:
            return self.place if self.name == name else None
        try:
            return self.place.below(name)
        except DatasetError:
            return None


class Located(Files):
    """Files of a plan below the inputs that were given: an input joined with the recorded name, never the recorded path.
    With several inputs it is the first whose file has the recorded stamp."""

    def __init__(self, chunks: Iterable[dict[str, Column]], roots: Sequence[Root] = ()):
        super().__init__(chunks)
        self.roots = roots

    def _with(self, chunks: Iterable[dict[str, Column]]) -> Self:
        return type(self)(chunks, self.roots)

    def make(self, *values: Any) -> File:
        file = super().make(*values)
        if problem := unsafe_name(file.name):
            return replace(file, problem=f"unreadable: {problem}")
        places = [place for root in self.roots if (place := root.place_of(file.name)) is not None]
        if not places:
            return replace(file, problem="missing: it is not among the inputs that were given")
        place = places[0] if len(places) == 1 else next((p for p in places if _is(p, file)), places[0])
        return replace(file, path=place.path, place=place)


def _is(place: Place, file: File) -> bool:
    try:
        return stamp_of(place.info()) == file.stamp
    except OSError:
        return False


def located(source: Source, inputs: Inputs) -> Source:
    """The source of a plan, its files below `inputs`: a folder or file, or several, local or URLs. A folder is what was
    tokenised or a copy of it, in which files have the names of the plan.

    Raises DatasetError where an input is not there or cannot be opened."""
    assert isinstance(source.files, Files)
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    roots = [_root(os.fspath(url), source.files) for url in given]
    return replace(source, files=Located(source.files.chunks, roots))


def _root(url: str, files: Files) -> Root:
    try:
        fs, place, found, pattern = root_of(url)
        if found == [] or (found is None and not fs.isdir(place.path or "")):
            raise FileNotFoundError("nothing is there")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{printable(url, 200)}: cannot be listed: {printable(error, 200)}") from error
    if found is None or pattern:
        return Root(place)
    name = posixpath.basename(found[0])
    names = [n for column in files.column("name") for n in column.to_pylist() if posixpath.basename(n) == name]
    if name not in names and len(names) != 1:
        count = f"{len(names):,} files" if names else "no file"
        raise DatasetError(f"{printable(url, 200)}: the plan has {count} of that name: give the folder above")
    return Root(Place(place.url, found[0]), name if name in names else names[0])
