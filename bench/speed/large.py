"""Large pictures: seconds a megapixel and memory of `encode`, `decode` and `tokenize`, each in a process of its own.

    python -m bench.speed.large [--megapixels 12 48] [--backbone photo] [--picture enlarged] [--no-tokenize] [--dry]
    python -m bench.speed.large --report      # only write the page; --check: only say whether it is up to date

A picture is a photograph of $NOISEBOOK_DATA, enlarged (bicubic) to 4:3; or a mosaic of all photographs there at their own
size, so that it has detail in every pixel. Without that folder, a picture of scikit-image. Rows are kept by size,
backbone and picture in bench/results/large.json, so that the long ones can be measured by themselves. The preset is `photo`.
Memory is the largest resident set of the process and of the workers that it waited for, as the system counts it.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from bench.lib import page
from bench.lib.record import DATA, RESULTS, ROOT, provenance, save
from noisebook.images.io import sample
from noisebook.images.metrics import psnr

NAME, PAGE = "large", ROOT / "docs/performance.md"
KEYS = ("megapixels", "backbone", "picture")


def picture(megapixels: float, kind: str) -> Image.Image:
    """A picture of that many megapixels, RGB, 4:3."""
    there = sorted((DATA / "kodak").glob("*.png"))
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (round(megapixels * 1e6 / height), height)
    if kind == "enlarged":
        image = Image.open(there[4]).convert("RGB") if there else Image.fromarray(sample("coffee"))
        return image.resize(size, Image.Resampling.BICUBIC)
    tiles = [Image.open(path).convert("RGB") for path in there] or [Image.fromarray(sample("coffee"))]
    image, width = Image.new("RGB", size), min(tile.width for tile in tiles)
    count, step = 0, min(tile.height for tile in tiles)
    for top in range(0, size[1], step):
        for left in range(0, size[0], width):
            image.paste(tiles[count % len(tiles)], (left, top))
            count += 1
    return image


def run(*words: str) -> dict[str, float]:
    """Seconds and MiB of `noisebook` with these arguments. SystemExit where it fails."""
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execv(sys.executable, [sys.executable, "-m", "noisebook", *words])
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"noisebook {words[0]} ended with status {status}")
    return {"seconds": round(time.perf_counter() - begin, 1), "mib": round(usage.ru_maxrss / 1024)}


def measure(megapixels: float, backbone: str, kind: str, tokenize: bool) -> dict[str, Any]:
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = picture(megapixels, kind)
        image.save(folder / "a.png", compress_level=1)
        how = ["--dtype", "float32", "--backbone", backbone]
        row: dict[str, Any] = {"megapixels": megapixels, "width": image.width, "height": image.height}
        row |= {"backbone": backbone, "picture": kind}
        del image
        row["encode"] = run("encode", str(folder / "a.png"), "-o", str(folder / "o"), *how)
        row["bpp"] = round(8 * (folder / "o/a.nbk").stat().st_size / (row["width"] * row["height"]), 4)
        row["decode"] = run("decode", str(folder / "o/a.nbk"), "-o", str(folder / "o"))
        if tokenize:
            memory = ["--memory", "18G"] if megapixels > 100 else []
            row["tokenize"] = run("tokenize", str(folder / "a.png"), "-o", str(folder / "t"), *how, *memory)
        import numpy as np

        pair = [np.asarray(Image.open(folder / file).convert("RGB")) for file in ("a.png", "o/a.decoded.png")]
        strips = [psnr(*(x[top : top + 256] for x in pair)) for top in range(0, row["height"], 256)]
        errors = [10 ** (-(99.0 if s is None else s) / 10) * min(256, row["height"] - 256 * i) for i, s in enumerate(strips)]
        row["psnr"] = round(float(-10 * np.log10(sum(errors) / row["height"])), 2)
    return row


def table() -> str:
    result = page.load(NAME)
    rows = []
    for row in sorted(result["rows"], key=lambda r: (r["backbone"] != "photo", r["picture"], r["megapixels"])):
        both = row["encode"]["seconds"] + row["decode"]["seconds"]
        cells = [
            f"{row[name]['seconds']:,.0f} s, {row[name]['mib']:,} MiB" if name in row else ""
            for name in ("encode", "decode")
        ]
        last = (
            f"{row['tokenize']['seconds']:,.0f} s, {row['tokenize']['mib']:,} MiB" if "tokenize" in row else "not measured"
        )
        size = f"{row['width']:,} x {row['height']:,}, {row['picture']}"
        about = [
            row["backbone"],
            size,
            *cells,
            f"{both / row['megapixels']:.1f}",
            last,
            f"{row['bpp']:.3f}",
            f"{row['psnr']:.2f}",
        ]
        rows.append(about)
    head = [
        "backbone",
        "picture",
        "encode",
        "decode",
        "both, seconds per megapixel",
        "tokenize",
        "bits per pixel",
        "PSNR, dB",
    ]
    notes = [
        f"{row['megapixels']:g} megapixels, {row['backbone']}: {row['note']}." for row in result["rows"] if "note" in row
    ]
    return page.table(head, rows) + f"\n\n{' '.join([*notes, page.source(result, NAME)])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 48])
    parser.add_argument("--backbone", default="photo")
    parser.add_argument("--picture", choices=["enlarged", "mosaic"], default="enlarged")
    parser.add_argument("--no-tokenize", action="store_true")
    parser.add_argument("--dry", action="store_true", help="one picture of 6 megapixels, nothing written")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, {NAME: table}):
        return
    for megapixels in [6.0] if args.dry else args.megapixels:
        load = os.getloadavg()[0]
        about = provenance(None)
        row = {name: about[name] for name in ("date", "command")} | {"load": load}
        row |= measure(megapixels, args.backbone, args.picture, not args.no_tokenize)
        print(json.dumps(row), flush=True)
        if args.dry:
            continue
        path = RESULTS / f"{NAME}.json"
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        same = [row[name] for name in KEYS]
        rows = [r for r in old if [r[name] for name in KEYS] != same]
        save(path, {**about, "rows": [*rows, row]})


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
