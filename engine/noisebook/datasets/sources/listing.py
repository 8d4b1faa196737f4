"""The files below a folder, a pattern or a URL, by name."""

import posixpath
from collections.abc import Iterator
from typing import Any

from noisebook.datasets.sources.base import File, is_utf8, stamp_of, utf8
from noisebook.datasets.sources.places import Place, root_of
from noisebook.errors import DatasetError, printable
from noisebook.images.io import SUFFIXES, walk


def files_of(url: str) -> Iterator[File]:
    """All files of an input that the user typed, by name. Raises DatasetError where it cannot be listed."""
    try:
        fs, root, found = root_of(url)
        if found is not None:
            infos = {path: fs.info(path) for path in found}
        elif root.local:
            infos = dict(_below(fs, root.path))
        else:
            infos = fs.find(root.path, detail=True)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or error) if str(error) else type(error).__name__
        raise DatasetError(f"{printable(url, 200)}: cannot be listed: {printable(reason, 200)}") from error
    for path in sorted(infos, key=lambda p: utf8(p) if is_utf8(p) else p):
        info, text, name = infos[path], utf8(path), posixpath.relpath(path, root.path)
        problem = info.get("problem", "")
        if not is_utf8(path):
            problem = "unreadable: its name is not UTF-8: rename it"
        elif info["type"] == "file" and info["size"] is None:
            problem, info = "unreadable: its server does not say how large it is", {**info, "size": 0}
        if info["type"] == "file" or problem:
            stamp = "" if problem else stamp_of(info)
            yield File(_shown(url, text, root), utf8(name), info["size"], stamp, problem, Place(root.url, path))


def _shown(url: str, path: str, root: Place) -> str:
    """A path for messages and for the plan."""
    head, chain, rest = url.partition("::")
    if root.local or "://" in path:
        return path
    if chain:
        return f"{head.split('://')[0]}://{path}::{rest}"
    return f"{url.split('://')[0]}://{path}"


def _below(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, what the file system says) of all below a local folder. Links are followed, though not in circles. What has
    the name of a picture but is none (a folder, a pipe, a link to nothing) gets a problem instead of being left out."""

    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be read would be pictures lost

    for folder, folders, files in walk(root, stop):
        for name in folders:
            if name.lower().endswith(SUFFIXES):
                yield (
                    posixpath.join(folder, name),
                    {"type": "directory", "size": 0, "problem": "unreadable: a folder, not a picture"},
                )
        for name in files:
            path = posixpath.join(folder, name)
            try:
                info = fs.info(path)
            except OSError as error:
                info = {"type": "other", "size": 0, "problem": f"missing: {error.strerror or error}"}
            if info["type"] != "file":
                info = {"problem": "unreadable: not a regular file", **info}
            yield path, info
