"""Where a data set is written: whole files or none, on a local disk by a rename, on an object store in one upload."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from noisebook.datasets.sources.places import filesystem, is_local
from noisebook.errors import DatasetError, first_line, printable
from noisebook.runtime.atomic import is_abandoned, refuse_special, write_bytes

MOST = 1 << 30  # bytes of a file that is read
LOCK = ".lock"
STRAY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # a temporary name of `write_bytes`, and no other hidden file


class Store:
    """The folder of a data set, local or through fsspec. A file that is there is whole."""

    def __init__(self, url: str | Path):
        self.url = str(url)
        self.fs, self.root = filesystem(self.url)
        self.local = Path(self.root) if is_local(self.fs) else None
        self._held: list[tuple[str, int]] = []  # (name, handle) of locks

    def write(self, name: str, data: bytes) -> None:
        """Raises NoisebookError when the disk is full or the folder cannot be written, DatasetError where it is not the one
        that was locked; then nothing has changed."""
        self.refuse_moved()
        if self.local is not None:
            self._refuse_links(name)
            return write_bytes(self.local / name, data)
        try:
            self.fs.pipe_file(f"{self.root}/{name}", data)
        except OSError as error:
            why = error.strerror or first_line(error)
            raise DatasetError(f"{printable(self.url)}/{name}: cannot be written: {why}") from error

    def read(self, name: str, most: int = MOST) -> bytes | None:
        """The file, None where there is none. Raises DatasetError where it cannot be read, is larger than `most` bytes, or
        is no regular file: a pipe would never end."""
        where = f"{printable(self.url)}/{name}"
        try:
            if self.local is not None:
                self._refuse_links(name)
                return _regular(self.local / name, where, most)
            path = f"{self.root}/{name}"
            _refuse_large(self.fs.info(path).get("size") or 0, where, most)
            data = self.fs.cat_file(path)
            return data if isinstance(data, bytes) else data.encode()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{where}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
            ) from error

    def names(self, folder: str = "") -> list[str]:
        """The files in a folder, by name, without temporary ones."""
        self._refuse_links(folder)
        try:
            paths = self.fs.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in (path.rstrip("/").split("/")[-1] for path in paths) if not name.startswith("."))

    def collect_strays(self, folders: tuple[str, ...]) -> int:
        """Removes temporary files that killed processes have left; those of living ones stay."""
        for folder in folders:
            self._refuse_links(folder)
        places = [] if self.local is None else [self.local / folder for folder in folders]
        strays = [path for place in places for path in place.glob(".*.tmp") if STRAY.fullmatch(path.name)]
        gone = [path for path in strays if is_abandoned(path)]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _refuse_links(self, name: str) -> None:
        """Raises DatasetError where a file or folder inside the data set is a link: it would lead to what nobody named."""
        path = self.local
        for part in name.split("/") if name and path is not None else ():
            assert path is not None
            path = path / part
            if path.is_symlink():
                raise DatasetError(f"{printable(path)}: a link, and a data set leads nowhere else: put the files there")

    @contextlib.contextmanager
    def lock(self, number: int = 0, world: int = 1) -> Iterator[None]:
        """Held by one process of this machine at a time, or by several ranks, each with another number. While it is held,
        `write` refuses to go on in another folder. Raises DatasetError where somebody else has it."""
        if self.local is None or os.name != "posix":
            yield
            return
        with contextlib.ExitStack() as stack:
            self._held = [
                (name, stack.enter_context(self._locked(name, shared)))
                for name, shared in ((LOCK, world > 1), (f"{LOCK}-{number}", False))
            ]
            try:
                self.refuse_moved()
                yield
                self.refuse_moved()
            finally:
                self._held = []

    @contextlib.contextmanager
    def _locked(self, name: str, shared: bool) -> Iterator[int]:
        import fcntl

        assert self.local is not None
        path = self.local / name
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            refuse_special(path)
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise DatasetError(f"{printable(self.url)}: cannot be written: {reason}") from error
        try:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                raise DatasetError(
                    f"{printable(self.url)}: another process is writing here: wait for it, or choose another -o"
                ) from error
            yield handle
        finally:
            os.close(handle)

    def refuse_moved(self) -> None:
        """Raises DatasetError where a lock is held and its file is no longer the one in the folder: then the folder was
        deleted or replaced, and what was written is not there."""
        for name, handle in self._held:
            assert self.local is not None
            try:
                same = os.path.samestat(os.fstat(handle), os.stat(self.local / name))
            except OSError:
                same = False
            if not same:
                raise DatasetError(
                    f"{printable(self.url)}: the folder was deleted or replaced while it was written: begin anew"
                )


def _regular(path: Path, where: str, most: int) -> bytes:
    """The content of a regular file."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before: to open a device can do something
        raise DatasetError(f"{where}: not a regular file")
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    with open(handle, "rb") as f:
        about = os.fstat(f.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise DatasetError(f"{where}: not a regular file")
        _refuse_large(about.st_size, where, most)
        data = f.read(most + 1)
        _refuse_large(len(data), where, most)
        return data


def _refuse_large(size: int, where: str, most: int) -> None:
    if size > most:
        raise DatasetError(f"{where}: {size:,} bytes, more than the {most:,} that a file of a data set may have")
