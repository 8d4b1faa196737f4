"""Published figures, settled with your own copy of a published network: SD 2.1 or SD 1.5 on Kodak, EDM on CIFAR-10.

    python -m bench.quality.published --model DIR     # a folder of SD 2.1 or SD 1.5 in diffusers' layout
    python -m bench.quality.published --edm edm-cifar10-32x32-uncond-vp.pkl --features FILE
    python -m bench.quality.published --report        # only writes docs/published.md

Both need the data folder ($NOISEBOOK_DATA or ../shared/data). --model codes the middle 512 x 512 pixels of the Kodak
pictures at .05, .1, .25 and .5 bits per pixel under the default rule, Turbo-DDCM's (on its own grid of levels) and DiffC's,
and reports PSNR of the uint8 pictures and LPIPS. Schedules of the default rule and of DiffC follow a curve of how well the
network predicts: that of one half of the pictures serves the other half, so that no picture is coded with what was measured
on itself. --edm converts the checkpoint without running its code, and codes CIFAR-10 test images as gDDCM (p = 0 at a fixed
level, Euler at the end), as DDCM (DDPM's grid, p = 1/2) and with our levels, 512 bits per image; levels are chosen on
training images. The networks of LPIPS and of features are TorchScript files, which are programs: give only files
that you trust.

Results are added to --out, by default bench/results/published.json. What fails is a row with its error, and the exit code
is 1 then.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib import metrics, page, rivals
from bench.lib.per_image import packed
from bench.lib.record import DATA, RESULTS, provenance, save
from bench.lib.rows import BASE, LOG
from bench.quality.published_page import NAME, PAGE, RATES, RULES, TABLES, WAYS, tables_of
from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.nets import nvidia_edm
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure as measure_curve
from noisebook.errors import first_line
from noisebook.format import container
from noisebook.images.io import read_image
from noisebook.runtime.pixels import to_uint8
from noisebook.spec.curve import Curve
from noisebook.spec.presets import Recipe

LPIPS = "weights/lpips_alex.torchscript.pt"  # in the data folder
TUNING = 64  # training images that levels are chosen on
GRID = {**BASE, "spacing": "ddpm", "sigma_max": 200.0, "sigma_min": 0.005, "p": 0.5}
FIXED = [
    {**BASE, "p": 0.0, "sigma_max": sigma, "rho": 1 - c / BASE["steps"]}
    for sigma in (0.4, 0.8, 1.2, 1.8)
    for c in (1.3, 2.5, 4.0)
]
EVEN = [{**LOG, "sigma_min": sigma} for sigma in (0.1, 0.2, 0.4, 0.8)]
CHOICES: dict[str, list[dict[str, Any]]] = dict(zip(WAYS, (FIXED, [GRID], EVEN), strict=True))
FINISH = {WAYS[0]: {"solver": "euler", "solver_steps": 5}}  # beyond the level that was chosen with `mean`

Row = dict[str, Any]


# ---- Stable Diffusion on Kodak -----------------------------------------------------------------------------------------
def kodak(size: int, count: int | None) -> dict[str, Tensor]:
    """The middle of each Kodak picture, by name: uint8 [3, size, size]. SystemExit where there are none, or smaller ones."""
    folder = DATA / "kodak"
    paths = sorted(folder.glob("*.png"))[:count] if folder.is_dir() else []
    if not paths:
        raise SystemExit(f"no pictures in {folder}: NOISEBOOK_DATA names the folder that holds kodak/")
    out = {}
    for path in paths:
        picture = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)
        top, left = ((n - size) // 2 for n in picture.shape[1:])
        if top < 0 or left < 0:
            raise SystemExit(f"{path.name} is smaller than {size} x {size} pixels")
        out[path.stem] = picture[:, top : top + size, left : left + size]
    return out


def payload_bits(codec: Codec, tokens: Tensor, size: int) -> list[int]:
    """Bits of each image's payload, in whole bytes, as a file has them."""
    runs = codec.stream(size, size).runs
    if codec.rule.fixed_length:
        return [8 * math.ceil(container.packed_bits(runs) / 8)] * len(tokens)
    return [8 * len(container.pack(row, runs)) for row in tokens.cpu().numpy()]


@dataclass(frozen=True)
class Coded:
    """What came of some pictures: decoded, uint8; bits of each; seconds of encode and decode."""

    decoded: Tensor
    bits: list[int]
    seconds: float
    codec: Codec


def coded(codec: Codec, images: Tensor, batch: int) -> Coded:
    """An encode and a decode: what a receiver sees."""
    decoded, bits, seconds, size = [], [], 0.0, images.shape[-1]
    for some in images.split(batch):
        some = some.to(codec.device)
        begin = time.perf_counter()
        tokens = codec.encode(some)
        decoded.append(to_uint8(codec.decode(tokens, (size, size))).cpu())
        seconds += time.perf_counter() - begin
        bits += payload_bits(codec, tokens, size)
    return Coded(torch.cat(decoded), bits, seconds, codec)


def one_rate(place: rivals.Place, maker: str, bpp: float, calls: int, images: Tensor, batch: int) -> Coded:
    """The pictures at `bpp`; a rule whose payloads follow the picture is asked once more where it missed."""
    wanted = bpp * place.height * place.width

    def at(bits: float) -> Coded:
        return coded(Codec(rivals.MAKERS[maker](place, bits, calls), place.backbone, graphs=False, effort=1), images, batch)

    found = at(wanted)
    share = wanted / (sum(found.bits) / len(found.bits))
    return found if found.codec.rule.fixed_length or abs(share - 1) <= 0.02 else at(wanted * share)


def rule_row(
    halves: Sequence[tuple[Tensor, rivals.Place]], maker: str, bpp: float, calls: int, batch: int, lpips: Any
) -> Row:
    """Both halves of the pictures, each under the other's curve."""
    found = [one_rate(place, maker, bpp, calls, images, batch) for images, place in halves]
    originals, decoded = torch.cat([images for images, _ in halves]), torch.cat([half.decoded for half in found])
    bits, codec, pairs = [b for half in found for b in half.bits], found[0].codec, zip(originals, decoded, strict=True)
    distances = [lpips(*(x[None].to(codec.device) for x in pair))["lpips"] for pair in pairs] if lpips else None
    psnr = metrics.psnr(originals, decoded)
    return {
        "mean_bpp": sum(bits) / len(bits) / math.prod(originals.shape[2:]),
        "psnr": metrics.interval(psnr),
        "psnr_of_images": packed(psnr),
        "lpips": distances and metrics.interval(distances),
        "decode_calls": codec.nfe,
        "encode_calls": codec.encode_nfe,
        "seconds": sum(half.seconds for half in found) / len(bits),
        "specs": [half.codec.spec.hash.hex() for half in found],
    }


def model_rows(args: argparse.Namespace) -> dict[str, Any]:
    """All rules at all rates with the user's Stable Diffusion."""
    pictures = kodak(args.size, args.images)
    backbone = backbones.load(args.model, args.device)
    if (args.dtype, args.compile) != ("float32", False):
        backbone.accelerate(args.dtype, channels_last=True, compile=args.compile)
    names, images = list(pictures), torch.stack(list(pictures.values()))
    halves = [images[::2], images[1::2]] if len(images) > 1 else [images]
    names = [*names[::2], *names[1::2]]
    given = Curve.from_json(args.curve.read_text()) if args.curve else None
    curves = [given or measure_curve(backbone, half.split(args.batch)) for half in halves]
    places = [rivals.Place(backbone, curve, args.size, args.size) for curve in reversed(curves)]
    path = args.lpips or (DATA / LPIPS if (DATA / LPIPS).is_file() else None)
    lpips = metrics.GivenNetworks(path, None, args.device) if path else None
    if lpips is None:
        print(f"no LPIPS: no --lpips FILE, and no {LPIPS} in the data folder", flush=True)
    about = {
        "model": Path(args.model).resolve().name,
        "fingerprint": backbone.fingerprint,
        "size": args.size,
        "pictures": names,
        "dtype": args.dtype,
        "curve": args.curve.name
        if given
        else "of the other half of the pictures"
        if len(halves) > 1
        else "of the same picture",
        "lpips": lpips.about()["lpips"] if lpips else None,
    }
    pairs = list(zip(halves, places, strict=True))
    cases = [
        ({"rule": rule, "bpp": bpp, "calls": calls}, partial(rule_row, pairs, maker, bpp, calls, args.batch, lpips))
        for bpp in sorted(args.rates, key=lambda bpp: (abs(math.log(bpp / 0.1)), bpp))  # the published rate first
        for calls in args.calls
        for rule, maker in RULES.items()
    ]
    return {**about, **rows_of(cases, args.minutes)}


# ---- EDM on CIFAR-10 ----------------------------------------------------------------------------------------------------
def cifar(name: str, part: slice) -> Tensor:
    """uint8 [N, 3, 32, 32] of an archive in the data folder. SystemExit where it is not there."""
    path = DATA / name
    if not path.is_file():
        raise SystemExit(f"no {path}: NOISEBOOK_DATA names the folder that holds it")
    with np.load(path) as data:
        return torch.from_numpy(data["images"][part]).permute(0, 3, 1, 2).contiguous()


def chosen(backbone: Backbone, choices: list[dict[str, Any]], images: Tensor, batch: int) -> dict[str, Any]:
    """The recipe of highest PSNR on the training images."""
    if len(choices) == 1:
        return choices[0]

    def quality(recipe: dict[str, Any]) -> float:
        codec = Codec(Recipe(**recipe).build(backbone), backbone, effort=0)
        return float(metrics.psnr(images, coded(codec, images, batch).decoded).mean())

    return max(choices, key=quality)


def edm_row(backbone: Backbone, way: str, images: Tensor, tuning: Tensor, batch: int, given: Any) -> Row:
    recipe = {**chosen(backbone, CHOICES[way], tuning, batch), **FINISH.get(way, {})}
    codec = Codec(Recipe(**recipe).build(backbone), backbone, effort=0)
    found = coded(codec, images, batch)
    frechet = given(images.to(codec.device), found.decoded.to(codec.device))["frechet"] if given else None
    return {
        "bits": sum(found.bits) / len(images),
        "psnr": metrics.interval(metrics.psnr(images, found.decoded)),
        "frechet": frechet,
        "decode_calls": codec.nfe,
        "seconds": found.seconds / len(images),
        "recipe": recipe,
    }


def edm_rows(args: argparse.Namespace) -> dict[str, Any]:
    """gDDCM, DDCM and our levels with the user's EDM checkpoint."""
    images = cifar("cifar10_test5k.npz", slice(args.images))
    tuning = cifar("cifar10_train.npz", slice(-TUNING, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.edm.stem}.safetensors"
        about = nvidia_edm.convert_file(args.edm, path)
        backbone = backbones.load(path, args.device, label=args.label)
    given = metrics.GivenNetworks(None, args.features, args.device) if args.features else None
    if given is None:
        print("no Frechet distance: no --features FILE", flush=True)
    facts = {
        "model": args.edm.name,
        "network": about,
        "fingerprint": backbone.fingerprint,
        "images": len(images),
        "features": given.about()["frechet"] if given else None,
    }
    batch = max(args.batch, 100)
    cases = [({"way": way}, partial(edm_row, backbone, way, images, tuning, batch, given)) for way in WAYS]
    return {**facts, **rows_of(cases, args.minutes)}


# ---- rows ---------------------------------------------------------------------------------------------------------------
def rows_of(work: Sequence[tuple[Row, Callable[[], Row]]], minutes: float) -> dict[str, Any]:
    """Each row measured, or with its error; what no minutes were left for is named."""
    begin, rows, left_out = time.monotonic(), [], []
    for key, make in work:
        if time.monotonic() - begin > 60 * minutes:
            left_out.append(key)
            continue
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "quality stalls", RuntimeWarning)
                row = {**key, **make()}
        except Exception as error:
            traceback.print_exc()
            row = {**key, "error": f"{type(error).__name__}: {first_line(error)}"[:500]}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr if "error" in row else sys.stdout, flush=True)
    for key in left_out:
        print(f"left out, no time: {key}", flush=True)
    return {"rows": rows, "left_out": left_out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="DIR", help="a folder of SD 2.1 or SD 1.5 in diffusers' layout")
    add("--edm", type=Path, metavar="FILE", help="a .pkl of NVIDIA's EDM for CIFAR-10")
    add("--label", type=int, help="class of a class-conditional EDM")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--compile", action="store_true")
    add("--size", type=int, default=512, help="side of the pictures' middle, in pixels")
    add("--images", type=int, help="only the first of the pictures or images")
    add("--rates", type=float, nargs="+", default=RATES, metavar="BPP")
    add("--calls", type=int, nargs="+", default=[20], help="network calls of a decode")
    add("--batch", type=int, default=4)
    add(
        "--curve",
        type=Path,
        metavar="FILE",
        help="what `noisebook calibrate` wrote for the model, in place of a curve measured here",
    )
    add("--lpips", type=Path, metavar="FILE", help=f"TorchScript file; default {LPIPS} of the data folder")
    add("--features", type=Path, metavar="FILE", help="TorchScript file: a batch in [-1, 1] -> features")
    add("--minutes", type=float, default=math.inf, help="start no row after this many minutes")
    add("--out", type=Path, default=RESULTS / f"{NAME}.json")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return 0
    if not (args.model or args.edm):
        parser.error("give --model DIR, --edm FILE, or --report")
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    failed = False
    for name, wanted, measured in (("model", args.model, model_rows), ("edm", args.edm, edm_rows)):
        if wanted:
            result[name] = {**provenance(0, args.device), **measured(args)}
            failed |= not result[name]["rows"] or any("error" in row for row in result[name]["rows"])
            save(args.out, result)
    for text in tables_of(result).values():
        print(f"\n{text()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
