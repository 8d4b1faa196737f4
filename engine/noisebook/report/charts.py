"""Small charts as SVG, which scales with the page and takes its colours."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisebook.errors import printable

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44


def escape(text: object) -> str:
    """Text of a file as HTML that shows it: neither a browser nor a reader of the source obeys it."""
    return html.escape(printable(text))


@dataclass(frozen=True)
class Series:
    """`points` [(x, y), ...]: joined to a line, filled down to the axis (`bars`), or each marked with its name (`marks`)."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "line"
    colour: int = 1
    labels: Sequence[str] = ()


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], from_zero: bool = True) -> str:
    """An SVG element: a chart with axes. `title` is what screen readers say."""
    points = np.array([p for s in series for p in s.points], float)
    tight = all(s.kind != "marks" for s in series) and points[:, 0].max() > points[:, 0].min()
    x_ticks = ticks(points[:, 0].min(), points[:, 0].max())
    y_ticks = ticks(0 if from_zero else points[:, 1].min(), points[:, 1].max())
    x0, x1 = (points[:, 0].min(), points[:, 0].max()) if tight else (x_ticks[0], x_ticks[-1])
    y0, y1 = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1),
        )

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        left, height = at(x0, y)
        out.append(
            f'<path class="grid" d="M{left} {height}H{WIDTH - RIGHT}"/>'
            f'<text class="end" x="{left - 6}" y="{height + 4}">{number(y)}</text>'
        )
    for x in (x for x in x_ticks if x0 <= x <= x1):
        left, bottom = at(x, y0)
        out.append(f'<text class="middle" x="{left}" y="{bottom + 20}">{number(x)}</text>')
    out.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text class="middle" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>')
    for s in series:
        out.append(_drawn(s, [at(*p) for p in s.points], at(x0, y0)[1]))
    return "".join([*out, "</svg>"])


def _drawn(series: Series, places: Sequence[tuple[float, float]], floor: float) -> str:
    colour = f"c{series.colour}"
    if series.kind == "marks":
        out = []
        for (x, y), label in zip(places, series.labels, strict=True):
            side, beside = ("end", x - 9) if x > 0.6 * WIDTH else ("start", x + 9)
            out.append(f'<circle class="{colour}" cx="{x}" cy="{y}" r="5"/>')
            out.append(f'<text class="{side}" x="{beside}" y="{y + 4}">{escape(label)}</text>')
        return "".join(out)
    line = "L".join(f"{x} {y}" for x, y in places)
    if series.kind == "bars":
        return f'<path class="area {colour}" d="M{places[0][0]} {floor}L{line}L{places[-1][0]} {floor}Z"/>'
    return f'<path class="line {colour}" d="M{line}"/>'


def legend(series: Sequence[Series]) -> str:
    """The names of series, each with its colour."""
    names = (f'<span><i class="c{s.colour}"></i>{escape(s.name)}</span>' for s in series)
    return f'<p class="legend">{"".join(names)}</p>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as an axis shows it: four significant digits, or whole, with commas between thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
