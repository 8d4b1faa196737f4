"""A file of the rate, size or quality that you ask for.

    python examples/target_rate.py PICTURE picture.nbk bpp 0.25
    python examples/target_rate.py PICTURE picture.nbk bytes 5000
    python examples/target_rate.py PICTURE picture.nbk psnr 30

A measured curve of the backbone says which noise levels and how many tokens meet it: docs/calibration.md.
"""

import sys
from pathlib import Path

from noisebook import backbones
from noisebook.format.container import Container
from noisebook.images.files import decode_picture
from noisebook.images.io import read_image
from noisebook.images.metrics import psnr
from noisebook.images.targets import Aim, Target, curve_of


def main(picture: str, output: str, what: str, value: str | float, backbone: str = "photo-2", max_nfe: int = 25) -> bytes:
    """`what` is bpp, bytes or psnr. Returns the bytes of the file that it writes."""
    number = int(value) if what == "bytes" else float(value)
    model = backbones.load(backbone)
    aim = Aim(Target(**{what: number}, max_nfe=max_nfe), model, curve_of(model))
    pixels = read_image(picture, model.channels)
    data, codec = aim.file(pixels)
    Path(output).write_bytes(data)

    shown = decode_picture(codec, Container.from_bytes(data))
    rate = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
    print(f"{len(data)} bytes, {rate:.4f} bits per pixel, {psnr(pixels, shown):.2f} dB, {codec.nfe} network calls to decode")
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])
