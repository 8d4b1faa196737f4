"""The tables of docs/paper.md and its plots, from bench/results/paper.json: no figure there is typed by hand."""

import base64
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import paper_rows
import report
from paper_rows import CONSISTENCY, DDPM, EDM, FLOW, NETWORKS, PCA, PCA_END
from report import table

from record import ROOT, refuse_dry

PAGE = ROOT / "docs/paper.md"
PLOTS = ROOT / "docs/images"
MISSING = "not measured yet"
UNTRUE, UNSEEN = "no", "no difference seen"
LOG, GRID, FIXED = "log-uniform, p = 0.5", "DDPM's grid, p = 0.5", "fixed level, p = 0"
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


class Results:
    """What a result file holds, by section and label of a row."""

    def __init__(self, result: dict[str, Any]):
        self.raw, self.by_label, self.sections = result, {}, {}
        trials = {name: trial["psnr"] for name, trial in result["trials"].items()}
        for row in paper_rows.plan(result["dry"]):
            wanted = paper_rows.resolved(row, trials)
            found = result["rows"].get(paper_rows.key(wanted)) if wanted else None
            if found:
                self.by_label[row.section, row.label] = found
                self.sections.setdefault(row.section, {})[row.label] = found

    def get(self, section: str, label: str) -> dict[str, Any] | None:
        return self.by_label.get((section, label))

    def difference(self, section: str, label: str, other: str, at: str | None = None) -> tuple[float, float] | None:
        """(mean, half width) of the paired difference in PSNR of two rows; `at`: the section of the other."""
        a, b = self.get(section, label), self.get(at or section, other)
        return paired(a, b) if a and b else None


def paired(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) of the PSNR of row a minus that of row b over the same images."""
    return metrics.interval(unpacked(a["psnr_of_images"]) - unpacked(b["psnr_of_images"]))


def unpacked(text: str) -> np.ndarray:
    """PSNR of each image in dB, from what `paper.packed` makes of it."""
    return np.frombuffer(base64.b64decode(text), "<u2") / 100.0


# ---- cells --------------------------------------------------------------------------------------------------------------
def within(pair: tuple[float, float] | None, sign: str = "") -> str:
    """A mean with its interval, in dB."""
    return MISSING if pair is None else f"{pair[0]:{sign}.2f} ± {pair[1]:.2f} dB"


def verdict(pair: tuple[float, float] | None, least: float = 0.0) -> str:
    """Whether a difference is above `least` beyond its interval."""
    if pair is None:
        return ""
    mean, half = pair
    return "yes" if mean - half > least else UNTRUE if mean + half < least else UNSEEN


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
    return f"![]({(PLOTS / f'paper-{name}.svg').relative_to(PAGE.parent)})" if name in DRAWN else ""


# ---- what a section has beside its rows ---------------------------------------------------------------------------------
def against_pca(results: Results) -> str:
    """Each network minus the PCA prior at the same bits; a consistency model also minus the prior's own end point."""
    lines = []
    for name, other in [*((n, PCA) for n in (*NETWORKS, PCA_END)), (CONSISTENCY, PCA_END)]:
        cells = [within(d, "+") for d in pca_differences(results, name, other)]
        if any(cell != MISSING for cell in cells):
            lines.append([f"`{name}`" + (f" above `{other}`" if other != PCA else ""), *cells])
    rates = [f"{bits / 1024:g} bpp" for bits in paper_rows.BITS]
    return "Above the PCA prior at equal bits and network calls:\n\n" + table(["", *rates], lines)


def pca_differences(results: Results, network: str, other: str = PCA) -> list[tuple[float, float] | None]:
    at = [f"{bits / 1024:g} bpp" for bits in paper_rows.BITS]
    return [results.difference("rates", f"{network}, {rate}", f"{other}, {rate}") for rate in at]


Curve = list[tuple[float, float]]


def curves(results: Results, name: str) -> dict[str, Curve]:
    """Label -> points (log2 of V, N; PSNR) of section k or n."""
    out: dict[str, Curve] = {}
    for label, r in results.sections.get(name, {}).items():
        line = label.rsplit(",", 1)[0]
        x = np.log2(r["settings"]["recipe"]["vocab_size"] if name == "k" else r["tokens"])
        out.setdefault(line, []).append((float(x), r["psnr"][0]))
    return {label: sorted(points) for label, points in out.items() if len(points) > 2}


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


FORCED = [
    (f"{net}, {grid}: DDCM forced", f"{net}, {grid}: gDDCM")
    for net in (EDM, FLOW)
    for grid in ("log-uniform", "DDPM's grid")
]
STARTS = [(f"{name}: codebook", f"{name}: random") for name in (LOG, GRID, FIXED)]
ENDINGS = [(f"{name}: {solver}", f"{name}: mean") for name in (LOG, FIXED) for solver in ("euler", "heun")]
SIDES = (2, 4, 8)
AT_EQUAL_CALLS = [(f"16 calls, {s} x {s} blocks", "16 calls, 1-D, 1 a call") for s in SIDES]
AT_EQUAL_BITS = [(f"16 calls, {s} x {s} blocks", f"16 calls, 1-D, {s * s} a call") for s in SIDES]


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
        paper_rows.key(r["settings"]): (label, r)
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


# ---- the claims ---------------------------------------------------------------------------------------------------------
def claims(results: Results) -> str:
    """Each claim of the paper beside our figure; the verdict follows from the intervals alone."""
    rows: list[list[str]] = []

    def claim(text: str, figure: str, holds: str) -> None:
        rows.append([text, figure, holds])

    def compare(text: str, name: str, a: str, b: str, least: float = 0.0, other: str | None = None) -> None:
        d = results.difference(name, a, b, other)
        claim(text, f"{a} minus {b}: {within(d, '+')}" if d else MISSING, verdict(d, least))

    found = [(n, results.difference("families", f"{n}, {LOG}", f"{PCA}, {LOG}")) for n in NETWORKS]
    there = [(n, d) for n, d in found if d]
    claim(
        "One tokenizer works on every family: each is above the Gaussian prior at 512 bits",
        "; ".join(f"`{n}` {within(d, '+')}" for n, d in there) or MISSING,
        combined([verdict(d) for _, d in there]) if len(there) == len(found) else "",
    )
    compare("p = 0 beats p = 1/2 on DDPM's own schedule (EDM)", "families", f"{EDM}, {FIXED}", f"{EDM}, {GRID}")
    compare("the same on a DDPM", "families", f"{DDPM}, {FIXED}", f"{DDPM}, {GRID}")
    claim(
        "Reconstruction FID on CIFAR-10: 3.2 for p = 0, 4.5 for DDCM (other tokens, other network, true FID)",
        distances(results),
        "",
    )
    compare(
        "p = 0 is best of all p: also against p = 1/2 on a log-uniform schedule",
        "families",
        f"{EDM}, {FIXED}",
        f"{EDM}, {LOG}",
    )
    for name, what in (("k", "K"), ("n", "the number of tokens")):
        lines = curves(results, name)
        r2 = {label: metrics.line(*zip(*points, strict=True))[2] for label, points in lines.items()}
        figure = "; ".join(f"{label}: R² = {v:.3f}" for label, v in r2.items()) or MISSING
        straight = ["yes" if v > 0.98 else UNTRUE for v in r2.values()]
        claim(f"Quality is log-linear in {what} (yes: R² > .98)", figure, combined(straight) if r2 else "")
    for a, b in STARTS:
        compare("A codebook start beats a random one", "start", a, b)
    for a, b in FORCED:
        d = results.difference("forced", b, a)
        claim(
            "Plain DDCM fails where a sampler has no noise of its own: gDDCM is above it",
            f"{b} minus forced: {within(d, '+')}" if d else MISSING,
            verdict(d),
        )
    for a, b in AT_EQUAL_CALLS:
        compare("2-D tokens reconstruct better per network call than one token", "blocks", a, b)
    for a, b in AT_EQUAL_BITS:
        compare("2-D tokens against as many 1-D tokens a call (not in the paper)", "blocks", a, b)
    for network, other in [*((n, PCA) for n in NETWORKS), (CONSISTENCY, PCA_END)]:
        ds = [d for d in pca_differences(results, network, other) if d]
        worst = min(ds, default=None)
        claim(
            f"`{network}` beats `{other}` by 2 dB at every rate (our aim, not the paper's)",
            f"least {within(worst, '+')}" if worst else MISSING,
            verdict(worst, 2.0) if len(ds) == 4 else "",
        )
    return table(["claim", "measured here", "holds here"], rows)


def combined(verdicts: list[str]) -> str:
    """One word for several: `yes` only where all are."""
    return verdicts[0] if len(set(verdicts)) == 1 else "in part"


def distances(results: Results) -> str:
    """CIFAR-FD of the fixed level, also with the ODE finish, DDPM's grid and the log-uniform schedule on EDM, and of real
    images."""
    found = [(name, results.get("families", f"{EDM}, {name}")) for name in (FIXED, GRID, LOG)]
    found.insert(1, (f"{FIXED}, Euler finish", results.get("finish", f"{FIXED}: euler")))
    parts = [f"{name}: {r['cifar_fd']:.2f}" for name, r in found if r and r["cifar_fd"] is not None]
    real = results.raw.get("cifar_fd_of_real_images")
    return f"CIFAR-FD, no FID: {'; '.join(parts)}; other real images: {real:.2f}" if parts and real else MISSING


def measured(results: Results) -> str:
    """What the figures were measured with."""
    r = results.raw
    versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    other = "".join(f" {name}: {about}." for name, about in r.get("given_networks", {}).items())
    real = r.get("cifar_fd_of_real_images")
    floor = f" CIFAR-FD between them and as many other real images: {real:.2f}." if real else ""
    return (
        f"{r['images']:,} CIFAR-10 test images a row, {r['photos']} photographs; levels chosen on {r['tuning']} other "
        f"images.{floor}{other}\n\n<sub>{r['device']}, {r['threads']} threads, {versions}, {r['date']}: "
        f"`{r['command']}`, `bench/results/paper.json`</sub>"
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "claims": claims,
    "measured": measured,
    **{name: section(name) for name in paper_rows.SECTIONS},
}


def render(text: str, results: Results | None) -> str:
    """The page with every `<!-- NAME -->...<!-- /NAME -->` filled in. SystemExit for a place that is never closed."""
    nothing = f"{MISSING.capitalize()}."
    return report.render(
        text, {name: lambda make=make: make(results) if results else nothing for name, make in TABLES.items()}
    )


# ---- plots --------------------------------------------------------------------------------------------------------------
def rate_curves(results: Results) -> dict[str, Curve]:
    """Network -> points (log2 of bits a pixel, PSNR)."""
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
    "rates": ("log2 of bits a pixel", rate_curves),
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
            print("docs/paper.md is not what bench/results says: run python bench/paper.py --report", file=sys.stderr)
        return int(old != new)
    if results:
        print("drawn:", ", ".join(draw(results)))
    PAGE.write_text(new)
    return 0
