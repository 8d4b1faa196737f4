"""CoD at our scale: the paper's questions, on CIFAR-10 with small networks of `noisebook train cod`.

    python -m bench.quality.cod --run unified=DIR --run plain=DIR --run alone=DIR ...   # rows of other runs stay
    python -m bench.quality.cod --report       # only write docs/cod.md; --check: only say whether it is up to date

A DIR is that of a finished training: `unified` with the paper's loss, `plain` the same with --share 1, `alone` the same
network with --dropped 1, which is never given a condition; `small` and `large` of other widths; `gpu` and `gpu-alone` a pair
that was trained on a GPU. Every figure is of test images.
Writes bench/results/cod.json and the tables of docs/cod.md.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisebook
from bench.lib import metrics, page, rivals
from bench.lib.record import DATA, RESULTS, command_line, write
from bench.quality.cod_page import FEW, NAME, PAGE, RATES, SHIPPED, TABLES, draw
from noisebook import backbones
from noisebook.backbones.cod.cod import CoD
from noisebook.codec.codec import Codec
from noisebook.codec.measure import measure
from noisebook.errors import SpecError
from noisebook.format import container
from noisebook.runtime.pixels import to_uint8
from noisebook.spec import curve as calibration
from noisebook.spec import schedule
from noisebook.spec.spec import CodecSpec

SIDE, CALLS = 32, 25
STEPS = ((1, 1.0), (2, 1.0), (4, 1.0), (8, 1.0), (25, 1.0), (25, 3.0))  # (steps, guidance)
DIFFC = {0.1: (4, 6, 9), 0.25: (13, CALLS), 0.5: (CALLS,), 1.0: (CALLS,)}  # calls that served it best in a first run
CALIBRATION = 256
RUNS = ("unified", "plain", "alone", "small", "large", "gpu", "gpu-alone")


class Bench:
    def __init__(self, runs: dict[str, Path], images: int):
        with np.load(DATA / "cifar10_test5k.npz") as data:
            test = torch.from_numpy(data["images"][: 2 * images]).permute(0, 3, 1, 2).contiguous()
        with np.load(DATA / "cifar10_train.npz") as data:
            self.seen = torch.from_numpy(data["images"][-CALIBRATION:]).permute(0, 3, 1, 2).contiguous()  # mostly trained on
        self.images, self.resnet = test[:images], metrics.resnet56(DATA / metrics.RESNET)
        self.real = self.features(self.images)
        self.models = {name: backbones.load(path / "model.safetensors") for name, path in runs.items()}
        self.logs = {name: json.loads((path / "log.json").read_text()) for name, path in runs.items()}
        if "alone" in runs:
            self.models[SHIPPED] = backbones.load(SHIPPED)
        self.curves: dict[tuple[str, bool], calibration.Curve] = {(SHIPPED, False): calibration.shipped_curves()[SHIPPED]}
        self.result: dict[str, Any] = {
            "images": images,
            "cifar_fd_of_other_images": metrics.frechet(self.real, self.features(test[images:])),
        }

    def features(self, images: Tensor) -> Tensor:
        return torch.cat(metrics.in_batches(self.resnet.features, images))

    def curve(self, name: str, told: bool) -> calibration.Curve:
        if (name, told) not in self.curves:
            self.curves[name, told] = measure(self.models[name], list(self.seen.split(64)), conditional=told)
        return self.curves[name, told]

    def figures(self, decoded: Tensor) -> dict[str, Any]:
        shown = to_uint8(decoded)
        return {
            "psnr": metrics.interval(metrics.psnr(shown, self.images)),
            "cifar_fd": metrics.frechet(self.real, self.features(shown)),
        }

    # ---- drawn from the condition alone ---------------------------------------------------------------------------------
    def drawn(self) -> Iterator[dict[str, Any]]:
        for name in ("unified", "plain", "gpu"):
            if name not in self.models:
                continue
            model = self.models[name]
            assert isinstance(model, CoD)
            codec = noisebook.load(backbone=model, condition="only")
            tokens = codec.encode(self.images)
            bits = container.packed_bits(codec.stream(SIDE, SIDE).runs)
            for steps, guidance in STEPS:
                model.guidance = guidance
                shown = torch.cat([codec.decode(t, (SIDE, SIDE), steps) for t in tokens.split(125)])
                yield {"model": name, "bits": bits, "steps": steps, "guidance": guidance, **self.figures(shown)}
            model.guidance = 1.0

    # ---- other tokens, under the condition and without ------------------------------------------------------------------
    def coded(self) -> Iterator[dict[str, Any]]:
        cases = (
            ("unified", True),
            ("plain", True),
            ("unified", False),
            ("alone", False),
            (SHIPPED, False),
            ("gpu", True),
            ("gpu", False),
            ("gpu-alone", False),
        )
        for bpp in RATES:
            for name, told in cases:
                if told and bpp == RATES[0]:
                    continue  # `drawn`, in one step
                if name not in self.models or (bpp > FEW and name.startswith("gpu")):
                    continue
                place = rivals.Place(self.models[name], self.curve(name, told), SIDE, SIDE)
                about = {"model": name, "told": told, "bpp": bpp}
                spec = default(place, bpp * SIDE * SIDE)
                yield {**about, "rule": "default", "solver": "mean", **self._walk(place, spec)}
                if bpp <= RATES[1]:
                    levels = schedule.even_levels(spec.sigma_last, CALLS - len(spec.schedule))
                    drawn = replace(spec, solver="ab2", solver_levels=levels)
                    yield {**about, "rule": "default", "solver": "ab2", **self._walk(place, drawn)}
                found = list(self._diffc(place, bpp)) if name in ("unified", "alone") and bpp in DIFFC else []
                if found:
                    yield {**about, "rule": "DiffC", "solver": "mean", **max(found, key=lambda row: row["psnr"][0])}

    def _diffc(self, place: rivals.Place, bpp: float) -> Iterator[dict[str, Any]]:
        """With a few numbers of calls, for a step of a bit of divergence costs it three."""
        bits = bpp * SIDE * SIDE
        own = condition_bits(place)
        for calls in DIFFC[bpp]:
            left, nearest = bits - own, None
            for _ in range(3):  # its payload follows the images: corrected by what it was
                try:
                    row = self._walk(place, rivals.diffc(place, left, calls))
                except (SpecError, ValueError):
                    break
                if row["bits"] <= 1.005 * bits and (nearest is None or row["bits"] > nearest["bits"]):
                    nearest = row
                if 0.99 * bits <= row["bits"] <= 1.005 * bits:
                    break
                left *= (bits - own) / (row["bits"] - own)
            if nearest:
                yield nearest

    def _walk(self, place: rivals.Place, spec: CodecSpec) -> dict[str, Any]:
        codec = Codec(spec, place.backbone, effort=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            both = [codec.reconstruct(x) for x in self.images.split(125)]
        runs, tokens = codec.stream(SIDE, SIDE).runs, torch.cat([t for t, _ in both])
        some = tokens[:: max(1, len(tokens) // 64)].numpy()
        bits = (
            float(np.mean([8 * len(container.pack(row, runs)) for row in some]))
            if spec.rule == "poisson"
            else container.packed_bits(runs)
        )
        return {"bits": bits, "nfe": codec.nfe, **self.figures(torch.cat([shown for _, shown in both]))}

    # ---- sizes ----------------------------------------------------------------------------------------------------------
    def sizes(self) -> Iterator[dict[str, Any]]:
        for name in RUNS:
            if name not in self.models:
                continue
            model, log = self.models[name], self.logs[name]
            assert isinstance(model, CoD)
            parts = {"weights": model.net, "weights_of_the_codec": model.net.y_embedder}
            row = {
                "model": name,
                **{k: sum(p.numel() for p in net.parameters()) for k, net in parts.items()},
                "iterations": log[-1]["iteration"],
                "minutes": round(log[-1]["minutes"], 1),
                "mse_told_nothing": {k: v for k, v in log[-1].items() if k.startswith("mse@")},
            }
            if not name.endswith("alone"):
                codec = noisebook.load(backbone=model, condition="only", steps=1)
                tokens = codec.encode(self.images)
                share = torch.bincount(tokens.flatten(), minlength=model.condition_grid[1]).double() / tokens.numel()  # type: ignore[index]
                row |= {
                    "one_step": self.figures(codec.decode(tokens, (SIDE, SIDE)))["psnr"],
                    "entropy": float(-(share[share > 0] * share[share > 0].log2()).sum()),
                }
            yield row


def condition_bits(place: rivals.Place) -> int:
    """What the condition costs of an image."""
    if not place.curve.condition:
        return 0
    return container.packed_bits(place.spec(()).condition_runs(place.height, place.width))


def default(place: rivals.Place, bits: float) -> CodecSpec:
    """The default rule with tokens of the size, 12 to 20 bits, that leaves fewest of the bits over."""
    left = bits - condition_bits(place)
    sizes = [b for b in range(20, 11, -1) if left >= 2 * b]
    best = min(sizes, key=lambda b: left % b)
    return rivals.ours(place, left, CALLS, 1 << best)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="append", default=[], metavar="NAME=DIR", help=f"NAME of {', '.join(RUNS)}")
    parser.add_argument(
        "--only", action="append", choices=("sizes", "drawn", "coded"), help="the other parts stay as they are"
    )
    parser.add_argument("--images", type=int, default=500)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return None if args.check else draw()
    runs = {name: Path(path) for name, _, path in (run.partition("=") for run in args.run)}
    if not runs or not set(runs) <= set(RUNS):
        parser.error(f"--run: NAME=DIR, NAME of {', '.join(RUNS)}")
    bench, path = Bench(runs, args.images), RESULTS / f"{NAME}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    for part in (bench.sizes, bench.drawn, bench.coded):
        if args.only and part.__name__ not in args.only:
            bench.result[part.__name__] = before[part.__name__]
            continue
        kept = [row for row in before.get(part.__name__, ()) if row["model"] not in bench.models]
        rows = bench.result[part.__name__] = kept
        for row in part():
            rows.append(row)
            print(f"{time.strftime('%H:%M:%S')} {part.__name__} {json.dumps(row)}", flush=True)
    commands = [*before.get("commands", ()), command_line()]
    about = f"CIFAR-10 test images, {len(bench.images)}; commands: all that made these rows"
    write(NAME, {"about": about, "commands": commands, **bench.result}, 0)
    page.fill(PAGE, TABLES, False)
    draw()


if __name__ == "__main__":
    main()
