"""`noisebook check`: whether a backbone does what noisebook takes for granted."""

import argparse

from noisebook.cli import options, precision
from noisebook.cli.calibrate import add_backbone_and_images, batches_of, centre, read
from noisebook.cli.show import log, say, say_json, shown
from noisebook.errors import BackboneError, ImageError, SpecError

ABOUT = (
    "Tries a backbone on pictures: is x0_hat finite, in range and right at every level, are rows independent, which sizes "
    "does it take, how fast is it, what memory does it take."
)
CROP = 256  # pixels of a side


def add(parser: argparse.ArgumentParser) -> None:
    add_backbone_and_images(parser, "like those that the backbone is for")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="use at most N images (default: 8)")
    parser.add_argument(
        "--crop",
        type=int,
        metavar="SIDE",
        help=f"try centre crops of at most this side (default: {CROP}, or the only size that the backbone takes)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.set_defaults(skip=0)
    options.add_conditions(parser)
    options.add_device(parser)
    precision.add_dtype(parser.add_argument_group("speed", "how the network computes"))
    options.add_limits_of_files(parser, "pixels", "rows")


def run(args: argparse.Namespace) -> int:
    """Prints the table: 0, or 6 where a check fails. Raises SpecError, ImageError, and BackboneError where there is no such
    backbone."""
    from noisebook import backbones
    from noisebook.codec.checkup import check
    from noisebook.runtime.devices import usable_device

    if args.count < 1 or (args.crop is not None and args.crop < 1):
        raise SpecError("--count and --crop must be at least 1")
    how = {"accelerated": {"dtype": args.dtype}, **options.conditions_of(args)}
    model = backbones.load(args.backbone, usable_device(args.device), **how)
    most = (args.crop, args.crop) if args.crop else model.size or (CROP, CROP)
    images = [centre(pixels, most) for pixels in read(args, model.channels)]
    if not images:
        raise ImageError("no images to check on: give pictures")
    precision.say_dtype(args, model)
    log(f"checking {model.name} on {len(images)} images of at most {most[0]} x {most[1]} pixels")
    result = check(model, batches_of(images, None), seed=args.seed)
    if args.json:
        say_json(result.as_dict())
    else:
        for line in result.lines():
            say(shown(line, 800))
        failed = sum(not row.ok for row in result.rows)
        log(f"{failed} of {len(result.rows)} checks failed" if failed else f"all {len(result.rows)} checks passed")
    return 0 if result.ok else BackboneError.code
