"""Super-resolution: tokens chosen so that the picture, made small, is the small picture that was given.

    python examples/restore.py SMALL large.png

SMALL is made twice as large. No network is trained for it: `modes.restore` takes at each step the codeword that explains
best what was observed. Any linear loss works: docs/modes.md. Keep SMALL small, each step tries every codeword.
"""

import sys

import torch
from PIL import Image

import noisebook
from noisebook.codec import modes
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image


def main(small: str, output: str, factor: int = 2, steps: int = 100, vocab_size: int = 1024, backbone="photo-2") -> float:
    """Returns the root mean squared difference, in levels of 255, of the given picture and the result made small."""
    recipe = {"steps": steps, "vocab_size": vocab_size, "budget": 1, "budget_last": 1, "scale_pixels": 0, "start_budget": 0}
    codec = noisebook.load("photo", backbone=backbone, **recipe)  # one token at each step

    observed = torch.from_numpy(read_image(small)).permute(2, 0, 1)[None] / 127.5 - 1  # float32 [1, 3, h, w]
    size = (factor * observed.shape[2], factor * observed.shape[3])
    shrink = modes.downsample(factor)  # means of factor x factor pixels
    tokens, images = modes.restore(codec, observed, shrink, size)

    error = float((shrink(images) - observed).square().mean().sqrt()) * 127.5
    print(f"{tokens.shape[1]} tokens; made small again it differs by {error:.1f} levels (root mean square)")
    Image.fromarray(pixels_of(images[0])).save(output)
    return error


if __name__ == "__main__":
    main(*sys.argv[1:])
