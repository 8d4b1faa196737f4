"""The files below a folder, a pattern or a URL, by name."""

import os
import posixpath
from collections.abc import Iterator
from typing import Any

from noisebook.datasets.sources.base import File, filesystem, is_local, stamp_of, utf8
from noisebook.errors import DatasetError
from noisebook.images.io import SUFFIXES


def files_of(url: str) -> Iterator[File]:
    """All files of an input, by name. Raises DatasetError where it cannot be listed."""
    fs, path = filesystem(url)
    local = is_local(fs)
    protocol = "" if local else f"{url.split('://')[0]}://"
    try:
        if "*" in path:
            infos, root = {p: fs.info(p) for p in fs.glob(path)}, posixpath.dirname(path.split("*")[0])
        elif fs.isfile(path):
            infos, root = {path: fs.info(path)}, posixpath.dirname(path)
        elif local:
            infos, root = dict(_below(fs, path)), path
        else:
            infos, root = fs.find(path, detail=True), path
    except OSError as error:
        raise DatasetError(f"{url}: cannot be listed: {error.strerror or error}") from error
    for p in sorted(infos):
        name, info = posixpath.relpath(p, root), infos[p]
        problem = info.get("problem", "")
        if utf8(p) != p:
            problem = "unreadable: its name is not UTF-8: rename it"
        if info["type"] == "file" or problem:
            yield File(f"{protocol}{utf8(p)}", utf8(name), info["size"], "" if problem else stamp_of(info), problem)


def _below(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, what the file system says) of all below a local folder. Links are followed, though not in circles. What has
    the name of a picture but is none (a folder, a pipe, a link to nothing) gets a problem instead of being left out."""

    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be read would be pictures lost

    above = {root: {os.path.realpath(root)}}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=stop):
        for name in list(folders):
            path = posixpath.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else posixpath.join(os.path.realpath(folder), name)
            if real in above[folder]:
                folders.remove(name)
            above[path] = above[folder] | {real}
            if name.lower().endswith(SUFFIXES):
                yield path, {"type": "directory", "size": 0, "problem": "unreadable: a folder, not a picture"}
        for name in files:
            path = posixpath.join(folder, name)
            try:
                info = fs.info(path)
            except OSError as error:
                info = {"type": "other", "size": 0, "problem": f"missing: {error.strerror or error}"}
            if info["type"] != "file":
                info = {"problem": "unreadable: not a regular file", **info}
            yield path, info
