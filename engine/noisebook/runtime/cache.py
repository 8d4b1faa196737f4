"""The user's own folder for what noisebook can make again, and what was noted down there. Losing it costs time only."""

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from noisebook.errors import NoisebookError
from noisebook.runtime import strict_json
from noisebook.runtime.atomic import write_bytes

VARIABLE = "NOISEBOOK_CACHE"  # "off": nothing is kept; else the folder, in place of the usual one
MOST = 1 << 20  # bytes of a file of notes
MOST_NOTES = 4096
NOTE = re.compile(r"[0-9:]{1,200}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path | None:
    """`noisebook` in $XDG_CACHE_HOME or ~/.cache, or the folder that $NOISEBOOK_CACHE names; None where that says "off", or
    nobody knows where home is. It need not be there."""
    said = os.environ.get(VARIABLE, "").strip()
    if said:
        return None if said == "off" else Path(said)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # any other is passed over, as the convention asks
        return base / "noisebook"
    try:
        return Path.home() / ".cache" / "noisebook"
    except RuntimeError:
        return None


def read_notes(name: str) -> dict[str, str]:
    """The notes {numbers: SHA-256 in hex} in a file of the cache folder. None are there, or none that are whole, or somebody
    else can write them: {}."""
    folder = cache_folder()
    if folder is None:
        return {}
    try:
        if not _is_ours(os.lstat(folder), stat.S_ISDIR):
            return {}
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        with open(os.open(folder / name, flags), "rb") as f:
            if not _is_ours(os.fstat(f.fileno()), stat.S_ISREG):
                return {}
            notes = strict_json.loads(f.read(MOST + 1), MOST)
    except (OSError, ValueError):
        return {}
    if not isinstance(notes, dict) or not all(isinstance(v, str) and DIGEST.fullmatch(v) for v in notes.values()):
        return {}
    return notes if all(NOTE.fullmatch(key) for key in notes) else {}


def add_notes(name: str, notes: dict[str, str]) -> None:
    """Adds notes to a file of the cache folder, which only its user can read; the oldest beyond 4,096 go. Where it cannot be
    written nothing happens: what is noted can be made again. Of two processes that write at once one may win."""
    folder = cache_folder()
    if folder is None or not notes:
        return
    kept = {key: value for key, value in read_notes(name).items() if key not in notes} | notes
    kept = dict(list(kept.items())[-MOST_NOTES:])
    text = "{" + ",\n".join(f'"{key}": "{value}"' for key, value in kept.items()) + "}\n"
    with contextlib.suppress(NoisebookError, OSError, ValueError):
        if _made(folder):
            write_bytes(folder / name, text.encode(), private=True)


def private_folder(name: str) -> Path | None:
    """A folder in the cache folder that nobody else can write, made if need be; None where there can be none."""
    folder = cache_folder()
    try:
        return folder / name if folder is not None and _made(folder) and _made(folder / name) else None
    except (OSError, ValueError):
        return None


def _made(folder: Path) -> bool:
    """Makes a folder unless it is there: whether it is this user's, and nobody else can write it."""
    os.makedirs(folder.parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    return _is_ours(os.lstat(folder), stat.S_ISDIR)


def _is_ours(about: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder is of that kind and this user's, and nobody else can write it."""
    return kind(about.st_mode) and (sys.platform == "win32" or (about.st_uid == os.geteuid() and not about.st_mode & 0o022))
