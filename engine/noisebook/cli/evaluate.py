"""`noisebook eval`: the table of `roundtrip`, without writing pictures."""

import argparse

from noisebook.cli import judging, options
from noisebook.cli.realism import add_realism
from noisebook.cli.roundtrip import measure

ABOUT = "The roundtrip table of a folder, without writing pictures."


def add(parser: argparse.ArgumentParser) -> None:
    options.add_images(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    options.add_target_options(parser)
    add_realism(parser)
    judging.add_metric_options(parser)
    options.add_limits_of_files(parser, "pixels")
    parser.set_defaults(embed_spec=None)


def run(args: argparse.Namespace) -> int:
    return measure(args, write=False)
