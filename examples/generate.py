"""Pictures from random tokens: the codec as a sampler. 25 of them, by the CIFAR-10 network that comes with the package.

    python examples/generate.py samples.png

Every token is drawn uniformly, so a picture is a short list of integers, which decodes to the same picture again.
"""

import sys

import torch
from PIL import Image

import noisebook
from noisebook.codec import modes
from noisebook.images.files import pixels_of


def main(output: str, side: int = 5, size: tuple[int, int] = (32, 32), backbone="cifar10-edm", **options) -> torch.Tensor:
    """Writes side x side pictures; returns their tokens [side * side, L]."""
    recipe = {"steps": 100, "budget": 1, "budget_last": 1, "vocab_size": 1024, "sigma_max": 80.0, "sigma_min": 0.02}
    recipe |= {"scale_pixels": 0, "start_budget": 0, **options}
    codec = noisebook.load("photo", backbone=backbone, **recipe)

    tokens, images = modes.generate(codec, side * side, size, seed=1)
    print(f"{tokens.shape[1]} tokens for each picture, {codec.layout_for(*size).bits:.0f} bits")
    assert torch.equal(codec.decode(tokens, size), images)

    pixels = pixels_of(images)  # uint8 [N, H, W, C]
    rows = [torch.from_numpy(pixels[i : i + side]).permute(1, 0, 2, 3).flatten(1, 2) for i in range(0, side * side, side)]
    Image.fromarray(torch.cat(rows).numpy()).save(output)
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
