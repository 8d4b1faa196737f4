"""What the realism dial trades: the same tokens of the 12 Kodak pictures, decoded at several values of realism, and by
the ODE in other numbers of steps.

    python -m bench.quality.dial --lpips FILE --features FILE --patch 64 [--network FILE]

For each preset: a row for each value of realism, and one for each number of Euler steps of the ODE from the level where the
tokens end, with all the metrics that are asked for. The Frechet distance is of all pictures together, so it is one number
a row. Writes bench/results/dial.json; `--report` writes the table of docs/concepts.md.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import noisebook
from bench.lib import page
from bench.lib.images import kodak
from bench.lib.record import ROOT, write
from noisebook.cli import judging
from noisebook.codec.codec import Codec
from noisebook.images.files import pixels_of
from noisebook.images.judges.judge import Judge
from noisebook.spec.schedule import solver_levels

NAME, PAGE = "dial", ROOT / "docs/concepts.md"
PRESETS = ("photo-low", "photo")
VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)
METRICS = "psnr,ssimulacra2"  # and those whose network is given
ODE_STEPS = (2, 3, 6, 10)


def decodes(
    codec: Codec, tokens: torch.Tensor, size: tuple[int, int], values: list[float]
) -> Iterator[tuple[str, np.ndarray]]:
    """A picture for each value of realism and for each number of steps of the ODE."""
    for value in values:
        yield f"realism {value:g}", pixels_of(codec.decode(tokens, size, realism=value)[0])
    for steps in ODE_STEPS:
        levels = solver_levels(codec.spec.sigma_last, steps)
        ode = Codec(replace(codec.spec, solver="euler", solver_levels=levels), codec.backbone)
        yield f"ODE, {steps} steps", pixels_of(ode.decode(tokens, size)[0])


def measure(codec: Codec, judge: Judge, pictures: dict[str, np.ndarray], values: list[float]) -> list[dict[str, Any]]:
    """A row for each way of decoding: means of all metrics, and the values of each picture."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, pixels in pictures.items():
        begin, size = time.perf_counter(), (pixels.shape[0], pixels.shape[1])
        tokens = codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        for row, decoded in decodes(codec, tokens, size, values):
            found.setdefault(row, []).append((name, judge(pixels, decoded)))
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return [
        {
            "decode": row,
            "metrics": judge.summary([verdict for _, verdict in verdicts]),
            "images": [{"image": name, **verdict.values} for name, verdict in verdicts],
        }
        for row, verdicts in found.items()
    ]


# ---- report -------------------------------------------------------------------------------------------------------------
def dial_table() -> str:
    result = page.load(NAME)
    head = ["preset", "decode", *(entry["name"] for entry in result["runs"][0]["rows"][0]["metrics"].values())]
    rows = [
        [run["preset"], row["decode"], *(cell(entry) for entry in row["metrics"].values())]
        for run in result["runs"]
        for row in run["rows"]
    ]
    networks = {f["file"]: f["sha256"][:12] for e in result["runs"][0]["rows"][0]["metrics"].values() for f in e["networks"]}
    files = ", ".join(f"{file} ({digest}...)" for file, digest in networks.items())
    return f"{page.table(head, rows)}\n\n{result['about']}. Networks: {files}. {page.source(result, NAME)}"


def cell(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.{3 if abs(entry['value']) < 1 else 2}f} {entry['unit']}".strip()


TABLES: page.Tables = {"dial": dial_table} if page.measured(NAME) else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--network", type=Path, help="realism network (default: the one that came with the backbone, or its ODE)"
    )
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--values", nargs="+", type=float, default=list(VALUES))
    parser.add_argument("--images", type=int, default=12, help="so many of the Kodak pictures")
    parser.add_argument("--out", default=NAME)
    judging.add_metric_options(parser)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    args.device, args.metrics = "cpu", args.metrics or METRICS
    judge = judging.judge_of(args)
    pictures = kodak(count=args.images)
    runs = []
    for preset in args.presets:
        codec = noisebook.load(preset, realism_network=args.network)
        dial = codec.dial(1.0)
        assert dial is not None
        about = {"preset": preset, "codec_hash": codec.spec.hash.hex(), "dtype": codec.dtype}
        about |= {"realism_network": dial.name}
        runs.append({**about, "rows": measure(codec, judge, pictures, args.values)})
        for row in runs[-1]["rows"]:
            print(preset, row["decode"], {k: round(e["value"], 4) for k, e in row["metrics"].items()}, flush=True)
    about = f"{len(pictures)} Kodak pictures at native size, the same tokens in all rows of a preset"
    print("written:", write(args.out, {"about": about, "runs": runs}, 0).name)


if __name__ == "__main__":
    main()
