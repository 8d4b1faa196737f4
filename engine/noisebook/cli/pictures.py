"""The loop over pictures or files that `encode`, `roundtrip`, `eval` and `decode` share."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from noisebook.cli.options import log
from noisebook.cli.table import line_of, print_table, row_of
from noisebook.errors import ImageError, NoisebookError

if TYPE_CHECKING:
    import numpy as np

NBK = (".nbk",)
Item = TypeVar("Item")


def pictures(args: argparse.Namespace, channels: int) -> "Iterator[tuple[str, Callable[[], np.ndarray]]]":
    """(name, reader) of every picture that `options.add_images` names."""
    from noisebook.images import io as images

    if not args.images and not args.samples:
        raise ImageError("no images: name pictures or folders, or give --samples")
    for path in images.find_files(args.images):
        yield str(path), lambda path=path: images.read_image(path, channels)
    if args.samples:
        for name in images.SAMPLES:
            yield f"{name}.png", lambda name=name: images.sample(name)[:, :, :3]


class Names:
    """File names of outputs: the input's stem, made unique within one run."""

    def __init__(self, folder: Path):
        self.folder, self.taken = folder, set()

    def __call__(self, name: str, ending: str) -> Path:
        stem, n = Path(name).stem, 1
        while (unique := stem if n == 1 else f"{stem}-{n}").lower() in self.taken:
            n += 1
        self.taken.add(unique.lower())
        return self.folder / (unique + ending)


def each(
    args: argparse.Namespace,
    items: Iterable[tuple[str, Item]],
    work: Callable[[str, Item], dict[str, Any]],
    codec: Callable[[], Any],
) -> int:
    """Does `work` on every item and prints its rows, with what `codec` says at the end.

    An item that fails becomes a row with its error. Returns the code of the first error, or 0."""
    rows, code = [], 0
    for name, item in items:
        begin = time.perf_counter()
        try:
            row = work(name, item)
            row["seconds"] = time.perf_counter() - begin
        except NoisebookError as error:
            code = code or error.code
            row = row_of(name, error=f"{type(error).__name__}: {error}")
        rows.append(row)
        log(line_of(row))
    if args.json:
        print(json.dumps({"images": rows, "codec": codec()}))
    else:
        print_table(rows)
    return code
