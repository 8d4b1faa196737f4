"""`noisebook inspect`: what a .nbk file says of itself."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from noisebook.cli.pictures import NBK
from noisebook.errors import NoisebookError

ABOUT = "What .nbk files hold; needs no backbone."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, or folders of them")


def run(args: argparse.Namespace) -> int:
    return describe_all(args.files, args.json, show)


def show(row: dict[str, Any]) -> None:
    print(row["name"])
    for key, value in row.items():
        if key != "name" and value is not None:
            print(f"  {key:14s} {f'{value:.4f}' if key == 'bpp' else value}")


def describe_all(files: list[str], as_json: bool, show: Callable[[dict[str, Any]], None]) -> int:
    """Describes every file and prints it, at once by `show` or all together as JSON; returns the code of the first error."""
    from noisebook.images.files import describe
    from noisebook.images.io import find_files

    rows, code = [], 0
    for path in find_files(files, NBK):
        try:
            rows.append(describe(path))
        except NoisebookError as error:
            code = code or error.code
            rows.append({"name": str(path), "error": f"{type(error).__name__}: {error}"})
        if not as_json:
            show(rows[-1])
    if as_json:
        print(json.dumps({"files": rows}))
    return code
