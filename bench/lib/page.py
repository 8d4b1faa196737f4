"""Tables of README and docs from the JSON under bench/results: no figure there is typed by hand.

A page has places, `<!-- NAME -->` ... `<!-- /NAME -->`. An experiment has a table for each NAME, a function that makes it
of the result. Every script takes --report, which fills its page, and --check, which only looks.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.lib.record import RESULTS, refuse_dry

Result = dict[str, Any]
Tables = dict[str, Callable[[], str]]


def load(name: str) -> Result:
    """A measured result. SystemExit for one of a dry run."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    refuse_dry(result, f"bench/results/{name}.json")
    return result


def measured(name: str) -> Result | None:
    """A result that may not be there yet."""
    return load(name) if (RESULTS / f"{name}.json").exists() else None


def source(result: Result, name: str) -> str:
    """The line under a table: device, versions, date, the command as it was run, and the result file."""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k != "numpy")
    where = f"driver {result['gpu'].get('driver_version', 'unknown')}" if "gpu" in result else f"{result['threads']} threads"
    return (
        f"<sub>{result['device']}, {where}, {versions}, {result['date']}: `{result['command']}`, "
        f"`bench/results/{name}.json`</sub>"
    )


def with_commands(result: Result) -> Result:
    """The same with all commands that measured its rows in place of the last one."""
    return {**result, "command": "`, `".join(result.get("commands", [result["command"]]))}


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


# ---- places in a page ---------------------------------------------------------------------------------------------------
def places(text: str, tables: Tables) -> set[str]:
    """The tables that a text has a place for."""
    return set(re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)) & tables.keys()


def render(text: str, tables: Tables) -> str:
    """The text with every place of the tables filled in. SystemExit for a place that is never closed."""
    for name in sorted(places(text, tables)):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not closed:
            raise SystemExit(f"the place for the table {name!r} is not closed")
        text = head + begin + tables[name]() + "\n" + end + tail
    return text


def fill(page: Path, tables: Tables, check: bool) -> None:
    """Fills the places of a page, or only looks: SystemExit where that would change it, or where a table has no place."""
    old = page.read_text()
    if lost := tables.keys() - places(old, tables):
        raise SystemExit(f"{page.name} has no place for {', '.join(sorted(lost))}")
    new = render(old, tables)
    if check and old != new:
        raise SystemExit(f"{page.name} is not what bench/results says: run the same command with --report")
    if not check:
        page.write_text(new)


# ---- options of every script that has a page ----------------------------------------------------------------------------
def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", action="store_true", help="measure nothing: only write the page from the results")
    parser.add_argument("--check", action="store_true", help="measure nothing: only say whether the page is up to date")


def only_page(args: argparse.Namespace, page: Path, tables: Tables) -> bool:
    """Whether --report or --check is given; the page is then filled, or looked at."""
    if args.report or args.check:
        fill(page, tables, args.check)
    return args.report or args.check
