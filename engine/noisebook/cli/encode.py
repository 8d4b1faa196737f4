"""`noisebook encode`: pictures to .nbk files."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import options
from noisebook.cli.outputs import refuse_long
from noisebook.cli.pictures import each, pictures, targets
from noisebook.cli.robust import add_robust
from noisebook.cli.table import file_row

if TYPE_CHECKING:
    import numpy as np

ABOUT = "Images to .nbk files."


def add(parser: argparse.ArgumentParser) -> None:
    options.add_images(parser)
    options.add_embed_spec(parser)
    add_robust(parser)
    options.add_output_folder(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    options.add_target_options(parser)
    options.add_limits_of_files(parser, "pixels")


def run(args: argparse.Namespace) -> int:
    """Encodes every picture; one that fails does not stop the others."""
    from noisebook.format.container import Container
    from noisebook.runtime.atomic import write_bytes

    inputs = pictures(args)
    files = targets(args, [name for name, _ in inputs], ".nbk")
    encode, info, channels = options.encoder(args)

    def work(name: str, item: "tuple[Callable[[int], np.ndarray], Path]") -> dict[str, Any]:
        read, path = item
        refuse_long([path])
        data, codec, facts = encode(read(channels))
        write_bytes(path, data, replace=args.force)
        return file_row(name, data, Container.from_bytes(data), nfe=codec.encode_nfe, output=str(path), **facts)

    items = [(name, (read, path)) for (name, read), (path,) in zip(inputs, files, strict=True)]
    return each(args, items, work, info)
