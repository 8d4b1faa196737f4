"""Ours beside trained tokenizers and learned codecs: their published figures, and ours measured on pictures of 256 x 256.

    python -m bench.quality.tokenizers --lpips FILE --dists FILE --dists FILE

The pictures are those of Kodak, their shorter side scaled to 256 pixels and the middle cut out, as tokenizers are tested on
ImageNet. Ours is coded at the bits that those tokenizers spend, and at the rates of the presets. Published figures are of
other pictures (each row says of which) and of each paper's own code, so only their order of size can be compared. Writes
bench/results/tokenizers.json; `--report` writes the tables of docs/tokenizers.md.
"""

import argparse
from typing import Any

import numpy as np
from PIL import Image

from bench.lib import page
from bench.lib.equal_bytes import Ours, name_of, shown
from bench.lib.images import kodak
from bench.lib.record import RESULTS, ROOT, provenance, save
from noisebook.cli import judging
from noisebook.images.judges.judge import Judge

NAME = "tokenizers"
PAGE = ROOT / "docs/tokenizers.md"
SIDE = 256
BITS = (3584, 4608, 8192, 16384, 32768)  # 256 x 14, 256 x 18; and .125, .25 and .5 bits per pixel
REALISMS = (0.0, 1.0)

LLAMAGEN = "[LlamaGen](https://github.com/FoundationVision/LlamaGen), README"
SEED_VOKEN = "[SEED-Voken](https://github.com/TencentARC/SEED-Voken/blob/main/docs/IBQ.md), docs/IBQ.md"
MAGVIT2 = "[SEED-Voken](https://github.com/TencentARC/SEED-Voken/blob/main/docs/Open-MAGVIT2.md), docs/Open-MAGVIT2.md"
TITOK = "[1d-tokenizer](https://github.com/bytedance/1d-tokenizer/blob/main/README_TiTok.md), README_TiTok.md"
SFTOK = "[2512.16910](https://arxiv.org/abs/2512.16910), abstract"
# name, tokens per image, codewords (0: our source does not say), rFID on ImageNet's validation pictures, PSNR, LPIPS, source
TOKENIZERS: list[tuple[str, int, int, float | None, float | None, float | None, str]] = [
    ("TiTok-L-32", 32, 0, 2.21, None, None, TITOK),
    ("TiTok-B-64", 64, 0, 1.70, None, None, TITOK),
    ("TiTok-S-128", 128, 0, 1.71, None, None, TITOK),
    ("SFTok", 64, 0, 1.21, None, None, SFTOK),
    ("LlamaGen, 16 x 16", 256, 16384, 2.19, None, None, LLAMAGEN),
    ("LlamaGen, 16 x 16, trained on text and images", 256, 16384, 2.47, 20.65, None, SEED_VOKEN),
    ("LlamaGen, 32 x 32", 1024, 16384, 0.59, None, None, LLAMAGEN),
    ("Cosmos DI, 16 x 16", 256, 64000, 4.57, 19.93, None, SEED_VOKEN),
    ("Open-MAGVIT2", 256, 262144, 1.17, 21.90, None, MAGVIT2),
    ("IBQ, 2^14 codewords", 256, 16384, 1.37, None, 0.2235, SEED_VOKEN),
    ("IBQ, 2^18 codewords", 256, 262144, 1.00, None, 0.2030, SEED_VOKEN),
]


def square(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [SIDE, SIDE, 3]: the shorter side scaled to SIDE, the middle cut out."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (small.shape[0] - SIDE) // 2, (small.shape[1] - SIDE) // 2
    return small[top : top + SIDE, left : left + SIDE]


def measure(ours: Ours, judge: Judge) -> list[dict[str, Any]]:
    rows = []
    for name, pixels in kodak().items():
        small = square(pixels)
        for bits in BITS:
            data, codec = ours.file(small, bits / SIDE**2)
            tokens = codec.layout_for(SIDE, SIDE)
            for realism in REALISMS:
                decoded = shown(data, codec, realism)
                row = {"image": name, "asked": bits, "bits": 8 * len(data), "tokens": len(tokens), "realism": realism}
                row |= {"encode_nfe": codec.encode_nfe, "decode_nfe": codec.nfe_of(None, realism)}
                values = judge(small, decoded).values
                rows.append(row | values)
        print(name, flush=True)
    return rows


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


# ---- tables -------------------------------------------------------------------------------------------------------------
def tokenizers_table() -> str:
    head = ["tokenizer", "tokens", "codewords", "bits", "rFID", "PSNR", "LPIPS", "network calls of a decode", "source"]
    rows = []
    for name, tokens, codewords, rfid, psnr, lpips, source in TOKENIZERS:
        bits = f"{tokens * np.log2(codewords):,.0f}" if codewords else ""
        figures = [f"{rfid:.2f}" if rfid else "", f"{psnr:.2f} dB" if psnr else "", f"{lpips:.3f}" if lpips else ""]
        calls = "several" if name == "SFTok" else "1"
        sizes = [f"{tokens:,}", f"{codewords:,}" if codewords else "", bits]
        rows.append([name, *sizes, *figures, calls, f"published: {source}"])
    return page.table(head, rows)


def tokenizers_ours() -> str:
    result = page.load(NAME)
    head = ["decode", "tokens", "bits of the whole file", "PSNR", "LPIPS", "DISTS", "network calls: encode, decode"]
    rows = []
    for bits in BITS:
        for realism in REALISMS:
            of = [row for row in result["rows"] if (row["asked"], row["realism"]) == (bits, realism)]
            tokens, files = (f"{mean(of, key):,.0f}" for key in ("tokens", "bits"))
            calls = ", ".join(f"{mean(of, key):.0f}" for key in ("encode_nfe", "decode_nfe"))
            figures = [f"{mean(of, 'psnr'):.2f} dB", f"{mean(of, 'lpips'):.3f}", f"{mean(of, 'dists'):.3f}"]
            rows.append([name_of(realism), tokens, files, *figures, calls])
    note = f"{result['about']} {page.source(result, NAME)}"
    return page.table(head, rows) + f"\n\n{note}"


TABLES: page.Tables = {"tokenizers": tokenizers_table} | (
    {"tokenizers_ours": tokenizers_ours} if page.measured(NAME) else {}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judging.add_metric_options(parser)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    args.device, args.metrics = "cpu", args.metrics or "psnr"
    judge, ours = judging.judge_of(args), Ours()
    rows = measure(ours, judge)
    about = f"{len({row['image'] for row in rows})} Kodak pictures, scaled and cut to {SIDE} x {SIDE}; means."
    kept = ("name", "better", "by", "networks")
    metrics = {key: {k: entry[k] for k in kept} for key, entry in judge.summary([]).items()}
    settings = {"about": about, "ours": ours.about(), "metrics": metrics}
    save(RESULTS / f"{NAME}.json", provenance(0) | settings | {"rows": rows})


if __name__ == "__main__":
    main()
