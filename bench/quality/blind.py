"""Blind pairs of Kodak pictures: which of two decodes looks better to somebody who does not know what they are.

    python -m bench.quality.blind make FOLDER --key key.json      # pair_01.png ... and index.html, sides and order shuffled
    python -m bench.quality.blind score key.json answers.json     # a JSON list: "left", "right" or "same" for each pair

Each picture at each rate makes a pair of ours at realism 1 and at realism 0, and one of ours at realism 1 and AVIF tuned to
the eye, at equal bytes. The key says which side is which codec: keep it away from the judge. `--save` writes
bench/results/blind.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from bench.lib import equal_bytes
from bench.lib.equal_bytes import Ours, Tried, name_of
from bench.lib.record import DATA, write
from noisebook.images.io import read_image

RIVAL, GAP = "AVIF for the eye", 16
MATCHES = ((name_of(1), name_of(0)), (name_of(1), RIVAL))  # the first of each is the one whose share is given
ANSWERS = ("left", "right", "same")
HEAD = "<!doctype html><meta charset=utf-8><title>Pairs</title><p>Which side looks better: left, right, or the same?"


def beside(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two pictures uint8 [H, W, 3] on one sheet, with white between them."""
    gap = np.full((left.shape[0], GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([left, gap, right], 1))


def decodes(ours: Ours, pixels: np.ndarray, bpp: float, tried: Tried, speed: int) -> dict[str, np.ndarray]:
    """Name -> what it decodes to; without the rival where it has no file so small."""
    data, codec = ours.file(pixels, bpp)
    out = {name_of(r): equal_bytes.shown(data, codec, r) for r in (0, 1)}
    found, _ = equal_bytes.largest(equal_bytes.rivals(speed)[RIVAL], pixels, len(data), tried)
    return out | ({RIVAL: found.decoded} if found else {})


def make(
    folder: Path, key: Path, ours: Ours, images: Sequence[Path], rates: Sequence[float], seed: int, speed: int
) -> list[dict[str, Any]]:
    """Writes the pairs and the key; gives the key's rows, in the order of the pairs."""
    if key.resolve().is_relative_to(folder.resolve()):
        raise SystemExit(f"the key must not lie in {folder}, where the judge looks")
    folder.mkdir(parents=True)
    rng, rows, sheets = np.random.default_rng(seed), [], []
    for path in images:
        pixels, tried = read_image(path), Tried()
        for bpp in sorted(rates):
            shown = decodes(ours, pixels, bpp, tried, speed)
            for match in MATCHES:
                if not shown.keys() >= set(match):
                    print(f"{path.stem} at {bpp:g} bpp: {RIVAL} has no file so small, so there is no pair")
                    continue
                left, right = match if rng.random() < 0.5 else match[::-1]
                rows.append({"image": path.stem, "bpp": bpp, "match": list(match), "left": left, "right": right})
                sheets.append(beside(shown[left], shown[right]))
    order, page = rng.permutation(len(rows)), [HEAD]
    for number, i in enumerate(order, 1):
        name = f"pair_{number:02d}.png"
        sheets[i].save(folder / name)
        page.append(f"<h2>{number}</h2><img src={name}>")
    (folder / "index.html").write_text("\n".join(page) + "\n")
    rows = [rows[i] for i in order]
    key.write_text(json.dumps({"seed": seed, **ours.about(), "pairs": rows}, indent=1) + "\n")
    return rows


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[dict[str, Any]]:
    """For each match, over all rates and at each: how often the first was preferred, with the exact 95 % interval of the
    share among pairs with a preference. SystemExit where answers and pairs do not fit."""
    if len(rows) != len(answers) or set(answers) - set(ANSWERS):
        raise SystemExit(f"{len(rows)} answers are needed, each of {', '.join(ANSWERS)}; there are {len(answers)}")
    out = []
    for match in sorted({tuple(row["match"]) for row in rows}):
        of = [(row, answer) for row, answer in zip(rows, answers, strict=True) if tuple(row["match"]) == match]
        for bpp in (None, *sorted({row["bpp"] for row, _ in of})):
            chosen = [row.get(answer) for row, answer in of if bpp in (None, row["bpp"])]  # None: the same
            won, lost = (chosen.count(name) for name in match)
            entry: dict[str, Any] = {"match": list(match), "bpp": bpp, "won": won, "lost": lost}
            entry["same"] = len(chosen) - won - lost
            if won + lost:
                interval = binomtest(won, won + lost).proportion_ci(0.95, "exact")
                entry |= {"share": won / (won + lost), "interval": [float(interval.low), float(interval.high)]}
            out.append(entry)
    return out


def line_of(entry: dict[str, Any]) -> str:
    where = "all rates" if entry["bpp"] is None else f"{entry['bpp']:g} bpp"
    text = f"{entry['match'][0]} against {entry['match'][1]}, {where}: {entry['won']} won, {entry['lost']} lost, "
    text += f"{entry['same']} the same"
    if "share" in entry:
        low, high = entry["interval"]
        text += f"; preferred in {entry['share']:.0%} (95 % interval {low:.0%} to {high:.0%})"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--key", type=Path, required=True, help="the file that says which side is which codec")
    making.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.25], help="bits per pixel")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--speed", type=int, default=0, help="of libaom, 0 (slowest) to 10")
    making.add_argument("--backbone", help="in place of the preset's")
    scoring = verbs.add_parser("score")
    scoring.add_argument("key", type=Path)
    scoring.add_argument("answers", type=Path)
    scoring.add_argument("--judge", default="", help="who judged, for the result file")
    scoring.add_argument("--save", action="store_true", help="write bench/results/blind.json")
    args = parser.parse_args()
    if args.verb == "make":
        images = sorted((DATA / "kodak").iterdir())
        rows = make(args.folder, args.key, Ours(args.backbone), images, args.rates, args.seed, args.speed)
        print(f"written: {len(rows)} pairs in {args.folder}")
        return
    key = json.loads(args.key.read_text())
    answers = json.loads(args.answers.read_text())
    found = score(key["pairs"], answers)
    print("\n".join(map(line_of, found)))
    if args.save:
        about = f"{len(answers)} blind pairs of Kodak pictures"
        result = {"about": about, "judge": args.judge, **key, "answers": answers, "preferences": found}
        print("written:", write("blind", result, key["seed"]).name)


if __name__ == "__main__":
    main()
