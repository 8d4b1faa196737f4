"""What an input that the user typed stands for: a file, a folder, a pattern, a folder of a web server."""

import fnmatch
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from noisebook.datasets.sources.places import (
    Place,
    filesystem,
    is_local_url,
    is_web,
    or_os_error,
    unsafe_name,
    without_query,
)
from noisebook.errors import DatasetError, first_line, printable


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
    typed = "" if is_local_url(url) else url
    return or_os_error(lambda: _root(fs, path, typed))


def _root(fs: Any, path: str, typed: str) -> Root:
    magic = re.compile(r"[*\[]" if is_web(path) else r"[*?[]")  # a server is asked with ?
    exists = fs.exists if typed else os.path.lexists
    if magic.search(without_query(path)) and not exists(path):
        folder, rest = _fixed(path, magic, exists)
        if is_web(path):
            found = list(dict.fromkeys(_web_matches(fs, f"{folder}/", rest)))
        elif typed:
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
        for url in _links(fs, folders.pop(), base):
            if url.endswith("/") and url not in seen:
                folders.append(url)
            elif url not in seen:
                yield url, fs.info(url)
            seen.add(url)


def _links(fs: Any, page: str, base: str) -> Iterator[str]:
    """The links of a page to what lies below `base`."""
    for info in fs.ls(page, detail=True):
        url = info["name"]
        if url.startswith(base) and not unsafe_name(url.removeprefix(base).rstrip("/"), encoded=True):
            yield url


def _web_matches(fs: Any, folder: str, parts: list[str]) -> Iterator[str]:
    """As `_matches`, on a web server, where a folder ends in a slash."""
    part, rest = parts[0], parts[1:]
    links = [url for url in _links(fs, folder, folder) if "/" not in url.removeprefix(folder).rstrip("/")]
    if part == "**":
        yield from _web_matches(fs, folder, rest or ["*"])
        for url in links:
            if url.endswith("/"):
                yield from _web_matches(fs, url, parts)
        return
    for url in links:
        if fnmatch.fnmatchcase(url.removeprefix(folder).rstrip("/"), part):
            if not rest:
                yield url
            elif url.endswith("/"):
                yield from _web_matches(fs, url, rest)


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
