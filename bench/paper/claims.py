"""Each claim of the paper beside our figure; the verdict follows from the intervals."""

from bench.lib import metrics
from bench.lib.page import table
from bench.lib.per_image import MISSING, within
from bench.lib.rows import PCA, PCA_END
from bench.paper.results import (
    AT_EQUAL_BITS,
    AT_EQUAL_CALLS,
    FIXED,
    FORCED,
    GRID,
    LOG,
    STARTS,
    Results,
    curves,
    pca_differences,
)
from bench.paper.sections import CONSISTENCY, DDPM, EDM, NETWORKS

UNTRUE, UNSEEN = "no", "no difference seen"


def verdict(pair: tuple[float, float] | None, least: float = 0.0) -> str:
    """Whether a difference is above `least` beyond its interval."""
    if pair is None:
        return ""
    mean, half = pair
    return "yes" if mean - half > least else UNTRUE if mean + half < least else UNSEEN


def claims(results: Results) -> str:
    """The table of claims."""
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
            "Plain DDCM fails where a sampler adds no noise: gDDCM is above it",
            f"{b} minus forced: {within(d, '+')}" if d else MISSING,
            verdict(d),
        )
    for a, b in AT_EQUAL_CALLS:
        compare("2-D tokens reconstruct better per network call than one token", "blocks", a, b)
    for a, b in AT_EQUAL_BITS:
        compare("2-D tokens against as many 1-D tokens per call (not in the paper)", "blocks", a, b)
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
