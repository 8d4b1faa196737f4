"""Draws the pictures of the README and docs.

    python -m bench.quality.pictures                  # rates: ours at two rates, AVIF at equal bytes beside it
    python -m bench.quality.pictures dial             # the dial: realism 0, .5 and 1 of the same tokens
    python -m bench.quality.pictures worst            # the Kodak picture with the worst LPIPS of bench/results/codecs.json

`rates` and `dial` show crops of photographs that scikit-image carries: NASA's astronaut, and the CC0 cat and coffee.
`worst` shows a Kodak picture, which the project may not carry: give it --out. AVIF is tuned to the eye. What was shown, with
its figures, goes to bench/results/pictures.json.
"""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.lib import equal_bytes
from bench.lib.equal_bytes import Ours, name_of
from bench.lib.equal_tables import Comparison
from bench.lib.page import load
from bench.lib.record import DATA, RESULTS, ROOT, provenance, write
from noisebook.images import io as images
from noisebook.images.metrics import psnr

CROPS = {"astronaut": (0, 110), "cat": (20, 100), "coffee": (60, 130)}  # top, left of the 224 x 224 pixels shown
SIDE, GAP, BAR = 224, 6, 20
RATES, DIAL, RIVAL = (0.1, 0.25), (0.0, 0.5, 1.0), "AVIF for the eye"
MOST = 290_000  # bytes of a picture in docs
Shown = list[tuple[np.ndarray, str]]  # uint8 [H, W, 3], what stands above it


def sheet(rows: list[Shown]) -> Image.Image:
    """Rows of labelled pictures of one size."""
    height, width = rows[0][0][0].shape[:2]
    size = ((width + GAP) * max(map(len, rows)) - GAP, (height + BAR + GAP) * len(rows) - GAP)
    out = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(out)
    for i, row in enumerate(rows):
        for j, (picture, label) in enumerate(row):
            at = ((width + GAP) * j, (height + BAR + GAP) * i)
            out.paste(Image.fromarray(picture), (at[0], at[1] + BAR))
            draw.text((at[0] + 2, at[1] + 4), label, fill="black")
    return out


def save(picture: Image.Image, path: Path, most: int = MOST) -> int:
    """As WebP of the best quality up to 92 that has at most `most` bytes; gives the quality."""
    for quality in range(92, 0, -6):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality)
        if len(buffer.getvalue()) <= most:
            path.write_bytes(buffer.getvalue())
            return quality
    raise SystemExit(f"{path.name} does not fit into {most} bytes")


def cut(pixels: np.ndarray, top: int, left: int) -> np.ndarray:
    return pixels[top : top + SIDE, left : left + SIDE]


def figures(name: str, pixels: np.ndarray, decoded: np.ndarray, size: int) -> dict[str, Any]:
    return {"codec": name, "bpp": 8 * size / (pixels.shape[0] * pixels.shape[1]), "psnr": psnr(pixels, decoded)}


def label_of(figures: dict[str, Any], name: str) -> str:
    if figures["bpp"] is None:
        return f"{name}: no file so small"
    return f"{name}: {figures['bpp']:.3f} bpp, {figures['psnr']:.1f} dB"


def beside(ours: Ours, pixels: np.ndarray, bpp: float, realisms: list[float], speed: int) -> list[tuple[np.ndarray, dict]]:
    """Ours at each place of the dial, then AVIF at equal bytes, with their figures; white where it has no file so small."""
    data, codec = ours.file(pixels, bpp)
    out = []
    for realism in realisms:
        decoded = equal_bytes.shown(data, codec, realism)
        out.append((decoded, figures(name_of(realism), pixels, decoded, len(data))))
    found, least = equal_bytes.largest(equal_bytes.rivals(speed)[RIVAL], pixels, len(data))
    if found is None:
        return [*out, (np.full_like(pixels, 255), {"codec": RIVAL, "bpp": None, "psnr": None, "least": least})]
    return [*out, (found.decoded, figures(RIVAL, pixels, found.decoded, len(found.data)))]


# ---- pictures -----------------------------------------------------------------------------------------------------------
def rates(args: argparse.Namespace, ours: Ours) -> tuple[Image.Image, list[dict[str, Any]]]:
    grid, found = [], []
    for sample, at in CROPS.items():
        pixels = images.sample(sample)
        row = [(cut(pixels, *at), "original")]
        for bpp in args.rates or RATES:
            for decoded, entry in beside(ours, pixels, bpp, [args.realism], args.speed):
                name = "AVIF" if entry["codec"] == RIVAL else "noisebook"
                row.append((cut(decoded, *at), label_of(entry, name)))
                found.append({"image": sample, "asked": bpp, **entry})
        grid.append(row)
    return sheet(grid), found


def dial(args: argparse.Namespace, ours: Ours) -> tuple[Image.Image, list[dict[str, Any]]]:
    grid, found = [], []
    for name, at in CROPS.items():
        pixels = images.sample(name)
        for bpp in (args.rates or RATES)[:1]:
            data, codec = ours.file(pixels, bpp)
            row = [(cut(pixels, *at), f"original (the file has {8 * len(data) / pixels[..., 0].size:.3f} bpp)")]
            for realism in DIAL:
                decoded = equal_bytes.shown(data, codec, realism)
                entry = figures(name_of(realism), pixels, decoded, len(data))
                row.append((cut(decoded, *at), f"realism {realism:g}: {entry['psnr']:.1f} dB"))
                found.append({"image": name, "asked": bpp, **entry})
            grid.append(row)
    return sheet(grid), found


def worst_of(comparison: Comparison, bpp: float, realism: float) -> tuple[str, float]:
    """(picture, LPIPS) of the worst decode of ours at a rate. SystemExit where it was not measured."""
    values = comparison.values(name_of(realism), bpp, "lpips")
    if not values:
        raise SystemExit(f"no LPIPS of {name_of(realism)} at {bpp:g} bpp: run bench.quality.codecs with --lpips first")
    name = max(values, key=lambda image: values[image])
    return name, values[name]


def worst(args: argparse.Namespace, ours: Ours) -> tuple[Image.Image, list[dict[str, Any]]]:
    """The whole picture at native size: original, ours, AVIF; with realism above 0 ours at 0 too."""
    bpp = (args.rates or RATES)[0]
    name, lpips = worst_of(Comparison(load("codecs")), bpp, args.realism)
    pixels = images.read_image(DATA / f"kodak/{name}.png")
    found = beside(ours, pixels, bpp, sorted({0.0, args.realism}), args.speed)
    shown: Shown = [(pixels, f"original, {name}")]
    shown += [(decoded, label_of(entry, entry["codec"])) for decoded, entry in found]
    rows = [{"image": name, "asked": bpp, **entry} for _, entry in found]
    next(row for row in rows if row["codec"] == name_of(args.realism))["lpips"] = lpips
    return sheet([shown[i : i + 2] for i in range(0, len(shown), 2)]), rows


DRAWN: dict[str, Callable[[argparse.Namespace, Ours], tuple[Image.Image, list[dict[str, Any]]]]] = {
    "rates": rates,
    "dial": dial,
    "worst": worst,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=list(DRAWN), default="rates")
    parser.add_argument("--rates", type=float, nargs="+", help=f"bits per pixel (default: {RATES}; dial, worst: the first)")
    parser.add_argument("--realism", type=float, default=0.0, help="of ours in `rates`, and that `worst` is chosen by")
    parser.add_argument("--speed", type=int, default=0, help="of libaom, 0 (slowest) to 10")
    parser.add_argument("--out", type=Path, help="the picture, in place of docs/images; no result is written")
    args = parser.parse_args()
    picture, rows = DRAWN[args.what](args, Ours())
    quality = save(picture, args.out or ROOT / f"docs/images/{args.what}.webp")
    print(f"{args.what}: {picture.width} x {picture.height}, WebP of quality {quality}")
    if args.out is None:
        path = RESULTS / "pictures.json"
        drawn = json.loads(path.read_text()).get("drawn", {}) if path.exists() else {}
        facts = provenance(0)
        drawn[args.what] = {"date": facts["date"], "command": facts["command"], "rows": rows}
        print("written:", write("pictures", {"about": "the pictures of README.md and docs", "drawn": drawn}, 0).name)


if __name__ == "__main__":
    main()
