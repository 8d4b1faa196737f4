"""Ours against AVIF, WebP, VVC and JPEG XL at equal bytes on Kodak, by metrics of every kind.

    python -m bench.quality.codecs --lpips FILE --dists FILE --dists FILE --realism 1

For each picture and rate: our file (as `--bpp` makes it, all its bytes), decoded with the least error and at each
`--realism`, and the largest file of each rival that is not larger (bench/lib/equal_bytes.py). Writes
bench/results/codecs.json after every picture and rate. A call that was stopped goes on where it was; one with more
`--realism`, rates or codecs adds their rows. `--report` writes the tables of docs/rates.md and docs/images/codecs.svg,
`python -m bench.report` the sentences of the README.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import noisebook
from bench.lib import equal_bytes, page, rate_plot
from bench.lib.equal_bytes import RATES, File, Ours, Rival, Tried, name_of
from bench.lib.equal_tables import NAME, Comparison, equal_bytes_table, equal_wins, means
from bench.lib.images import add_crop, kodak, refuse_dry_result
from bench.lib.record import ROOT, provenance, save
from noisebook.cli import judging
from noisebook.images.judges.judge import Judge

PAGE = ROOT / "docs/rates.md"
METRICS = "psnr,ms-ssim,ssimulacra2"  # unless others are asked for; and those whose network is given
TABLES: page.Tables = {"equal_bytes": equal_bytes_table, "equal_wins": equal_wins} if page.measured(NAME) else {}


class Rows:
    """A result file and its rows. SystemExit where it was measured with other software, networks or settings.

    settings  what all rows have in common       codecs  name -> what it is and its version
    absent    name of a rival -> why it is not measured
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], codecs: dict[str, Any], absent: dict[str, str], again: list[str]
    ):
        self.path = path
        old = json.loads(path.read_text()) if path.exists() else {}
        before = {name: entry for name, entry in old.get("codecs", {}).items() if name not in again}
        for name, value in [*settings.items(), *codecs.items()]:
            was = before.get(name, value) if name in codecs else old.get(name, value)
            if was != value:
                raise SystemExit(f"{path.name} was measured with other {name}: {was}, now {value}: move it away, or --again")
        both = before | codecs
        self.head = settings | {"codecs": {name: both[name] for name in equal_bytes.in_order(both)}}
        self.head["absent"] = {name: why for name, why in absent.items() if name not in both}
        self.head["commands"] = [*old.get("commands", []), provenance(0)["command"]]
        rows = [row for row in old.get("rows", []) if row["codec"] not in again]
        self.rows = {(row["image"], row["asked"], row["codec"]): row for row in rows}

    def guess(self, image: str, asked: float, codec: str, kin: list[str]) -> int | None:
        """Where the search for a quality step begins: where that of one of its `kin` ended, which are the same encoder tuned
        otherwise; else where the last picture's ended, moved as far as the two were apart at the rate before."""
        steps = {key: row["quality"] for key, row in self.rows.items() if row["bytes"] and "quality" in row}
        if own := [steps[image, asked, k] for k in kin if (image, asked, k) in steps]:
            return own[0]
        others = [name for name, a, c in steps if (a, c) == (asked, codec) and name != image]
        if not others:
            return None
        before = max((a for name, a, c in steps if (name, c) == (image, codec) and a < asked), default=asked)
        here, there = (steps.get((name, before, codec)) for name in (image, others[-1]))
        moved = here - there if here is not None and there is not None else 0
        return steps[others[-1], asked, codec] + moved

    def write(self) -> None:
        """Whole or not at all, with the means over the rows that are there."""
        order = list(self.head["codecs"])
        rows = sorted(self.rows.values(), key=lambda row: (row["image"], row["asked"], order.index(row["codec"])))
        count, calls = len({row["image"] for row in rows}), self.head["ours"]["nfe"]
        about = f"{count} Kodak pictures at native size; ours in {calls} network calls a decode"
        result = {**provenance(0), "about": about, **self.head, "rows": rows}
        save(self.path, result | {"means": means(Comparison(result))})


def row_of(file: File | None, least: int, pixels: np.ndarray, judge: Judge) -> dict[str, Any]:
    """Figures of a rival's file; of none, the size of its smallest."""
    if file is None:
        return {"bytes": None, "least": least}
    found = {"quality": file.step, "variant": file.variant}
    return {**figures(file.data, file.decoded, pixels, judge), **found}


def figures(data: bytes, decoded: np.ndarray, pixels: np.ndarray, judge: Judge) -> dict[str, Any]:
    verdict = judge(pixels, decoded)
    remarks = {"remarks": verdict.remarks} if verdict.remarks else {}
    return {"bytes": len(data), "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1]), **verdict.values, **remarks}


def measure(
    rows: Rows,
    ours: Ours,
    realisms: list[float],
    rivals: Mapping[str, Rival],
    judge: Judge,
    images: Mapping[str, np.ndarray],
    rates: list[float],
) -> None:
    """Adds the rows that are missing, rate by rate."""
    names = [*map(name_of, realisms), *rivals]
    for image, pixels in images.items():
        tried = {name: Tried() for name in rivals}
        for asked in sorted(rates):
            if all((image, asked, name) in rows.rows for name in names):
                continue
            begin = time.perf_counter()
            data, codec = ours.file(pixels, asked)
            for name in names:
                old = rows.rows.get((image, asked, name))
                if old and old["limit"] == len(data):
                    continue
                if name in rivals:
                    kin = [other for other in rivals if rivals[other].kind == rivals[name].kind and other != name]
                    tried[name].guess = rows.guess(image, asked, name, kin)
                    found = equal_bytes.largest(rivals[name], pixels, len(data), tried[name])
                    row = row_of(*found, pixels, judge)
                else:
                    realism = realisms[names.index(name)]
                    row = figures(data, equal_bytes.shown(data, codec, realism), pixels, judge)
                rows.rows[image, asked, name] = {"image": image, "asked": asked, "codec": name, "limit": len(data), **row}
            rows.write()
            print(f"{image} at {asked:g} bpp: {len(data)} bytes, {time.perf_counter() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--realism", type=float, nargs="+", default=[], help="places of the dial, beside 0")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="bits per pixel")
    parser.add_argument("--images", nargs="+", metavar="NAME", help="only these pictures, such as kodim04")
    parser.add_argument("--codecs", nargs="*", metavar="NAME", help=f"of {', '.join(equal_bytes.rivals())} (default: all)")
    parser.add_argument("--again", action="append", default=[], metavar="NAME", help="measure a codec's rows again")
    parser.add_argument("--speed", type=int, default=0, help="of libaom, 0 (slowest) to 10")
    parser.add_argument("--backbone", help="in place of the preset's")
    parser.add_argument("--curve", type=Path, help="of that backbone")
    parser.add_argument("--nfe", type=int, help="network calls of a decode, in place of the preset's")
    parser.add_argument("--vvc", default="slow", help="preset of VVenC: faster, fast, medium, slow")
    add_crop(parser, NAME)
    judging.add_metric_options(parser)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        rate_plot.write(args.check)
        return
    refuse_dry_result(args)
    args.device, args.metrics = "cpu", args.metrics or METRICS
    judge, ours = judging.judge_of(args), Ours(args.backbone, args.curve, args.nfe)
    every = equal_bytes.rivals(args.speed, args.vvc)
    if lost := set(args.codecs or ()) - every.keys():
        raise SystemExit(f"no codec {', '.join(sorted(lost))}: there are {', '.join(every)}")
    rivals = {name: rival for name, rival in every.items() if args.codecs is None or name in args.codecs}
    absent = {name: equal_bytes.MISSING[rival.kind] for name, rival in rivals.items() if rival.version is None}
    rivals = {name: rival for name, rival in rivals.items() if name not in absent}
    for name, why in absent.items():
        print(f"{name}: {why}")
    absent |= {name: "the command left it out" for name in every if name not in rivals and name not in absent}
    realisms = [0.0, *(r for r in args.realism if r)]
    about = f"backbone `{ours.backbone.name}`, {ours.nfe} network calls of the codec"
    codecs = {name_of(r): {"about": about, "version": f"noisebook {noisebook.__version__}"} for r in realisms}
    codecs |= {name: {"about": rival.about, "version": rival.version} for name, rival in rivals.items()}
    kept = ("name", "better", "by", "networks")
    metrics = {key: {k: entry[k] for k in kept} for key, entry in judge.summary([]).items()}
    settings = {"ours": ours.about(), "metrics": metrics, **({"dry": True, "crop": args.crop} if args.crop else {})}
    rows = Rows(args.out, settings, codecs, absent, args.again)
    measure(rows, ours, realisms, rivals, judge, kodak(args.images, crop=args.crop), args.rates)
    rows.write()


if __name__ == "__main__":
    main()
