"""The comparison at equal bytes as a picture: PSNR and LPIPS against bits per pixel, docs/images/codecs.svg.

A codec's point at a rate is its mean over all pictures, at the mean size of its files. A rate at which it lacks a file
for some picture has no point: a mean over the easier pictures would flatter it.
"""

import math
from html import escape

from bench.lib.equal_bytes import OURS
from bench.lib.equal_tables import NAME, PLOTTED, Comparison
from bench.lib.page import Result, load
from bench.lib.record import ROOT
from noisebook.images.judges.words import BY_KEY
from noisebook.report.charts import ticks

PICTURE = ROOT / "docs/images/codecs.svg"
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 960, 400, 56, 34, 72, 70
LETTER = 6.6  # about the width of a letter of the key
PANEL = (WIDTH - LEFT - 16 - GAP) / 2
COLOURS = {  # what a codec's name begins with; lines with realism have dashes
    OURS: "#c2570c",
    "AVIF for PSNR": "#2563b8",
    "AVIF for the eye": "#5f9be8",
    "WebP": "#2b7a3d",
    "VVC for PSNR": "#7a2b8f",
    "VVC for the eye": "#b77fc6",
    "JPEG XL": "#777777",
}
RATES = (0.05, 0.1, 0.2, 0.5, 1.0)  # ticks of the axis, in powers of about two


def points(comparison: Comparison, codec: str, key: str) -> list[tuple[float, float]]:
    """(mean bits per pixel, mean figure) at each rate where the codec has a file for every picture."""
    out = []
    for asked in comparison.rates:
        values = comparison.values(codec, asked, key)
        if len(values) == comparison.count:
            bits = comparison.mean(codec, asked, "bpp")
            assert bits is not None
            out.append((bits, sum(values.values()) / len(values)))
    return out


def _text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _colour(codec: str) -> str:
    return next(colour for name, colour in COLOURS.items() if codec.startswith(name))


def _look(codec: str) -> str:
    """Colour, width and dashes of a codec's line."""
    ours = codec.startswith(OURS)
    dashes = ' stroke-dasharray="6 4"' if ours and not codec.endswith(" 0") else ""
    return f'stroke="{_colour(codec)}" fill="none" stroke-width="{2.6 if ours else 1.6}"{dashes}'


def _panel(comparison: Comparison, key: str, left: float) -> list[str]:
    lines = {codec: points(comparison, codec, key) for codec in comparison.codecs}
    every = [p for line in lines.values() for p in line]
    low, high = (math.log(end(x for x, _ in every)) for end in (min, max))
    low, high = low - 0.05, high + 0.05
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    floor, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - low) / (high - low)
        return left + across * PANEL, floor - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * height

    metric = BY_KEY[key]
    unit = f", {metric.unit}" if metric.unit else ""
    out = [_text(left, TOP - 14, f"{metric.title}{unit} ({metric.direction})", "start", ' font-weight="bold"')]
    for y in y_ticks:
        row = at(1, y)[1]
        out.append(f'<path d="M{left:.1f} {row:.1f}h{PANEL:.1f}" stroke="#ddd"/>')
        out.append(_text(left - 6, row + 4, f"{y:g}", "end"))
    for x in (x for x in RATES if low <= math.log(x) <= high):
        out.append(_text(at(x, y_ticks[0])[0], floor + 18, f"{x:g}"))
    out.append(_text(left + PANEL / 2, floor + 36, "bits per pixel, whole files"))
    for codec, line in lines.items():
        places = [at(*p) for p in line]
        if places:
            out.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" {_look(codec)}/>')
            dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places)
            out.append(f'<g fill="{_colour(codec)}">{dots}</g>')
    return out


def drawn(result: Result) -> str:
    """The whole picture as SVG."""
    comparison = Comparison(result)
    keys = [key for key in PLOTTED if key in comparison.metrics]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" fill="#222" '
        'font-family="Helvetica, Arial, sans-serif">',
        f"<title>{escape(' and '.join(BY_KEY[k].title for k in keys))} against bits per pixel</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for i, key in enumerate(keys):
        out += _panel(comparison, key, LEFT + i * (PANEL + GAP))
    x: float = 8
    for codec in comparison.codecs:
        out.append(f'<path d="M{x:.1f} {HEIGHT - 12}h22" {_look(codec)}/>')
        out.append(_text(x + 27, HEIGHT - 8, codec, "start", ' font-size="12"'))
        x += 45 + LETTER * len(codec)
    return "\n".join([*out, "</svg>"]) + "\n"


def write(check: bool) -> None:
    """Writes the picture, or only looks: SystemExit where it is not what the result says."""
    picture = drawn(load(NAME))
    if check and PICTURE.read_text() != picture:
        raise SystemExit(f"{PICTURE.name} is not what bench/results says: run the same command with --report")
    if not check:
        PICTURE.write_text(picture)
