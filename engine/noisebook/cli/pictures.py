"""The loop over pictures or files that `encode`, `roundtrip`, `eval` and `decode` share."""

import argparse
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from noisebook.cli import outputs
from noisebook.cli.show import failure, log, say_json
from noisebook.cli.table import line_of, print_table, row_of
from noisebook.errors import FormatError, ImageError, NoisebookError

if TYPE_CHECKING:
    import numpy as np

NBK = (".nbk",)
Item = TypeVar("Item")


def pictures(args: argparse.Namespace) -> "list[tuple[str, Callable[[int], np.ndarray]]]":
    """(name, reader) of every picture that `options.add_images` names; a reader takes the number of channels."""
    from noisebook.images import io as images

    if not args.images and not args.samples:
        raise ImageError("no images: name pictures or folders, or give --samples")

    def read(path: Path, channels: int) -> "np.ndarray":
        refuse_unreadable(path, ImageError)
        return images.read_image(path, channels)

    rows: list[tuple[str, Callable[[int], np.ndarray]]] = [
        (str(path), lambda channels, path=path: read(path, channels)) for path in files_of(args.images, images.SUFFIXES)
    ]
    if args.samples:
        rows += [(f"{name}.png", lambda _, name=name: images.sample(name)[:, :, :3]) for name in images.SAMPLES]
    return rows


def files_of(inputs: Iterable[str], suffixes: tuple[str, ...]) -> list[Path]:
    """As `images.io.find_files`, for any text that a user may have given."""
    from noisebook.images.io import find_files

    files: list[Path] = []
    for name in inputs:
        if not name:
            raise NoisebookError("an empty name: it would stand for the current folder; for that write .")
        files += find_files([name], suffixes) if os.path.isdir(name) else [Path(name)]
    return files


def refuse_unreadable(path: Path, kind: type[NoisebookError] = FormatError) -> None:
    """Raises an error of that kind for what is there and no regular file: a pipe would be waited for."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return  # its reader says so
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise kind(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise kind("cannot be read: it is a folder, a pipe or a device, and only regular files are read")


def targets(args: argparse.Namespace, names: Sequence[str], *endings: str) -> list[list[Path]]:
    """The files to write for each input, as `outputs.plan`; without -o they are in a fresh folder."""
    if args.output is None:
        args.output, args.fresh = outputs.fresh_folder(), True
    return outputs.plan(names, args.output, endings, args.force)


def each(
    args: argparse.Namespace,
    items: Iterable[tuple[str, Item]],
    work: Callable[[str, Item], dict[str, Any]],
    codec: Callable[[], Any],
) -> int:
    """Does `work` on every item and prints its rows, with what `codec` says at the end.

    An item that fails becomes a row with its error, whatever that is. Returns the code of the first error, or 0."""
    rows, code = [], 0
    for name, item in items:
        begin = time.perf_counter()
        try:
            row = work(name, item)
            row["seconds"] = time.perf_counter() - begin
        except Exception as error:
            text, its_code = failure(error, args.traceback)
            code = code or its_code
            row = row_of(name, error=text)
        rows.append(row)
        log(line_of(row))
    written = str(args.output) if any(row["output"] for row in rows) else None
    if written and getattr(args, "fresh", False):
        log(f"written to {written}")
    if args.json:
        say_json({"images": rows, "codec": codec(), **({"output": written} if hasattr(args, "output") else {})})
    else:
        print_table(rows)
    return code
