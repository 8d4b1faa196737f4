"""Where the pictures of a data set go: a file name for each key, in the order of the data set."""

import os
import unicodedata
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from noisebook.datasets.sources.places import unsafe_name

PNG = ".png"
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{name}{i}" for name in ("COM", "LPT") for i in range(1, 10))}
TAKEN = "its name belongs to an earlier image, and so does the next one"


class PictureNames:
    """Names below a folder, one after the other. A key that ends in .png, in any case, keeps its name, others get .png
    added. Where a name is taken by an earlier one, as a file or as a folder, .png is added once more.

    A name depends on the keys before it only, so that it is the same whenever and however far one comes. What is held is a
    few bytes of each name, not the name.

    fold   the folder takes names that differ in case, or in how an accent is written, for one: then these meet too"""

    def __init__(self, fold: bool = False) -> None:
        self.fold = fold
        self.files: set[bytes] = set()
        self.folders: set[bytes] = set()

    def __call__(self, key: str) -> tuple[str, str]:
        """(the name of the next key, why it has none)."""
        if problem := unsafe(key):
            return "", problem
        name = key if key.lower().endswith(PNG) else key + PNG
        for candidate in (name, name + PNG):
            above = [self._mark(str(folder)) for folder in PurePosixPath(candidate).parents][:-1]
            mark = self._mark(candidate)
            if mark not in self.files and mark not in self.folders and self.files.isdisjoint(above):
                self.files.add(mark)
                self.folders.update(above)
                return candidate, ""
        return "", TAKEN

    def _mark(self, name: str) -> bytes:
        text = unicodedata.normalize("NFC", name.casefold()).casefold() if self.fold else name
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def folds(folder: Path, name: str) -> bool:
    """Whether a folder takes names that differ in case for one; a file of this name is in it."""
    return os.path.lexists(folder / name.swapcase())


def unsafe(key: str) -> str:
    """Why a key cannot be the name of a file in a folder; empty where it can."""
    if problem := unsafe_name(key):
        return problem
    parts = key.split("/")
    if "." in parts:
        return "a part of its name is a dot"
    if os.name == "nt" and (problem := of_windows(key)):
        return problem
    try:
        os.fsencode(key)
    except UnicodeError:
        return "this system cannot write its name"
    return ""


def of_windows(key: str) -> str:
    """Why Windows could not make a file of that name, or would make another; empty where it could."""
    if any(c in '\\:*?"<>|' or c < " " for c in key):
        return "its name has a character that Windows forbids"
    for part in key.split("/"):
        if part.split(".")[0].rstrip().upper() in DEVICES:
            return f"Windows takes the name {part.split('.')[0]} for a device"
        if part.endswith((".", " ")):
            return "a part of its name ends in a dot or space, which Windows drops"
    return ""
