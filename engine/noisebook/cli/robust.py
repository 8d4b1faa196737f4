"""--robust: the header of a file is sent twice, for `decode --salvage` (format/robust.py)."""

import argparse
from dataclasses import replace
from typing import Any

from noisebook.cli.levels import Encode
from noisebook.errors import SpecError


def add_robust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--robust",
        action="store_true",
        help="send the header twice, 24 to 29 bytes more, so that `decode --salvage` finds a whole one in a damaged file; "
        "not for files with their specification in them",
    )


def refuse_embedded(args: argparse.Namespace, embedded: bool | None) -> None:
    """Raises SpecError where --robust is asked of files with their specification in them."""
    if embedded and getattr(args, "robust", False):
        raise SpecError("--robust sends the header twice and no specification: use a preset, --bpp or --no-embed-spec")


def made_robust(args: argparse.Namespace, data: bytes) -> bytes:
    """A file, under --robust with its header twice."""
    from noisebook.format.container import Container

    return replace(Container.from_bytes(data), robust=True).to_bytes() if getattr(args, "robust", False) else data


def each_robust(args: argparse.Namespace, encode: Encode) -> Encode:
    """The same, under --robust with the header of each file twice."""

    def twice(pixels: Any) -> tuple[bytes, Any, dict[str, Any]]:
        data, codec, facts = encode(pixels)
        return made_robust(args, data), codec, facts

    return twice
