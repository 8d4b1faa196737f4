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
    if embedded and is_robust(args):
        raise SpecError("--robust sends the header twice and no specification: use a preset, --bpp or --no-embed-spec")


def is_robust(args: argparse.Namespace) -> bool:
    """Whether --robust is given, of verbs that have it."""
    return getattr(args, "robust", False)


def each_robust(args: argparse.Namespace, encode: Encode) -> Encode:
    """The same, under --robust with the header of each file twice."""
    from noisebook.format.container import Container

    def twice(pixels: Any) -> tuple[bytes, Any, dict[str, Any]]:
        data, codec, facts = encode(pixels)
        return replace(Container.from_bytes(data), robust=True).to_bytes(), codec, facts

    return twice if is_robust(args) else encode
