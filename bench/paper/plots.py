"""The plots of docs/paper.md."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from bench.lib.record import ROOT
from bench.paper.results import Curve, Results, curves

PLOTS = ROOT / "docs/images"


def rate_curves(results: Results) -> dict[str, Curve]:
    """Network -> points (log2 of bits per pixel, PSNR)."""
    out: dict[str, Curve] = {}
    for label, r in results.sections.get("rates", {}).items():
        out.setdefault(label.split(",")[0], []).append((float(np.log2(r["bpp"])), r["psnr"][0]))
    return {label: sorted(points) for label, points in out.items()}


def p_curves(results: Results) -> dict[str, Curve]:
    """Schedule -> points (p, PSNR)."""
    out: dict[str, Curve] = {}
    for label, r in results.sections.get("p", {}).items():
        name = label.split(",")[0]
        if "(" not in name and not re.search(r"level \d", name):
            out.setdefault(name, []).append((r["settings"]["recipe"]["p"], r["psnr"][0]))
    return {label: sorted(points) for label, points in out.items()}


DRAWN: dict[str, tuple[str, Callable[[Results], Mapping[str, Curve]]]] = {
    "rates": ("log2 of bits per pixel", rate_curves),
    "p": ("p", p_curves),
    "k": ("log2 V", lambda results: curves(results, "k")),
    "n": ("log2 N", lambda results: curves(results, "n")),
}


def draw(results: Results) -> list[str]:
    """Writes the plots of the sections that were measured; their names."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "noisebook", "svg.fonttype": "none"})  # the same file for the same figures
    from matplotlib import pyplot as plt

    drawn = []
    for name, (label, points_of) in DRAWN.items():
        if name not in results.sections:
            continue
        figure, axis = plt.subplots(figsize=(6, 3.5))
        for line, points in points_of(results).items():
            axis.plot(*zip(*points, strict=True), "o-", ms=4, lw=1, label=line)
        axis.set_xlabel(label)
        axis.set_ylabel("PSNR, dB")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(PLOTS / f"paper-{name}.svg", metadata={"Date": None})
        plt.close(figure)
        drawn.append(name)
    return drawn
