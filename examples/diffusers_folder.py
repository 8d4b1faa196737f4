"""A model of the library diffusers under the codec, from a folder on disk.

    python examples/diffusers_folder.py FOLDER PICTURE decoded.png

FOLDER is what `pipeline.save_pretrained(FOLDER)` wrote: a pipeline with its model_index.json. Needs the extra `diffusers`,
for prompts `text`. docs/backbones.md says which pipelines are read.
"""

import sys

import torch
from PIL import Image

import noisebook
from noisebook import backbones
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image


def main(folder: str, picture: str, output: str, prompt: str | None = None, **options) -> torch.Tensor:
    """Returns the tokens, int64 [1, L]."""
    conditions = {} if prompt is None else {"prompt": prompt}  # it enters the fingerprint: a decoder needs the same
    backbone = backbones.load(folder, **conditions)
    print(f"{backbone.name}: {backbone.channels} channels, fingerprint {backbone.fingerprint[:16]}")

    # 25 levels of noise, and 16 to 256 tokens at each: a model without a measured curve is given them
    recipe = {"steps": 24, "budget": 16, "budget_last": 256, "scale_pixels": 0, "start_budget": 0, **options}
    codec = noisebook.load("photo", backbone=backbone, **recipe)
    images = torch.from_numpy(read_image(picture, backbone.channels)).permute(2, 0, 1)[None]
    tokens = codec.encode(images)  # int64 [1, L]
    decoded = codec.decode(tokens, (images.shape[2], images.shape[3]))
    print(f"{tokens.shape[1]} tokens, mean squared error {(decoded - images / 127.5 + 1).square().mean():.4f} in [-1, 1]")
    Image.fromarray(pixels_of(decoded[0]).squeeze()).save(output)
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
