"""Where the pictures of a data set go: a file name for each key, in the order of the data set."""

import os
from hashlib import blake2b
from pathlib import PurePosixPath

from noisebook.datasets.sources.places import unsafe_name

PNG = ".png"
TAKEN = "its name belongs to an earlier image, and so does the next one"


class PictureNames:
    """Names below a folder, one after the other. A key that ends in .png, in any case, keeps its name, others get .png
    added. Where a name is taken by an earlier one, as a file or as a folder, .png is added once more.

    A name depends on the keys before it only, so that it is the same whenever and however far one comes. What is held is a
    few bytes of each name, not the name."""

    def __init__(self) -> None:
        self.files: set[bytes] = set()
        self.folders: set[bytes] = set()

    def __call__(self, key: str) -> tuple[str, str]:
        """(the name of the next key, why it has none)."""
        if problem := unsafe(key):
            return "", problem
        name = key if key.lower().endswith(PNG) else key + PNG
        for candidate in (name, name + PNG):
            above = [_mark(str(folder)) for folder in PurePosixPath(candidate).parents][:-1]
            mark = _mark(candidate)
            if mark not in self.files and mark not in self.folders and self.files.isdisjoint(above):
                self.files.add(mark)
                self.folders.update(above)
                return candidate, ""
        return "", TAKEN


def unsafe(key: str) -> str:
    """Why a key cannot be the name of a file in a folder; empty where it can."""
    if problem := unsafe_name(key):
        return problem
    parts = key.split("/")
    if "." in parts:
        return "a part of its name is a dot"
    if os.name == "nt" and any(c in '\\:*?"<>|' for c in key):
        return "its name has a character that Windows forbids"
    try:
        os.fsencode(key)
    except UnicodeError:
        return "this system cannot write its name"
    return ""


def _mark(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
