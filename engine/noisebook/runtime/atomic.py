"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noisebook.errors import NoisebookError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all: a temporary file beside it, flushed to disk, then renamed.

    Raises NoisebookError when the disk is full or the folder cannot be written.
    """
    path, temporary = Path(path), None
    try:
        _make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as f:
            temporary = Path(f.name)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        _publish(temporary, path)
    except OSError as error:
        raise NoisebookError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:  # also when the user interrupts; after the rename there is nothing left to remove
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """For libraries that write files themselves: gives a temporary path beside `path`, in a folder that exists.

    At the end of the block that file is flushed to disk and renamed; where the block raises, `path` stays as it was.

    For one writer at a time: the name is `path` and ".tmp", so the next writer overwrites what a killed one has left.
    Errors of the operating system pass through.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Renames a flushed file, with the permissions of a file that was opened in the usual way: libraries write some as
    secret."""
    os.chmod(temporary, 0o666 & ~_umask())
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
