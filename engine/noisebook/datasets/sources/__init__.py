"""What is to be tokenised, local or through fsspec: one file per kind of source.

Adding a kind: write its file, with a subclass of `Source`, and name it here. Nothing else knows which kinds there are.
"""

from collections.abc import Sequence
from dataclasses import replace

from noisebook.datasets.sources.base import File, Files, Source
from noisebook.datasets.sources.folder import Folder
from noisebook.datasets.sources.listing import files_of
from noisebook.datasets.sources.located import located
from noisebook.datasets.sources.parquet import Parquet
from noisebook.datasets.sources.places import forget_chains
from noisebook.datasets.sources.webdataset import WebDataset
from noisebook.errors import DatasetError, printable
from noisebook.runtime.limits import DEFAULT, Limits, too_much

#: the kinds of source by the name that plans give them
SOURCES: dict[str, type[Source]] = {source.kind: source for source in (Folder, WebDataset, Parquet)}


def enumerate_inputs(
    inputs: Sequence[str],
    kind: str | None = None,
    image_column: str | None = None,
    known: Source | None = None,
    limits: Limits = DEFAULT,
    version: int = 2,
) -> Source:
    """The source that the inputs, all of one kind, make.

    kind          pictures, webdataset or parquet; None: by the names of the files
    image_column  Parquet: the column of the images; None: the first with `bytes` inside, or of bytes
    known         a source that was enumerated before: if its files are still the same, they are not read again
    limits        `rows`: of a Parquet file, and items of all files
    version       of the plan that they are for; of version 1 `known` keeps its items while its files are the same

    Raises DatasetError where nothing is there, or several kinds are, or more items than may be.
    """
    forget_chains()
    everything = [file for url in inputs for file in files_of(url)]
    by_kind = {name: [f for f in everything if f.name.lower().endswith(s.suffixes)] for name, s in SOURCES.items()}
    present = [name for name, files in by_kind.items() if files and kind in (None, name)]
    given = printable(", ".join(inputs), 500)
    if not present:
        raise DatasetError(f"{given}: no {kind or 'pictures, .tar or .parquet files'} there")
    if len(present) > 1:
        raise DatasetError(f"{given}: there are {' and '.join(present)}: say which with --input-format")
    source, files = SOURCES[present[0]], by_kind[present[0]]
    if len({file.name for file in files}) < len(files):
        raise DatasetError("two inputs have a file of the same name: give the folder above them")
    if known is not None and _unchanged(known, source, files, image_column, version):
        return replace(known, files=files)
    made = source.enumerated(files, image_column, limits)
    if problem := too_much(f"{printable(inputs[0], 200)}: images", len(made.items), limits, "rows"):
        raise DatasetError(problem)
    return made


def _unchanged(known: Source, source: type[Source], files: list[File], image_column: str | None, version: int) -> bool:
    """Whether these are the files of `known`, by name, size and time of change, and nothing was wrong with them. (What was
    wrong under version 1 stays so: to read its files anew would make items by other rules.)"""
    if not isinstance(known, source) or image_column not in (None, known.image_column):
        return False
    if len(files) != len(known.files):
        return False
    if version > 1 and (known.items.with_problems() or any(file.problem for file in files)):
        return False
    return all(
        (old.name, old.size, old.stamp, old.problem) == (new.name, new.size, new.stamp, new.problem)
        for old, new in zip(known.files, files, strict=True)
    )


__all__ = ["SOURCES", "Files", "Source", "enumerate_inputs", "located"]
