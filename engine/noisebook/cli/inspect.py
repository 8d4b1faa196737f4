"""`noisebook inspect`: what a .nbk file says of itself."""

import argparse
from collections.abc import Callable
from typing import Any

from noisebook.cli import options
from noisebook.cli.inputs import NBK, files_of, refuse_unreadable
from noisebook.cli.show import failure, say, say_json, shown

ABOUT = "What .nbk files hold; needs no backbone."
WIDEST = 200  # characters of a value that is shown


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, or folders of them")
    options.add_limits_of_files(parser, "work")


def run(args: argparse.Namespace) -> int:
    rows, code = describe_all(args, args.files, show)
    if args.json:
        say_json({"files": rows})
    return code


def show(row: dict[str, Any]) -> None:
    say(shown(row["name"], WIDEST))
    for key, value in row.items():
        if key != "name" and value is not None:
            say(f"  {key:14s} {f'{value:.4f}' if key == 'bpp' else value if key == 'error' else shown(value, WIDEST)}")


def describe_all(
    args: argparse.Namespace, files: list[str], show: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], int]:
    """(what every file says, code of the first error). Without --json each is shown by `show` at once, and not kept."""
    from noisebook.images.files import describe

    rows, code, limits = [], 0, options.limits_of(args)
    for path in files_of(files, NBK):
        try:
            refuse_unreadable(path)
            row = describe(path, limits)
        except Exception as error:
            text, its_code = failure(error, args.traceback)
            code = code or its_code
            row = {"name": str(path), "error": text}
        if args.json:
            rows.append(row)
        else:
            show(row)
    return rows, code
