"""Options of the command line that several commands share, and what they make: a codec, or an encoder with a target."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.errors import ImageError, SpecError, first_line

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec.codec import Codec
    from noisebook.images.targets import Aim

KNOBS = {
    "steps": "steps of the schedule",
    "spacing": "spacing of the levels: log, karras, ddpm, flow, turbo or diffc",
    "sigma_max": "first noise-to-signal level",
    "sigma_min": "last noise-to-signal level",
    "p": "share of the de-noised log-distance that is kept: 0.5 = DDPM posterior (DDCM), 0 = gDDCM's fixed point",
    "rho": "p = 0 only: share of the noise kept each step (default 1 - 2/steps)",
    "budget": "what a block spends at the first step: bins of a token each, or by the rule atoms or bits",
    "budget_last": "what a block spends at the last step (default: as at the first)",
    "scale_pixels": "budgets are for images of that many pixels and scale with the size; 0 = exact",
    "tokens": "tokens of an image of scale-pixels, spent as the backbone's curve says, as in the presets; "
    "0: as --budget says",
    "codebook": "hadamard or independent",
    "vocab_size": "number of values of a token: an atom and its sign",
    "seed": "seed of the codebooks",
    "start_budget": "tokens of the codebook start; 0 = a fixed draw",
    "start_vocab_size": "number of values of a token of the start",
    "rows": "blocks down the image, each with tokens of its own",
    "columns": "blocks across the image",
    "solver": "from the last level to the image: mean (best PSNR), euler, heun or ab2 (probability-flow ODE)",
    "solver_steps": "steps of the ODE solver",
    "rule": "how tokens are chosen: bins, top (Turbo-DDCM), pursuit (DDCM) or poisson (DiffC)",
    "coefficient_bits": "rule pursuit: bits of the coefficient of each atom after the first",
    "condition": "the backbone's own tokens (CoD): none; first, before the others, which are told them; or only: the image "
    "is drawn from them in --steps steps",
    "free_steps": "so many of the last steps carry no tokens (Turbo-DDCM)",
}


CONDITIONS = {
    "prompt": (str, "text for a model that reads text (default: empty)"),
    "negative_prompt": (str, "text that guidance leads away from (default: empty)"),
    "guidance": (
        float,
        "weight of the prompt, class or condition against none; 1 = none, one network call (default: 1); of "
        "a CoD, that of an ODE solver, which a decoder chooses anew",
    ),
    "label": (int, "class, for a class-conditional model"),
    "autoencoder": (str, "of a latent CoD: a folder in diffusers layout, or ENCODER:DECODER of TAESD"),
}
SPEED = ("dtype", "channels_last", "compile", "graphs")  # options of `noisebook.load` that change no file's meaning


def log(message: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk: the exit code still tells
        print(message, file=sys.stderr, flush=True)


def add_codec_options(sub: argparse.ArgumentParser) -> None:
    from noisebook.spec.presets import DEFAULT, Recipe

    group = sub.add_argument_group("codec", "a preset, and every number of its recipe")
    group.add_argument("--preset", help=f"codec by name (default: {DEFAULT}); see `noisebook backbones`")
    group.add_argument(
        "--backbone",
        metavar="NAME|FILE|DIR",
        help="another denoiser: a shipped name, a .safetensors "
        "file of noisebook's, a diffusers folder, or a hub's OWNER/NAME",
    )
    for field in fields(Recipe):
        if field.name in KNOBS:
            assert field.default is not MISSING
            kind = float if field.default is None or field.name == "budget" else type(field.default)
            group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=KNOBS[field.name])
    group = sub.add_argument_group("conditions", "for backbones that take one; a file decodes under the same alone")
    for name, (kind, about) in CONDITIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=about)
    group = sub.add_argument_group(
        "speed", "how the network computes; files decode under any of these, see docs/performance.md"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the network's inside (default: float32); a file decodes best under the one it was made with",
    )
    group.add_argument("--channels-last", action="store_true", help="memory layout of the network's convolutions")
    group.add_argument("--compile", action="store_true", help="torch.compile the network; each new size compiles anew")
    group.add_argument(
        "--no-graphs",
        dest="graphs",
        action="store_false",
        help="on CUDA: no CUDA graphs, for folders with pictures of many sizes",
    )


def add_target_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group(
        "target", "ask for a rate or a quality instead of a preset; needs a backbone with a curve"
    )
    group.add_argument("--bpp", type=float, help="bits per pixel of the whole file")
    group.add_argument("--bytes", type=int, help="size of each file, not exceeded")
    group.add_argument("--psnr", type=float, help="dB of the decoded picture: tries a few times")
    group.add_argument("--max-nfe", type=int, help="network calls of a decode, the solver's included (default: 25)")
    group.add_argument("--curve", metavar="FILE", help="what `noisebook calibrate` wrote; shipped backbones have one")
    add_encoder_options(sub).add_argument(
        "--roi", type=Path, metavar="MASK", help="grey picture of the image's size: white counts most, black a tenth of it"
    )


def add_encoder_options(sub: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    group = sub.add_argument_group("encoder", "how tokens are chosen; files decode without knowing")
    group.add_argument("--effort", type=int, default=1, help="how often the tokens of a step are chosen anew (default: 1)")
    group.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="sets of tokens that are tried at each step, each for one network call (default: 1)",
    )
    return group


def load_codec(args: argparse.Namespace) -> "Codec":
    """The codec that the options ask for."""
    from noisebook import load
    from noisebook.spec import presets

    name = args.preset or presets.DEFAULT
    changes = {k: getattr(args, k) for k in KNOBS if getattr(args, k) is not None}
    how = {name: getattr(args, name) for name in ("effort", "candidates") if hasattr(args, name)}
    codec = load(name, backbone=args.backbone, device=device(args.device), **network(args), **how, **changes)
    for message in codec.spec.warnings():
        if changes:
            log(f"warning: {message}")
    return codec


TARGETS = ("bpp", "bytes", "psnr", "max_nfe", "curve")


def encoder(args: argparse.Namespace) -> "tuple[Callable[[np.ndarray], tuple[bytes, Codec]], Callable[[], Any], int]":
    """(pixels -> (file, the codec that made it), what to say of the codec, channels of the images), as the options say."""
    from noisebook.images.files import encode_picture

    asked = [name for name in TARGETS if getattr(args, name) is not None]
    if not asked:
        codec = load_codec(args)
        weights = _roi(args)
        return (
            lambda pixels: (encode_picture(codec, pixels, args.embed_spec, weights(pixels)), codec),
            lambda: codec_info(codec),
            codec.backbone.channels,
        )
    if args.embed_spec is False:
        raise SpecError(
            "without its specification a file is decoded with the options it was made with, and "
            f"--{asked[0].replace('_', '-')} is not among them: leave out --no-embed-spec"
        )
    aim = aim_of(args, asked[0])
    weights = _roi(args)
    made: dict[str, Any] = {}

    def encode(pixels: "np.ndarray") -> "tuple[bytes, Codec]":
        data, codec = aim.file(pixels, weights(pixels), args.embed_spec)
        made[codec.spec.hash.hex()] = codec_info(codec)
        return data, codec

    return encode, lambda: list(made.values()), aim.backbone.channels


def aim_of(args: argparse.Namespace, asked: str) -> "Aim":
    """What makes codecs for the target that the options name, `asked` among them."""
    from noisebook import backbones
    from noisebook.images.targets import Aim, Target, curve_of
    from noisebook.spec.presets import DEFAULT, get

    other = [k for k in KNOBS if k not in ("vocab_size", "seed") and getattr(args, k) is not None]
    if args.preset or other:
        both = [name.replace("_", "-") for name in (asked, (other or ["preset"])[0])]
        raise SpecError(f"--{both[0]} makes its own schedule: it goes with --vocab-size and --seed, not with --{both[1]}")
    options = {k: getattr(args, k, None) for k in ("bpp", "bytes", "psnr", "max_nfe", "vocab_size", "seed")}
    target = Target(**{k: v for k, v in options.items() if v is not None})
    name, how = args.backbone or get(DEFAULT).spec.backbone, network(args)
    backbone = backbones.load(name, device(args.device), **how["conditions"])
    if (args.dtype, args.channels_last, args.compile) != ("float32", False, False):
        backbone.accelerate(args.dtype, args.channels_last, args.compile)
    return Aim(target, backbone, curve_of(backbone, args.curve), args.graphs, args.effort, args.candidates, log)


ROI_LEAST = 0.1  # what an error counts where a mask is black


def _roi(args: argparse.Namespace) -> "Callable[[np.ndarray], np.ndarray | None]":
    """pixels [H, W, C] -> weights [H, W] of the mask, or None. Raises ImageError for another size."""
    if args.roi is None:
        return lambda pixels: None
    from noisebook.images.io import read_image

    mask = read_image(args.roi, 1)[:, :, 0].astype("float32") / 255

    def weights(pixels: "np.ndarray") -> "np.ndarray":
        if mask.shape != pixels.shape[:2]:
            raise ImageError(
                f"the mask {args.roi} has {mask.shape} pixels, the image {pixels.shape[:2]}: they must be equal"
            )
        return ROI_LEAST + (1 - ROI_LEAST) * mask

    return weights


def network(args: argparse.Namespace) -> dict[str, Any]:
    """How the network is told to compute, and of what."""
    told = {name: getattr(args, name) for name in CONDITIONS if getattr(args, name) is not None}
    return {**{name: getattr(args, name) for name in SPEED}, "conditions": told}


def device(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return name


def codec_info(codec: "Codec") -> dict[str, Any]:
    from noisebook.images.files import preset_number

    info = {"hash": codec.spec.hash.hex(), "preset": preset_number(codec.spec), "decode_nfe": codec.nfe}
    return {**info, "spec": json.loads(codec.spec.to_json())}
