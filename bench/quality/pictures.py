"""Draws the pictures of the README: crops of real photographs, decoded at the rates of the three presets.

    python -m bench.quality.pictures

The photographs are those that scikit-image carries: NASA's astronaut, and the CC0 cat and coffee.
"""

import argparse
import io

import numpy as np
import torch
from PIL import Image, ImageDraw

import noisebook
from bench.lib.images import PRESETS
from bench.lib.record import ROOT, write
from noisebook.images import io as images
from noisebook.images import metrics
from noisebook.spec import presets

CROPS = {"astronaut": (0, 110), "cat": (20, 100), "coffee": (60, 130)}  # top, left of the 224 x 224 pixels shown
SIDE, GAP, BAR = 224, 6, 20


def decoded(name: str, pixels: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(decoded uint8 [H, W, 3], bits per pixel of the tokens and 20 bytes, PSNR) of a whole photograph."""
    codec = noisebook.load(name)
    _, out = codec.reconstruct(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    picture = out[0].clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    bits = 8 * (20 + -(-codec.layout_for(*pixels.shape[:2]).bits // 8))
    return picture, bits / (pixels.shape[0] * pixels.shape[1]), metrics.psnr(pixels, picture) or 0.0


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = sorted(PRESETS, key=lambda n: sum(presets.get(n).spec.budgets_for(512, 768)[0]))
    width = (SIDE + GAP) * (len(names) + 1) - GAP
    sheet = Image.new("RGB", (width, (SIDE + BAR + GAP) * len(CROPS)), "white")
    draw, rows = ImageDraw.Draw(sheet), []
    for i, (sample, (top, left)) in enumerate(CROPS.items()):
        pixels = images.sample(sample)
        shown = [(pixels, "original")]
        for name in names:
            picture, bpp, psnr = decoded(name, pixels)
            shown.append((picture, f"{name}: {bpp:.2f} bpp, {psnr:.1f} dB"))
            rows.append({"image": sample, "preset": name, "bpp": bpp, "psnr": psnr})
        for j, (picture, label) in enumerate(shown):
            at = ((SIDE + GAP) * j, (SIDE + BAR + GAP) * i)
            sheet.paste(Image.fromarray(picture[top : top + SIDE, left : left + SIDE]), (at[0], at[1] + BAR))
            draw.text((at[0] + 2, at[1] + 4), label, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=92)
    (ROOT / "docs/images/rates.webp").write_bytes(buffer.getvalue())
    print("written:", write("pictures", {"about": "the pictures of README.md", "rows": rows}, 0).name)


if __name__ == "__main__":
    main()
