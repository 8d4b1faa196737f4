"""The command line. Pictures and files go under -o, results to stdout, logs and progress to stderr."""

import argparse
import json
import sys
import warnings
from typing import Protocol

from noisebook.cli import (
    backbones,
    calibrate,
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
    tokenize,
    train,
    verify,
)
from noisebook.cli.options import log
from noisebook.errors import NoisebookError
from noisebook.runtime import __version__


class Verb(Protocol):
    """A module of this folder that is one verb. Its imports are light: `--help` reads all of them, so that torch and the
    like are imported in `run`."""

    @property
    def ABOUT(self) -> str:
        """A sentence or two for `--help`."""
        ...

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Gives the parser the verb's options; --json is there already."""

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
        verb.add(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or the `code` of the first error (see `noisebook.errors`)."""
    args = parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: log(f"warning: {message}")
    try:
        return VERBS[args.command].run(args)
    except NoisebookError as error:
        log(f"noisebook: {type(error).__name__}: {error}")
        if args.json:
            print(json.dumps({"images": [], "codec": None, "error": f"{type(error).__name__}: {error}"}))
        return error.code
    except KeyboardInterrupt:
        log("noisebook: stopped")
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
