"""`noisebook train`: a small denoiser on images of your own. The work is in noisebook.training."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from noisebook.cli.inputs import refuse_unreadable
from noisebook.cli.options import add_limits_of_files, limits_of, path_of
from noisebook.cli.show import say, say_json
from noisebook.errors import ImageError
from noisebook.training.job import CHOICES, OBJECTIVES, TrainingJob

ABOUT = "Trains a small denoiser on images of your own, within a budget of minutes."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "objective", choices=CHOICES["objective"], help="; ".join(f"{name}: {about}" for name, about in OBJECTIVES.items())
    )
    parser.add_argument("data", help="an .npz with `images` uint8 [N, H, W, C], or WebP files in `webp` and `offsets`")
    parser.add_argument(
        "-o",
        "--output",
        type=path_of,
        required=True,
        metavar="DIR",
        help="folder of the run; the same command again resumes it",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=TrainingJob.minutes,
        help="of training time, over all resumed parts (default: %(default)g)",
    )
    parser.add_argument("--pixels", type=int, default=TrainingJob.pixels, help="pixels in a batch (default: %(default)s)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        help="sides of the crops, in turn (default: 64 128; realism: 128); the size of the images fits a prior to them",
    )
    parser.add_argument(
        "--random-sizes",
        action="store_true",
        help="each batch draws its side between the least and the largest of --sizes, in place of one after the other",
    )
    parser.add_argument("--shrink", action="store_true", help="half of the batches see the images at 1/2 to 1 of their size")
    parser.add_argument("--compile", action="store_true", help="run the network through torch.compile: for a GPU")
    parser.add_argument(
        "--learning-rate", type=float, default=TrainingJob.learning_rate, help="at its height (default: %(default)s)"
    )
    parser.add_argument(
        "--optimizer",
        choices=CHOICES["optimizer"],
        default=TrainingJob.optimizer,
        help="muon: for the convolutions that keep their width; fewer steps, each a little slower (default: %(default)s)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=TrainingJob.held_out,
        help="last images that are never trained on (default: %(default)s)",
    )
    parser.add_argument(
        "--save-every",
        type=float,
        default=TrainingJob.save_every,
        metavar="MINUTES",
        help="how often what resumes the run is written (default: %(default)g)",
    )
    parser.add_argument("--device", default=TrainingJob.device, help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=CHOICES["dtype"],
        help="the type in which the network computes while it is trained; weights stay float32 "
        "(default: bfloat16 on CUDA, else float32)",
    )
    parser.add_argument(
        "--seed", type=int, default=TrainingJob.seed, help="of weights, batches and noise (default: %(default)s)"
    )
    _add_network(parser)
    _add_realism(parser)
    _add_cod(parser)
    add_limits_of_files(parser, "pixels", "rows")


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network", "what is trained; an objective takes some of these")
    group.add_argument("--init", metavar="NAME|FILE", help="start from the network of this checkpoint")
    group.add_argument(
        "--network",
        choices=CHOICES["network"],
        default=TrainingJob.network,
        help="without --init: the plain network of `photo`, or diffusers' UNet2DModel (default: %(default)s)",
    )
    group.add_argument("--widths", type=int, nargs="+", help="channels of each level of the network")
    group.add_argument("--blocks", type=int, help="residual blocks per level")
    group.add_argument("--patch", type=int, help="pixels on each axis that an input of the network gathers")
    group.add_argument(
        "--level",
        type=float,
        nargs=2,
        metavar=("MEAN", "SPREAD"),
        help="edm, consistency: mean and deviation of the trained ln sigma",
    )
    group.add_argument(
        "--pairs",
        type=int,
        help="reflow: pairs of noise and image; realism: decodes, made before the training (default: 4096; realism: 3000)",
    )


def _add_realism(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("realism", "what only the objective realism takes")
    group.add_argument(
        "--features",
        metavar="FILE",
        help="the trained network whose first blocks say how far two pictures are apart: torchvision's VGG16, "
        ".pth or .safetensors; nothing in it is run",
    )
    group.add_argument(
        "--curve", metavar="FILE", help="what `noisebook calibrate` wrote of --init; shipped backbones have one"
    )
    group.add_argument(
        "--error",
        type=float,
        default=TrainingJob.error,
        help="weight of the squared error beside the distance of features: more stays nearer to the mean (default: "
        "%(default)g)",
    )
    group.add_argument(
        "--adversarial",
        type=float,
        default=TrainingJob.adversarial,
        help="weight of what a small discriminator says, which is trained beside the network (default: %(default)g)",
    )


def _add_cod(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cod", "what only the objective cod takes")
    group.add_argument(
        "--stride",
        type=int,
        choices=CHOICES["stride"],
        default=TrainingJob.stride,
        help="pixels of a condition token, on each axis (default: %(default)s)",
    )
    group.add_argument("--bits", type=int, default=TrainingJob.bits, help="of a condition token (default: %(default)s)")
    group.add_argument(
        "--share",
        type=float,
        default=TrainingJob.share,
        help="share of images at a random time; the others are at pure noise, where one step must do (default: %(default)s)",
    )
    group.add_argument(
        "--dropped",
        type=float,
        default=TrainingJob.dropped,
        help="share of images without a condition; 1: a model that has none (default: %(default)s)",
    )
    group.add_argument(
        "--autoencoder",
        metavar="DIR|ENCODER:DECODER",
        help="train on the latents of this one, of 8 x 8 pixels: a folder in diffusers layout, or a pair of TAESD files",
    )
    group.add_argument(
        "--latents",
        type=int,
        default=TrainingJob.latents,
        help="channels of the autoencoder's latents (default: %(default)s)",
    )
    group.add_argument(
        "--align",
        type=Path,
        metavar="FILE",
        help="a TorchScript network, images [B, 3, H, W] in [-1, 1] -> features [B, C, h, w]: the condition and an early "
        "block learn to predict them. The code in the file is run: give only a file that you trust",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on. Raises what `run_training` raises."""
    job = TrainingJob(**{field.name: _plain(getattr(args, field.name)) for field in fields(TrainingJob)})
    refuse_unreadable(Path(args.data), ImageError)
    from noisebook.training.run import run_training

    result = run_training(job, limits_of(args))
    if args.json:
        say_json(result)
    else:
        say(f"written: {result['output']}")
    return 0


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
