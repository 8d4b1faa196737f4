"""What is said of the rows of peers.py: verdicts, lines and the tables of docs/rates.md."""

from typing import Any

from bench.lib import page
from bench.lib.comparison import CIFAR
from bench.lib.record import ROOT

NAME, PAGE = "peers", ROOT / "docs/rates.md"
TOLERANCE = 0.1  # dB


def verdict(difference: tuple[float, float], same_bits: bool) -> str:
    mean, half = difference
    if not same_bits:
        return "other bits"
    if abs(mean) > TOLERANCE:
        return "differs"
    return "parity" if abs(mean) + half <= TOLERANCE else "parity of the means; the interval is wider"


FINE = ("parity", "parity of the means; the interval is wider")


def said(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"]
    engine = found["engine"]
    ours = f"engine {engine['psnr'][0]:.2f} dB, {engine['bits']:.0f} bits, walk error {engine['walk_error']:.2f}"
    if "peer_side" not in found:
        return ours
    theirs, (mean, half) = found["peer_side"], found["difference"]
    return (
        f"{ours}; peer {theirs['psnr'][0]:.2f} dB, {theirs['bits']:.0f} bits, walk error {theirs['walk_error']:.2f}, "
        f"{theirs['seconds']:.0f} s; {mean:+.3f} +- {half:.3f} dB: {found['verdict']}"
    )


def broken(rows: dict[str, Any]) -> list[str]:
    """The rows that are no parity, or have no figures."""
    bad = {key: found for key, found in rows.items() if "error" in found or found.get("verdict", FINE[0]) not in FINE}
    return [f"{key}: {said(found)}" for key, found in bad.items()]


# ---- tables of docs/rates.md --------------------------------------------------------------------------------------------
def rate_of(found: dict[str, Any]) -> str:
    pixels = 32 * 32 if found["data"] == CIFAR else 256 * 256
    return f"{found['engine']['bits'] / pixels:.3g} bpp"


def parity_table() -> str:
    result = page.load(NAME)
    head = [
        "steps from the paper of",
        "on",
        "rate",
        "calls",
        "images x seeds",
        "atoms",
        "theirs",
        "engine",
        "engine - theirs",
    ]
    lines, reasons = [], []
    for key, found in result["rows"].items():
        if "error" in found:
            reasons.append(f"No figure: {key}: {found['error']}")
        elif "peer_side" in found:
            theirs, engine, (mean, half) = found["peer_side"], found["engine"], found["difference"]
            mark = "" if found["verdict"] in FINE else f" **{found['verdict']}**"
            count = f"{found['images']} x {found['seeds']}"
            sides = [f"{side['psnr'][0]:.2f} dB" for side in (theirs, engine)]
            where = [found["peer"], f"`{found['backbone']}`, {found['data']}", rate_of(found), str(found["nfe"])]
            lines.append([*where, count, found["atoms"], *sides, f"{mean:+.3f} ± {half:.3f} dB{mark}"])
    return "\n\n".join([page.table(head, lines), *reasons, page.source(page.with_commands(result), NAME)])


def walk_table() -> str:
    result = page.load(NAME)
    head = ["error on the own walk over that on ideal states", "on", "rate", "engine", "steps from the paper"]
    lines = []
    for found in result["rows"].values():
        if "error" in found:
            continue
        sides = [spread(found[side]) if side in found else "" for side in ("engine", "peer_side")]
        lines.append([found["peer"], f"`{found['backbone']}`, {found['data']}", rate_of(found), *sides])
    return page.table(head, lines)


def spread(side: dict[str, Any]) -> str:
    ratios = [ratio for _, ratio in side["walk_errors"][1:]]
    return f"{side['walk_error']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


TABLES: page.Tables = {"peers": parity_table, "walk_errors": walk_table} if page.measured(NAME) else {}
