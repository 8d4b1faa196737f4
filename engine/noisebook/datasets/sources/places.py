"""Where files lie: on this machine, or behind a URL that the user typed. Nothing else is ever opened.

A path of this machine is no URL: it is used as it is, whatever characters it has. A name that a listing or a plan gives is
put below the place that the user typed, and never read as a URL either.
"""

import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

from noisebook.errors import DatasetError, first_line, printable

PROTOCOLS = (
    "memory",
    "http",
    "https",
    "s3",
    "s3a",
    "gs",
    "gcs",
    "hf",
    "az",
    "abfs",
    "abfss",
    "adl",
    "sftp",
    "ssh",
    "hdfs",
    "webhdfs",
)
LOCAL = ("file", "local")  # of this machine
ARCHIVES = ("zip", "tar")  # may stand before `::` and another place: files inside one of its files
CACHES = ("simplecache", "filecache", "blockcache")  # and these: copies of its files on this machine
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
WORD = re.compile(r"[A-Za-z0-9_]+")
SAFE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # a name that is safe at one look
DRIVE = re.compile(r"[A-Za-z]:")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a file or folder lies. `url`: what the user typed, which names the file system; empty for this machine. `path`:
    as that file system calls it."""

    url: str
    path: str

    @property
    def local(self) -> bool:
        return not self.url

    def _filesystem(self) -> Any:
        return filesystem(self.url, typed=True)[0] if self.url else _local()

    @property
    def plain(self) -> bool:
        """Whether it is of this machine, and its path is what the system calls it."""
        return not self.url and os.sep == "/" and self.path.startswith("/")

    def info(self) -> dict[str, Any]:
        """What the file system says of it. Raises OSError."""
        return or_os_error(lambda: self._filesystem().info(self.path))

    def open(self) -> Any:
        """It, opened for reading. Raises OSError."""
        return or_os_error(lambda: self._filesystem().open(self.path, "rb"))

    def below(self, name: str) -> "Place":
        """The file of this name in this folder. Raises DatasetError for a name that leads elsewhere."""
        problem = unsafe_name(name, encoded=self.url.lower().startswith("http"))
        if problem:
            raise DatasetError(f"{printable(name, 200)}: {problem}")
        return Place(self.url, f"{self.path.rstrip('/')}/{name}" if self.path else name)


def or_os_error(work: Callable[[], T]) -> T:
    """What `work` gives; what it raises is an OSError, or a DatasetError."""
    try:
        return work()
    except (OSError, DatasetError):
        raise
    except Exception as error:  # libraries behind fsspec raise what they like
        raise OSError(first_line(error)) from error


def filesystem(url: str, typed: bool = False) -> "tuple[Any, str]":
    """(file system, path in it) of a path or URL. `typed`: the user has typed it on this run as an input, and it may be a
    chain (`zip://*.png::/data/a.zip`, `simplecache::https://...`).

    Raises DatasetError for a protocol that is not one of `PROTOCOLS`, and where it cannot be opened.
    """
    if "\0" in url:
        raise DatasetError(f"{printable(url, 200)}: a NUL is in it: no file has such a name")
    head, rest = _chain(url)
    if head:
        if not typed:
            raise DatasetError(f"{printable(url, 200)}: `::` joins places of inputs only: give one folder or URL")
        return _chained(head, rest, threading.get_ident())
    scheme = SCHEME.match(url)
    if scheme is None or scheme[1].lower() in LOCAL:
        return _local(), _absolute(url[scheme.end() :] if scheme else url)
    if scheme[1].lower() not in PROTOCOLS:
        raise DatasetError(f"{printable(url, 200)}: {scheme[1]} is none of the protocols that are opened: {_allowed()}")
    if "::" in url:
        raise DatasetError(f"{printable(url, 200)}: only {', '.join(ARCHIVES + CACHES)} may stand before `::`")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        how = "pip install 'noisebook[http]'" if is_web(url) else first_line(error)
        raise DatasetError(f"{printable(url, 200)}: a package is missing that opens {scheme[1]}://: {how}") from error
    except Exception as error:  # libraries behind fsspec raise what they like
        raise DatasetError(f"{printable(url, 200)}: cannot be opened: {first_line(error)}") from error


def _chain(url: str) -> tuple[str, str]:
    """(what stands before the first `::`, the rest) of a chain; two empty texts for anything else. `zip://a.zip` stands for
    all that is in that archive, as `zip://::a.zip` does."""
    head, separator, rest = url.partition("::")
    scheme = SCHEME.match(head)
    if scheme and not separator and scheme[1].lower() in ARCHIVES:
        head, separator, rest = scheme[0], "::", url[scheme.end() :]
    protocol = (scheme[1] if scheme else head).lower()
    if not separator or (scheme is None and os.path.lexists(url)):  # a file of this machine may have such a name
        return "", ""
    if protocol in ARCHIVES + CACHES:
        return head, rest
    if scheme is None and WORD.fullmatch(head) and SCHEME.match(rest):
        raise DatasetError(
            f"{printable(url, 200)}: {printable(head)} may not stand before `::`, only {', '.join(ARCHIVES + CACHES)}"
        )
    return "", ""


@lru_cache(maxsize=32)
def _chained(head: str, rest: str, thread: int) -> "tuple[Any, str]":  # an archive is open at one place: one per thread
    import fsspec

    scheme = SCHEME.match(head)
    protocol, inside = (scheme[1], head[scheme.end() :]) if scheme else (head, "")
    fs, path = filesystem(rest, typed=True)
    try:
        if protocol.lower() in CACHES:
            if inside:
                raise DatasetError(f"{printable(head)}: a cache has no path of its own: write {protocol}::URL")
            return fsspec.filesystem(protocol.lower(), fs=fs), path
        return fsspec.filesystem(protocol.lower(), fo=fs.open(path, "rb")), inside.strip("/")
    except (OSError, ValueError, ImportError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DatasetError(f"{printable(rest, 200)}: cannot be opened as {protocol}: {first_line(error)}") from error


def forget_chains() -> None:
    """Archives of chains are opened again: they may have changed."""
    _chained.cache_clear()


def _local() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()


def _absolute(path: str) -> str:
    """The absolute path, with slashes; `~/` is the home folder, unless a folder has that name."""
    if (path == "~" or path.startswith("~/")) and not os.path.lexists(path):
        path = os.path.expanduser(path)
    return os.path.abspath(path).replace(os.sep, "/")


def _allowed() -> str:
    return ", ".join((*LOCAL[:1], *PROTOCOLS))


def is_local(fs: Any) -> bool:
    """Whether a file system of fsspec is the one of this machine."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def unsafe_name(name: str, encoded: bool = False) -> str:
    """Why a name from a file or archive may not be put below a folder: it would be another place, or no file can have it;
    empty where it may. `encoded`: percent signs are read, as in a URL."""
    if SAFE.fullmatch(name):
        return ""
    parts = re.split(r"[/\\]", unquote(name) if encoded else name)
    if not name or "\0" in name:
        return "it has no name" if not name else "a NUL is in its name"
    if name.startswith(("/", "\\")) or (DRIVE.match(name) and os.name == "nt"):
        return "its name is an absolute path"
    if SCHEME.match(name):
        return "its name is a URL"
    if ".." in parts:
        return "its name leads out of the folder"
    if "" in name.split("/"):
        return "a part of its name is empty"
    if encoded and ("?" in name or "#" in name):
        return "its name asks a server for something else"
    return ""


def is_web(url: str) -> bool:
    """Whether a path or URL is of a web server."""
    return url.lower().startswith(("http://", "https://"))


def without_query(path: str) -> str:
    """A path without what is asked of a web server beside it: a signature is no part of a name."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if is_web(path) else path


def is_local_url(url: str) -> bool:
    scheme = SCHEME.match(url)
    return not _chain(url)[0] and (scheme is None or scheme[1].lower() in LOCAL)
