"""Where a data set is written: whole files or none, on a local disk by a rename, on an object store in one upload."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from noisebook.datasets.sources.places import filesystem, is_local
from noisebook.errors import DatasetError
from noisebook.runtime.atomic import write_bytes


class Store:
    """The folder of a data set, local or through fsspec. A file that is there is whole."""

    def __init__(self, url: str | Path):
        self.url = str(url)
        self.fs, self.root = filesystem(self.url)
        self.local = Path(self.root) if is_local(self.fs) else None

    def write(self, name: str, data: bytes) -> None:
        """Raises NoisebookError when the disk is full or the folder cannot be written; then nothing has changed."""
        if self.local is not None:
            return write_bytes(self.local / name, data)
        try:
            self.fs.pipe_file(f"{self.root}/{name}", data)
        except OSError as error:
            raise DatasetError(f"{self.url}/{name}: cannot be written: {error.strerror or error}") from error

    def read(self, name: str) -> bytes | None:
        """The file, None where there is none."""
        try:
            data = self.fs.cat_file(f"{self.root}/{name}")
            return data if isinstance(data, bytes) else data.encode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatasetError(f"{self.url}/{name}: cannot be read: {error.strerror or error}") from error

    def names(self, folder: str = "") -> list[str]:
        """The files in a folder, by name, without temporary ones."""
        try:
            paths = self.fs.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in (path.rstrip("/").split("/")[-1] for path in paths) if not name.startswith("."))

    def collect_strays(self, folders: tuple[str, ...]) -> int:
        """Removes temporary files that killed processes have left; only while no other process writes here."""
        strays = [p for folder in folders for p in (self.local / folder).glob(".*.tmp")] if self.local is not None else []
        for path in strays:
            path.unlink(missing_ok=True)
        return len(strays)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process of this machine at a time. Raises DatasetError where another has it."""
        if self.local is None or os.name != "posix":
            yield
            return
        import fcntl

        try:
            self.local.mkdir(parents=True, exist_ok=True)
            f = open(self.local / name, "a")  # noqa: SIM115
        except OSError as error:
            raise DatasetError(f"{self.url}: cannot be written: {error.strerror or error}") from error
        with f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DatasetError(
                    f"{self.url}: another process is writing here: wait for it, or choose another -o"
                ) from error
            yield
