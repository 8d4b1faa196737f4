"""What a user gets: `noisebook roundtrip` with three presets on the Kodak pictures, recomputed from the written PNGs.

    python -m bench.quality.kodak           # needs the data folder ($NOISEBOOK_DATA or ../shared/data)
    python -m bench.quality.kodak --metrics psnr,ssim,ms-ssim,ssimulacra2 --lpips FILE   # and more: docs/metrics.md

Writes bench/results/kodak.json: every image's bits per pixel (whole file), PSNR, SSIM, network calls and seconds. JPEG and
WebP at no more bytes are compared by the same metrics.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bench.lib.images import PRESETS
from bench.lib.record import DATA, write
from noisebook.cli import judging
from noisebook.cli.main import main as noisebook
from noisebook.images.io import read_image
from noisebook.images.judges.judge import Judge, Verdict
from noisebook.images.metrics import psnr
from noisebook.spec import presets


def roundtrip(argv: list[str]) -> tuple[list[dict], dict]:
    """The rows that `noisebook roundtrip` reports, after a check of each PSNR against the picture it wrote; all that it
    reports."""
    with tempfile.TemporaryDirectory() as out:
        captured = io.StringIO()
        with contextlib.redirect_stdout(captured):
            if noisebook(["roundtrip", "--json", "-o", out, *argv]):
                raise SystemExit("noisebook roundtrip failed")
        result = json.loads(captured.getvalue())
        rows = result["images"]
        for row in rows:
            row["name"] = Path(row["name"]).name
            both = np.asarray(Image.open(Path(row.pop("output")).with_suffix(".compared.png")))
            row["psnr_of_png"] = psnr(both[:, : row["width"]], both[:, row["width"] :])
            if abs(row["psnr_of_png"] - row["psnr"]) > 0.02:
                raise SystemExit(f"{row['name']}: the PNG has {row['psnr_of_png']} dB, reported were {row['psnr']}")
    return rows, result


def classical(kind: str, pixels: np.ndarray, limit: int, judge: Judge) -> tuple[dict, Verdict] | None:
    """Pillow's JPEG or WebP at the best quality whose file is not larger than `limit` bytes, and what the judge says of it;
    None where none is."""
    options = {"optimize": True, "progressive": True} if kind == "JPEG" else {"method": 6}
    best, low, high = None, 1, 100
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, quality=quality, **options)
        if len(buffer.getvalue()) <= limit:
            best, low = (quality, buffer), quality + 1
        else:
            high = quality - 1
    if best is None:
        return None
    decoded = np.asarray(Image.open(best[1]).convert("RGB"))
    size = len(best[1].getvalue())
    bpp, verdict = 8 * size / (pixels.shape[0] * pixels.shape[1]), judge(pixels, decoded)
    return {"quality": best[0], "bpp": bpp, "psnr": psnr(pixels, decoded), **verdict.values}, verdict


def beside(rows: list[dict], judge: Judge) -> dict:
    """JPEG and WebP at no more bytes than each image has in `rows`: mean bits, PSNR and metrics over the images where that
    exists."""
    out = {}
    for kind in ("JPEG", "WEBP"):
        files = {row["name"]: read_image(DATA / "kodak" / row["name"]) for row in rows}
        found = [classical(kind, files[row["name"]], row["bytes"], judge) for row in rows]
        there, said = [f[0] for f in found if f], judge.summary([f[1] for f in found if f])
        mean = {k: sum(f[k] for f in there) / len(there) for k in ("bpp", "psnr")} if there else None
        out[kind] = {"images": len(there), "mean": mean, "metrics": said, "rows": [f and f[0] for f in found]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--backbone",
        action="append",
        metavar="NAME[:DTYPE]",
        help="also with this backbone in place of the presets', perhaps in another dtype (repeatable)",
    )
    judging.add_metric_options(parser)
    args = parser.parse_args()
    args.device, runs = "cpu", []
    own = ("psnr", "ssim")
    judge = judging.judge_of(args, own)
    asked = ["--metrics", ",".join([*own, *(metric.name for metric in judge.metrics)])]
    asked += [f"--{name}={path}" for name in ("lpips", "dists", "features") for path in getattr(args, name) or []]
    asked += ["--patch", str(args.patch)] if args.patch else []
    for which in [None, *(args.backbone or [])]:
        backbone, _, dtype = (which or "").partition(":")
        for name in PRESETS:
            preset = presets.get(name)
            extra = [*(["--backbone", backbone] if backbone else []), *(["--dtype", dtype] if dtype else [])]
            rows, said = roundtrip(["--preset", name, *extra, *asked, str(DATA / "kodak")])
            mean = {k: sum(r[k] for r in rows) / len(rows) for k in ("bpp", "payload_bpp", "psnr", "ssim", "seconds")}
            runs.append(
                {
                    "preset": name,
                    "backbone": backbone or preset.spec.backbone,
                    "dtype": said["codec"]["dtype"],
                    "codec_hash": said["codec"]["hash"],
                    "mean": mean,
                    "metrics": said["metrics"],
                    "least_psnr": min(r["psnr"] for r in rows),
                    "images": rows,
                }
            )
            if which is None:
                runs[-1]["beside"] = beside(rows, judge)
            print(f"{name} on {runs[-1]['backbone']}: " + ", ".join(f"{k} {v:.4g}" for k, v in mean.items()), flush=True)
    by_preset = {r["preset"]: {i["name"]: i for i in r["images"]} for r in runs if "beside" in r}
    ladder = sorted(by_preset.values(), key=lambda images: sum(i["bpp"] for i in images.values()))
    rises = all(a[n]["psnr"] < b[n]["psnr"] for a, b in zip(ladder, ladder[1:], strict=False) for n in a)
    about = "12 Kodak pictures at native size, portrait and landscape in one run"
    print("written:", write("kodak", {"about": about, "psnr_rises_on_every_image": rises, "runs": runs}, 0).name)


if __name__ == "__main__":
    main()
