"""The loop over pictures or files that `encode`, `roundtrip`, `eval` and `decode` share."""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from noisebook.cli import outputs
from noisebook.cli.inputs import files_of, refuse_unreadable
from noisebook.cli.judging import Judged
from noisebook.cli.options import limits_of
from noisebook.cli.show import failure, log, say, say_json
from noisebook.cli.table import line_of, print_table, row_of
from noisebook.errors import ImageError, NoisebookError
from noisebook.images.judges.words import remarks_of

if TYPE_CHECKING:
    import numpy as np

    from noisebook.runtime.limits import Limits

Item = TypeVar("Item")


def pictures(args: argparse.Namespace) -> "list[tuple[str, Callable[[int], np.ndarray]]]":
    """(name, reader) of every picture that `options.add_images` names; a reader takes the number of channels."""
    from noisebook.images import io as images

    if not args.images and not args.samples:
        raise ImageError("no images: name pictures or folders, or give --samples")

    limits = limits_of(args)

    def read(path: Path, channels: int) -> "np.ndarray":
        refuse_unreadable(path, ImageError)
        return read_and_say(path, channels, limits)

    files = files_of(args.images, images.SUFFIXES, getattr(args, "output", None))
    rows: list[tuple[str, Callable[[int], np.ndarray]]] = [
        (str(path), lambda channels, path=path: read(path, channels)) for path in files
    ]
    if args.samples:
        rows += [(f"{name}.png", lambda _, name=name: images.sample(name)[:, :, :3]) for name in images.SAMPLES]
    return rows


def read_and_say(path: Path, channels: int, limits: "Limits") -> "np.ndarray":
    """The pixels of a picture; what was done to read them is said in a line, where it changes what they mean."""
    from noisebook.images import reading

    read = reading.read_picture(path, channels, limits)
    for code in read.remarks:
        if code in reading.WORTH_SAYING:
            log(f"{path}: {reading.REMARKS[code]}")
    return read.pixels


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
    judged: Judged | None = None,
    blank: dict[str, Any] | None = None,
) -> int:
    """Does `work` on every item and prints its rows, with what `codec` says at the end, and of the metrics what `judged`
    says, with which `work` compares pictures. `blank`: what else a row has, where its item fails.

    An item that fails becomes a row with its error, whatever that is. Returns the code of the first error, or 0."""
    blank = {**(blank or {}), **({**judged.judge.blank, "remarks": {}} if judged else {})}
    rows, code = [], 0
    for name, item in items:
        begin = time.perf_counter()
        try:
            row = work(name, item)
            if row["seconds"] is None:
                row["seconds"] = time.perf_counter() - begin
        except Exception as error:
            text, its_code = failure(error, args.traceback)
            code = code or its_code
            row = row_of(name, **blank, error=text)
        rows.append(row)
        log(line_of(row, both=judged is not None))
        for remark in remarks_of(row.get("remarks", {})):
            log(f"{name}: {remark}")
    for row in rows:  # a folder may be deleted, or replaced, meanwhile
        if row["output"] and not os.path.lexists(row["output"]):
            code = code or NoisebookError.code
            row["error"] = "NoisebookError: what was written is gone: the folder was deleted or replaced meanwhile"
            log(line_of(row))
    written = str(args.output) if any(row["output"] for row in rows) else None
    if written and getattr(args, "fresh", False):
        log(f"written to {written}")
    if args.json:
        more = {"output": written} if hasattr(args, "output") else {}
        say_json({"images": rows, "codec": codec(), **({"metrics": judged.summary()} if judged else {}), **more})
    else:
        print_table(rows, both=judged is not None)
        for line in judged.lines() if judged else ():
            say(line)
    return code or (judged.code if judged else 0)
