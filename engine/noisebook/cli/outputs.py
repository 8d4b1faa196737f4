"""Where a run writes: names that are all known, and free, before the first picture is coded."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from noisebook.errors import NoisebookError, printable
from noisebook.runtime.atomic import THERE, refuse_special

FOLDER = Path("noisebook-out")


def fresh_folder() -> Path:
    """The folder of a run that names none: the first of noisebook-out, noisebook-out-2, ... that is not there or empty."""
    for n in count(1):
        folder = FOLDER if n == 1 else Path(f"{FOLDER}-{n}")
        if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            return folder
    raise AssertionError


def stems(names: Sequence[str]) -> list[str]:
    """What the outputs of each input are called, without their ending; no two are equal, in upper or lower case.

    The input's stem: "a" of "x/a.png". Where the stems of different names meet, the whole name for each of them: "a.png" and
    "a.jpg". Where the same name comes again, the later ones get -2, -3, ..."""
    wholes, short = [Path(name).name for name in names], [Path(name).stem for name in names]
    meeting: dict[str, set[str]] = {}
    for whole, stem in zip(wholes, short, strict=True):
        meeting.setdefault(_folded(stem), set()).add(_folded(whole))
    wanted = [whole if len(meeting[_folded(stem)]) > 1 else stem for whole, stem in zip(wholes, short, strict=True)]
    taken, numbers, made = set(map(_folded, wanted)), Counter[str](), []
    for name in wanted:
        unique, key = name, _folded(name)
        while numbers[key] and _folded(unique) in taken:  # it is not the first of its name
            numbers[key] += 1
            unique = f"{name}-{numbers[key]}"
        numbers[key] = max(numbers[key], 1)
        taken.add(_folded(unique))
        made.append(unique)
    return made


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", name.casefold())


def plan(inputs: Sequence[str], folder: Path, endings: Sequence[str], force: bool) -> list[list[Path]]:
    """The files of each input, one per ending. Raises NoisebookError as `refuse_existing`, or where `folder` is none."""
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, ValueError):  # ValueError: a NUL in the name; it shows when a file is written
        pass
    except OSError as error:
        raise NoisebookError(f"{printable(folder)}: no folder to write to: {error.strerror}") from error
    files = [[folder / (stem + ending) for ending in endings] for stem in stems(inputs)]
    refuse_existing([path for row in files for path in row], force, inputs)
    return files


def refuse_long(files: Iterable[Path]) -> None:
    """Raises NoisebookError for a name that is too long for its file system, before anything is made for it."""
    for path in files:
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            most = os.pathconf(folder, "PC_NAME_MAX")
        except (AttributeError, OSError, ValueError):  # not POSIX, or a file system that does not say
            most = 255
        if len(os.fsencode(path.name)) > most:
            raise NoisebookError(f"{printable(path)}: cannot be written: file names have {most} bytes at most")


def refuse_existing(files: Sequence[Path], force: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raises NoisebookError where a file to be written is there and `force` is not given; where what is there is no regular
    file; and, with `force`, where it is one of the run's own inputs."""
    there = [path for path in files if _is_there(path)]
    for path in there:
        refuse_special(path)
    if there and force:
        read = {os.path.realpath(name) for name in inputs if "\0" not in str(name)}
        for path in there:
            if os.path.realpath(path) in read:
                raise NoisebookError(f"{printable(path)}: it is an input of this run, too: choose another -o")
    elif there:
        if len(there) == 1:
            raise NoisebookError(f"{printable(there[0])}: {THERE}")
        which = f"{printable(there[0])} and {len(there) - 1:,} more"
        raise NoisebookError(f"{which}: they are there already: --force replaces them, another -o keeps them")


def _is_there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False
