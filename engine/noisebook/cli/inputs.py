"""What a run reads: the files of the names that a user gave, and only what is a file."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from noisebook.cli.show import log
from noisebook.errors import FormatError, NoisebookError

NBK = (".nbk",)


def files_of(inputs: Iterable[str], suffixes: tuple[str, ...], output: Path | None = None) -> list[Path]:
    """As `images.io.find_files`, for any text that a user may have given. What is passed over is said on stderr."""
    from noisebook.images.folders import PassedOver, find_files

    files: list[Path] = []
    passed = PassedOver()
    for name in inputs:
        if not name:
            raise NoisebookError("an empty name: it would stand for the current folder; for that write .")
        files += find_files([name], suffixes, passed, output) if os.path.isdir(name) else [Path(name)]
    for line in passed.lines():
        log(line)
    return files


def refuse_unreadable(path: Path, kind: type[NoisebookError] = FormatError) -> None:
    """Raises an error of that kind for what is there and no regular file: a pipe would be waited for."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return  # its reader says so
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise kind(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise kind("cannot be read: it is a folder, a pipe or a device, and only regular files are read")
