"""What is to be tokenised, local or through fsspec: one file per kind of source.

Adding a kind: write its file, with a subclass of `Source`, and name it here. Nothing else knows which kinds there are.
"""

from collections.abc import Sequence
from dataclasses import replace

from noisebook.datasets.sources.base import File, Source
from noisebook.datasets.sources.folder import Folder
from noisebook.datasets.sources.listing import files_of
from noisebook.datasets.sources.parquet import Parquet
from noisebook.datasets.sources.webdataset import WebDataset
from noisebook.errors import DatasetError

#: the kinds of source by the name that plans give them
SOURCES: dict[str, type[Source]] = {source.kind: source for source in (Folder, WebDataset, Parquet)}


def enumerate_inputs(
    inputs: Sequence[str], kind: str | None = None, image_column: str | None = None, known: Source | None = None
) -> Source:
    """The source that the inputs, all of one kind, make.

    kind          pictures, webdataset or parquet; None: by the names of the files
    image_column  Parquet: the column of the images; None: the first with `bytes` inside, or of bytes
    known         a source that was enumerated before: if its files are still the same, they are not read again

    Raises DatasetError where nothing is there, or several kinds are.
    """
    everything = [file for url in inputs for file in files_of(url)]
    by_kind = {name: [f for f in everything if f.path.lower().endswith(s.suffixes)] for name, s in SOURCES.items()}
    present = [name for name, files in by_kind.items() if files and kind in (None, name)]
    if not present:
        raise DatasetError(f"{', '.join(inputs)}: no {kind or 'pictures, .tar or .parquet files'} there")
    if len(present) > 1:
        raise DatasetError(f"{', '.join(inputs)}: there are {' and '.join(present)}: say which with --input-format")
    source, files = SOURCES[present[0]], by_kind[present[0]]
    if len({file.name for file in files}) < len(files):
        raise DatasetError("two inputs have a file of the same name: give the folder above them")
    if known is not None and _unchanged(known, source, files, image_column):
        return replace(known, files=files)
    return source.enumerated(files, image_column)


def _unchanged(known: Source, source: type[Source], files: list[File], image_column: str | None) -> bool:
    """Whether these are the files of `known`, by name, size and time of change, and nothing was wrong with them."""
    if not isinstance(known, source) or image_column not in (None, known.image_column):
        return False
    old, new = ([(f.name, f.size, f.stamp, f.problem) for f in listed] for listed in (known.files, files))
    return old == new and not any(part.problem for part in (*files, *known.items))


__all__ = ["SOURCES", "Source", "enumerate_inputs"]
