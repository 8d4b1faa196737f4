"""`noisebook export`: the tokens of a data set in a format that other programs load."""

import argparse

from noisebook.cli.options import add_limits_of_files, limits_of, path_of
from noisebook.cli.show import say, say_json

ABOUT = "A tokenised data set in another format: WebDataset, npy, Megatron."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokens", metavar="DIR", help="a data set of `noisebook tokenize`")
    parser.add_argument("-o", "--output", type=path_of, required=True, metavar="DIR", help="folder to make, or an empty one")
    parser.add_argument(
        "--format",
        required=True,
        choices=("webdataset", "npy", "megatron"),
        help="tars of .npy and .json; one .npy; Megatron-LM's .bin and .idx",
    )
    parser.add_argument("--partial", action="store_true", help="of a data set that is not complete: what is done")
    add_limits_of_files(parser, "pixels", "work", "rows")


def run(args: argparse.Namespace) -> int:
    """Exports, whole or not at all. Raises what `export` raises."""
    from noisebook.datasets.export import export

    made = export(args.tokens, args.output, args.format, args.partial, limits_of(args))
    if args.json:
        say_json(made)
    else:
        say(f"{made['output']}: {made['images']} images, {made['tokens']} tokens")
    return 0
