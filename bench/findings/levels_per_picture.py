"""What a picture gains from its own levels, beside luck: python -m bench.findings.levels_per_picture

For each picture and rate: the curve's levels, those found with 1, 3 and 5 whole encodes (`--levels picture`), the best of
all 16, and, as a control, the best of other seeds at the curve's levels with no fewer network calls of the encoder. A seed
would take bits of the file, which are not counted. Writes bench/results/levels_per_picture.json after every picture.
"""

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib import page
from bench.lib.record import DATA, RESULTS, ROOT, provenance, save
from noisebook import backbones
from noisebook.images import files
from noisebook.images.io import read_image
from noisebook.images.levels import nfe_to_see
from noisebook.images.metrics import psnr
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.spec.curve import SCALES

NAME, PAGE = "levels_per_picture", ROOT / "docs/findings/levels-per-picture.md"
BACKBONE, STEPS, RATES, TRIES = "photo-2", 12, (0.1, 0.25, 0.5), (1, 3, 5, 16)


class Rate:
    """Encoders of one rate: at the curve's levels with any seed, and at each picture's own."""

    def __init__(self, backbone: backbones.Backbone, bpp: float, steps: int):
        curve, target = curve_of(backbone), Target(bpp=bpp, max_nfe=steps + 1)
        self.plain = Aim(target, backbone, curve)
        self.own = {tries: Aim(target, backbone, curve, level_tries=tries) for tries in TRIES}

    def seed(self, pixels: np.ndarray, seed: int) -> tuple[float, int, int]:
        """(PSNR, bytes, network calls of the encoder) at the curve's levels; the bytes are those of seed 0."""
        height, width = pixels.shape[:2]
        tokens = self.plain.tokens_for_bytes(height, width, (self.plain.target.bpp or 0) * height * width / 8)
        codec = self.plain.codec(height, width, tokens)
        if seed:
            other = type(codec)(replace(codec.spec, seed=seed), codec.backbone, effort=1)
            return seen(pixels, *files.encode_and_show(other, pixels, None, None, None)), 0, nfe_to_see(other)
        data, shown = files.encode_and_show(codec, pixels, None, None, self.plain.derived(tokens))
        return seen(pixels, data, shown), len(data), nfe_to_see(codec)


def seen(pixels: np.ndarray, _: bytes, shown: np.ndarray) -> float:
    value = psnr(pixels, shown)
    return 99.0 if value is None else value


def row_of(rate: Rate, pixels: np.ndarray) -> dict[str, Any]:
    """The gains of one picture at one rate, in dB over the curve's levels with seed 0."""
    base, size, calls = rate.seed(pixels, 0)
    ways = []
    for tries, aim in rate.own.items():
        chosen = aim.chosen(pixels)
        decoded = files.decode_picture(chosen.codec, files.Container.from_bytes(chosen.data))
        gain = seen(pixels, chosen.data, decoded) - base
        scale = SCALES[chosen.scaling]
        ways.append({"tries": tries, "gain": gain, "scale": scale, "bytes": len(chosen.data), "encoder_nfe": chosen.nfe})
    most = math.ceil(max(way["encoder_nfe"] for way in ways) / calls)
    luck = [0.0] + [rate.seed(pixels, seed)[0] - base for seed in range(1, most)]
    for way in ways:
        way["seeds"] = math.ceil(way["encoder_nfe"] / calls)
        way["luck"] = max(luck[: way["seeds"]])
    return {"bpp": rate.plain.target.bpp, "psnr": base, "bytes": size, "ways": ways}


def levels_table() -> str:
    result = page.load(NAME)
    head = ["encodes", "rate", "encoder calls", "gain", "least, most", "of seeds, best of", "gain of these"]
    lines = []
    for tries in result["tries"]:
        for bpp in result["rates"]:
            rows = [way for row in result["rows"] if row["bpp"] == bpp for way in row["ways"] if way["tries"] == tries]
            gains, luck = [way["gain"] for way in rows], [way["luck"] for way in rows]
            span = f"{min(gains):+.2f}, {max(gains):+.2f}"
            calls = f"{statistics.mean(way['encoder_nfe'] for way in rows):.0f}"
            mean, control = f"{statistics.mean(gains):+.2f} dB", f"{statistics.mean(luck):+.2f} dB"
            lines.append([str(tries), f"{bpp:g} bpp", calls, mean, span, str(rows[0]["seeds"]), control])
    return f"{page.table(head, lines)}\n\n{result['about']}. {page.source(result, NAME)}"


TABLES: page.Tables = {"levels_per_picture": levels_table} if page.measured(NAME) else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12, help="so many of the Kodak pictures")
    parser.add_argument("--folder", type=Path, default=DATA / "kodak", help="other pictures: a dry run, with --out")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="bits per pixel")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--crop", type=int, default=0, help="squares of that side only: a dry run, with --out")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json", help="the result file")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    dry = bool(args.crop) or args.folder != DATA / "kodak"
    if dry and args.out.parent == RESULTS:
        raise SystemExit("--crop and --folder are a dry run: give it an --out elsewhere")
    backbone = backbones.load(BACKBONE)
    rates, rows = [Rate(backbone, bpp, args.steps) for bpp in args.rates], []
    paths = sorted(args.folder.iterdir())[: args.images]
    for path in paths:
        pixels = read_image(path)[: args.crop or None, : args.crop or None]
        for rate in rates:
            rows.append({"image": path.stem, **row_of(rate, pixels)})
            gains = {way["tries"]: f"{way['gain']:+.2f} ({way['luck']:+.2f})" for way in rows[-1]["ways"]}
            print(path.stem, rows[-1]["bpp"], f"{rows[-1]['psnr']:.2f} dB", gains, flush=True)
        about = f"{len({row['image'] for row in rows})} Kodak pictures, backbone `{BACKBONE}`, {args.steps} steps"
        about += ", gains over the curve's levels at the same rate"
        head = {
            "about": about,
            "dtype": backbone.computes_in,
            "rates": args.rates,
            "tries": list(TRIES),
            "steps": args.steps,
        }
        save(args.out, {**provenance(0), **head, **({"dry": True} if dry else {}), "rows": rows})
    print("written:", args.out.name)


if __name__ == "__main__":
    main()
