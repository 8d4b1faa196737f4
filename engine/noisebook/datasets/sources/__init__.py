"""What is to be tokenised, local or through fsspec: one file per kind of source.

Adding a kind: write its file, with a subclass of `Source`, and name it here. Nothing else knows which kinds there are.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import replace

from noisebook.datasets.sources.base import File, Files, Source, Wanted
from noisebook.datasets.sources.columns import refuse_unknown
from noisebook.datasets.sources.folder import Folder
from noisebook.datasets.sources.listing import Listing
from noisebook.datasets.sources.located import located
from noisebook.datasets.sources.parquet import Parquet
from noisebook.datasets.sources.places import forget_chains, is_web
from noisebook.datasets.sources.roots import refuse_without_parts
from noisebook.datasets.sources.webdataset import WebDataset
from noisebook.errors import DatasetError, printable
from noisebook.images.folders import PassedOver
from noisebook.runtime.limits import DEFAULT, Limits, too_much

#: the kinds of source by the name that plans give them
SOURCES: dict[str, type[Source]] = {source.kind: source for source in (Folder, WebDataset, Parquet)}
#: the endings of their files under plans of version 1, which list what they listed
ENDINGS_1: dict[str, tuple[str, ...]] = {
    "pictures": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"),
    "webdataset": (".tar",),
    "parquet": (".parquet",),
}


def enumerate_inputs(
    inputs: Sequence[str],
    kind: str | None = None,
    image_column: str | None = None,
    known: Source | None = None,
    limits: Limits = DEFAULT,
    version: int = 2,
    image_suffix: str = "",
    output: str = "",
    drop_columns: Sequence[str] = (),
) -> Source:
    """The source that the inputs, all of one kind, make.

    kind          pictures, webdataset or parquet; None: by the names of the files
    image_column  Parquet: the column of the images; None: as `columns.image_column` finds it
    known         a source that was enumerated before: if its files are still the same, they are not read again
    limits        `rows`: of a Parquet file, and items of all files
    version       of the plan that they are for; of version 1 `known` keeps its items
    image_suffix  of pictures and tars: the ending of the pictures that are taken, `depth.png`; empty: any
    output        the data set that is made: what lies in it is no input
    drop_columns  columns that do not go along

    Raises DatasetError where nothing is there, or several kinds are, or more items than may be.
    """
    forget_chains()
    wanted = Wanted(image_column, image_suffix, drop_columns)
    endings = {name: s.suffixes for name, s in SOURCES.items()} if version > 1 else dict(ENDINGS_1)
    if image_suffix:
        endings["pictures"] = (*endings["pictures"], f".{image_suffix}")
    listing = Listing(
        tuple(e for group in endings.values() for e in group), endings["pictures"], output, version, wanted.passed
    )
    everything = [file for url in inputs for file in listing.files(url)]
    by_kind = {name: [f for f in everything if f.name.lower().endswith(group)] for name, group in endings.items()}
    present = [name for name, files in by_kind.items() if files and kind in (None, name)]
    given = printable(", ".join(inputs), 500)
    if not present:
        left = _pass_over(by_kind, "", wanted.passed)
        raise DatasetError("; ".join([f"{given}: no {kind or 'pictures, .tar or .parquet files'} there", *left.lines()]))
    if len(present) > 1:
        raise DatasetError(f"{given}: there are {' and '.join(present)}: say which with --input-format")
    source, files = SOURCES[present[0]], by_kind[present[0]]
    if image_suffix and source is Parquet:
        raise DatasetError(f"{given}: --image-suffix is for pictures and tars: in Parquet say which --image-column")
    _pass_over(by_kind, present[0], wanted.passed)
    if len({file.name for file in files}) < len(files):
        raise DatasetError("two inputs have a file of the same name: give the folder above them")
    if version == 1 and isinstance(known, source):  # its items are made anew by no later rules: the plan sees other files
        return replace(known, files=files, image_column=image_column or known.image_column)
    if known is not None and _unchanged(known, source, files, image_column):
        return replace(known, files=files)
    if source is not Folder:
        _refuse_servers_without_parts(files)
    if known is not None and image_column is None:  # files that could not be read then are no reason to take another
        wanted = replace(wanted, image_column=known.image_column or None)
    made = source.enumerated(files, wanted, limits)
    if problem := too_much(f"{printable(inputs[0], 200)}: images", len(made.items), limits, "rows"):
        raise DatasetError(problem)
    if source is not Parquet:  # which leaves them out before it looks at their types
        refuse_unknown(drop_columns, made.columns, given)
        made.columns = {name: kind for name, kind in made.columns.items() if name not in drop_columns}
    made.passed_over, made.other_files = dict(wanted.passed.pictures), dict(wanted.passed.others)
    return made


def _refuse_servers_without_parts(files: list[File]) -> None:
    """One file is tried of each web server."""
    places = [file.place for file in files if file.place is not None and not file.problem and is_web(file.place.path)]
    for place in {posixpath.dirname(place.path): place for place in places}.values():
        refuse_without_parts(place)


def _pass_over(by_kind: dict[str, list[File]], taken: str, passed: PassedOver) -> PassedOver:
    """Counts the files of the other kinds."""
    for name, files in by_kind.items():
        for file in files if name != taken else ():
            if name == Folder.kind:
                passed.picture("other kind of input")
            else:
                passed.other(file.name)
    return passed


def _unchanged(known: Source, source: type[Source], files: list[File], image_column: str | None) -> bool:
    """Whether these are the files of `known`, by name, size and time of change, and nothing was wrong with them."""
    if not isinstance(known, source) or image_column not in (None, known.image_column):
        return False
    if len(files) != len(known.files):
        return False
    if known.items.with_problems() or any(file.problem for file in files):
        return False
    return all(
        (old.name, old.size, old.stamp, old.problem) == (new.name, new.size, new.stamp, new.problem)
        for old, new in zip(known.files, files, strict=True)
    )


__all__ = ["SOURCES", "Files", "Source", "enumerate_inputs", "located"]
