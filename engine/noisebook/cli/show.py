"""How the command line shows things: text from files is escaped, so that a terminal shows it and does not obey it."""

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from noisebook.errors import NoisebookError, first_line, printable, said

FAULT = 70  # the exit code of an error that nobody foresaw: EX_SOFTWARE of sysexits.h
ALLOCATOR = "can't allocate memory"  # what torch says, in a RuntimeError
MOST = 500  # characters of a message, or of a cell of a table
FAILURES = 20  # images that failed, on a terminal


def shown(text: object, most: int = MOST) -> str:
    """Text as one line that a terminal does not obey. What is longer than `most` loses its middle: a path begins a message,
    and what to do ends it."""
    plain = str(text)
    if len(plain) > most:
        end = most * 2 // 5
        plain = f"{plain[: most - end]} ... {plain[-end:]}"
    return printable(plain)


def say(line: object) -> None:
    """One line of a result on stdout."""
    print(printable(line))


def say_json(value: Any) -> None:
    """The result on stdout as one JSON object of printable ASCII."""
    print(json.dumps(value).replace("\x7f", "\\u007f"))


def log(message: str) -> None:
    """One line on stderr; a log that cannot be written ends nothing: the exit code still says how it went."""
    _write(printable(message))


def log_failures(rows: Sequence[dict[str, str]], count: int, rest: str) -> None:
    """A line on stderr for each of the first `rows` (key, code, message) of `count` images that failed; `rest` says who
    names the others."""
    for row in rows[:FAILURES]:
        log(f"failed: {printable(row['key'], 200)}: {row['code']}: {shown(row['message'])}")
    if count > FAILURES:
        log(f"... and {count - FAILURES:,} more: {rest}")


def failure(error: BaseException, with_traceback: bool = False) -> tuple[str, int]:
    """(what a message says of an error, its exit code). One that is no NoisebookError is a fault of noisebook;
    `with_traceback` then also writes where it was raised to stderr."""
    if isinstance(error, NoisebookError):
        return f"{type(error).__name__}: {shown(error)}", error.code
    if isinstance(error, MemoryError) or ALLOCATOR in str(error):
        return f"MemoryError: this machine has too little memory for it: {first_line(error)}", NoisebookError.code
    if with_traceback:
        for line in "".join(traceback.format_exception(error)).splitlines():
            _write(printable(line))
    return f"{said(error)}: this is a fault of noisebook: run again with --traceback, and report it", FAULT


def _write(line: str) -> None:
    if sys.stderr is not None:  # print would take stdout
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            from noisebook.cli.streams import discard

            discard(sys.stderr, 2)
