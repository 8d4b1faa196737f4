"""Small charts as SVG, which scales with the page and takes its colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisebook.report.markup import escape

WIDTH, HEIGHT = 640, 286
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 42, 52  # room for the larger letters of a narrow page


@dataclass(frozen=True)
class Series:
    """`points` [(x, y), ...]: joined to a line, filled down to the axis (`bars`), each a bar around its x (`columns`), or
    each a dot with its label, if there are any (`marks`)."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "line"
    colour: int = 1
    labels: Sequence[str] = ()


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], from_zero: bool = True) -> str:
    """An SVG element: a chart with axes. `title` is what screen readers say. The x of columns are whole numbers."""
    points = np.array([p for s in series for p in s.points], float)
    columns = any(s.kind == "columns" for s in series)
    low, high = points[:, 0].min() - columns / 2, points[:, 0].max() + columns / 2
    tight = all(s.kind != "marks" for s in series) and high > low
    x_ticks = [x for x in ticks(low, high) if not columns or x == round(x)]
    y_ticks = ticks(0 if from_zero else points[:, 1].min(), points[:, 1].max())
    x0, x1 = (low, high) if tight else (x_ticks[0], x_ticks[-1])
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
        out.append(f'<text class="middle" x="{left}" y="{bottom + 22}">{number(x)}</text>')
    out.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    out.append(f'<text x="0" y="18">{escape(y_label)}</text>')
    for s in series:
        wide = 0.8 * (WIDTH - LEFT - RIGHT) / (x1 - x0)
        out.append(_drawn(s, [at(*p) for p in s.points], at(x0, y0)[1], wide))
    return "".join([*out, "</svg>"])


def _drawn(series: Series, places: Sequence[tuple[float, float]], floor: float, wide: float) -> str:
    colour = f"c{series.colour}"
    if series.kind == "marks":
        out = [f'<circle class="{colour}" cx="{x}" cy="{y}" r="5"/>' for x, y in places]
        for (x, y), label in zip(places, series.labels, strict=False):
            side, beside = ("end", x - 9) if x > 0.6 * WIDTH else ("start", x + 9)
            out.append(f'<text class="{side}" x="{beside}" y="{y + 4}">{escape(label)}</text>')
        return "".join(out)
    if series.kind == "columns":
        bars = "".join(f"M{x - wide / 2:.1f} {floor}V{y}h{wide:.1f}V{floor}Z" for x, y in places)
        return f'<path class="area {colour}" d="{bars}"/>'
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
