"""`noisebook roundtrip`: pictures to .nbk files and back, and what that costs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import options
from noisebook.cli.pictures import Names, each, pictures
from noisebook.cli.table import file_row

if TYPE_CHECKING:
    import numpy as np

ABOUT = (
    "Images to .nbk files and back: writes original | decoded and prints "
    "bits per pixel, PSNR, SSIM, network calls (NFE) and seconds."
)


def add(parser: argparse.ArgumentParser) -> None:
    options.add_images(parser)
    options.add_embed_spec(parser)
    options.add_output_folder(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    options.add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    return measure(args, args.output)


def measure(args: argparse.Namespace, output: Path | None) -> int:
    """Encodes, decodes what the file says, compares; with an `output` also writes the file and original | decoded."""
    import numpy as np

    from noisebook.format.container import Container
    from noisebook.images.files import decode_picture
    from noisebook.images.io import png_bytes
    from noisebook.images.metrics import psnr, ssim
    from noisebook.runtime.atomic import write_bytes

    encode, info, channels = options.encoder(args)
    names = Names(output or Path())

    def work(name: str, read: "Callable[[], np.ndarray]") -> dict[str, Any]:
        pixels = read()
        data, codec = encode(pixels)
        container = Container.from_bytes(data)
        decoded = decode_picture(codec, container)
        if output is not None:
            path = names(name, ".nbk")
            write_bytes(path, data)
            write_bytes(path.with_suffix(".png"), png_bytes(np.concatenate([pixels, decoded], 1)))
        quality = {"psnr": psnr(pixels, decoded), "ssim": ssim(pixels, decoded)}
        return file_row(name, data, container, **quality, nfe=codec.encode_nfe + codec.nfe)

    return each(args, pictures(args, channels), work, info)
