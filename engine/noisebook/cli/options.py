"""Options that several verbs share, and what they make: a codec, or an encoder with a target."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import levels, precision
from noisebook.cli.robust import each_robust, is_robust, refuse_embedded
from noisebook.cli.roi import weights_of
from noisebook.cli.show import log
from noisebook.errors import SpecError
from noisebook.rules import EFFORT, RULES
from noisebook.runtime.devices import usable_device
from noisebook.runtime.limits import OPTIONS, Limits

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec.codec import Codec
    from noisebook.images.targets import Aim

KNOBS = {
    "steps": "steps of the schedule",
    "spacing": "spacing of the levels: log, karras, ddpm, flow, turbo, diffc or own (the grid of a discrete-time model)",
    "sigma_max": "first noise-to-signal level",
    "sigma_min": "last noise-to-signal level",
    "p": "share of the de-noised log-distance that is kept: 0.5 = DDPM posterior (DDCM), 0 = gDDCM's fixed point",
    "rho": "p = 0 only: share of the noise kept each step (default 1 - 2/steps)",
    "budget": "tokens of each block at the first step, a power of two (rules top, pursuit: atoms; poisson: bits). Without "
    "--budget-last every step has that many, whatever the size of the picture",
    "budget_last": "what a block spends at the last step (default: the preset's, or with --budget as at the first)",
    "scale_pixels": "budgets and --tokens are for an image of that many pixels: one of twice as many gets twice as many "
    "tokens; 0: budgets are for images of every size",
    "tokens": "tokens of an image of --scale-pixels pixels, which are 512 x 768 in the presets: larger images get more, and "
    "smaller ones fewer; the backbone's curve shares them out among the steps; 0: no such number, --budget says it",
    "codebook": "hadamard or independent",
    "vocab_size": "number of values of a token: an atom and its sign",
    "seed": "seed of the codebooks",
    "start_budget": "tokens of each block that come first and choose where the walk begins, of --start-vocab-size values; "
    "0: none, it begins at a fixed draw",
    "start_vocab_size": "number of values of a token of the start",
    "rows": "blocks down the image, each with tokens of its own",
    "columns": "blocks across the image",
    "solver": "from the last level to the image: mean (best PSNR), euler, heun or ab2 (probability-flow ODE)",
    "solver_steps": "steps of the ODE solver",
    "rule": f"how tokens are chosen: {', '.join(RULES)}; see docs/rules.md",
    "coefficient_bits": "rule pursuit: bits of the coefficient of each atom after the first",
    "condition": "the backbone's own tokens (CoD): none; first: they come before the others, which are conditioned on them; "
    "only: the image is drawn from them in --steps steps",
    "free_steps": "how many of the last steps carry no tokens (Turbo-DDCM)",
}

CONDITIONS = {
    "prompt": (str, "text for a model that reads text (default: empty)"),
    "negative_prompt": (str, "text that guidance leads away from (default: empty)"),
    "guidance": (
        float,
        "weight of the prompt, class or condition against none; 1 = no guidance, one network call per step (default: 1); "
        "with a CoD, it steers an ODE solver, and a decoder chooses it anew",
    ),
    "label": (int, "class, for a class-conditional model"),
    "variant": (str, "of the weight files of a diffusers model: fp16 for example, of the parts that have it"),
    "autoencoder": (str, "for a latent CoD: a folder in diffusers layout, or ENCODER:DECODER of TAESD"),
}
BACKBONE = "NAME|FILE|DIR|MODULE:FACTORY"
TARGETS = ("bpp", "bytes", "psnr", "max_nfe", "curve")
SPEED = ("dtype", "channels_last", "compile", "graphs")  # options of `noisebook.load` that change no file's meaning


# ---- options ------------------------------------------------------------------------------------------------------------
def add_images(parser: argparse.ArgumentParser) -> None:
    """The pictures of `encode`, `roundtrip` and `eval`."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--samples", action="store_true", help="also the three photographs that scikit-image carries")


def add_embed_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embed-spec",
        action=argparse.BooleanOptionalAction,
        help="write the whole specification into each file (done anyway when the codec is not a preset, unless "
        "--no-embed-spec: such a file is decoded with the options it was made with)",
    )


def path_of(text: str) -> Path:
    """A path that is typed. ArgumentTypeError for an empty one, which would stand for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name would stand for the current folder: for that write .")
    return Path(text)


def add_output_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=path_of,
        metavar="DIR",
        help="folder to write to (default: a fresh one: noisebook-out, or noisebook-out-2, ...)",
    )
    add_force(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """Where a data set's backbone is, and on which device it decodes."""
    parser.add_argument("--backbone", metavar=BACKBONE, help="where it is, if it did not come with the package")
    add_device(parser)


LIMITS = {  # limit -> what it bounds, for --help
    "pixels": "of a picture that is read or decoded: height x width",
    "network_calls": "of a decode, those of the solver included",
    "work": "of parsing the tokens of a file, in microseconds of one slow core",
    "rows": "of a Parquet file, and images of a plan or an archive",
}


def add_limits_of_files(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options of the `names` among LIMITS: how much a file may cost before it is refused. `limits_of` reads them."""
    group = parser.add_argument_group("limits", "a file that asks for more is refused (docs/security.md)")
    for name in names:
        default = getattr(Limits, name)
        about = f"{LIMITS[name]} (default: {default:,})"
        group.add_argument(OPTIONS[name], type=_whole, default=default, metavar="N", help=about)


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options name; the others are as by default."""
    options = {name: option.removeprefix("--").replace("-", "_") for name, option in OPTIONS.items()}
    return Limits(**{name: getattr(args, key) for name, key in options.items() if getattr(args, key, None) is not None})


def _whole(text: str) -> int:
    """A limit, at least 1."""
    if not re.fullmatch("[0-9]{1,19}", text) or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 to 2^63 - 1")
    return int(text)


def size_of(text: str) -> int:
    """Bytes of "4G", "512M", "1.5GiB" or "1000000"; K, M, G and T are powers of 1024, KB, MB, GB and TB of 1000."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([kmgt]?)(i?b?)", text.strip().lower(), re.ASCII)
    if match is None or (match[3].startswith("i") and not match[2]):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size: write bytes, or 512M, 4G, 1.5GiB")
    base = 1000 if match[3] == "b" else 1024
    size = int(float(match[1]) * base ** " kmgt".index(match[2] or " "))
    if not 0 < size < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size from 1 byte to 2^63 - 1 bytes")
    return size


def add_force(parser: argparse.ArgumentParser) -> None:
    """Whether files that are there may be replaced."""
    parser.add_argument("--force", action="store_true", help="replace files that are there already (default: refuse)")


def add_codec_options(parser: argparse.ArgumentParser) -> None:
    from noisebook.spec.presets import DEFAULT, Recipe

    group = parser.add_argument_group("codec", "a preset, and every number of its recipe")
    group.add_argument("--preset", help=f"codec by name (default: {DEFAULT}); see `noisebook backbones`")
    group.add_argument(
        "--backbone",
        metavar=BACKBONE,
        help="another denoiser: a shipped name, a .safetensors file of noisebook's, a diffusers folder, a hub's OWNER/NAME, "
        "or MODULE:FACTORY, a function of your own that gives it",
    )
    for field in fields(Recipe):
        if field.name in KNOBS:
            assert field.default is not MISSING
            kind = float if field.default is None or field.name == "budget" else type(field.default)
            group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=KNOBS[field.name])
    add_conditions(parser)
    group = parser.add_argument_group(
        "speed", "how the network computes; files decode under any of these, see docs/performance.md"
    )
    precision.add_dtype(group)
    group.add_argument("--channels-last", action="store_true", help="memory layout of the network's convolutions")
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile the network, at its first use (default: no; `tokenize` does it on CUDA where the data set is "
        "large enough)",
    )
    group.add_argument(
        "--no-graphs",
        dest="graphs",
        action="store_false",
        help="on CUDA: no CUDA graphs, for folders with pictures of many sizes",
    )


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """What a backbone is conditioned on; `conditions_of` reads them."""
    group = parser.add_argument_group("conditions", "for backbones that take one; a file decodes only under the same")
    for name, (kind, about) in CONDITIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=about)


def conditions_of(args: argparse.Namespace) -> dict[str, Any]:
    """The conditions that the options name."""
    return {name: getattr(args, name) for name in CONDITIONS if getattr(args, name) is not None}


def add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "target", "ask for a rate or a quality instead of a preset; needs a backbone with a curve"
    )
    group.add_argument("--bpp", type=float, help="bits per pixel of the whole file")
    group.add_argument("--bytes", type=int, help="size of each file, not exceeded")
    group.add_argument("--psnr", type=float, help="dB of the decoded picture: tries a few times")
    add_limits(group)
    group = add_encoder_options(parser)
    group.add_argument(
        "--roi", type=Path, metavar="MASK", help="grey picture of the image's size: white counts most, black a tenth of it"
    )
    levels.add_levels(parser.add_argument_group("levels", "at which noise levels tokens are spent; files say which"))


def add_limits(group: "argparse._ArgumentGroup") -> None:
    """What a target is reached with."""
    group.add_argument(
        "--max-nfe", type=int, help="most network calls (NFE) of a decode, the solver's included (default: 25)"
    )
    group.add_argument("--curve", metavar="FILE", help="what `noisebook calibrate` wrote; shipped backbones have one")


def add_encoder_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    group = parser.add_argument_group("encoder", "how tokens are chosen; how a file decodes does not depend on it")
    group.add_argument(
        "--effort",
        type=int,
        default=EFFORT,
        help="how often the tokens of a step are chosen again; rule bins only (default: %(default)s)",
    )
    group.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="sets of tokens that are tried at each step, each for one network call (default: 1)",
    )
    return group


# ---- what they make -----------------------------------------------------------------------------------------------------
def load_codec(args: argparse.Namespace) -> "Codec":
    """The codec that the options ask for."""
    from noisebook.codec.load import load
    from noisebook.spec import presets

    name = args.preset or presets.DEFAULT
    changes = changes_of(args)
    how = {name: getattr(args, name) for name in ("effort", "candidates") if hasattr(args, name)}
    how |= {"backbone": args.backbone, "device": usable_device(args.device), **network(args)}
    codec = load(name, realism_network=getattr(args, "realism_network", None), **how, **changes)
    precision.say_dtype(args, codec.backbone)
    for message in codec.spec.warnings():
        if changes:
            log(f"warning: {message}")
    return codec


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a preset's recipe that the options replace."""
    return {k: getattr(args, k) for k in KNOBS if getattr(args, k) is not None}


def encoder(args: argparse.Namespace, realism: float | None = None) -> tuple[levels.Encode, Callable[[], Any], int]:
    """(pixels -> (file, the codec that made it, what its row says of levels), what --json says of the codec, channels of the
    images). Of a verb that also decodes, under `realism`: raises before anything is encoded where that codec or backbone
    cannot."""
    from noisebook.images.files import preset_number

    targets, tries = [name for name in TARGETS if getattr(args, name) is not None], levels.tries_of(args)
    if not targets:
        codec = load_codec(args)
        refuse_embedded(args, args.embed_spec or (args.embed_spec is None and not tries and not preset_number(codec.spec)))
        given = (changes_of(args), weights_of(args, limits_of(args)))
        encoded, info = levels.of_preset(args, codec, *given, lambda c: codec_info(c, realism))
        return each_robust(args, encoded), info, codec.backbone.channels
    if args.embed_spec is False:
        raise SpecError(
            "without its specification a file is decoded with the options it was made with, and "
            f"--{targets[0].replace('_', '-')} is not among them: leave out --no-embed-spec"
        )
    refuse_embedded(args, args.embed_spec)
    aim = aim_of(args, targets[0])
    if realism:
        aim.realism.of(aim.backbone)
    weights = weights_of(args, limits_of(args))
    made: dict[str, Any] = {}

    def encode(pixels: "np.ndarray") -> "tuple[bytes, Codec, dict[str, Any]]":
        chosen = aim.chosen(pixels, weights(pixels), args.embed_spec)
        made[chosen.codec.spec.hash.hex()] = codec_info(chosen.codec, realism)
        return chosen.data, chosen.codec, levels.facts_of(chosen, tries)

    return each_robust(args, encode), lambda: list(made.values()), aim.backbone.channels


def aim_of(args: argparse.Namespace, option: str) -> "Aim":
    """What makes codecs for the target that the options name; `option` is one of them."""
    from noisebook import backbones
    from noisebook.images.targets import Aim, Target, curve_of
    from noisebook.spec.presets import DEFAULT, get

    other = [k for k in KNOBS if k not in ("vocab_size", "seed") and getattr(args, k) is not None]
    if args.preset or other:
        both = [name.replace("_", "-") for name in (option, (other or ["preset"])[0])]
        python = " (in Python: noisebook.load(tokens=, size=, curve=))" if "tokens" in both else ""
        raise SpecError(
            f"--{both[0]} makes its own schedule: it goes with --vocab-size and --seed, not with --{both[1]}{python}"
        )
    options = {k: getattr(args, k, None) for k in ("bpp", "bytes", "psnr", "max_nfe", "vocab_size", "seed")}
    target = Target(**{k: v for k, v in options.items() if v is not None})
    name, how = args.backbone or get(DEFAULT).spec.backbone, network(args)
    faster = {name: how[name] for name in ("dtype", "channels_last", "compile")}
    backbone = backbones.load(name, usable_device(args.device), accelerated=faster, **how["conditions"])
    precision.say_dtype(args, backbone)
    how, finish = (args.graphs, args.effort, args.candidates), getattr(args, "realism_network", None)
    return Aim(target, backbone, curve_of(backbone, args.curve), *how, log, finish, levels.tries_of(args), is_robust(args))


def network(args: argparse.Namespace) -> dict[str, Any]:
    """How the network computes, and under which condition."""
    how = {**{name: getattr(args, name) for name in SPEED}, "compile": bool(args.compile)}
    return {**how, "conditions": conditions_of(args)}


def codec_info(codec: "Codec", realism: float | None = None, steps: int | None = None) -> dict[str, Any]:
    """What --json says of a codec, and, of a verb that decodes, of its `realism`. Raises what `Codec.dial` raises."""
    from noisebook.images.files import preset_number

    nfe = codec.nfe_of(None, realism or 0.0)
    info = {"hash": codec.spec.hash.hex(), "preset": preset_number(codec.spec), "decode_nfe": nfe}
    if realism is not None:
        dial = codec.dial(realism, steps)
        info |= {"realism": realism, "realism_network": dial.name if dial else None}
    return {**info, "dtype": codec.dtype, "spec": json.loads(codec.spec.to_json())}
