"""A GIF of a picture that becomes sharper: each frame is decoded from the tokens of one step more.

    python examples/progressive_gif.py PICTURE progress.gif

The beginning of the tokens is a coarser picture by itself; what comes later refines it.
"""

import sys

import torch
from PIL import Image

import noisebook
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image


def main(picture: str, output: str, preset: str = "photo", milliseconds: int = 250, **options) -> list[int]:
    """Returns how many tokens each frame was decoded from."""
    codec = noisebook.load(preset, **options)
    pixels = read_image(picture)
    size = pixels.shape[:2]
    tokens = codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    step_of = codec.layout_for(*size).step_index  # int64 [L]

    frames, counts = [], []
    for steps in range(1, len(codec.spec.schedule) + 1):
        known = tokens[:, step_of < steps]  # a decoder needs no others
        frames.append(Image.fromarray(pixels_of(codec.decode(known, size, steps=steps)[0])))
        counts.append(known.shape[1])
    times = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=times, loop=0)
    print(f"{len(frames)} frames, of {counts[0]} to {counts[-1]} tokens")
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
