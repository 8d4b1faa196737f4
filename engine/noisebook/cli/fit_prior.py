"""`noisebook fit-prior`: a Gaussian image model, fitted to images in closed form."""

import argparse
from pathlib import Path

from noisebook.cli import options
from noisebook.cli.inputs import refuse_unreadable
from noisebook.cli.outputs import refuse_existing
from noisebook.cli.show import say, say_json
from noisebook.errors import ImageError

ABOUT = "Fits a Gaussian image model to images in closed form: a backbone without a network."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "form",
        choices=("pca", "dct", "spectrum"),
        help="pca: full covariance, one size; dct: diagonal in a DCT, one size; spectrum: stationary, any size",
    )
    parser.add_argument("data", metavar="NPZ", help="an .npz with `images` uint8 [N, H, W, C], or `webp` and `offsets`")
    parser.add_argument(
        "-o", "--output", required=True, type=options.path_of, metavar="FILE", help="the .safetensors file to write"
    )
    parser.add_argument("--count", type=int, metavar="N", help="fit to the first N images")
    options.add_force(parser)
    options.add_limits_of_files(parser, "pixels", "rows")


def run(args: argparse.Namespace) -> int:
    """Fits and writes. Raises ImageError where the images do not suit the form."""
    import numpy as np

    from noisebook.backbones.checkpoint import write_checkpoint
    from noisebook.backbones.nets import gaussian
    from noisebook.images.archive import load_npz_images

    refuse_existing([args.output], args.force, [args.data])
    refuse_unreadable(Path(args.data), ImageError)
    images = load_npz_images(args.data, args.count, options.limits_of(args))
    if args.form == "spectrum":
        config, tensors = gaussian.fit_spectrum(images)
    else:
        config, tensors = (gaussian.fit_pca if args.form == "pca" else gaussian.fit_dct)(np.stack(images))
    write_checkpoint(args.output, f"{args.form}-prior", config, tensors, args.force)
    if args.json:
        say_json({"output": str(args.output), "images": len(images)})
    else:
        say(f"written: {args.output}")
    return 0
