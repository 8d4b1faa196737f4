"""What choosing tokens anew brings, and larger tokens: python -m bench.findings.refining

Random residuals: the share of the rate-distortion limit that the tokens of one step reach. Images: PSNR on CIFAR-10.
"""

import argparse
import math
import warnings

import torch

from bench.lib import metrics, page, rivals
from bench.lib.comparison import backbone_of, cifar, curve_of
from bench.lib.record import ROOT, write
from noisebook.codebook import Codebook
from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import to_uint8

NAME, PAGE = "refining", ROOT / "docs/findings/refining-tokens.md"
D, DRAWS, PASSES = 3072, 64, (0, 1, 2, 3)
STEPS = [(64, 1 << 16), (16, 1 << 16), (256, 1 << 10), (64, 1 << 12), (256, 1 << 5)]  # budget, vocab_size
BACKBONE, IMAGES = "cifar10-flow", 64


def shares() -> list[dict]:
    rows = []
    draw = torch.Generator().manual_seed(0)
    for budget, vocab_size in STEPS:
        book, row = Codebook("hadamard", vocab_size, 1), {"budget": budget, "vocab_size": vocab_size, "share": []}
        residual = torch.randn(DRAWS, 1, D, generator=draw)
        tokens = book.select(residual, budget, 3)
        limit = 2 * budget * math.log2(vocab_size) * math.log(2) / D
        for _ in PASSES:
            z = book.noise(tokens, D, 3)
            cosine = torch.nn.functional.cosine_similarity(z, residual, dim=-1).flatten().double()
            row["share"].append(metrics.interval(-torch.log1p(-cosine.square()) / limit))
            tokens = book.refined(residual, tokens, 3)
        rows.append(row)
    return rows


def images() -> list[dict]:
    _, (x,) = cifar(IMAGES)
    place = rivals.Place(backbone_of(BACKBONE, "cpu"), curve_of(BACKBONE), 32, 32)
    rows = []
    for vocab_size in (1 << 10, 1 << 16, 1 << 20):
        for bpp in (1, 2, 4):
            spec, row = rivals.ours(place, 1024 * bpp, 25, vocab_size), {"vocab_size": vocab_size, "bpp": bpp, "psnr": []}
            for effort in PASSES[:3]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    _, decoded = Codec(spec, place.backbone, effort=effort).reconstruct(x)
                row["psnr"].append(float(metrics.psnr(x, to_uint8(decoded)).mean()))
            print(row, flush=True)
            rows.append(row)
    return rows


def share_table() -> str:
    result = page.load(NAME)
    head = ["tokens of a step", *(f"{n} pass{'es' if n != 1 else ''}" for n in PASSES)]
    lines = []
    for row in result["shares"]:
        cells = [f"{100 * mean:.1f} % ± {100 * half:.1f}" for mean, half in row["share"]]
        lines.append([f"{row['budget']} of 2^{row['vocab_size'].bit_length() - 1}", *cells])
    return page.table(head, lines) + "\n\n" + page.source(result, NAME)


def image_table() -> str:
    result = page.load(NAME)
    lines = [
        [f"2^{r['vocab_size'].bit_length() - 1}", f"{r['bpp']} bpp", *(f"{p:.2f} dB" for p in r["psnr"])]
        for r in result["images"]
    ]
    return page.table(["vocab_size", "", "no pass", "1 pass", "2 passes"], lines)


TABLES: page.Tables = {"shares": share_table, "images": image_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    page.add_options(parser)
    if page.only_page(parser.parse_args(), PAGE, TABLES):
        return
    about = f"{DRAWS} random residuals of {D} dimensions; {IMAGES} CIFAR-10 test images, {BACKBONE}, 25 calls"
    write(NAME, {"about": about, "shares": shares(), "images": images()}, 0)
    page.fill(PAGE, TABLES, False)


if __name__ == "__main__":
    main()
