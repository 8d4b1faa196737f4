"""`noisebook calibrate`: a backbone's curve, measured on pictures."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from noisebook.cli.inputs import files_of, refuse_unreadable
from noisebook.cli.options import (
    BACKBONE,
    add_conditions,
    add_device,
    add_force,
    add_limits_of_files,
    conditions_of,
    limits_of,
    path_of,
)
from noisebook.cli.outputs import refuse_existing
from noisebook.cli.pictures import read_and_say
from noisebook.cli.show import log, say, say_json
from noisebook.errors import ImageError, SpecError
from noisebook.runtime.devices import usable_device

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from noisebook.backbones import Backbone
    from noisebook.spec.curve import Curve

ABOUT = (
    "Measures how well a backbone predicts at every noise level: the curve "
    "from which --bpp, --bytes and --psnr make their schedules."
)

MOST_BYTES = 1 << 22  # of a file that may be a curve: one that `calibrate` writes has a few KiB


def add_backbone_and_images(parser: argparse.ArgumentParser, like: str) -> None:
    """The positional arguments BACKBONE and IMAGE; `read` takes the second. `like`: which images are asked for."""
    parser.add_argument("backbone", metavar="BACKBONE", help=f"{BACKBONE}, as --backbone of the other commands")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help=f"pictures, folders of them, or one .npz with `images` uint8 [N, H, W, C] or WebP files; {like}",
    )


def add(parser: argparse.ArgumentParser) -> None:
    add_backbone_and_images(parser, "about 30, like those to be coded, but not the same")
    parser.add_argument("-o", "--output", type=path_of, required=True, metavar="FILE", help="the curve to write (JSON)")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="use at most N images (default: 64)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N images")
    parser.add_argument("--crop", type=int, metavar="SIDE", help="measure on centre crops of this side")
    parser.add_argument(
        "--condition",
        action="store_true",
        help="for a CoD: measure what it predicts under the condition of its own tokens "
        "of the image; files made with the curve begin with these tokens",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    add_conditions(parser)
    add_device(parser)
    add_force(parser)
    add_limits_of_files(parser, "pixels", "rows")


def run(args: argparse.Namespace) -> int:
    """Measures and writes a curve; one that is there and was measured in the same way stays. Raises SpecError, ImageError,
    BackboneError, or NoisebookError where another file is there."""
    from noisebook import backbones
    from noisebook.codec.measure import NODES, measure
    from noisebook.runtime.atomic import refuse_special, write_bytes

    if args.count < 1 or args.skip < 0 or (args.crop is not None and args.crop < 1):
        raise SpecError("--count and --crop must be at least 1, --skip at least 0")
    refuse_special(args.output)
    if args.force:
        refuse_existing([args.output], True, [args.backbone, *args.images])
    backbone = backbones.load(args.backbone, usable_device(args.device), **conditions_of(args))
    batches = batches_of(read(args, backbone.channels), args.crop)
    if not batches:
        raise ImageError("no images to measure on: give pictures, or a smaller --skip or --crop")
    small = [part for batch in batches for part in batch.split(max(1, (1 << 18) // batch[0, 0].numel()))]
    count = sum(len(batch) for batch in batches)
    size = f", centre crops of {args.crop}" if args.crop else ""
    what = f"{args.skip} left out{size}, seed {args.seed}"
    digest = digest_of(batches, args)
    about = f"{count} images from {Path(args.images[0]).name}, {what}, sha256 {digest}"
    curve = None if args.force else measured_before(args, backbone, digest)
    if curve is None:
        log(f"measuring {backbone.name} on {count} images at {NODES} levels")
        curve = measure(backbone, small, args.seed, about=about, conditional=args.condition)
        write_bytes(args.output, curve.to_json().encode(), replace=args.force)
        said = "written"
    else:
        said = "there already, measured on the same images with the same options"
    values = {"backbone": curve.backbone, "images": count, "sigma": curve.sigma, "mse": curve.mse}
    if args.json:
        say_json({"output": str(args.output), **values})
    else:
        say(f"{said}: {args.output}")
    return 0


def digest_of(batches: "list[Tensor]", args: argparse.Namespace) -> str:
    """16 hex digits of the images as they are measured, and of the options that the curve depends on; how they are computed
    (--device) is none of these."""
    digest = hashlib.sha256(json.dumps([args.seed, args.condition]).encode())
    for batch in batches:
        digest.update(json.dumps(list(batch.shape)).encode())
        for image in batch:
            digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def measured_before(args: argparse.Namespace, backbone: "Backbone", digest: str) -> "Curve | None":
    """The curve that is there, of this backbone, images and options; None where nothing is there. Raises NoisebookError
    where it is anything else."""
    from noisebook.spec.curve import Curve

    try:
        with open(args.output, "rb") as f:
            curve = Curve.from_json(f.read(MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):  # SpecError is a ValueError: no curve is there
        curve = None
    if curve is None or not curve.about.endswith(f", sha256 {digest}") or not backbone.answers_to(curve.fingerprint):
        refuse_existing([args.output], args.force)
    return curve


def read(args: argparse.Namespace, channels: int) -> "list[np.ndarray]":
    """`count` images uint8 [H, W, C] after the first `skip`, from an .npz or from pictures and folders of them."""
    from noisebook.images.archive import load_npz_images
    from noisebook.images.io import SUFFIXES

    places, end, limits = args.images, args.skip + args.count, limits_of(args)
    if len(places) == 1 and places[0].endswith(".npz"):
        refuse_unreadable(Path(places[0]), ImageError)
        return list(load_npz_images(places[0], end, limits))[args.skip :]
    images = []
    for path in files_of(places, SUFFIXES)[args.skip : end]:
        refuse_unreadable(path, ImageError)
        images.append(read_and_say(path, channels, limits))
    return images


def centre(pixels: "np.ndarray", most: tuple[int, int]) -> "np.ndarray":
    """The middle of pixels [H, W, C], at most (height, width)."""
    height, width = (min(n, side) for n, side in zip(pixels.shape[:2], most, strict=True))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


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
            pixels = centre(pixels, (crop, crop))
        sizes.setdefault(pixels.shape, []).append(pixels)
    return [torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2) for same in sizes.values()]
