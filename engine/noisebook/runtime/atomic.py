"""Files that are written whole or not at all."""

import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noisebook.errors import NoisebookError, printable


def write_bytes(path: str | Path, data: bytes, replace: bool = True, private: bool = False) -> None:
    """Writes a file whole or not at all: a temporary file beside it, flushed to disk, then renamed. While it is written its
    process holds a lock on it, so that `is_abandoned` tells it from what a killed process has left. A `private` one is
    readable by its user only.

    Raises NoisebookError when the disk is full or the folder cannot be written, where something is there and `replace` is
    not given, and where what is there is no regular file (a device, a pipe, a folder, a link): that is never replaced.
    """
    path, temporary = Path(path), None
    try:
        refuse_special(path)
        _make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_prefix(path.name), suffix=".tmp", delete=False) as f:
            temporary = Path(f.name)
            _lock(f.fileno())
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
            _publish(temporary, path, replace, private)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, FileExistsError) and not replace and os.path.lexists(path):
            raise NoisebookError(f"{printable(path)}: {THERE}") from error
        reason = getattr(error, "strerror", None) or error
        raise NoisebookError(f"{printable(path)}: cannot be written: {reason}") from error
    finally:  # also when the user interrupts; after the rename there is nothing left to remove
        if temporary is not None:
            temporary.unlink(missing_ok=True)


THERE = "it is there already: --force replaces it, another -o keeps it"


def refuse_special(path: Path) -> None:
    """Raises NoisebookError where something that is no regular file is in the place of a file to be written."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):  # nothing is there, or it shows when the file is written
        return
    if not stat.S_ISREG(mode):
        kind = next((name for name, holds in KINDS.items() if holds(mode)), "no regular file")
        raise NoisebookError(f"{printable(path)}: {kind} is there, and only regular files are replaced: choose another name")


KINDS = {
    "a folder": stat.S_ISDIR,
    "a link": stat.S_ISLNK,
    "a pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def is_abandoned(temporary: Path) -> bool:
    """Whether a temporary file of `write_bytes` has no process any more that writes it."""
    try:
        with open(temporary, "rb+") as f:
            return _lock(f.fileno())
    except OSError:
        return False  # it is gone, or somebody else's


@contextmanager
def replacing(path: Path, replace: bool = True) -> Iterator[Path]:
    """For libraries that write files themselves: gives a temporary path beside `path`, in a folder that exists.

    At the end of the block that file is flushed to disk and renamed; where the block raises, `path` stays as it was.

    The temporary name has this process's number, and what killed processes have left under such names is removed. Errors of
    the operating system pass through; raises NoisebookError as `refuse_special`, or where something is there and
    `replace` is not given.
    """
    refuse_special(path)
    _remove_abandoned(path)
    temporary = path.with_name(f"{_prefix(path.name)}noisebook-{os.getpid()}.tmp")
    refuse_special(temporary)
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        try:
            _publish(temporary, path, replace)
        except FileExistsError as error:
            raise NoisebookError(f"{printable(path)}: {THERE}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Removes what `replacing` has left beside a path in processes that are gone."""
    for stray in path.parent.glob(f"{glob.escape(_prefix(path.name))}noisebook-*.tmp"):
        number = stray.name.rpartition("-")[2].removesuffix(".tmp")
        if number.isdigit() and not _lives(int(number)):
            stray.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return True
    return True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Held by one process of this machine at a time. Raises NoisebookError where another has it, or nothing can be written
    there."""
    name = folder / ".lock"
    try:
        _make_folder(folder)
        refuse_special(name)
        f = open(name, "ab")  # noqa: SIM115
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoisebookError(f"{printable(folder)}: cannot be written: {reason}") from error
    with f:
        if not _lock(f.fileno()):
            raise NoisebookError(f"{printable(folder)}: another process is writing here: wait for it, or choose another -o")
        yield


def _prefix(name: str) -> str:
    """The beginning of a temporary name; short enough for every file system where the name itself is."""
    return f".{name}." if len(os.fsencode(name)) < 200 else f".{name[:32]}."


def _lock(handle: int) -> bool:
    """Takes the lock of an open file; whether no other process had it. True where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _publish(temporary: Path, path: Path, replace: bool = True, private: bool = False) -> None:
    """Renames a flushed file, with the permissions of a file that was opened in the usual way (libraries write some as
    secret), unless it is `private`. Raises FileExistsError where something is there and `replace` is not given."""
    os.chmod(temporary, 0o600 if private else 0o666 & ~_umask())
    if replace:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)  # unlike a rename it fails where something is there
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError(path) from None
            os.replace(temporary, path)
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """With those above it, each on the disk as the entry of its parent: else a file that was synced could still be lost."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Puts a rename on the disk, where folders can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
