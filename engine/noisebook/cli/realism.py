"""Options of the realism dial, for the verbs that make pictures of tokens."""

import argparse

from noisebook.cli.options import path_of
from noisebook.errors import SpecError


def add_realism(parser: argparse.ArgumentParser) -> None:
    """`--realism` and `--realism-network`; `realism_of` reads them."""
    group = parser.add_argument_group("realism", "what a decoder makes of the tokens; no file and no token depends on it")
    group.add_argument(
        "--realism",
        type=float,
        metavar="R",
        help="from 0, the least error, to 1, the most convincing picture, for one to three network calls more (default: 0); "
        "see docs/concepts.md",
    )
    group.add_argument(
        "--realism-network",
        type=path_of,
        metavar="FILE",
        help="the .safetensors file of the network that makes it (default: the one that came with the backbone, or the "
        "backbone's own ODE)",
    )


def realism_of(args: argparse.Namespace) -> float:
    """The value of the dial. Raises SpecError for another number than 0 ... 1, and for a network that nothing uses."""
    from noisebook.codec.realism import checked

    if args.realism is None and args.realism_network is not None:
        raise SpecError("--realism-network says what makes a picture convincing: give --realism R, from 0 to 1, with it")
    return checked(0.0 if args.realism is None else args.realism)
