"""Where the originals of .nbk files are: among the inputs that the user names, or in what `roundtrip` wrote beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisebook.errors import ImageError
from noisebook.images.folders import find_files
from noisebook.images.reading import read_image
from noisebook.runtime.limits import Limits

COMPARED = ".compared.png"  # original | decoded, of `noisebook roundtrip`


@dataclass(frozen=True)
class Original:
    """The picture that a file was made of. `half`: it is the left half of what `roundtrip` wrote. `problem`: why there is
    none, where one was looked for."""

    path: Path | None = None
    half: bool = False
    problem: str = ""

    def read(self, channels: int, height: int, width: int, limits: Limits) -> np.ndarray | None:
        """uint8 [H, W, C]; None where there is none. Raises ImageError where it cannot be read or has another size."""
        if self.path is None:
            return None
        if not self.path.is_file():  # a pipe would be waited for
            raise ImageError("cannot be read: it is no regular file")
        pixels = read_image(self.path, channels, limits)
        if not self.half:
            return pixels
        if pixels.shape[:2] != (height, 2 * width):
            raise ImageError("it is not the original and the decode of this file, side by side")
        return pixels[:, :width]


def originals_of(files: Sequence[Path], inputs: Sequence[str] | None = None) -> list[Original]:
    """The original of each .nbk file. It is the picture among `inputs`, local files or folders of them, that has the file's
    name but for the ending; or, of one file, the only picture that is named. Otherwise it is in NAME.compared.png beside the
    file, which must not be a link. No name comes from within a file.

    Raises ImageError for an input folder without pictures."""
    pictures = find_files(inputs) if inputs is not None else []
    if inputs is not None and len(files) == len(inputs) == len(pictures) == 1 and not Path(inputs[0]).is_dir():
        return [Original(pictures[0])]
    by_name: dict[str, list[Path]] = {}
    for path in dict.fromkeys(pictures):
        for name in {path.name, path.stem}:
            by_name.setdefault(name, []).append(path)
    return [_original(file, by_name, inputs is not None) for file in files]


def _original(file: Path, by_name: dict[str, list[Path]], wanted: bool) -> Original:
    name = file.name.removesuffix(".nbk")
    same = by_name.get(name, [])
    if len(same) == 1:
        return Original(same[0])
    beside = file.with_name(name + COMPARED)
    if beside.is_file() and not beside.is_symlink():
        return Original(beside, half=True)
    if same:
        return Original(problem=f"{len(same)} of the pictures that were given have its name")
    return Original(problem="no picture of its name was given" if wanted else "")
