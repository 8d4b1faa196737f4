"""What happens at each step of a walk: where the prediction is, how far p goes down, and which noise is injected.

    python -m bench.quality.one_walk            # two encodes of a picture of 32 x 32: a second on a CPU
    python -m bench.quality.one_walk --report   # only writes the table of docs/concepts.md; --check: is it up to date?

The picture is the head of the CC0 cat that scikit-image carries, for the shipped network `cifar10-flow`. It is encoded at
p = 1/2 and at p = 0, its tokens are walked again by the engine's own loop, and each step is written down. The figures go
to bench/results/one_walk.json, the picture to docs/images/walk.svg.
"""

import argparse
import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import noisebook
from bench.lib import page
from bench.lib.record import ROOT, write
from noisebook.codec.codec import Codec
from noisebook.codec.stream import Segment
from noisebook.codec.walk import solve, walk
from noisebook.images.io import sample
from noisebook.images.metrics import psnr
from noisebook.runtime.pixels import from_uint8, to_uint8

NAME, PAGE, PICTURE = "one_walk", ROOT / "docs/concepts.md", ROOT / "docs/images/walk.svg"
BACKBONE, STEPS, TOKENS = "cifar10-flow", 8, 8
HEAD = (0, 70, 300)  # top, left and side of what is cut out of the cat
SHARED = {
    "steps": STEPS,
    "budget": TOKENS,
    "budget_last": TOKENS,
    "start_budget": TOKENS,
    "scale_pixels": 0,
    "vocab_size": 1 << 16,
}
WALKS: dict[str, dict[str, Any]] = {
    "1/2": {"p": 0.5, "spacing": "log", "sigma_max": 3.0, "sigma_min": 0.2},
    "0": {"p": 0.0, "sigma_max": 0.8, "rho": 0.75},
}


@dataclass
class Seen:
    """What a walk shows at one step: each picture float32 [3, H, W], the noise None after the last step."""

    row: dict[str, float]
    state: Tensor
    prediction: Tensor
    noise: Tensor | None


def picture() -> np.ndarray:
    """uint8 [32, 32, 3]."""
    top, left, side = HEAD
    head = Image.fromarray(sample("cat")[top : top + side, left : left + side])
    return np.asarray(head.resize((32, 32), Image.Resampling.BOX))


def observed(codec: Codec, pixels: np.ndarray) -> tuple[list[Seen], np.ndarray]:
    """Every step of the walk of a picture, and the decoded picture uint8 [H, W, 3]."""
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    x0, tokens, stream = from_uint8(images), codec.encode(images), codec.stream(*pixels.shape[:2])
    segments = {segment.step_index: segment for segment in stream.segments}
    visits: list[tuple[Tensor, Tensor]] = []

    def choose(segment: Segment, _: Tensor) -> Tensor:
        return tokens[:, segment.offset : segment.offset + segment.count]

    def watch(y: Tensor, x0_hat: Tensor) -> tuple[Tensor, Tensor]:
        visits.append((y.clone(), x0_hat.clone()))
        return y, x0_hat

    with torch.no_grad():
        y, cond = walk(codec.parts, stream, 1, choose, STEPS, watch)
        visits.append((y, solve(codec.parts, stream, y, cond)))
    decoded = to_uint8(visits[-1][1])[0].permute(1, 2, 0).numpy()
    if not torch.equal(codec.decode(tokens, pixels.shape[:2]), visits[-1][1]):
        raise SystemExit("the walk that was watched is not that of the decoder")
    out = []
    for i, (y, x0_hat) in enumerate(visits):
        residual, noise, row = x0 - x0_hat, None, {"error": float((x0 - x0_hat).square().mean().sqrt())}
        if i < STEPS:
            step = codec.spec.schedule[i]
            views = stream.views(x0_hat).shape
            z = codec.rule.noise(choose(segments[i], y), views[1:], TOKENS, i)
            noise = stream.join(z)
            along = float((noise * residual).sum() / (noise.norm() * residual.norm()))
            row |= {"sigma": step.sigma, "sigma_down": step.sigma_down, "sigma_next": step.sigma_next}
            row |= {"sigma_up": step.sigma_up, "cosine": along}
        else:
            row["sigma"] = codec.spec.sigma_last
        out.append(Seen(row, y[0], x0_hat[0], None if noise is None else noise[0]))
    return out, decoded


# ---- the picture --------------------------------------------------------------------------------------------------------
LEFT, COLUMN, CHART, THUMB, WIDTH, HEIGHT = 104, 82, 190, 64, 860, 508
DOWN, UP, ERROR = "#2563b8", "#c2570c", "#2b7a3d"


def thumb(x: Tensor, at: tuple[float, float]) -> str:
    """A picture [3, H, W] in [-1, 1] as an SVG image."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(x[None])[0].permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{at[0]:.1f}" y="{at[1]:.1f}" width="{THUMB}" height="{THUMB}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def text(
    x: float, y: float, words: str, size: int = 12, anchor: str = "middle", colour: str = "#222", more: str = ""
) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{more}>{words}</text>'


def arrow(a: tuple[float, float], b: tuple[float, float], colour: str) -> str:
    name = "down" if colour == DOWN else "up"
    return (
        f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{colour}" stroke-width="2" '
        f'marker-end="url(#{name})"/>'
    )


def chart(seen: list[Seen], top: float) -> list[str]:
    """Levels of noise and errors of the prediction against the step, on a logarithmic axis."""
    values = [v for s in seen for k, v in s.row.items() if k in ("sigma", "sigma_down", "error")]
    low, high = math.log(min(values) * 0.9), math.log(max(values) * 1.1)
    right = LEFT + COLUMN * (STEPS + 1)

    def y_of(sigma: float) -> float:
        return top + CHART * (high - math.log(sigma)) / (high - low)

    out = [text(LEFT - 10, top + 8, "&#963;", 14, "end")]
    for tick in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
        if low < math.log(tick) < high:
            y = y_of(tick)
            out.append(f'<line x1="{LEFT - 6}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
            out.append(text(LEFT - 10, y + 4, f"{tick:g}", anchor="end", colour="#555"))
    for i, s in enumerate(seen):
        begin = LEFT + COLUMN * i + 14
        at = (begin + 26, y_of(s.row["error"]))
        out.append(f'<rect x="{at[0] - 4:.1f}" y="{at[1] - 4:.1f}" width="8" height="8" fill="{ERROR}"/>')
        if "sigma_down" in s.row:
            bottom = (begin + 26, y_of(s.row["sigma_down"]))
            out.append(arrow((begin, y_of(s.row["sigma"])), bottom, DOWN))
            out.append(arrow(bottom, (begin + COLUMN, y_of(s.row["sigma_next"])), UP))
    for i, s in enumerate(seen):
        out.append(f'<circle cx="{LEFT + COLUMN * i + 14}" cy="{y_of(s.row["sigma"]):.1f}" r="4" fill="#222"/>')
    return out


def strips(seen: list[Seen], pixels: np.ndarray, top: float) -> list[str]:
    """Below the chart: the state, the prediction and the noise of each step."""
    out = []
    rows = (("state y", "level &#963;"), ("prediction x̂₀", "its error"), ("noise z", "&#963;_up, cosine"))
    for j, (name, below) in enumerate(rows):
        y = top + 84 * j
        out.append(text(LEFT - 10, y + 30, name, 13, "end"))
        out.append(text(LEFT - 10, y + 47, below, 11, "end", "#555"))
    for i, s in enumerate(seen):
        x = LEFT + COLUMN * i
        sigma = s.row["sigma"]
        out.append(thumb(s.state * (0.5 / math.hypot(0.5, sigma)), (x, top)))
        out.append(text(x + 32, top + 76, f"{sigma:.2f}", 11, colour="#555"))
        out.append(thumb(s.prediction, (x, top + 84)))
        out.append(text(x + 32, top + 160, f"{s.row['error']:.3f}", 11, colour=ERROR))
        if s.noise is not None:
            out.append(thumb(s.noise * 0.4, (x, top + 168)))
            out.append(text(x + 32, top + 244, f"{s.row['sigma_up']:.2f}, {s.row['cosine']:.2f}", 11, colour=UP))
        else:
            out.append(thumb(from_uint8(torch.from_numpy(pixels.copy()).permute(2, 0, 1)), (x, top + 168)))
            out.append(text(x + 32, top + 244, "the original", 11))
    return out


def drawn(walks: dict[str, list[Seen]], pixels: np.ndarray) -> str:
    """The whole picture as SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(walks) + 34}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    marks = "".join(
        f'<marker id="{name}" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
        f'<path d="M0,0 L7,3.5 L0,7 z" fill="{colour}"/></marker>'
        for name, colour in (("down", DOWN), ("up", UP))
    )
    out = [head, f"<title>Two walks of one picture: p = {' and p = '.join(walks)}</title>", f"<defs>{marks}</defs>"]
    out.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    legend = (
        (DOWN, "▼ de-noise, from &#963; to &#963;_down", 104),
        (UP, "▲ inject the chosen noise, up to &#963;_next", 330),
        (ERROR, "■ error of the prediction (root mean square)", 590),
    )
    out += [text(x, 22, words, 13, "start", colour) for colour, words, x in legend]
    what = {
        "1/2": "the noise takes back half of the way down (the axis of &#963; is logarithmic)",
        "0": "the noise takes back all of the way down",
    }
    for j, (p, seen) in enumerate(walks.items()):
        top = 34 + HEIGHT * j
        out.append(text(16, top + 20, f"p = {p}: {what[p]}", 15, "start", more=' font-weight="bold"'))
        out += chart(seen, top + 34)
        out += strips(seen, pixels, top + 34 + CHART + 26)
    return "\n".join([*out, "</svg>"]) + "\n"


# ---- the table ----------------------------------------------------------------------------------------------------------
def table() -> str:
    result = page.load(NAME)
    lines = []
    for p, found in result["walks"].items():
        for i, row in enumerate(found["rows"]):
            levels = [f"{row[k]:.3f}" if k in row else "" for k in ("sigma", "sigma_down", "sigma_next")]
            noise = [f"{row['sigma_up']:.3f}", f"{row['cosine']:.3f}"] if "cosine" in row else ["", ""]
            lines.append([p if i == 0 else "", str(i) if i < STEPS else "end", *levels, f"{row['error']:.3f}", *noise])
    head = ["p", "step", "sigma", "sigma_down", "sigma_next", "error of x0_hat", "sigma_up", "cosine of z and residual"]
    ends = ", ".join(f"{found['psnr']:.2f} dB at p = {p}" for p, found in result["walks"].items())
    about = (
        f"`{BACKBONE}`, {STEPS} steps of {TOKENS} tokens of 16 bits, and as many for the start: {result['bits']} bits. "
        f"The decoded picture has {ends}; the levels of both walks are examples and were not tuned."
    )
    return f"{page.table(head, lines)}\n\n{about} {page.source(result, NAME)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the table")
    parser.add_argument("--check", action="store_true", help="only say whether the table is up to date")
    args = parser.parse_args()
    if not args.report and not args.check:
        pixels, walks, found, bits = picture(), {}, {}, 0
        for p, levels in WALKS.items():
            codec = noisebook.load("photo", backbone=BACKBONE, dtype="float32", **SHARED, **levels)
            walks[p], decoded = observed(codec, pixels)
            found[p] = {"rows": [s.row for s in walks[p]], "psnr": psnr(pixels, decoded), "recipe": levels}
            bits = codec.stream(32, 32).layout().vocab_size.log2().sum()
        PICTURE.write_text(drawn(walks, pixels))
        write(NAME, {"backbone": BACKBONE, "shared": SHARED, "bits": int(bits), "walks": found}, 0)
    page.fill(PAGE, {"walk": table}, args.check)


if __name__ == "__main__":
    main()
