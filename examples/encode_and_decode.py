"""A picture to tokens and back.

    python examples/encode_and_decode.py PICTURE decoded.png

Prints how many tokens there are, the rate and the error, and writes the decoded picture.
"""

import sys

import torch
from PIL import Image

import noisebook
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image
from noisebook.images.metrics import psnr


def main(picture: str, output: str, preset: str = "photo", **options) -> float | None:
    """`options` are those of noisebook.load. Returns the PSNR."""
    codec = noisebook.load(preset, **options)
    pixels = read_image(picture, codec.backbone.channels)  # uint8 [H, W, C]
    size = pixels.shape[:2]

    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # uint8 [1, C, H, W]
    tokens = codec.encode(images)  # int64 [1, L]
    decoded = codec.decode(tokens, size)  # float32 [1, C, H, W], about in [-1, 1]

    layout = codec.layout_for(*size)  # what each of the L tokens means
    rate, shown = layout.bits / (size[0] * size[1]), pixels_of(decoded[0])
    quality = psnr(pixels, shown)
    print(f"{len(layout)} tokens, {rate:.3f} bits per pixel, {quality:.2f} dB")
    Image.fromarray(shown.squeeze()).save(output)
    return quality


if __name__ == "__main__":
    main(*sys.argv[1:])
