"""What a result file of the paper's experiments holds, by section and label of a row."""

from typing import Any

import numpy as np

from bench.lib.per_image import paired
from bench.lib.rows import BITS, PCA, key, resolved
from bench.paper.sections import EDM, FLOW, plan

LOG, GRID, FIXED = "log-uniform, p = 0.5", "DDPM's grid, p = 0.5", "fixed level, p = 0"

# Couples of rows that are compared with each other
FORCED = [
    (f"{net}, {grid}: DDCM forced", f"{net}, {grid}: gDDCM")
    for net in (EDM, FLOW)
    for grid in ("log-uniform", "DDPM's grid")
]
STARTS = [(f"{name}: codebook", f"{name}: random") for name in (LOG, GRID, FIXED)]
ENDINGS = [(f"{name}: {solver}", f"{name}: mean") for name in (LOG, FIXED) for solver in ("euler", "heun")]
SIDES = (2, 4, 8)
AT_EQUAL_CALLS = [(f"16 calls, {s} x {s} blocks", "16 calls, 1-D, 1 per call") for s in SIDES]
AT_EQUAL_BITS = [(f"16 calls, {s} x {s} blocks", f"16 calls, 1-D, {s * s} per call") for s in SIDES]

Curve = list[tuple[float, float]]


class Results:
    """What a result file holds, by section and label of a row."""

    def __init__(self, result: dict[str, Any]):
        self.raw, self.by_label, self.sections = result, {}, {}
        trials = {name: trial["psnr"] for name, trial in result["trials"].items()}
        for row in plan(result["dry"]):
            wanted = resolved(row, trials)
            found = result["rows"].get(key(wanted)) if wanted else None
            if found:
                self.by_label[row.section, row.label] = found
                self.sections.setdefault(row.section, {})[row.label] = found

    def get(self, section: str, label: str) -> dict[str, Any] | None:
        return self.by_label.get((section, label))

    def difference(self, section: str, label: str, other: str, at: str | None = None) -> tuple[float, float] | None:
        """(mean, half width) of the paired difference in PSNR of two rows; `at`: the section of the other."""
        a, b = self.get(section, label), self.get(at or section, other)
        return paired(a, b) if a and b else None


def pca_differences(results: Results, network: str, other: str = PCA) -> list[tuple[float, float] | None]:
    at = [f"{bits / 1024:g} bpp" for bits in BITS]
    return [results.difference("rates", f"{network}, {rate}", f"{other}, {rate}") for rate in at]


def curves(results: Results, name: str) -> dict[str, Curve]:
    """Label -> points (log2 of V, N; PSNR) of section k or n."""
    out: dict[str, Curve] = {}
    for label, r in results.sections.get(name, {}).items():
        line = label.rsplit(",", 1)[0]
        x = np.log2(r["settings"]["recipe"]["vocab_size"] if name == "k" else r["tokens"])
        out.setdefault(line, []).append((float(x), r["psnr"][0]))
    return {label: sorted(points) for label, points in out.items() if len(points) > 2}
