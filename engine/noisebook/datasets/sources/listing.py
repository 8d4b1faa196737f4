"""The files below a folder, a pattern or a URL, by name."""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from noisebook.datasets.sources.base import File, is_utf8, stamp_of, utf8
from noisebook.datasets.sources.places import Place, filesystem, is_local, is_web, or_os_error, without_query
from noisebook.datasets.sources.roots import Root, root_of, web_files
from noisebook.errors import DatasetError, printable
from noisebook.images.folders import SUFFIXES, PassedOver, is_hidden, visible

Info = dict[str, Any]  # what a file system says of a file


@dataclass
class Listing:
    """How inputs are listed.

    suffixes  of the files that are wanted, in lower case; the others are counted
    pictures  those of them that are pictures
    output    the data set that is made: nothing below it is listed
    version   of the plan: those of version 1 list what is hidden too
    passed    what is passed over
    """

    suffixes: tuple[str, ...]
    pictures: tuple[str, ...] = SUFFIXES
    output: str = ""
    version: int = 2
    passed: PassedOver = field(default_factory=PassedOver)

    def files(self, url: str) -> Iterator[File]:
        """The files of an input that the user typed, by name. Raises DatasetError where it cannot be listed."""
        try:
            root = root_of(url)
            infos = or_os_error(lambda: dict(self._infos(root)))
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or error) if str(error) else type(error).__name__
            raise DatasetError(f"{printable(url, 200)}: cannot be listed: {printable(reason, 200)}") from error
        folder = root.folder
        for path in sorted(infos, key=lambda p: utf8(p) if is_utf8(p) else p):
            info, text, name = infos[path], utf8(path), posixpath.relpath(without_query(path), folder.path or ".")
            problem = info.get("problem", "")
            if not is_utf8(path):
                problem = "unreadable: its name is not UTF-8: rename it"
            elif info["type"] == "file" and info["size"] is None:
                problem, info = "unreadable: its server does not say how large it is", {**info, "size": 0}
            if info["type"] == "file" or problem:
                stamp = "" if problem else stamp_of(info)
                yield File(_shown(url, text, folder), utf8(name), info["size"], stamp, problem, Place(folder.url, path))

    def _infos(self, root: Root) -> Iterator[tuple[str, Info]]:
        """(path, what the file system says) of the files of an input."""
        fs, below = root.fs, self._local if root.folder.local else self._stored
        web = is_web(root.folder.path)
        if root.found is None:
            yield from below(fs, root.folder.path)
            return
        for path in root.found:
            wanted = without_query(path).lower().endswith(self.suffixes)
            folder = root.pattern and (path.endswith("/") if web else fs.isdir(path))
            if root.pattern and self._hides(root, path):
                if not folder:
                    self.passed.hidden(path, self.pictures)
            elif folder:
                if self.version > 1:
                    yield from below(fs, path)
            elif wanted:
                yield path, self._info(fs, path)
            else:
                self.passed.other(without_query(path))

    def _hides(self, root: Root, path: str) -> bool:
        """Whether what a pattern matches is hidden, or lies in the output."""
        own = self._own(root.fs)
        if own and f"{os.path.realpath(path) if root.folder.local else path}/".startswith(f"{own}/"):
            return True
        return self.version > 1 and any(map(is_hidden, posixpath.relpath(path, root.folder.path or ".").split("/")))

    def _info(self, fs: Any, path: str) -> Info:
        """What the file system says of a file; what is none has a problem."""
        try:
            info = fs.info(path)
        except FileNotFoundError as error:
            return {"type": "other", "size": 0, "problem": f"missing: {error.strerror or error}"}
        return info if info["type"] == "file" else {"problem": "unreadable: not a regular file", **info}

    def _local(self, fs: Any, root: str) -> Iterator[tuple[str, Info]]:
        """(path, what the file system says) of the files below a local folder. Links are followed, though not in circles.
        What has the name of a picture but is none (a folder, a pipe, a link to nothing) gets a problem instead of being
        left out."""

        def stop(error: OSError) -> None:
            raise error  # a folder that cannot be read would be pictures lost

        for folder, folders, files in visible(root, stop, self.passed, self._own(fs), self.pictures, self.version == 1):
            for name in folders:
                if name.lower().endswith(self.pictures):
                    problem = "unreadable: a folder, not a picture"
                    yield posixpath.join(folder, name), {"type": "directory", "size": 0, "problem": problem}
            for name in files:
                if not name.lower().endswith(self.suffixes):
                    self.passed.other(name)
                    continue
                path = posixpath.join(folder, name)
                try:
                    info = fs.info(path)
                except OSError as error:
                    info = {"type": "other", "size": 0, "problem": f"missing: {error.strerror or error}"}
                if info["type"] != "file":
                    info = {"problem": "unreadable: not a regular file", **info}
                yield path, info

    def _stored(self, fs: Any, root: str) -> Iterator[tuple[str, Info]]:
        """The same of a folder of a store, a server or an archive."""
        own = self._own(fs)
        found = web_files(fs, root) if is_web(root) else fs.find(root, detail=True).items()
        for path, info in found:
            if info["type"] != "file":
                continue
            name = posixpath.relpath(without_query(path), root or ".")
            if own and path.startswith(f"{own}/"):
                if name.lower().endswith(self.pictures):
                    self.passed.picture("output")
            elif self.version > 1 and any(map(is_hidden, name.split("/"))):
                self.passed.hidden(name, self.pictures)
            elif name.lower().endswith(self.suffixes):
                yield path, info
            else:
                self.passed.other(name)

    def _own(self, fs: Any) -> str:
        """The folder of the output, if it is on this file system; else empty."""
        if not self.output:
            return ""
        store, path = filesystem(self.output)
        if is_local(store) or is_local(fs):
            return os.path.realpath(path) if is_local(store) and is_local(fs) else ""
        return path.rstrip("/") if type(store) is type(fs) else ""


def _shown(url: str, path: str, root: Place) -> str:
    """A path for messages and for the plan; what is asked of a server beside a path may be secret, and is left out."""
    head, chain, rest = url.partition("::")
    if root.local:
        return path
    if chain:
        return f"{head.split('://')[0]}://{path}::{rest}"
    if is_web(path):
        return without_query(path)
    return path if "://" in path else f"{url.split('://')[0]}://{path}"
