"""`noisebook encode`: pictures to .nbk files."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noisebook.cli import options
from noisebook.cli.pictures import Names, each, pictures
from noisebook.cli.table import file_row

if TYPE_CHECKING:
    import numpy as np

ABOUT = "Images to .nbk files."


def add(parser: argparse.ArgumentParser) -> None:
    options.add_images(parser)
    options.add_embed_spec(parser)
    options.add_output_folder(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    options.add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Encodes every picture; one that fails does not stop the others."""
    from noisebook.format.container import Container
    from noisebook.runtime.atomic import write_bytes

    encode, info, channels = options.encoder(args)
    names = Names(args.output)

    def work(name: str, read: "Callable[[], np.ndarray]") -> dict[str, Any]:
        data, codec = encode(read())
        write_bytes(names(name, ".nbk"), data)
        return file_row(name, data, Container.from_bytes(data), nfe=codec.encode_nfe)

    return each(args, pictures(args, channels), work, info)
