"""The command line. Pictures and files go under -o, results to stdout, logs and progress to stderr."""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

from noisebook.cli import (
    backbones,
    calibrate,
    check,
    convert,
    decode,
    detokenize,
    encode,
    evaluate,
    export,
    fit_prior,
    inspect,
    report,
    roundtrip,
    streams,
    tokenize,
    train,
    verify,
)
from noisebook.cli.show import failure, log, say_json
from noisebook.runtime import __version__


class Verb(Protocol):
    """A module of this folder that is one verb. Its imports are light: `--help` reads all of them, so that torch and the
    like are imported in `run`."""

    @property
    def ABOUT(self) -> str:
        """A sentence or two for `--help`."""
        ...

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Gives the parser the verb's options; --json and --traceback are there already."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work by functions of the rooms below; returns the exit code. Raises NoisebookError."""
        ...


VERBS: dict[str, Verb] = {
    "encode": encode,
    "roundtrip": roundtrip,
    "eval": evaluate,
    "decode": decode,
    "inspect": inspect,
    "verify": verify,
    "check": check,
    "calibrate": calibrate,
    "backbones": backbones,
    "convert": convert,
    "fit-prior": fit_prior,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "export": export,
    "report": report,
    "train": train,
}

PICTURES = {"images": [], "codec": None}
EMPTY: dict[str, dict[str, Any]] = {  # what --json has of a command that fails as a whole, beside its error
    **dict.fromkeys(("encode", "decode"), PICTURES),
    **{name: {**PICTURES, "metrics": {}} for name in ("roundtrip", "eval")},
    "inspect": {"files": []},
    "check": {"ok": False, "checks": [], "errors": []},
    "verify": {"files": [], "datasets": []},
}


def parser() -> argparse.ArgumentParser:
    """Of all verbs."""
    top = argparse.ArgumentParser(
        prog="noisebook",
        description="Images to integer tokens and back, with any pretrained diffusion model and no training.",
    )
    top.add_argument("--version", action="version", version=f"noisebook {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, verb in VERBS.items():
        sub = commands.add_parser(name, help=verb.ABOUT, description=verb.ABOUT)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        sub.add_argument("--traceback", action="store_true", help="say where an unexpected error was raised")
        verb.add(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or the `code` of the first error (see `noisebook.errors`), 70 for an
    error that nobody foresaw, 130 when stopped, 141 when stdout has no reader any more."""
    with streams.guarded(), _warnings_as_lines():
        try:
            try:
                return _command(argv)
            finally:
                sys.stdout.flush()
        except streams.StreamError as error:
            if error.code != 141:
                log(f"noisebook: {error}")
            return error.code


def _command(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    try:
        return VERBS[args.command].run(args)
    except (SystemExit, streams.StreamError):
        raise
    except KeyboardInterrupt:
        log("noisebook: stopped")
        return 130
    except BaseException as error:  # extensions in Rust raise what is no Exception
        text, code = failure(error, args.traceback)
        log(f"noisebook: {text}")
        if args.json:
            say_json({**EMPTY.get(args.command, {}), "error": text, "code": code})
        return code


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: log(f"warning: {message}")
    try:
        yield
    finally:
        warnings.showwarning = before


if __name__ == "__main__":
    sys.exit(main())
