"""Where files lie: on this machine, or behind a URL that the user typed. Nothing else is ever opened.

A path of this machine is no URL: it is used as it is, whatever characters it has. A name that a listing or a plan gives is
put below the place that the user typed, and never read as a URL either.
"""

import fnmatch
import os
import posixpath
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
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


class Root(NamedTuple):
    """An input that the user typed."""

    fs: Any
    folder: Place  # names are relative to it
    found: list[str] | None  # a single file, or the files and folders of a pattern; None: all in the folder
    pattern: bool


def root_of(url: str) -> Root:
    """What an input that the user typed is. A name that exists is no pattern, whatever characters it has, and nor are the
    folders before a pattern. Raises DatasetError where it cannot be opened, and OSError where it cannot be listed."""
    fs, path = filesystem(url, typed=True)
    typed = "" if _is_local_url(url) else url
    return or_os_error(lambda: _root(fs, path, typed))


def _root(fs: Any, path: str, typed: str) -> Root:
    magic = re.compile(r"[*\[]" if is_web(path) else r"[*?[]")  # a server is asked with ?
    exists = fs.exists if typed else os.path.lexists
    if magic.search(without_query(path)) and not exists(path):
        folder, rest = _fixed(path, magic, exists)
        if typed:
            if "**" in rest and is_web(path):
                raise DatasetError(f"{printable(typed, 200)}: ** would follow all links of a server: give the folder")
            escaped = re.sub(r"([*?[])", r"[\1]", folder)
            found = fs.glob(f"{escaped}/{'/'.join(rest)}" if folder else "/".join(rest))
        else:
            found = list(dict.fromkeys(_matches(folder, rest)))
        return Root(fs, Place(typed, folder), sorted(found), True)
    if path and not (is_web(path) and _is_web_folder(fs, path)) and fs.isfile(path):
        return Root(fs, Place(typed, posixpath.dirname(without_query(path))), [path], False)
    if typed and path and not (is_web(path) and path.endswith("/")):
        _refuse_missing(fs, path)
    return Root(fs, Place(typed, path), None, False)


def _is_web_folder(fs: Any, path: str) -> bool:
    """Whether a web server lists files there. To it each page is a file: one with an ending is not asked."""
    return path.endswith("/") or (not posixpath.splitext(without_query(path))[1] and fs.isdir(path))


def _refuse_missing(fs: Any, path: str) -> None:
    """Raises FileNotFoundError, or what else a server says, where nothing is there."""
    try:
        fs.info(path)
    except FileNotFoundError as error:
        why = "nothing is there" + (f" ({first_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else "")
        raise FileNotFoundError(why) from error


def web_files(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(URL, what the server says of it) of the files below a folder of a web server that its pages list. Their other links
    lead elsewhere, and are not followed."""
    base = root.rstrip("/") + "/"
    folders, seen = [base], {base}
    while folders:
        for info in fs.ls(folders.pop(), detail=True):
            url = info["name"]
            if url in seen or not url.startswith(base) or unsafe_name(url.removeprefix(base).rstrip("/"), encoded=True):
                continue
            seen.add(url)
            if url.endswith("/"):
                folders.append(url)
            else:
                yield url, fs.info(url)


def refuse_without_parts(place: Place) -> None:
    """Raises DatasetError where a web server gives no parts of a file: all of it would be read for each picture."""
    if not is_web(place.path) or "::" in place.url:
        return
    try:
        with place.open() as f:
            f.seek(1)
            f.read(1)
    except (ValueError, OSError) as error:  # ValueError: of fsspec, where the answer is the whole file
        if isinstance(error, OSError) and "range" not in str(error).lower():
            return  # whoever reads it says so
        url = printable(without_query(place.path), 200)
        raise DatasetError(
            f"{url}: its server gives whole files only (no range requests): download it first, or give simplecache::{url}"
        ) from error


def _fixed(path: str, magic: "re.Pattern[str]", exists: Callable[[str], bool]) -> tuple[str, list[str]]:
    """(the folder before a pattern, the parts of the pattern)."""
    parts = path.split("/")
    count = 0
    while count < len(parts) - 1 and (not magic.search(parts[count]) or exists("/".join(parts[: count + 1]))):
        count += 1
    return "/".join(parts[:count]), parts[count:]


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    """Paths of this machine that a pattern matches below a folder; `**` is any folders. A part that exists is itself."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matches(folder, rest or ["*"])
        with os.scandir(folder or "/") as entries:
            folders = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        for path in folders:
            yield from _matches(path, parts)
        return
    if os.path.lexists(f"{folder}/{part}"):
        names = [part]
    elif re.search(r"[*?[]", part) and os.path.isdir(folder or "/"):
        names = [name for name in os.listdir(folder or "/") if fnmatch.fnmatchcase(name, part)]
    else:
        names = []
    for name in names:
        if not rest:
            yield f"{folder}/{name}"
        elif os.path.isdir(f"{folder}/{name}"):
            yield from _matches(f"{folder}/{name}", rest)


def _is_local_url(url: str) -> bool:
    scheme = SCHEME.match(url)
    return not _chain(url)[0] and (scheme is None or scheme[1].lower() in LOCAL)
