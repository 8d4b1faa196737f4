"""`noisebook calibrate`: a backbone's curve, measured on pictures."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from noisebook.cli.options import add_device, log
from noisebook.errors import ImageError, SpecError
from noisebook.runtime.devices import usable_device

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ABOUT = (
    "Measures how well a backbone predicts at every noise level: the curve "
    "from which --bpp, --bytes and --psnr make their schedules."
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backbone", metavar="NAME|FILE|DIR")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="pictures, folders of them, or one .npz with `images` "
        "uint8 [N, H, W, C] or WebP files; about 30, like those to be coded, but not the same",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the curve to write (JSON)")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="use at most N images (default: 64)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N images")
    parser.add_argument("--crop", type=int, metavar="SIDE", help="measure on centre crops of this side")
    parser.add_argument(
        "--condition",
        action="store_true",
        help="for a CoD: measure what it predicts under the condition of its own tokens "
        "of the image; files made with the curve begin with these tokens",
    )
    parser.add_argument("--autoencoder", metavar="DIR|ENCODER:DECODER", help="for a latent CoD")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and writes a curve. Raises SpecError, ImageError or BackboneError."""
    from noisebook import backbones
    from noisebook.codec.measure import NODES, measure
    from noisebook.runtime.atomic import write_bytes

    if args.count < 1 or args.skip < 0 or (args.crop is not None and args.crop < 1):
        raise SpecError("--count and --crop must be at least 1, --skip at least 0")
    backbone = backbones.load(args.backbone, usable_device(args.device), autoencoder=args.autoencoder)
    batches = batches_of(read(args.images, args.skip, args.count, backbone.channels), args.crop)
    if not batches:
        raise ImageError("no images to measure on: give pictures, or a smaller --skip or --crop")
    small = [part for batch in batches for part in batch.split(max(1, (1 << 18) // batch[0, 0].numel()))]
    count = sum(len(batch) for batch in batches)
    log(f"measuring {backbone.name} on {count} images at {NODES} levels")
    size = f", centre crops of {args.crop}" if args.crop else ""
    about = f"{count} images from {Path(args.images[0]).name}, {args.skip} left out{size}, seed {args.seed}"
    curve = measure(backbone, small, args.seed, about=about, conditional=args.condition)
    write_bytes(args.output, curve.to_json().encode())
    result = {
        "output": str(args.output),
        "backbone": curve.backbone,
        "images": count,
        "sigma": curve.sigma,
        "mse": curve.mse,
    }
    print(json.dumps(result) if args.json else f"written: {result['output']}")
    return 0


def read(places: list[str], skip: int, count: int, channels: int) -> "list[np.ndarray]":
    """`count` images uint8 [H, W, C] after the first `skip`, from an .npz or from pictures and folders of them."""
    from noisebook.images.archive import load_npz_images
    from noisebook.images.io import find_files, read_image

    if len(places) == 1 and places[0].endswith(".npz"):
        return list(load_npz_images(places[0], skip + count))[skip:]
    return [read_image(path, channels) for path in find_files(places)[: skip + count]][skip:]


def batches_of(images: "list[np.ndarray]", crop: int | None) -> "list[Tensor]":
    """uint8 [B, C, H, W] of one size each, in order of the first image of that size; images smaller than `crop` are left
    out."""
    import numpy as np
    import torch

    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for pixels in images:
        if crop:
            if min(pixels.shape[:2]) < crop:
                continue
            top, left = ((n - crop) // 2 for n in pixels.shape[:2])
            pixels = pixels[top : top + crop, left : left + crop]
        sizes.setdefault(pixels.shape, []).append(pixels)
    return [torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2) for same in sizes.values()]
