"""The tables of `.nbk` files in docs/reliability.md, from fuzz.json."""

from bench.lib import page
from bench.lib.record import ROOT
from noisebook.format.refusals import REFUSALS

NAME, PAGE = "fuzz", ROOT / "docs/reliability.md"
VERDICTS = ["accepted", *(name for name in REFUSALS if name not in ("sets", "coded"))]  # in the order of csrc/nbk.h


def nbk_fuzz() -> str:
    result = page.load(NAME)
    part, lines = result["fuzz"], []
    for verdict in VERDICTS:
        counts = [found.get(verdict, 0) for found in part["verdicts"].values()]
        lines.append([f"refused: `{verdict}`" if verdict != "accepted" else verdict, *(f"{n:,}" for n in counts)])
    slow, sample, every, specs = part["slowest"], result["compared"], result["exhaustive"], result["specifications"]
    text = [
        f"{part['inputs']:,} inputs ({part['bytes'] / 2**20:,.0f} MiB) under the sanitizers: {part['crashes']} crashes, "
        f"{part['hangs']} hangs, the slowest input {slow['ns'] / 1e6:.1f} ms (of {slow['bytes']:,} bytes).",
        f"{sum(sample.values()):,} of such inputs judged by C++ and by Python: the same result or message for each.",
        f"{every['files']} files, every variant: {every['flips']:,} flipped bits and {every['truncations']:,} truncations, "
        "all refused by both.",
        f"{specs['inputs']:,} files with specifications made by hand: "
        + ", ".join(f"{n:,} {'accepted' if name == 'accepted' else f'`{name}`'}" for name, n in specs["verdicts"].items())
        + f", no other error, the slowest {specs['slowest_seconds']:.1f} s.",
    ]
    items = "\n".join(f"- {line}" for line in text)
    return f"{page.table(['verdict', *part['verdicts']], lines)}\n\n{items}\n\n{page.source(result, NAME)}"


def nbk_speed() -> str:
    result = page.load(NAME)
    lines = [
        [row["what"], shown(row["native_median"]), shown(row["python_median"]), f"{row['ratio']:,.3g} x"]
        for row in result["speed"]
    ]
    return page.table(["", "C++", "Python", "ratio"], lines) + f"\n\nMedians, in turns. {page.source(result, NAME)}"


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds > 1e-3 else f"{seconds * 1e6:.2f} us"


TABLES: page.Tables = {"nbk_fuzz": nbk_fuzz, "nbk_speed": nbk_speed}
