"""The tables of docs/rates.md and its plots, from rate_distortion.json and classical.json: no figure is typed by hand."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.lib import metrics, page, rates
from bench.lib.comparison import CIFAR, CODECS, FILE, KODAK, NETWORKS, RATES, Row, measured, scaled
from bench.lib.page import table
from bench.lib.per_image import unpacked
from bench.lib.record import RESULTS, ROOT

PAGE = ROOT / "docs/rates.md"
PIXELS = {KODAK: 512 * 768, CIFAR: 32 * 32}
NAMES = {  # what each codec of rivals.py is, where its name in the results does not say it
    "Turbo-DDCM": "Turbo-DDCM, published grid",
    "Turbo-DDCM on ours": "Turbo-DDCM's rule on our levels",
    "DiffC": "DiffC, budgets from other pictures",
}
OURS = ("default", 25)
RULE = ("Turbo-DDCM on ours", 25)  # the same levels, start and bits of a step: the comparison that is like with like
SHOWN = [OURS, RULE, *(codec for codec in CODECS if codec not in (OURS, RULE))]
HIDDEN = (("default", 61), ("Turbo-DDCM", 30), ("default, 4 candidates", 8))  # in plots and tables of similarity
Found = dict[str, Any]


@dataclass(frozen=True)
class Delta:
    """Percent of bits, with its interval."""

    mean: float
    low: float
    high: float
    images: int
    rates: int  # of the anchor

    def __str__(self) -> str:
        return f"{self.mean:+.1f} % ({self.low:+.1f} to {self.high:+.1f})"


class Results:
    def __init__(self) -> None:
        self.raw = json.loads(FILE.read_text())
        path = RESULTS / "classical.json"
        self.classical = json.loads(path.read_text()) if path.exists() else {"curves": {}, "codecs": {}}

    def row(self, data: str, backbone: str, codec: tuple[str, int], bpp: float) -> Found | None:
        """A row that has figures."""
        found = self.raw["rows"].get(Row(data, backbone, codec[0], bpp, codec[1]).key)
        return found if measured(found) else None

    def refused(self, data: str, backbone: str, codec: tuple[str, int], bpp: float) -> str | None:
        """Why a row has none."""
        return self.raw["rows"].get(Row(data, backbone, codec[0], bpp, codec[1]).key, {}).get("error")

    def fair(self, data: str, backbone: str, codec: tuple[str, int]) -> bool:
        """Whether a comparison may be drawn: Turbo-DDCM's K grows with the picture, and in early rows it did not. Of no
        rows on photographs none may."""
        rows = self.rows(data, backbone, codec)
        return all(map(scaled, rows)) and (bool(rows) or data != KODAK)

    def label(self, data: str, backbone: str, codec: tuple[str, int]) -> str:
        """A codec's name, with the K of photographs where it is too small for them."""
        small = [r["spec"]["vocab_size"] // 2 for r in self.rows(data, backbone, codec) if not scaled(r)]
        atoms = f", K = 2^{min(small).bit_length() - 1}" if small else ""
        return f"{NAMES.get(codec[0], codec[0])}{atoms}, {codec[1]} calls"

    def rows(self, data: str, backbone: str, codec: tuple[str, int]) -> list[Found]:
        found = (self.row(data, backbone, codec, bpp) for bpp in sorted(RATES[data]))
        return [r for r in found if r]

    def curves(self, data: str, backbone: str, codec: tuple[str, int]) -> dict[str, list[tuple[float, float]]]:
        """Each image's curve, of the rates that all have."""
        out: dict[str, list[tuple[float, float]]] = {}
        rows = self.rows(data, backbone, codec)
        for r in rows:
            for name, (bits, psnr) in per_image(r).items():
                out.setdefault(name, []).append((bits / PIXELS[data], psnr))
        return {name: points for name, points in out.items() if len(points) == len(rows)}

    def bd(self, data: str, backbone: str, anchor: tuple[str, int], points: tuple[str, int]) -> Delta | None:
        """The bits of `points` beyond those of `anchor`."""
        a, b = self.curves(data, backbone, anchor), self.curves(data, backbone, points)
        pairs = [(a[n], b[n]) for n in a if n in b]
        if len(pairs) < 2 or min(len(pairs[0][0]), len(pairs[0][1])) < 2:
            return None
        return Delta(*rates.bd_rate_interval(pairs), len(pairs), len(pairs[0][0]))

    def difference(self, data: str, backbone: str, codec: tuple[str, int], other: tuple[str, int], bpp: float):
        """(mean, half width) of the PSNR of a codec minus the other's over the images that both have."""
        a, b = self.row(data, backbone, codec, bpp), self.row(data, backbone, other, bpp)
        if not a or not b:
            return None
        first, second = per_image(a), per_image(b)
        return metrics.interval([first[n][1] - second[n][1] for n in first if n in second])


def per_image(r: Found) -> dict[str, tuple[int, float]]:
    """Name -> (bits, PSNR)."""
    psnr = unpacked(r["psnr_of_images"])
    names = r["images"].split() if isinstance(r["images"], str) else [str(i) for i in range(r["images"])]
    bits = r["bits_of_images"] if isinstance(r["bits_of_images"], list) else [r["bits_of_images"]] * len(psnr)
    return {n: (b, float(p)) for n, b, p in zip(names, bits, psnr, strict=True)}


def everywhere() -> list[tuple[str, str]]:
    return [(data, name) for data, names in NETWORKS.items() for name in names]


# ---- tables -------------------------------------------------------------------------------------------------------------
def psnr_table(results: Results, data: str, backbone: str) -> str:
    lines, reasons = [], []
    for codec in SHOWN:
        cells = []
        for bpp in sorted(RATES[data]):
            r = results.row(data, backbone, codec, bpp)
            off = f" at {r['mean_bpp']:.3f}" if r and abs(r["mean_bpp"] / bpp - 1) > 0.005 else ""
            few = f" ({len(r['images'].split())} images)" if r and data == KODAK and len(r["images"].split()) < 12 else ""
            why = results.refused(data, backbone, codec, bpp)
            if why:
                reasons.append(f"{results.label(data, backbone, codec)}, {bpp:g} bpp: {why}")
            cells.append(f"{r['psnr'][0]:.2f}{off}{few}" if r else "no figure, see below" if why else "")
        if any(cells):
            lines.append([results.label(data, backbone, codec), *cells])
    head = [f"`{backbone}` on {data}, dB", *(f"{bpp:g} bpp" for bpp in sorted(RATES[data]))]
    return table(head, lines) + "".join(f"\n\nNo figure: {reason}" for reason in reasons)


def psnr(results: Results) -> str:
    return "\n\n".join(psnr_table(results, *where) for where in everywhere())


def bd(results: Results) -> str:
    lines = []
    for data, name in everywhere():
        cells = []
        for codec in (RULE, ("DiffC", 25), ("Turbo-DDCM", 25), ("DDCM", 25)):
            found = results.bd(data, name, codec, OURS)
            short = f", {found.rates} rates" if found and found.rates < len(RATES[data]) else ""
            cell = f"{found}, {found.images} images{short}" if found else "not measured"
            cells.append(cell if results.fair(data, name, codec) else "no fair figure yet")
        lines.append([f"`{name}`, {data}", *cells])
    head = [
        "bits of the default beyond those of",
        "Turbo-DDCM's rule on our levels: **like with like**",
        "DiffC, budgets from other pictures",
        "Turbo-DDCM, its published grid, made for Stable Diffusion's latents",
        "DDCM, even times of Stable Diffusion's noise",
    ]
    return table(head, lines)


def wins(results: Results, codec: tuple[str, int]) -> str:
    """In how many comparisons at one rate the default has more PSNR, and where not."""
    won, lost, smaller = 0, [], 0
    for data, name in everywhere():
        for bpp in sorted(RATES[data]) if results.fair(data, name, codec) else ():
            pair = results.difference(data, name, OURS, codec, bpp)
            if pair is None:
                continue
            ours, other = results.row(data, name, OURS, bpp), results.row(data, name, codec, bpp)
            assert ours
            assert other
            smaller += other["mean_bpp"] < 0.999 * ours["mean_bpp"]
            if pair[0] > 0:
                won += 1
            else:
                lost.append(f"`{name}` at {bpp:g} bpp")
    text = f"{won} of {won + len(lost)} comparisons at one rate"
    text += f", not on {', '.join(lost)}" if lost else ""
    return text + (f" (in {smaller} the other's payload is smaller by more than 0.1 %)" if smaller else "")


def ahead(results: Results) -> str:
    """Like with like first; then codecs at settings of their own, each named for what it is."""
    fair = [where for where in everywhere() if results.fair(*where, RULE)]
    deltas = [d for where in fair if (d := results.bd(*where, RULE, OURS))]
    least, most = -max(d.mean for d in deltas), -min(d.mean for d in deltas)
    sets = [CIFAR, *(f"{data} (`{name}`)" for data, name in fair if data != CIFAR)]
    others = (
        (("DiffC", 25), "DiffC with budgets measured on other pictures"),
        (("Turbo-DDCM", 25), "Turbo-DDCM with its published grid, made for Stable Diffusion's latents (CIFAR-10 only)"),
        (("DDCM", 25), "DDCM with even times of Stable Diffusion's noise, in 25 calls (it was published with up to 1000)"),
    )
    return "\n".join(
        [
            f"**Rule against rule**, {' and '.join(sets)}, the same levels, start and network calls: the default needs "
            f"{least:.1f} to {most:.1f} % fewer bits than Turbo-DDCM's rule. It has more PSNR in {wins(results, RULE)}.",
            "",
            "In other comparisons more than the rule differs. There the default has more PSNR than",
            "",
            *(f"- {what}, in {wins(results, codec)}" for codec, what in others),
        ]
    )


def calls(results: Results) -> str:
    """8 calls of ours against more of Turbo-DDCM: its rule on our levels first."""
    tables = []
    for other in (RULE, ("Turbo-DDCM", 30)):
        for codec, what in (("default", "8 calls"), ("default, 4 candidates", "8 calls, an encoder with 4 candidates,")):
            lines = []
            for data, name in everywhere():
                if not results.fair(data, name, other):
                    continue
                cells = []
                for bpp in sorted(RATES[data]):
                    pair = results.difference(data, name, (codec, 8), other, bpp)
                    cells.append(f"{bpp:g} bpp: {pair[0]:+.2f} ± {pair[1]:.2f}" if pair else "")
                if any(cells):
                    lines.append([f"`{name}`, {data}", *cells])
            if lines:
                tables.append(
                    table(
                        [f"{what} against {results.label(CIFAR, NETWORKS[CIFAR][0], other)}, dB", "", "", "", "", ""], lines
                    )
                )
    return "\n\n".join(tables)


def steps(results: Results) -> str:
    lines = []
    for data, name in everywhere():
        found = results.bd(data, name, ("default", 61), OURS)
        if found:
            lines.append([f"`{name}`, {data}", str(found), str(found.images)])
    return table(["bits of 24 steps beyond those of 60", "", "images"], lines)


def classical_table(results: Results, data: str, backbone: str, rate: str) -> str:
    """PSNR of classical codecs at our rates; where some images have no file so small, ours over the others stands beside."""
    head = [f"{data}, dB", *(f"{b:g} bpp" for b in sorted(RATES[data]))]
    ours = {bpp: results.row(data, backbone, OURS, bpp) for bpp in sorted(RATES[data])}
    count = max((len(c) for c in results.classical["curves"].get(data, {}).values()), default=0)
    each = {bpp: [p for _, p in list(per_image(r).values())[:count]] for bpp, r in ours.items() if r}
    lines = [[f"noisebook, `{backbone}`, 25 calls", *(f"{np.mean(each[b]):.2f}" if b in each else "" for b in ours)]]
    for name, of_images in results.classical["curves"].get(data, {}).items():
        cells = []
        for bpp in ours:
            found = [rates.at_rate(rates.pairs(c, rate), bpp) for c in of_images]
            there = [i for i, f in enumerate(found) if f is not None]
            cell = f"{np.mean([found[i] for i in there]):.2f}" if there else ""
            if there and len(there) < count and bpp in each:
                cell += f" ({len(there)} images, noisebook {np.mean([each[bpp][i] for i in there]):.2f})"
            cells.append(cell)
        lines.append([f"{name} <sub>{results.classical['codecs'].get(name, '')}</sub>", *cells])
    return table(head, lines)


def classical(results: Results) -> str:
    """Photographs: bits of whole files. CIFAR-10: payloads, for a header by itself is more than our rates there."""
    run = results.classical
    where = f"<sub>{run['device']}, {run['date']}: `{run['command']}`, `bench/results/classical.json`</sub>"
    photographs = classical_table(results, KODAK, "photo", "bpp")
    return f"{photographs}\n\n{classical_table(results, CIFAR, 'cifar10-flow', 'payload_bpp')}\n\n{where}"


def similarity(results: Results) -> str:
    tables = []
    for data, name in everywhere():
        key = "ms_ssim" if data == KODAK else "ssim"  # MS-SSIM has no meaning for 32 x 32 pixels
        lines = []
        for codec in SHOWN:
            if codec in HIDDEN:
                continue
            found = [results.row(data, name, codec, bpp) for bpp in sorted(RATES[data])]
            if any(found):
                lines.append([results.label(data, name, codec), *(f"{r[key]:.4f}" if r else "" for r in found)])
        kind = key.upper().replace("_", "-")
        tables.append(table([f"`{name}` on {data}, {kind}", *(f"{bpp:g} bpp" for bpp in sorted(RATES[data]))], lines))
    return "\n\n".join(tables)


def seconds(results: Results) -> str:
    lines = []
    for codec in SHOWN:
        r = results.row(KODAK, "photo", codec, 0.25)
        if r:
            lines.append([results.label(KODAK, "photo", codec), f"{r['seconds']:.2f} s", r["run"].split(",")[0]])
    return table(["encode of a Kodak picture at .25 bpp, `photo`", "", "device"], lines)


def runs(results: Results) -> str:
    lines = []
    for name, run in results.raw["runs"].items():
        count = sum(r["run"] == name and measured(r) for r in results.raw["rows"].values())
        commands = "; ".join(f"`{c}`" for c in run.get("commands", [run["command"]]))
        lines.append(f"- {count} rows: {run['device']}, torch {run['versions']['torch']}, {run['date']}: {commands}")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "psnr": psnr,
    "similarity": similarity,
    "bd": bd,
    "ahead": ahead,
    "calls": calls,
    "steps": steps,
    "classical": classical,
    "seconds": seconds,
    "measured": runs,
}


# ---- plots --------------------------------------------------------------------------------------------------------------
def draw(results: Results) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "noisebook", "font.size": 9})
    from matplotlib import pyplot

    for data, names in NETWORKS.items():
        figure, axes = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 4), sharey=True)
        for axis, name in zip(axes, names, strict=True):
            for i, codec in enumerate(c for c in SHOWN if c not in HIDDEN):
                points = [(r["mean_bpp"], r["psnr"][0]) for r in results.rows(data, name, codec)]
                if len(points) > 1:
                    style = {"default": "o-", "DiffC": "s--", "DDCM": "^:"}.get(codec[0], "x-.")
                    color = f"C{i}"  # of the codec: a panel may lack one of them
                    axis.plot(
                        *zip(*points, strict=True), style, color=color, label=results.label(data, name, codec), markersize=4
                    )
            rate = "bpp" if data == KODAK else "payload_bpp"
            grid = np.geomspace(min(RATES[data]), max(RATES[data]), 12)
            for kind, of_images in results.classical["curves"].get(data, {}).items():
                mean = [[rates.at_rate(rates.pairs(c, rate), b) for c in of_images] for b in grid]
                points = [(b, np.mean(m)) for b, m in zip(grid, mean, strict=True) if m and None not in m]
                if points:
                    axis.plot(*zip(*points, strict=True), color="0.6", linewidth=1)
                    axis.annotate(kind, points[-1], fontsize=7, color="0.4")
            axis.set(xscale="log", title=f"{name}, {data}", xlabel="bits per pixel")
            axis.set_xticks(sorted(RATES[data]), [f"{b:g}" for b in sorted(RATES[data])])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("PSNR, dB")
        max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0])).legend(fontsize=7, loc="upper left")
        figure.tight_layout()
        figure.savefig(ROOT / f"docs/images/rates-{data.split('-')[0].lower()}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main(check: bool) -> None:
    results = Results()
    page.fill(PAGE, {name: (lambda made=made: made(results)) for name, made in TABLES.items()}, check)
    if not check:
        draw(results)
