"""Folders of pictures: which of their files are pictures, and what is passed over."""

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from noisebook.errors import ImageError, NoisebookError, printable
from noisebook.images.formats import HEIF_SUFFIXES, has_heif
from noisebook.images.reading import ENDINGS

#: endings of pictures, in lower case; what a file is its bytes say. Without the extra, those of HEIC are other files.
SUFFIXES = tuple(end for end in ENDINGS if has_heif() or end not in HEIF_SUFFIXES)
#: names beside those with a dot in front, in lower case, that programs give to thumbnails and rubbish
HIDDEN = frozenset(("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found"))
KINDS = 1000  # endings of other files that are counted one by one
NAMED = 8  # of them that a line names
LONGEST = 16  # characters of an ending


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over where nobody typed it."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in HIDDEN


@dataclass
class PassedOver:
    """What a listing leaves out. `pictures`: why -> how many; `others`: the ending of files that are none -> how many."""

    pictures: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    def picture(self, why: str, count: int = 1) -> None:
        self.pictures[why] += count

    def other(self, name: str) -> None:
        """Counts a file that is no picture, by its ending."""
        ending = posixpath.splitext(name)[1].lower() or "without an ending"
        known = ending in self.others or (len(self.others) < KINDS and len(ending) <= LONGEST + 1)
        self.others[ending if known else "other endings"] += 1

    def hidden(self, name: str, suffixes: tuple[str, ...]) -> None:
        """Counts a file that is hidden, or in a folder that is."""
        if name.lower().endswith(suffixes):
            self.picture("hidden")
        else:
            self.others["hidden"] += 1

    def lines(self) -> list[str]:
        """What is to be said of it."""
        said = []
        if count := self.pictures.total():
            pictures = "picture" if count == 1 else "pictures"
            said.append(
                f"{count:,} {pictures} passed over ({', '.join(f'{w} {n:,}' for w, n in self.pictures.most_common())})"
            )
        if count := self.others.total():
            files = "other file" if count == 1 else "other files"
            named = ", ".join(f"{printable(ending)} {n:,}" for ending, n in self.others.most_common(NAMED))
            said.append(f"{count:,} {files} passed over ({named}{', ...' if len(self.others) > NAMED else ''})")
        return said


def walk(
    root: str | Path, onerror: Callable[[OSError], None], keep: Callable[[str], bool] = lambda path: True
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of a folder and all below it, as `os.walk`. Links are followed,
    though not in circles. `onerror` is called for a folder that cannot be listed; one that is not to `keep` is left out."""
    above = {os.fspath(root): {os.path.realpath(root)}}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        folders[:] = [name for name in folders if keep(os.path.join(folder, name))]
        yield folder, list(folders), files
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in above[folder]:
                folders.remove(name)
            above[path] = above[folder] | {real}


def visible(
    root: str | Path,
    onerror: Callable[[OSError], None],
    passed: PassedOver,
    output: str | Path | None = None,
    suffixes: tuple[str, ...] = SUFFIXES,
    hidden: bool = False,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `walk`, without what is hidden (unless `hidden`) and without the folder `output`, if that lies below; both are
    counted."""
    own = _identity(output) if output else None

    def hides(name: str) -> bool:
        return not hidden and is_hidden(name)

    def keep(path: str) -> bool:
        if own is not None and _identity(path) == own:
            if count := sum(name.lower().endswith(suffixes) for name in _files_below(path)):
                passed.picture("output", count)
            return False
        if hides(os.path.basename(path)):
            for name in _files_below(path):
                passed.hidden(name, suffixes)
            return False
        return True

    for folder, folders, files in walk(root, onerror, keep):
        for name in filter(hides, files):
            passed.hidden(name, suffixes)
        yield folder, folders, [name for name in files if not hides(name)]


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _files_below(folder: str) -> Iterator[str]:
    """Names of files below a folder that is passed over; what cannot be listed has none."""
    return (name for _, _, files in os.walk(folder) for name in files)


def find_files(
    inputs: Iterable[str | Path],
    suffixes: tuple[str, ...] = SUFFIXES,
    passed: PassedOver | None = None,
    output: str | Path | None = None,
) -> list[Path]:
    """The files named, and all with these suffixes in the folders named, by name. Links are followed, though not in circles.
    What has the name of such a file but is none (a folder, a pipe, a link to nothing) is among them, so that its reader
    refuses it in words. Of pictures those that are hidden, and those below the folder `output`, are left out where they were
    not named. `passed` counts what is left out.

    Raises NoisebookError (ImageError where pictures are looked for) for a folder without any, and for one that cannot be
    listed: its files would be lost."""
    kind, what = (ImageError, "pictures") if suffixes is SUFFIXES else (NoisebookError, "files")
    passed = PassedOver() if passed is None else passed

    def stop(error: OSError) -> None:
        raise kind(f"{printable(error.filename)}: cannot be listed: {error.strerror}") from error

    found: list[Path] = []
    for entry in map(Path, inputs):
        if not entry.is_dir():
            found.append(entry)
            continue
        inside = []
        for folder, folders, files in visible(entry, stop, passed, output) if suffixes is SUFFIXES else walk(entry, stop):
            inside += [Path(folder, name) for name in folders + files if name.lower().endswith(suffixes)]
            for name in files:
                if not name.lower().endswith(suffixes):
                    passed.other(name)
        if not inside:
            left = "".join(f"; {line}" for line in passed.lines())
            raise kind(f"{printable(entry)}: no {what} in this folder ({', '.join(suffixes)}){left}")
        found += sorted(inside)
    return found
