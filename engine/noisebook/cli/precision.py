"""The option --dtype: in what the network computes, and what is said of it."""

import argparse
from typing import TYPE_CHECKING

from noisebook.cli.show import log

if TYPE_CHECKING:
    from noisebook.backbones import Backbone


def add_dtype(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "bfloat16-network"),
        default="auto",
        help="the type in which the network computes, and the autoencoder of a latent model, which bfloat16-network leaves "
        "in float32 (default: auto: bfloat16 where the processor has instructions for it, else float32, see "
        "docs/performance.md); a file of one type decodes under the others",
    )


def say_dtype(args: argparse.Namespace, backbone: "Backbone") -> None:
    """Says in a line, once, in which dtype the network computes where nobody has asked for it, unless it is float32."""
    dtype = backbone.accelerated_to
    if args.dtype == "auto" and dtype != "float32" and not getattr(args, "dtype_said", False):
        log(f"computed in {dtype} (--dtype float32 for the other)")
        args.dtype_said = True
