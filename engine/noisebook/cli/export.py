"""`noisebook export`: the tokens of a data set in a format that other programs load."""

import argparse
import json
from pathlib import Path

from noisebook.cli.options import need_datasets

ABOUT = "A tokenised data set in another format: WebDataset, npy, Megatron."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokens", metavar="DIR", help="a data set of `noisebook tokenize`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--format",
        required=True,
        choices=("webdataset", "npy", "megatron"),
        help="tars of .npy and .json; one .npy; Megatron-LM's .bin and .idx",
    )
    parser.add_argument("--partial", action="store_true", help="of a data set that is not complete: what is done")


def run(args: argparse.Namespace) -> int:
    """Exports, whole or not at all. Raises what `export` raises."""
    need_datasets()
    from noisebook.datasets.export import export

    made = export(args.tokens, args.output, args.format, args.partial)
    print(json.dumps(made) if args.json else f"{made['output']}: {made['images']} images, {made['tokens']} tokens")
    return 0
