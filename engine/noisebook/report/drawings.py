"""Charts about tokens, each with its legend and a sentence on how to read it."""

from collections.abc import Sequence

import numpy as np

from noisebook.report.charts import Series, chart, legend
from noisebook.report.counting import Spent, TokenStatistics, averaged, total_bits
from noisebook.report.markup import table

BARS = 64  # of a histogram, at most
POINTS = 160  # of a line, at most


def where_tokens_go(spent: Sequence[Spent], subject: str = "The picture") -> str:
    """A bar for each step of what `subject` spends, and the table of them."""
    if not spent:
        return f"<p>{subject} has no tokens.</p>"
    tokens, bits = sum(row.tokens for row in spent), total_bits(spent)
    steps = [row for row in spent if row.step_index >= 0]
    what, value = ("tokens", lambda row: row.tokens) if bits is None else ("bits", lambda row: row.bits)
    size = "" if bits is None else f", {bits:,.0f} bits"
    said = f"{subject} has {counted(tokens)}{size}, in {len(steps):,} steps."
    drawn = ""
    if steps:
        bars = [Series(what, [(row.step_index + 1, float(value(row) or 0)) for row in steps], "columns")]
        drawn = chart(f"{what} of each step", "step, from much noise to little", what, bars)
    if before := [row for row in spent if row.step_index < 0]:
        said += " Before the first step: " + ", ".join(f"{counted(row.tokens)} of the {row.name}" for row in before) + "."
    rows = [["step", "noise level sigma", "tokens", "values of a token", "bits", "share of the bits"]]
    rows += [
        [
            row.name,
            "" if row.sigma is None else f"{row.sigma:.4g}",
            f"{row.tokens:,}",
            f"{row.vocab_size:,}",
            "vary" if row.bits is None else f"{row.bits:,.0f}",
            "" if row.bits is None or not bits else f"{100 * row.bits / bits:.1f} %",
        ]
        for row in spent
    ]
    return f"<p>{said}</p>{drawn}<details><summary>The steps as a table</summary>{table(rows, columns=True)}</details>"


def counted(tokens: int) -> str:
    return f"{tokens:,} token{'' if tokens == 1 else 's'}"


def entropy_of(tokens: TokenStatistics) -> str:
    """How often values are taken, and how many bits each position holds, as far as that many images can say."""
    vocab_size = len(tokens.histogram)
    bars = min(BARS, vocab_size)
    edges = np.linspace(0, vocab_size, bars + 1).round().astype(int)
    share = np.add.reduceat(tokens.histogram, edges[:-1]) / max(1, tokens.histogram.sum()) / np.diff(edges) * vocab_size
    corners = [(float(edge), float(height)) for i, height in enumerate(share) for edge in edges[i : i + 2]]
    histogram = [
        Series("tokens of the images", corners, "bars", 1),
        Series("tokens that are all equally likely", [(0, 1), (vocab_size, 1)], "line", 2),
    ]
    length, most = len(tokens.entropy), np.log2(tokens.vocab_sizes)
    estimate = "Miller-Madow estimate: at least that much" if tokens.few else "Miller-Madow estimate"
    lines = (("count, on average too low", tokens.entropy), (estimate, tokens.corrected), ("maximum", most))
    entropy = [Series(name, averaged(bits, POINTS), "line", i) for i, (name, bits) in enumerate(lines, 1)]
    about = (
        f"{tokens.images:,} images of one size, with {length:,} tokens each: {tokens.entropy.sum():,.1f} bits as counted at "
        f"each position by itself, {'at least ' if tokens.few else ''}{tokens.corrected.sum():,.1f} by the Miller-Madow "
        f"estimate, {most.sum():,.1f} at most."
    )
    note = (
        f"{tokens.images:,} samples of a token show on average less entropy than it has. The Miller-Madow estimate adds "
        "(values seen - 1) / (2 N ln 2) bits for N samples."
    )
    if tokens.few:
        note += (
            f" Here it is on average still too low, since a token has up to {vocab_size:,} values, more than there are "
            "samples: read it as “at least”."
        )
    note += (
        f" Uniform tokens of {tokens.images:,} images would count as {tokens.reachable.sum():,.1f} bits: a count near that "
        "gives no sign that an entropy code would save anything."
    )
    return (
        f"<p>{about}</p>"
        + chart("frequency of token values", f"value of a token, of {vocab_size:,}", "times as often as uniform", histogram)
        + legend(histogram)
        + chart("entropy of the tokens at each position", "position in the stream", "bits per token", entropy)
        + legend(entropy)
        + f'<p class="soft">{note}</p>'
    )
