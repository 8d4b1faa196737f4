"""Are the tokens of use to a sequence model? CIFAR-10 tokens of several kinds, the same small transformer on each.

    python -m bench.findings.tokens_in_use WORK [--epochs 12] [--stage tokens|train]
    python -m bench.findings.tokens_in_use --report      # only write the page; --check: only say whether it is up to date

WORK is a folder for what can be resumed: data sets of tokens, as `noisebook tokenize` makes them, and the figures of every
kind. The transformer is examples/autoregressive.py. Bits are cross-entropies on images of the test set, which neither it nor
the backbone was trained on. Writes bench/results/tokens_in_use.json, docs/images/tokens-in-use.webp and the tables of
docs/findings/tokens-in-use.md.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import noisebook
from bench.lib import metrics, page
from bench.lib.images import write_parquet
from bench.lib.record import DATA, ROOT, save, write
from examples import autoregressive as ar
from noisebook.codec.codec import Codec
from noisebook.datasets import TokenDataset
from noisebook.runtime.pixels import to_uint8

NAME, PAGE, PICTURE = "tokens_in_use", ROOT / "docs/findings/tokens-in-use.md", ROOT / "docs/images/tokens-in-use.webp"
TRAIN, HELD_OUT, SAMPLES, SEED, SIZE = 5000, 1000, 300, 0, (32, 32)
LEVELS = "--backbone cifar10-flow --scale-pixels 0 --start-budget 0 --sigma-max 4 --sigma-min .5"
KINDS = {  # 384 bits an image, four tokens a step; then 64, as CoD has, which a longer solver must make a picture of
    "8-bit-1d": f"{LEVELS} --steps 12 --vocab-size 256 --budget 4 --budget-last 4",
    "8-bit-2d": f"{LEVELS} --steps 12 --vocab-size 256 --budget 1 --budget-last 1 --rows 2 --columns 2",
    "12-bit-1d": f"{LEVELS} --steps 8 --vocab-size 4096 --budget 4 --budget-last 4",
    "12-bit-2d": f"{LEVELS} --steps 8 --vocab-size 4096 --budget 1 --budget-last 1 --rows 2 --columns 2",
    "4-bit-1d": "--backbone cifar10-flow --scale-pixels 0 --steps 1 --vocab-size 16 --budget 8 --budget-last 8 "
    "--start-budget 8 --start-vocab-size 16 --sigma-max 6 --sigma-min 2.2 --solver ab2 --solver-steps 5",
    "cod": "--backbone cifar10-cod --condition only",
}
WORDS = {
    "8-bit-1d": "8 bits, 1-D",
    "8-bit-2d": "8 bits, 2-D",
    "12-bit-1d": "12 bits, 1-D",
    "12-bit-2d": "12 bits, 2-D",
    "4-bit-1d": "4 bits, 1-D",
    "cod": "CoD, 4 bits",
}
SHUFFLED = "8-bit-1d"  # the kind whose tokens are also learned in disorder, where there is nothing to learn
COD_STEPS = 8  # of CoD's decode, which has no steps of its own
DRAWN = ("learned", "uniform")


def tokenise(work: Path) -> None:
    """Training and held-out images of every kind, as far as they are not there."""
    for split, archive, count in (("train", "cifar10_train", TRAIN), ("held-out", "cifar10_test5k", HELD_OUT)):
        path = work / f"{split}.parquet"
        if not path.exists():
            data = np.load(DATA / f"{archive}.npz")
            write_parquet(path, data["images"][:count], data["labels"][:count])
        for kind, options in KINDS.items():
            command = [
                "tokenize",
                str(path),
                "-o",
                str(work / f"{kind}-{split}"),
                "--resume",
                *options.split(),
                "--dtype",
                "float32",
                "--batch-size",
                "50",
                "--shard-size",
                "250",
                "--workers",
                "0",
            ]
            subprocess.run([sys.executable, "-m", "noisebook", *command], check=True)


class Judge:
    """Frechet distance of ResNet-56's features to those of the test images."""

    def __init__(self) -> None:
        self.net = metrics.resnet56(DATA / metrics.RESNET)
        images = np.load(DATA / "cifar10_test5k.npz")["images"]
        self.held_out = torch.from_numpy(images[:HELD_OUT]).permute(0, 3, 1, 2)
        self.real = self.features(torch.from_numpy(images[HELD_OUT:]).permute(0, 3, 1, 2))

    def features(self, images: Tensor) -> Tensor:
        return torch.cat(metrics.in_batches(self.net.features, images))

    def distance(self, images: Tensor) -> float:
        return round(metrics.frechet(self.features(images), self.real), 3)


def study(kind: str, work: Path, epochs: int, judge: Judge) -> dict[str, Any]:
    data = TokenDataset(str(work / f"{kind}-train"), inputs=work / "train.parquet")
    train, held_out = ar.tokens_of(str(work / f"{kind}-train")), ar.tokens_of(str(work / f"{kind}-held-out"))
    codec = noisebook.load(data.spec, dtype="float32")
    layout = codec.layout_for(*SIZE)
    values = ar.values_of(codec, SIZE)
    assert len(set(values)) == 1, "all kinds have one vocabulary"
    uniform = math.log2(values[0])
    frequency = ar.frequency_bits(train, held_out, values)
    out: dict[str, Any] = {
        "kind": kind,
        "options": KINDS[kind],
        "length": len(layout),
        "uniform": uniform,
        "frequencies": by_step(frequency, layout.step_index),
        "models": [],
    }
    tables: dict[str, Tensor | None] = {"index": None}
    if kind != "cod":
        originals = torch.from_numpy(np.stack([data.original(i) for i in range(1000)])).permute(0, 3, 1, 2)
        tables["codeword"] = ar.codewords(codec, SIZE, originals)
    best: ar.Learned | None = None
    for name, table in tables.items():
        found = ar.learn(train, held_out, values, table, epochs, SEED)
        out["models"].append(
            {
                "embedding": name,
                "bits": by_step(found.bits, layout.step_index),
                "epochs": found.epochs,
                "minutes": round(found.minutes, 2),
                "weights": sum(p.numel() for p in found.model.parameters()),
            }
        )
        print(kind, name, out["models"][-1]["bits"]["mean"], flush=True)
        best = found if best is None or found.bits.mean() < best.bits.mean() else best
    assert best is not None
    if kind == SHUFFLED:
        mixed = [torch.stack([column[torch.randperm(len(column))] for column in some.T], 1) for some in (train, held_out)]
        found = ar.learn(mixed[0], mixed[1], values, tables["codeword"], epochs, SEED)
        out["shuffled"] = {
            "bits": by_step(found.bits, layout.step_index),
            "epochs": found.epochs,
            "frequencies": by_step(ar.frequency_bits(*mixed, values), layout.step_index),
        }
    again = pictures(codec, held_out[:SAMPLES])
    psnr = float(metrics.psnr(again, judge.held_out[:SAMPLES]).mean())
    out["reconstructed"] = {"fd": judge.distance(again), "psnr": round(psnr, 2)}
    out["samples"] = {}
    random = torch.Generator().manual_seed(SEED)
    for name in DRAWN:
        if name == "learned":
            tokens = ar.draw(best.model, SAMPLES, SEED)
        else:
            tokens = torch.randint(values[0], (SAMPLES, len(layout)), generator=random)
        shown = pictures(codec, tokens)
        out["samples"][name] = {"fd": judge.distance(shown)}
        ar.grid(shown[:16].float() / 127.5 - 1, 8).save(work / f"{kind}-{name}.png")
        print(kind, name, out["samples"][name], flush=True)
    return out


def by_step(bits: Tensor, step: Any) -> dict[str, Any]:
    """Mean bits a token: of all, and of each step."""
    steps = torch.as_tensor(step)
    return {
        "mean": round(float(bits.mean()), 4),
        "steps": [round(float(bits[steps == s].mean()), 4) for s in steps.unique().tolist()],
    }


def pictures(codec: Codec, tokens: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32]."""
    steps = COD_STEPS if codec.spec.condition else None
    return to_uint8(torch.cat([codec.decode(some, SIZE, steps) for some in tokens.split(50)]))


def picture(work: Path) -> None:
    """Two rows of samples of each kind: what the model draws, and uniform tokens."""
    rows = [(kind, name) for kind in KINDS for name in ("learned", "uniform")]
    scale, left, top = 2, 140, 18
    width, height = 8 * 32 * scale, 2 * 32 * scale
    sheet = Image.new("RGB", (left + 2 * width + 8, top + len(KINDS) * (height + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, word in enumerate(("tokens drawn by the transformer", "uniform tokens")):
        pen.text((left + column * (width + 8), 2), word, "black")
    for number, (kind, name) in enumerate(rows):
        x, y = left + (number % 2) * (width + 8), top + number // 2 * (height + 8)
        sheet.paste(Image.open(work / f"{kind}-{name}.png").resize((width, height), Image.Resampling.NEAREST), (x, y))
        pen.text((4, y + height // 2 - 6), WORDS[kind], "black")
    sheet.save(PICTURE, quality=80)


# ---- tables -------------------------------------------------------------------------------------------------------------
def bits_table() -> str:
    result, lines = page.load(NAME), []
    for kind in result["kinds"]:
        models = {m["embedding"]: m["bits"]["mean"] for m in kind["models"]}
        best, uniform, length = min(models.values()), kind["uniform"], kind["length"]
        lines.append(
            [
                WORDS[kind["kind"]],
                f"{length} x {uniform:g}",
                f"{kind['frequencies']['mean']:.3f}",
                f"{models['index']:.3f}",
                f"{models['codeword']:.3f}" if "codeword" in models else "",
                f"{100 * (1 - best / uniform):.1f} %",
                f"{best * length:.0f}",
            ]
        )
    head = [
        "tokens",
        "per image",
        "frequencies of each position",
        "transformer, learned embeddings",
        "transformer, codewords",
        "predicted",
        "bits per image",
    ]
    shuffled = next(k["shuffled"] for k in result["kinds"] if "shuffled" in k)
    note = (
        f"Bits per token, mean over {HELD_OUT:,} held-out images; {TRAIN:,} to train on. The control is {WORDS[SHUFFLED]}, "
        "with each position shuffled among the images, where only frequencies can be learned. "
        f"It has {shuffled['bits']['mean']:.3f} bits, and its frequencies {shuffled['frequencies']['mean']:.3f}."
    )
    return f"{page.table(head, lines)}\n\n{note} {page.source(result, NAME)}"


def steps_table() -> str:
    lines = []
    for kind in page.load(NAME)["kinds"]:
        if kind["kind"] == "cod":
            continue
        best = min(kind["models"], key=lambda m: m["bits"]["mean"])
        lines.append([WORDS[kind["kind"]], *(f"{x:.2f}" for x in best["bits"]["steps"])])
    longest = max(len(line) for line in lines)
    lines = [line + [""] * (longest - len(line)) for line in lines]
    return page.table(["bits per token at step", *map(str, range(1, longest))], lines)


def samples_table() -> str:
    lines = []
    for kind in page.load(NAME)["kinds"]:
        fds = [kind["samples"][name]["fd"] for name in DRAWN]
        lines.append(
            [
                WORDS[kind["kind"]],
                *(f"{x:.1f}" for x in fds),
                f"{kind['reconstructed']['fd']:.1f}",
                f"{kind['reconstructed']['psnr']:.2f} dB",
            ]
        )
    head = ["CIFAR-FD", "drawn by the transformer", "uniform tokens", "real images, coded", "their PSNR"]
    return f"{page.table(head, lines)}\n\n{SAMPLES} images each, against {5000 - HELD_OUT:,} other test images."


TABLES: page.Tables = {"bits": bits_table, "steps": steps_table, "samples": samples_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--epochs", type=int, default=12, help="of training, at most, for each model")
    parser.add_argument("--stage", choices=("tokens", "train", "all"), default="all")
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return None
    if args.work is None:
        parser.error("give WORK, or --report or --check")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage != "train":
        tokenise(args.work)
    if args.stage == "tokens":
        return None
    judge, kinds = Judge(), []
    for kind in KINDS:
        part = args.work / f"{kind}.json"
        if not part.exists():
            save(part, study(kind, args.work, args.epochs, judge))
        kinds.append(json.loads(part.read_text()))
    write(NAME, {"train": TRAIN, "held_out": HELD_OUT, "epochs": args.epochs, "kinds": kinds}, SEED)
    picture(args.work)
    return page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
