"""The rows of the paper's experiments: which codecs on which networks, section by section, in order of importance.

The common budget is 512 bits an image of 32 x 32: one token of V = 2^16 of a codebook start, 31 steps with one such token
each, and one last call of the solver `mean`, 32 network calls. V counts an atom and its sign, so the paper's K is V / 2
atoms and log2 V bits a token. Where a level is to be found (`choices`), it is found on images that are not evaluated.
"""

from collections.abc import Iterator

from bench.lib.rows import BASE, BITS, LOG, PCA, PCA_END, STEPS, Options, Row, at_rate, ends, token

EDM, DDPM, FLOW, CONSISTENCY = "cifar10-edm", "cifar10-ddpm", "cifar10-flow", "cifar10-consistency"
NETWORKS = (DDPM, EDM, FLOW, CONSISTENCY)


def fixed(sigma: float, c: float, steps: int = STEPS) -> Options:
    """The fixed level sigma, at which a step keeps rho = 1 - c / steps of the noise (method.md: best for c near 2)."""
    return {"p": 0.0, "sigma_max": sigma, "rho": max(0.0, 1 - c / steps)}


KARRAS = {**BASE, "spacing": "karras", "sigma_max": 3.0, "p": 0.5}
GRID = {**BASE, "spacing": "ddpm", "sigma_max": 200.0, "sigma_min": 0.005, "p": 0.5}  # DDPM's whole grid, as DDCM uses it
ENDS = ends(0.1, 0.2, 0.4, 0.8)
LEVELS = (0.4, 0.8, 1.2, 1.8)
SHARES = (1.3, 2.5, 4.0)
FIXED = [fixed(sigma, c) for sigma in LEVELS for c in SHARES]
STARTS = [{"sigma_max": sigma, "sigma_min": 0.2} for sigma in (0.5, 1.0, 2.0)]  # of p = 1, which has all its tokens there


# ---- sections -----------------------------------------------------------------------------------------------------------
def rates() -> Iterator[Row]:
    """Networks against the Gaussian prior, its mean and its ODE's end point, at .25, .5, 1 and 2 bits a pixel: 16 runs of
    2, 4, 8 or 16 tokens of a byte."""
    for bits, choices in BITS.items():
        for backbone in (PCA, PCA_END, *NETWORKS):
            recipe = at_rate(bits // 128)
            yield Row("rates", f"{backbone}, {bits / 1024:g} bpp", backbone, recipe, choices)


def p() -> Iterator[Row]:
    """p on three falling schedules and at fixed levels, EDM. p = 1 injects no noise: all its tokens are in the start."""
    yield Row("p", "fixed level, p = 0", EDM, BASE, FIXED)
    for value in (0.25, 0.5, 0.75, 1.0):
        change = {"p": value, "start_budget": 32 if value == 1 else 1}
        yield Row("p", f"DDPM's grid, p = {value:g}", EDM, {**GRID, **change})
        yield Row("p", f"log-uniform, p = {value:g}", EDM, {**LOG, **change}, STARTS if value == 1 else ENDS)
        if value < 1:
            yield Row("p", f"Karras, p = {value:g}", EDM, {**KARRAS, **change}, ENDS)
    yield Row("p", "Karras as EDM samples (80 to .002), p = 0.5", EDM, {**KARRAS, "sigma_max": 80.0, "sigma_min": 0.002})
    for sigma in LEVELS:
        yield Row("p", f"fixed level {sigma:g}, p = 0", EDM, BASE, [fixed(sigma, c) for c in SHARES])


def families() -> Iterator[Row]:
    """The same budget on every family. DDPM takes over the levels found for EDM: a view of the same network."""
    for backbone in (PCA, *NETWORKS):
        tuned_on = EDM if backbone == DDPM else ""
        yield Row("families", f"{backbone}, log-uniform, p = 0.5", backbone, LOG, ENDS, tuned_on)
        yield Row("families", f"{backbone}, fixed level, p = 0", backbone, BASE, FIXED, tuned_on)
        if backbone in (DDPM, EDM, FLOW):
            yield Row("families", f"{backbone}, DDPM's grid, p = 0.5", backbone, GRID)


def forced() -> Iterator[Row]:
    """Plain DDCM forced on EDM and flow, on the levels of DDPM's grid and on the log-uniform ones."""
    for backbone in (EDM, FLOW):
        for walk, name in (("gddcm", "gDDCM"), ("forced", "DDCM forced")):
            yield Row("forced", f"{backbone}, log-uniform: {name}", backbone, LOG, ENDS, walk=walk)
            yield Row("forced", f"{backbone}, DDPM's grid: {name}", backbone, GRID, walk=walk)


def k() -> Iterator[Row]:
    """The vocabulary, 2^4 ... 2^20, at the levels found for 2^16."""
    for log_v in range(4, 21, 4):
        yield Row("k", f"p = 0.5, V = 2^{log_v}", EDM, {**LOG, **token(1 << log_v)}, ENDS, tuned_as=LOG)
        yield Row("k", f"p = 0, V = 2^{log_v}", EDM, {**BASE, **token(1 << log_v)}, FIXED, tuned_as=BASE)


def n() -> Iterator[Row]:
    """The number of tokens, 10 ... 1000: one a network call, or up to 32 a call at 32 calls."""
    found = {10: ends(0.3, 0.5, 0.8), 32: ENDS, 100: ends(0.05, 0.1, 0.2), 320: ends(0.05), 1000: ends(0.025)}
    for count, choices in found.items():
        yield Row("n", f"p = 0.5, N = {count}", EDM, {**LOG, "steps": count - 1}, choices, long=count > 100)
    levels = {10: (0.8, 1.2, 1.8), 32: (), 100: (0.3, 0.5, 0.8), 320: (0.3,), 1000: (0.3,)}
    for count, lams in levels.items():
        choices = [fixed(sigma, 2.5, count - 1) for sigma in lams] or FIXED
        yield Row("n", f"p = 0, N = {count}", EDM, {**BASE, "steps": count - 1}, choices, long=count > 100)
    found = {4: ends(0.1, 0.2), 16: ends(0.05, 0.1), 32: ends(0.02, 0.05)}
    for bins, choices in {1: ENDS, **found}.items():
        recipe = {**LOG, "budget": bins, "start_budget": bins} if bins > 1 else LOG
        yield Row("n", f"32 calls, N = {32 * bins}", EDM, recipe, choices)


def start() -> Iterator[Row]:
    """A codebook start against a random one, which gets one more step for its token: equal bits."""
    random = {"start_budget": 0, "steps": STEPS + 1}
    for name, recipe, choices in (
        ("log-uniform, p = 0.5", LOG, ENDS),
        ("DDPM's grid, p = 0.5", GRID, ()),
        ("fixed level, p = 0", BASE, FIXED),
    ):
        yield Row("start", f"{name}: codebook", EDM, recipe, choices)
        yield Row("start", f"{name}: random", EDM, {**recipe, **random}, choices, tuned_as=recipe)


def blocks() -> Iterator[Row]:
    """2-D tokens: one a block and call, against as many for the whole image, and against one; then 512 bits in all."""
    last = {1: ends(0.5, 0.8, 1.2), 4: BITS[512], 16: BITS[2048], 64: ends(0.02, 0.05, 0.1)}
    for count, choices in last.items():
        yield Row("blocks", f"16 calls, 1-D, {count} per call", EDM, at_rate(count), choices)
        if count > 1:
            side = round(count**0.5)
            recipe = at_rate(1, rows=side, columns=side)
            yield Row("blocks", f"16 calls, {side} x {side} blocks", EDM, recipe, choices)
    yield Row("blocks", "512 bits, 1-D, 64 calls", EDM, at_rate(1, steps=63), BITS[512])
    yield Row("blocks", "512 bits, 2 x 2 blocks, 16 calls", EDM, at_rate(1, rows=2, columns=2), BITS[512])
    yield Row("blocks", "512 bits, 4 x 4 blocks, 4 calls", EDM, at_rate(1, rows=4, columns=4, steps=3), BITS[512])
    sixteen = {"vocab_size": 16, "start_vocab_size": 16}
    yield Row(
        "blocks",
        "512 bits, 8 x 8 blocks of V = 16, 2 calls",
        EDM,
        at_rate(1, rows=8, columns=8, steps=1, **sixteen),
        BITS[512],
    )


def finish() -> Iterator[Row]:
    """How the last level becomes an image: one x0_hat (1 call), Euler (5 steps, 5 calls), Heun (3 steps, 5 calls)."""
    for name, recipe, choices in (("log-uniform, p = 0.5", LOG, ENDS), ("fixed level, p = 0", BASE, FIXED)):
        yield Row("finish", f"{name}: mean", EDM, recipe, choices)
        for solver, count in (("euler", 5), ("heun", 3)):
            changed = {**recipe, "solver": solver, "solver_steps": count}
            yield Row("finish", f"{name}: {solver}", EDM, changed, choices, tuned_as=recipe)


def failure() -> Iterator[Row]:
    """The signs the paper names: a level too high, a vocabulary too small, a random start."""
    yield Row("failure", "fixed level as found", EDM, BASE, FIXED)
    yield Row("failure", "fixed level 3", EDM, {**BASE, **fixed(3.0, 2.5)})
    yield Row("failure", "log-uniform as found", EDM, LOG, ENDS)
    yield Row("failure", "log-uniform down to 1.5", EDM, {**LOG, "sigma_min": 1.5})
    yield Row("failure", "V = 256, 16 calls", EDM, at_rate(1), ends(0.5, 0.8, 1.2))
    yield Row("failure", "V = 16, 32 calls", EDM, {**LOG, **token(16)}, ENDS, tuned_as=LOG)
    yield Row("failure", "V = 64, 32 calls", EDM, {**LOG, **token(64)}, ENDS, tuned_as=LOG)
    random = {"start_budget": 0, "steps": STEPS + 1}
    yield Row("failure", "random start, fixed level", EDM, {**BASE, **random}, FIXED, tuned_as=BASE)


def photo() -> Iterator[Row]:
    """p and V on photographs of 256 x 256: 16 calls with 64 tokens each, .25 bits a pixel at V = 2^16."""
    base = {**LOG, "steps": 15, "budget": 64, "start_budget": 64}
    choices = ends(0.05, 0.1, 0.2)
    levels = [fixed(sigma, 2.5, 15) for sigma in (0.4, 0.8, 1.6, 3.0)]
    yield Row("photo", "fixed level, p = 0", "photo", base, levels, data="photos")
    for value in (0.25, 0.5, 0.75, 1.0):
        recipe = {**base, "p": value, "start_budget": 1024 if value == 1 else 64}
        yield Row("photo", f"log-uniform, p = {value:g}", "photo", recipe, STARTS if value == 1 else choices, data="photos")
    for log_v in (8, 12, 16, 20):
        recipe = {**base, "vocab_size": 1 << log_v, "start_vocab_size": 1 << log_v}
        yield Row("photo", f"p = 0.5, V = 2^{log_v}", "photo", recipe, choices, tuned_as=base, data="photos")


SECTIONS = {f.__name__: f for f in (rates, p, families, forced, k, n, blocks, start, finish, failure, photo)}


def plan(dry: bool = False) -> list[Row]:
    """All rows, sections in the order above, the long ones last. A dry plan has few steps and choices."""
    rows = [row for section in SECTIONS.values() for row in section()]
    if dry:
        rows = [shortened(row) for row in rows]
    return sorted(rows, key=lambda row: row.long)


def shortened(row: Row) -> Row:
    """The row with a tenth of its steps, at most 32 tokens in the start and its first two choices."""

    def cut(recipe: Options) -> Options:
        return {**recipe, "steps": -(-recipe["steps"] // 10), "start_budget": min(32, recipe["start_budget"])}

    tuned_as = None if row.tuned_as is None else cut(row.tuned_as)
    return Row(
        row.section,
        row.label,
        row.backbone,
        cut(row.recipe),
        row.choices[:2],
        row.tuned_on,
        tuned_as,
        row.walk,
        row.data,
        row.long,
    )
