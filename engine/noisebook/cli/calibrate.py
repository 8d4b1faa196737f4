"""The command `noisebook calibrate`: which images a backbone's curve is measured on."""

import argparse
from pathlib import Path
from typing import Any

from noisebook.cli.options import device, log
from noisebook.errors import ImageError, SpecError


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of `noisebook calibrate`."""
    sub.add_argument("backbone", metavar="NAME|FILE|DIR")
    sub.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="pictures, folders of them, or one .npz with `images` "
        "uint8 [N, H, W, C] or WebP files; some 30, like those to be coded, not the same",
    )
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the curve to write (JSON)")
    sub.add_argument("--count", type=int, default=64, help="use so many images at most (default: 64)")
    sub.add_argument("--skip", type=int, default=0, help="leave out the first so many")
    sub.add_argument("--crop", type=int, help="measure on centre crops of this side")
    sub.add_argument(
        "--condition",
        action="store_true",
        help="of a CoD: measure what it predicts when told its own tokens "
        "of the image; files made with the curve begin with these",
    )
    sub.add_argument("--autoencoder", metavar="DIR|ENCODER:DECODER", help="of a latent CoD")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and writes a curve; returns what to print. Raises SpecError, ImageError or BackboneError."""
    import numpy as np
    import torch

    from noisebook import backbones
    from noisebook.codec.measure import NODES, measure
    from noisebook.images.archive import load_npz_images
    from noisebook.images.io import find_files, read_image
    from noisebook.runtime.atomic import write_bytes

    if args.count < 1 or args.skip < 0 or (args.crop is not None and args.crop < 1):
        raise SpecError("--count and --crop must be at least 1, --skip at least 0")
    backbone = backbones.load(args.backbone, device(args.device), autoencoder=args.autoencoder)
    wanted = args.skip + args.count
    if len(args.images) == 1 and args.images[0].endswith(".npz"):
        found = list(load_npz_images(args.images[0], wanted))
    else:
        found = [read_image(path, backbone.channels) for path in find_files(args.images)[:wanted]]
    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for pixels in found[args.skip :]:
        if args.crop and min(pixels.shape[:2]) >= args.crop:
            top, left = ((n - args.crop) // 2 for n in pixels.shape[:2])
            pixels = pixels[top : top + args.crop, left : left + args.crop]
        elif args.crop:
            continue
        sizes.setdefault(pixels.shape, []).append(pixels)
    if not sizes:
        raise ImageError("no images to measure on: give pictures, or a smaller --skip or --crop")
    batches = [torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for some in sizes.values()]
    small = [part for batch in batches for part in batch.split(max(1, (1 << 18) // batch[0, 0].numel()))]
    count = sum(len(batch) for batch in batches)
    log(f"measuring {backbone.name} on {count} images at {NODES} levels")
    size = f", centre crops of {args.crop}" if args.crop else ""
    about = f"{count} images from {Path(args.images[0]).name}, {args.skip} left out{size}, seed {args.seed}"
    curve = measure(backbone, small, args.seed, about=about, conditional=args.condition)
    write_bytes(args.output, curve.to_json().encode())
    return {"output": str(args.output), "backbone": curve.backbone, "images": count, "sigma": curve.sigma, "mse": curve.mse}
