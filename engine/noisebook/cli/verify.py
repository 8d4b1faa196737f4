"""`noisebook verify`: whether .nbk files and data sets are whole."""

import argparse
import os
from typing import Any

from noisebook.cli import options
from noisebook.cli.inspect import describe_all
from noisebook.cli.show import failure, log_failures, say, say_json, shown
from noisebook.errors import DatasetError, FormatError

ABOUT = "Checks .nbk files and tokenised data sets: checksums, sizes, tokens, counts; needs no backbone."

SHOWN = 20  # versions on a terminal


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, folders of them, or folders of `tokenize`")
    options.add_limits_of_files(parser, "pixels", "work", "rows")


def run(args: argparse.Namespace) -> int:
    """Checks all of them. --json: {"files": rows}, or what was found of a single data set, or, where several are named,
    {"files": rows, "datasets": what was found of each}."""
    sets = [path for path in args.files if _is_set(path)]
    files = [path for path in args.files if path not in sets]
    rows, code = describe_all(args, files, show)
    codes, states = [code], []
    for path in sets:
        state, code = check_set(args, path)
        codes.append(code)
        if args.json:
            states.append(state)
        else:
            show_set(path, state)
    if args.json and len(sets) == 1 and not files:
        say_json(states[0])
    elif args.json:
        say_json({"files": rows, "datasets": states} if sets else {"files": rows})
    return next((code for code in codes if code), 0)


def _is_set(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "plan.json")) or ("://" in path and not os.path.exists(path))


def show(row: dict[str, Any]) -> None:
    unknown = "" if row["error"] or row["codec"] else " (checksum only: the codec is unknown here)"
    say(f"{shown(row['name'])}: {row['error'] or 'ok' + unknown}")


def check_set(args: argparse.Namespace, path: str) -> tuple[dict[str, Any], int]:
    """(what was found of a data set, or its error; its exit code: 0 where it is whole, 4 where something is damaged, and 7
    where the only problem is that shards have not been made yet)."""
    from noisebook.datasets.verify import check

    try:
        state = check(path, options.limits_of(args))
    except Exception as error:
        text, code = failure(error, args.traceback)
        return {"name": path, "error": text, "code": code}, code
    if not args.json:
        log_failures(state["failed"], state["n_failed"], f"{shown(path)}/ledger names all")
    code = FormatError.code if state["damaged"] else DatasetError.code
    return {"name": path, **state}, 0 if state["complete"] else code


def show_set(path: str, state: dict[str, Any]) -> None:
    from noisebook.datasets.ledger import versions_text

    name = shown(path)
    if "error" in state:
        return say(f"{name}: {state['error']}")
    for problem in state["problems"]:
        say(f"{name}/{shown(problem['name'])}: {shown(problem['error'])}")
    for made in state["versions"][:SHOWN]:
        versions = {key: value for key, value in made.items() if key != "shards"}
        were = "shard was" if made["shards"] == 1 else "shards were"
        say(f"{name}: {made['shards']} {were} made with {versions_text(versions)}")
    if len(state["versions"]) > SHOWN:
        say(f"{name}: ... and with {len(state['versions']) - SHOWN:,} other versions: --json names them")
    counts = f"{state['shards']} of {state['of_shards']} shards whole, {state['n_in']} images: {state['n_ok']} ok"
    left = f"{state['n_failed']} failed; {state['n_passed_over']} were passed over"
    verdict = "damaged" if state["damaged"] else "ok" if state["complete"] else "not complete"
    say(f"{name}: {verdict}: {counts}, {left}")
