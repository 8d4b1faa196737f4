"""The tables of docs/paper.md and its plots, from bench/results/paper.json: no figure there is typed by hand."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.lib import metrics, page
from bench.lib.page import table
from bench.lib.per_image import MISSING, paired, within
from bench.lib.record import ROOT, refuse_dry
from bench.lib.rows import BITS, PCA, PCA_END, key
from bench.paper import plots
from bench.paper.claims import claims
from bench.paper.results import (
    AT_EQUAL_BITS,
    AT_EQUAL_CALLS,
    ENDINGS,
    FIXED,
    FORCED,
    STARTS,
    Results,
    curves,
    pca_differences,
)
from bench.paper.sections import CONSISTENCY, NETWORKS, SECTIONS

PAGE = ROOT / "docs/paper.md"
REFERENCES = {  # the row that the others of a section are compared with
    "rates": None,
    "p": FIXED,
    "families": None,
    "forced": None,
    "k": None,
    "n": None,
    "blocks": None,
    "start": None,
    "finish": None,
    "failure": None,
    "photo": "log-uniform, p = 0.5",
}


# ---- cells --------------------------------------------------------------------------------------------------------------
def chosen(row: dict[str, Any]) -> str:
    """The levels of a row, as they were found."""
    r = row["settings"]["recipe"]
    return f"{r['sigma_max']:g}, rho {r['rho']:.3f}" if r.get("p") == 0 else f"{r['sigma_max']:g} to {r['sigma_min']:g}"


def section(name: str) -> Callable[[Results], str]:
    """The table of a section: every row that was measured, in the plan's order."""

    def show(results: Results) -> str:
        rows = results.sections.get(name, {})
        if not rows:
            return MISSING.capitalize() + "."
        reference = rows.get(REFERENCES[name] or "")
        head = ["", "levels sigma", "tokens", "bits", "bpp", "NFE", "PSNR", "SSIM", "CIFAR-FD"]
        lines = []
        for label, r in rows.items():
            fd = "" if r["cifar_fd"] is None else f"{r['cifar_fd']:.2f}"
            lines.append(
                [
                    label,
                    chosen(r),
                    f"{r['tokens']:,}",
                    f"{r['bits']:,.0f}",
                    f"{r['bpp']:.3g}",
                    str(r["nfe"]),
                    within(r["psnr"]),
                    f"{r['ssim'][0]:.3f} ± {r['ssim'][1]:.3f}",
                    fd,
                ]
            )
            if reference:
                lines[-1].append("" if r is reference else within(paired(r, reference), "+"))
        if reference:
            head.append(f"PSNR against {REFERENCES[name]}")
        if all(line[8] == "" for line in lines):
            head, lines = [h for h in head if h != "CIFAR-FD"], [line[:8] + line[9:] for line in lines]
        extra = EXTRA[name](results) if name in EXTRA else ""
        return "\n\n".join(part for part in (table(head, lines), extra, plot_link(name)) if part)

    return show


def plot_link(name: str) -> str:
    if name not in plots.DRAWN:
        return ""
    return f"![PSNR against {plots.DRAWN[name][0]}]({(plots.PLOTS / f'paper-{name}.svg').relative_to(PAGE.parent)})"


# ---- what a section has beside its rows ---------------------------------------------------------------------------------
def against_pca(results: Results) -> str:
    """Each network minus the PCA prior at the same bits; a consistency model also minus the prior's own end point."""
    lines = []
    for name, other in [*((n, PCA) for n in (*NETWORKS, PCA_END)), (CONSISTENCY, PCA_END)]:
        cells = [within(d, "+") for d in pca_differences(results, name, other)]
        if any(cell != MISSING for cell in cells):
            lines.append([f"`{name}`" + (f" above `{other}`" if other != PCA else ""), *cells])
    rates = [f"{bits / 1024:g} bpp" for bits in BITS]
    return "PSNR above that of the PCA prior, at equal bits and network calls:\n\n" + table(["", *rates], lines)


def fits(name: str) -> Callable[[Results], str]:
    """Straight lines through PSNR over log2 V or log2 N."""
    what = {"k": "V", "n": "N"}[name]

    def show(results: Results) -> str:
        lines = []
        for label, points in curves(results, name).items():
            x, y = zip(*points, strict=True)
            slope, _, r2 = metrics.line(x, y)
            steps = [(b - a) / (w - v) for (v, a), (w, b) in zip(points, points[1:], strict=False)]
            lines.append([label, str(len(x)), f"{slope:.3f} dB", f"{r2:.4f}", ", ".join(f"{s:.2f}" for s in steps)])
        head = ["", "points", f"PSNR for each doubling of {what}", "R²", "the same from point to point"]
        return table(head, lines) if lines else ""

    return show


def pairs(name: str, couples: list[tuple[str, str]]) -> Callable[[Results], str]:
    """Paired differences of couples of rows."""

    def show(results: Results) -> str:
        lines = []
        for a, b in couples:
            x, y, d = results.get(name, a), results.get(name, b), results.difference(name, a, b)
            if x and y:
                fd = "" if x["cifar_fd"] is None else f"{x['cifar_fd'] - y['cifar_fd']:+.2f}"
                lines.append([a, b, within(d, "+"), fd])
        return table(["row", "minus row", "PSNR", "CIFAR-FD"], lines) if lines else ""

    return show


def alike(results: Results) -> str:
    """2-D against 1-D, and how alike the tokens of neighbouring blocks are."""
    rows = [(label, r["neighbours"]) for label, r in results.sections.get("blocks", {}).items() if "neighbours" in r]
    head = ["", "correlation of neighbours' means", "shared by their signs", "by those of another image"]
    lines = [
        [label, f"{m['correlation']:.3f}", f"{m['information']:.4f} bits", f"{m['shuffled']:.4f} bits"] for label, m in rows
    ]
    compared = pairs("blocks", AT_EQUAL_CALLS + AT_EQUAL_BITS)(results)
    return "\n\n".join(part for part in (compared, table(head, lines) if lines else "") if part)


FAILS = 2.0  # dB below the best row of the same network with no more bits


def signs(results: Results) -> str:
    """Of all rows on CIFAR-10 networks: those that warned and those that fall short, against each other."""
    rows = {
        key(r["settings"]): (label, r)
        for (_, label), r in results.by_label.items()
        if r["settings"]["backbone"] in NETWORKS and r["settings"]["walk"] == "gddcm"
    }

    def gap(row: dict[str, Any]) -> float:
        same = [o for _, o in rows.values() if o["settings"]["backbone"] == row["settings"]["backbone"]]
        return max(o["psnr"][0] for o in same if o["bits"] <= row["bits"]) - row["psnr"][0]

    counts = {(warned, short): 0 for warned in (True, False) for short in (True, False)}
    for _, r in rows.values():
        counts[bool(r["warnings"]), gap(r) > FAILS] += 1
    quiet = [f"{label} ({gap(r):.1f} dB)" for label, r in rows.values() if gap(r) > FAILS and not r["warnings"]]
    lines = [
        [label, f"{gap(r):.2f} dB", "; ".join(re.split("[:;]", w)[0] for w in r["warnings"]) or "nothing"]
        for label, r in results.sections.get("failure", {}).items()
    ]
    head = ["", "below the best row of no more bits", "what the engine warned of (lam: sigma)"]
    square = [
        [name, str(counts[warned, True]), str(counts[warned, False])]
        for name, warned in (("warned", True), ("not warned", False))
    ]
    listed = f"Not warned of: {'; '.join(quiet)}." if quiet else ""
    about = f"All rows of the four networks, by whether they fall short by more than {FAILS:g} dB:"
    return "\n\n".join([table(head, lines), about, table(["", "falls short", "does not"], square), listed]).strip()


EXTRA: dict[str, Callable[[Results], str]] = {
    "rates": against_pca,
    "k": fits("k"),
    "n": fits("n"),
    "forced": pairs("forced", FORCED),
    "start": pairs("start", STARTS),
    "finish": pairs("finish", ENDINGS),
    "blocks": alike,
    "failure": signs,
}


def measured(results: Results) -> str:
    """What the figures were measured with."""
    r = results.raw
    versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    other = "".join(f" {name}: {about}." for name, about in r.get("given_networks", {}).items())
    real = r.get("cifar_fd_of_real_images")
    floor = f" CIFAR-FD between them and as many other real images: {real:.2f}." if real else ""
    return (
        f"{r['images']:,} CIFAR-10 test images per row, {r['photos']} photographs; levels chosen on {r['tuning']} other "
        f"images.{floor}{other}\n\n<sub>{r['device']}, {r['threads']} threads, {versions}, {r['date']}: "
        f"`{r['command']}`, `bench/results/paper.json`</sub>"
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "claims": claims,
    "measured": measured,
    **{name: section(name) for name in SECTIONS},
}


def render(text: str, results: Results | None) -> str:
    """The page with every `<!-- NAME -->...<!-- /NAME -->` filled in. SystemExit for a place that is never closed."""
    nothing = f"{MISSING.capitalize()}."
    return page.render(
        text, {name: lambda make=make: make(results) if results else nothing for name, make in TABLES.items()}
    )


def main(path: Path, check: bool) -> int:
    """Fills the page from the result file, or says whether that would change it."""
    result = json.loads(path.read_text()) if path.exists() else None
    if result:
        refuse_dry(result, path.name)
    results = Results(result) if result else None
    old = PAGE.read_text()
    new = render(old, results)
    if check:
        if old != new:
            print("docs/paper.md is not what bench/results says: run python -m bench.paper.run --report", file=sys.stderr)
        return int(old != new)
    if results:
        print("drawn:", ", ".join(plots.draw(results)))
    PAGE.write_text(new)
    return 0
