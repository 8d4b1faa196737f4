"""CoD on pixels against CoD on the latents of a tiny autoencoder, at equal tokens, positions and minutes of training.

    python -m bench.quality.cod_latent PIXEL_DIR LATENT_DIR ENCODER:DECODER
    python -m bench.quality.cod_latent --report       # only write the page; --check: only say whether it is up to date

Each DIR is that of a finished `noisebook train cod` on crops of 64 x 64. Judged on the middle crops of photographs that
neither was trained on. Writes bench/results/cod_latent.json and a table of docs/cod.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisebook
from bench.lib import metrics, page
from bench.lib.record import DATA, ROOT, write
from noisebook import backbones
from noisebook.backbones.wrappers.latent import Latent
from noisebook.format import container
from noisebook.images.archive import load_npz_images
from noisebook.images.io import find_files, read_image
from noisebook.runtime.pixels import to_uint8

NAME, PAGE = "cod_latent", ROOT / "docs/cod.md"
SIDE, HELD_OUT, CROPS = 64, 64, 4  # CROPS of each Kodak picture on each axis
STEPS = (1, 4, 25)


def judged() -> dict[str, Tensor]:
    """uint8 [N, 3, 64, 64] of each set."""
    photos = load_npz_images(str(DATA / "photos256.npz"))[-HELD_OUT:]
    kodak = [read_image(path) for path in find_files([DATA / "kodak"])]
    places = [(k + 1) / (CROPS + 1) for k in range(CROPS)]
    sets = {
        "held-out photographs": [crop(x, 0.5, 0.5) for x in photos],
        "Kodak": [crop(x, a, b) for x in kodak for a in places for b in places],
    }
    return {name: torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for name, some in sets.items()}


def crop(pixels: np.ndarray, down: float, across: float) -> np.ndarray:
    top, left = int(down * (pixels.shape[0] - SIDE)), int(across * (pixels.shape[1] - SIDE))
    return pixels[top : top + SIDE, left : left + SIDE, :3]


def quality(shown: Tensor, images: Tensor) -> list[float]:
    return list(metrics.interval(metrics.psnr(to_uint8(shown), images)))


def rows(name: str, folder: Path, autoencoder: str | None, sets: dict[str, Tensor]) -> dict[str, Any]:
    log = json.loads((folder / "log.json").read_text())
    model = backbones.load(str(folder / "model.safetensors"), autoencoder=autoencoder)
    codec = noisebook.load(backbone=model, condition="only")
    net = model.inner if isinstance(model, Latent) else model
    count = sum(p.numel() for p in net.parameters())
    out: dict[str, Any] = {
        "model": name,
        "weights": count,
        "iterations": log[-1]["iteration"],
        "minutes": round(log[-1]["minutes"], 1),
        "bits": container.packed_bits(codec.stream(SIDE, SIDE).runs),
        "psnr": {},
    }
    for which, images in sets.items():
        tokens = codec.encode(images)
        out["psnr"][which] = {n: quality(codec.decode(tokens, (SIDE, SIDE), n), images) for n in STEPS}
        if autoencoder is not None:
            latent = model.encode(images.float() / 127.5 - 1)
            out.setdefault("autoencoder", {})[which] = quality(model.decode(latent), images)
        print(json.dumps(out), flush=True)
    return out


def table() -> str:
    result, lines = page.load(NAME), []
    for r in result["rows"]:
        cells = [" / ".join(f"{r['psnr'][which][str(n)][0]:.2f}" for n in STEPS) for which in result["sets"]]
        about = [f"{r['weights'] / 1e6:.2f} M", str(r["iterations"]), f"{r['minutes']:g}"]
        lines.append([r["model"], *about, *cells])
    ceiling = result["rows"][1]["autoencoder"]
    lines.append(["the autoencoder only, no tokens", "", "", "", *(f"{ceiling[w][0]:.2f}" for w in result["sets"])])
    steps = " / ".join(map(str, STEPS))
    head = ["model", "weights", "iterations", "minutes", *(f"{w}, PSNR in {steps} steps, dB" for w in result["sets"])]
    counts = ", ".join(f"{n} {w}" for w, n in result["sets"].items())
    return (
        f"{page.table(head, lines)}\n\n{result['rows'][0]['bits']} bits per crop of 64 x 64 (.0625 bpp); {counts}. "
        + page.source(result, NAME)
    )


TABLES: page.Tables = {"latent": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pixel", nargs="?", type=Path)
    parser.add_argument("latent", nargs="?", type=Path)
    parser.add_argument("autoencoder", nargs="?", metavar="ENCODER:DECODER")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    if args.autoencoder is None:
        parser.error("give PIXEL_DIR LATENT_DIR ENCODER:DECODER, or --report or --check")
    sets = judged()
    found = [rows("CoD on pixels", args.pixel, None, sets), rows("CoD on latents", args.latent, args.autoencoder, sets)]
    write(NAME, {"rows": found, "sets": {k: len(v) for k, v in sets.items()}}, 0)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
