"""The command `noisebook train`: which network, which objective, which images; the loop is in `loop.py`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.errors import TrainingError, first_line

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from noisebook.backbones.nets.convnet import PriorDenoiser
    from noisebook.training.loop import TrainingSettings
    from noisebook.training.objectives import Objective

ABOUT = {
    "edm": "a denoiser (Karras et al. 2022)",
    "flow": "a rectified flow",
    "consistency": "a consistency model, tuned from --init (easy consistency tuning)",
    "reflow": "a flow made straighter on pairs that --init makes",
    "cod": "CoD: a flow told a condition of few tokens, which it learns at once",
}


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of `noisebook train`."""
    sub.add_argument("objective", choices=ABOUT, help="; ".join(f"{name}: {about}" for name, about in ABOUT.items()))
    sub.add_argument("data", help="an .npz with `images` uint8 [N, H, W, C], or WebP files in `webp` and `offsets`")
    sub.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run; the same command again resumes it",
    )
    sub.add_argument("--minutes", type=float, default=60.0, help="of training time, over all resumed parts (default: 60)")
    sub.add_argument("--init", metavar="NAME|FILE", help="start from the network of this checkpoint")
    sub.add_argument(
        "--network",
        choices=("conv", "unet"),
        default="conv",
        help="without --init: the plain network of `photo`, or diffusers' UNet2DModel (default: conv)",
    )
    sub.add_argument("--widths", type=int, nargs="+", help="channels of each level of the network")
    sub.add_argument("--blocks", type=int, help="residual blocks a level")
    sub.add_argument("--patch", type=int, help="pixels that a network's input gathers, on each axis")
    sub.add_argument(
        "--stride",
        type=int,
        choices=(4, 8, 16, 32),
        default=8,
        help="cod: pixels of a condition token, on each axis (default: 8)",
    )
    sub.add_argument("--bits", type=int, default=8, help="cod: of a condition token (default: 8)")
    sub.add_argument(
        "--share",
        type=float,
        default=0.75,
        help="cod: share of images at a random time; the others are at pure noise, where one step must do (default: .75)",
    )
    sub.add_argument(
        "--dropped",
        type=float,
        default=0.1,
        help="cod: share of images that the network is told nothing of; 1: a model without a condition (default: .1)",
    )
    sub.add_argument(
        "--autoencoder",
        metavar="DIR|ENCODER:DECODER",
        help="cod: train on the latents of this one, of 8 x 8 "
        "pixels: a folder in diffusers layout, or a pair of TAESD files",
    )
    sub.add_argument("--latents", type=int, default=4, help="cod: channels of the autoencoder's latents (default: 4)")
    sub.add_argument(
        "--align",
        type=Path,
        metavar="FILE",
        help="cod: TorchScript network, images [B, 3, H, W] in "
        "[-1, 1] -> features [B, C, h, w], that the condition and an early block are led to",
    )
    sub.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[64, 128],
        help="sides of the crops, in turn (default: 64 128); the size of the images themselves fits a prior to them",
    )
    sub.add_argument("--pixels", type=int, default=3 << 14, help="pixels in a batch (default: %(default)s)")
    sub.add_argument("--learning-rate", type=float, default=5e-4, help="at its height (default: %(default)s)")
    sub.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: of the convolutions that keep their width; fewer steps, each a little slower (default: adamw)",
    )
    sub.add_argument(
        "--level",
        type=float,
        nargs=2,
        metavar=("MEAN", "SPREAD"),
        help="edm, consistency: mean and deviation of the trained ln sigma",
    )
    sub.add_argument("--pairs", type=int, default=4096, help="reflow: pairs of noise and image (default: %(default)s)")
    sub.add_argument("--held-out", type=int, default=64, help="last images that are never trained on (default: 64)")
    sub.add_argument("--save-every", type=float, default=5.0, metavar="MINUTES", help="(default: 5)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="in which the network computes while it is trained; "
        "weights stay float32 (default: bfloat16 on CUDA, else float32)",
    )
    sub.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains as the options say; returns the checkpoint's path and the last line of the log.

    Raises TrainingError, BackboneError or ImageError.
    """
    from noisebook.backbones.checkpoint import write_checkpoint
    from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
    from noisebook.images.archive import load_npz_images
    from noisebook.training.loop import train

    if args.objective in ("consistency", "reflow") and not args.init:
        raise TrainingError(f"{args.objective} starts from a trained network: give --init")
    if args.minutes <= 0 or args.pixels < 1 or args.learning_rate <= 0 or args.pairs < 1 or args.held_out < 1:
        raise TrainingError("--minutes, --pixels, --learning-rate, --pairs and --held-out must be above 0")
    images = load_npz_images(args.data)
    if len(images) <= args.held_out:
        raise TrainingError(f"{len(images)} images are too few: the last {args.held_out} are held out, see --held-out")
    if args.objective == "cod":
        return _train_cod(args, images)
    start = _loaded(args.init) if args.init else _fresh(args, images)
    kind = "convnet" if isinstance(start, ConvDenoiser) else "unet"
    if any(size < 1 or size % start.multiple for size in args.sizes):
        raise TrainingError(f"this network takes crops whose sides are multiples of {start.multiple}, not {args.sizes}")
    if any(image.shape[2] != start.channels for image in images):
        raise TrainingError(f"this network takes images of {start.channels} channels; some in {args.data} have others")
    if start.prior.size is not None and args.sizes != [start.prior.size[0]]:
        raise TrainingError(f"this network takes images of {start.prior.size}: --sizes {start.prior.size[0]}")

    def new_model() -> "PriorDenoiser":
        model = type(start)(start.prior, **start.config)
        model.load_state_dict(start.state_dict())
        return model

    def write(model: "nn.Module", path: Path) -> None:
        assert isinstance(model, type(start))
        write_checkpoint(path, kind, model.config, checkpoint_tensors(model))

    objective = _objective(args, start)
    log = train(new_model, objective, images, args.output, write, _settings(args), args.device, args.save_every)
    return {"output": str(args.output / "model.safetensors"), "device": args.device, **log[-1]}


def _train_cod(args: argparse.Namespace, images: "list[np.ndarray]") -> dict[str, Any]:
    """A CoD from nothing; see `run`."""
    from noisebook.backbones.checkpoint import write_checkpoint
    from noisebook.backbones.cod.nets import CodConfig
    from noisebook.training import cod
    from noisebook.training.loop import train

    hidden, width = (*(args.widths or ()), *(192, 64)[len(args.widths or ()) :])[:2]
    blocks, cell = args.blocks or 8, args.patch or (16 if args.autoencoder else 4)
    if args.init or args.network != "conv" or args.level:
        raise TrainingError("cod begins with a network of its own: without --init, --network and --level")
    shares = 0 <= args.share <= 1 and 0 <= args.dropped <= 1
    if hidden % 64 or width % 32 or blocks < 3 or not 1 <= args.bits <= 16 or not shares:
        raise TrainingError(
            "cod takes --widths HIDDEN WIDTH (multiples of 64 and 32), --blocks from 3, --bits from 1 to "
            "16, --share and --dropped from 0 to 1"
        )
    if any(image.shape[2] != 3 for image in images):
        raise TrainingError(f"cod takes images of 3 channels; some in {args.data} have others")
    latent = _latents(args, images) if args.autoencoder else {}
    autoencoder = latent.pop("autoencoder", None)
    config = CodConfig(
        **latent,
        hidden=hidden,
        heads=hidden // 64,
        blocks=blocks,
        cond_blocks=blocks - 2,
        hidden_x=64 if latent else 32,
        ds=args.stride,
        bits=args.bits,
        width=width,
        cell=cell,
    )
    model = cod.CodModel(config, 0, autoencoder)  # raises BackboneError where stride and patch do not go together
    if any(size < 1 or size % model.multiple for size in args.sizes):
        raise TrainingError(f"this network takes crops whose sides are multiples of {model.multiple}, not {args.sizes}")
    extractor, features = cod.read_extractor(args.align, args.device, args.sizes[-1]) if args.align else (None, 0)

    def write(average: "nn.Module", path: Path) -> None:
        write_checkpoint(path, "cod", *cod.tensors_of(average))

    def new_model() -> cod.CodModel:
        return cod.CodModel(config, features, autoencoder)

    objective = cod.cod(args.share, args.dropped, extractor=extractor)
    log = train(new_model, objective, images, args.output, write, _settings(args), args.device, args.save_every)
    return {"output": str(args.output / "model.safetensors"), "device": args.device, **log[-1]}


def _latents(args: argparse.Namespace, images: "list[np.ndarray]") -> dict[str, Any]:
    """What a latent CoD's config has of its autoencoder, and that itself: latents are scaled to a root mean square of 1."""
    import numpy as np
    import torch

    from noisebook.backbones.cod.cod import read_autoencoder
    from noisebook.training.data import Crops

    if any(size % 8 for size in args.sizes) or (args.patch or 16) % 8:
        raise TrainingError("a latent is 8 x 8 pixels: --sizes and --patch are multiples of 8")
    module, _ = read_autoencoder(args.autoencoder, args.latents)
    module = module.to(args.device).eval().requires_grad_(False)
    crops = Crops(images[: -args.held_out]).sample(64, args.sizes[-1], np.random.default_rng(args.seed))
    with torch.no_grad():
        power = float(module.encode(crops.to(args.device)).square().mean())
    return {"latent": True, "latents": args.latents, "scale": power**-0.5, "autoencoder": module}


def _settings(args: argparse.Namespace) -> "TrainingSettings":
    from noisebook.training.loop import TrainingSettings

    dtype = args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")
    return TrainingSettings(
        minutes=args.minutes,
        sizes=tuple(args.sizes),
        pixels=args.pixels,
        learning_rate=args.learning_rate,
        optimizer=args.optimizer,
        dtype=dtype,
        seed=args.seed,
        held_out=args.held_out,
        recipe=_recipe(args),
    )


def _recipe(args: argparse.Namespace) -> str:
    """What else of the options must be the same when a run is resumed."""
    names = ["objective", "init", "network", "widths", "blocks", "patch", "level", "pairs"]
    if args.objective == "cod":
        names += ["stride", "bits", "share", "dropped", *(["align"] if args.align else [])]
        names += ["autoencoder", "latents"] if args.autoencoder else []
    return " ".join(f"{name}={getattr(args, name)}" for name in names)


def _loaded(name: str) -> "PriorDenoiser":
    from noisebook import backbones
    from noisebook.backbones.nets.convnet import PriorBackbone
    from noisebook.backbones.wrappers.reparameterised import unviewed
    from noisebook.backbones.wrappers.tiled import Tiled

    backbone = backbones.load(name)
    backbone = unviewed(backbone.inner if isinstance(backbone, Tiled) else backbone)
    if not isinstance(backbone, PriorBackbone):
        raise TrainingError(f"{name!r} is no network that noisebook trained: only such a one is tuned")
    return backbone.net


def _fresh(args: argparse.Namespace, images: "list[np.ndarray]") -> "PriorDenoiser":
    """A new network around a Gaussian prior: one fitted to the images where the crops are the images, else photographs'."""
    import numpy as np

    from noisebook import backbones
    from noisebook.backbones.nets.convnet import ConvDenoiser
    from noisebook.backbones.nets.gaussian import DCTPrior, SpectrumPrior, fit_dct

    if {image.shape[:2] for image in images} == {(args.sizes[-1], args.sizes[-1])}:
        prior = DCTPrior(**fit_dct(np.stack(images[: -args.held_out]))[1])
    else:
        prior = backbones.load("gaussian-prior")
        assert isinstance(prior, SpectrumPrior)
    options = {name: getattr(args, name) for name in ("widths", "blocks", "patch") if getattr(args, name) is not None}
    if args.network == "conv":
        return ConvDenoiser(prior, **options)
    from noisebook.backbones.nets.unet import UNetDenoiser

    try:
        return UNetDenoiser(prior, **options)
    except ValueError as error:
        raise TrainingError(f"no UNet2DModel of these widths: {first_line(error)}") from error


def _objective(args: argparse.Namespace, start: "PriorDenoiser") -> "Objective":
    from noisebook.training import objectives
    from noisebook.training.reflow import pairs

    level = tuple(args.level) if args.level else ()
    if args.objective == "edm":
        return objectives.edm(*level)
    if args.objective == "consistency":
        return objectives.consistency(*level)
    if args.objective == "flow":
        return objectives.flow()
    shape, path = (start.channels, args.sizes[-1], args.sizes[-1]), args.output / "pairs.safetensors"
    return objectives.flow(pairs(start.to(args.device).eval(), shape, args.pairs, 12, path, args.device, args.seed))
