"""`noisebook verify`: whether .nbk files and data sets are whole."""

import argparse
import json
from pathlib import Path
from typing import Any

from noisebook.cli.inspect import describe_all
from noisebook.cli.options import need_datasets
from noisebook.errors import FormatError

ABOUT = "Checks .nbk files and tokenised data sets: checksums, sizes, tokens, counts; needs no backbone."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, folders of them, or folders of `tokenize`")


def run(args: argparse.Namespace) -> int:
    sets = [path for path in args.files if "://" in path or (Path(path) / "plan.json").exists()]
    files = [path for path in args.files if path not in sets]
    codes = [describe_all(files, args.json, show)] if files else []
    return max([*codes, *(verify_set(path, args.json) for path in sets)])


def show(row: dict[str, Any]) -> None:
    unknown = "" if row["error"] or row["codec"] else " (checksum only: the codec is unknown here)"
    print(f"{row['name']}: {row['error'] or 'ok' + unknown}")


def verify_set(path: str, as_json: bool) -> int:
    """Checks one data set and prints what was found; returns 0 where it is whole."""
    need_datasets()
    from noisebook.datasets.verify import check

    state = check(path)
    code = 0 if state["complete"] else FormatError.code
    if as_json:
        print(json.dumps({"name": path, **state}))
        return code
    for problem in state["problems"]:
        print(f"{path}/{problem['name']}: {problem['error']}")
    counts = f"{state['shards']} of {state['of_shards']} shards whole, {state['n_in']} images: {state['n_ok']} ok"
    print(f"{path}: {'ok' if state['complete'] else 'not complete, or damaged'}: {counts}, {state['n_failed']} failed")
    return code
