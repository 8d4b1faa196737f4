"""Tables of the comparison at equal bytes (bench/results/codecs.json) for docs/rates.md, and its sentences for the README.

Wins and losses are counted alike: the better mean over the pictures that both codecs have a file for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.lib.equal_bytes import OURS
from bench.lib.page import Result, load, source, table, with_commands
from noisebook.images.judges.words import BY_KEY

NAME = "codecs"
PLOTTED = ("psnr", "lpips")  # metrics of the README's picture


@dataclass(frozen=True)
class Comparison:
    """The rows of a result: figures of a picture by a codec at a rate, without those where a codec has no file so small."""

    result: Result

    @property
    def codecs(self) -> list[str]:
        return list(self.result["codecs"])

    @property
    def ours(self) -> list[str]:
        return [name for name in self.codecs if name.startswith(OURS)]

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.codecs if not name.startswith(OURS)]

    @property
    def metrics(self) -> list[str]:
        return list(self.result["metrics"])

    @property
    def rates(self) -> list[float]:
        return sorted({row["asked"] for row in self.result["rows"]})

    @property
    def count(self) -> int:
        """Pictures."""
        return len({row["image"] for row in self.result["rows"]})

    def values(self, codec: str, asked: float, key: str) -> dict[str, float]:
        """Picture -> figure."""
        return {
            row["image"]: row[key]
            for row in self.result["rows"]
            if row["codec"] == codec and row["asked"] == asked and row.get(key) is not None
        }

    def tried(self, codec: str, asked: float) -> int:
        """Pictures that it was measured on, also those that it has no file for."""
        return len({row["image"] for row in self.result["rows"] if (row["codec"], row["asked"]) == (codec, asked)})

    def mean(self, codec: str, asked: float, key: str, images: Sequence[str] | None = None) -> float | None:
        """Over all pictures that it has a file for, or over those of `images`; None where there is none."""
        values = self.values(codec, asked, key)
        some = [values[i] for i in images if i in values] if images is not None else list(values.values())
        return sum(some) / len(some) if some else None

    def difference(self, ours: str, rival: str, asked: float, key: str) -> tuple[float, int, int] | None:
        """(how much better the mean of ours is over the pictures that both have, pictures where ours is better, pictures);
        None where they share none."""
        a, b = self.values(ours, asked, key), self.values(rival, asked, key)
        better = [(a[i] - b[i]) * (1 if BY_KEY[key].higher else -1) for i in a if i in b]
        return (sum(better) / len(better), sum(d > 0 for d in better), len(better)) if better else None


def _best(values: Sequence[float | None], key: str) -> float | None:
    there = [value for value in values if value is not None]
    return (max if BY_KEY[key].higher else min)(there, default=None)


def _text(value: float, key: str, bold: bool) -> str:
    shown = f"{value:.{BY_KEY[key].decimals}f}"
    return f"**{shown}**" if bold else shown


def means(comparison: Comparison) -> dict[str, dict[str, dict[str, Any]]]:
    """Rate -> codec -> pictures that it has a file for, and the means over them."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for asked in comparison.rates:
        for codec in comparison.codecs:
            row: dict[str, Any] = {"pictures": len(comparison.values(codec, asked, "bpp"))}
            out.setdefault(f"{asked:g}", {})[codec] = row
            row |= {key: comparison.mean(codec, asked, key) for key in ("bpp", *comparison.metrics)}
    return out


# ---- the page -----------------------------------------------------------------------------------------------------------
def cell(comparison: Comparison, codec: str, asked: float, key: str) -> str:
    """A mean. Bold: the best of the codecs that have a file for every picture; of a rival that lacks some, the better one of
    it and ours over the pictures that it has."""
    values = comparison.values(codec, asked, key)
    if not values:
        tried = comparison.tried(codec, asked)
        return f"no file so small ({tried} of {tried})" if tried else "not measured"
    mean = comparison.mean(codec, asked, key)
    assert mean is not None
    if len(values) == comparison.count:
        full = [name for name in comparison.codecs if len(comparison.values(name, asked, key)) == comparison.count]
        best = _best([comparison.mean(name, asked, key) for name in full], key)
        return _text(mean, key, mean == best)
    same = [comparison.mean(name, asked, key, list(values)) for name in comparison.ours]
    best = _best([mean, *same], key)
    beside = " / ".join(_text(value, key, value == best) for value in same if value is not None)
    return f"{_text(mean, key, mean == best)} ({len(values)} pictures; noisebook {beside})"


def equal_bytes_table() -> str:
    comparison = Comparison(load(NAME))
    rates = [f"{asked:g} bpp" for asked in comparison.rates]
    parts = []
    for key in comparison.metrics:
        metric = BY_KEY[key]
        unit = f", {metric.unit}" if metric.unit else ""
        lines = [
            [codec, *(cell(comparison, codec, asked, key) for asked in comparison.rates)] for codec in comparison.codecs
        ]
        parts.append(table([f"{metric.title}{unit} ({metric.direction})", *rates], lines))
    sizes = []
    for codec in comparison.codecs:
        found = [comparison.mean(codec, asked, "bpp") for asked in comparison.rates]
        sizes.append([codec, *(f"{value:.4f}" if value else "" for value in found)])
    parts.append(table(["mean bits per pixel, whole files", *rates], sizes))
    return "\n\n".join([*parts, _about(comparison)])


def _about(comparison: Comparison) -> str:
    """Codecs, metrics and networks, and what was not there."""
    result = comparison.result
    lines = [f"- {name}: {entry['about']} ({entry['version']})" for name, entry in result["codecs"].items()]
    for key, entry in result["metrics"].items():
        parts = [entry["by"] or "noisebook", *(f"{n['file']} sha256:{n['sha256'][:16]}" for n in entry["networks"])]
        lines.append(f"- {BY_KEY[key].title}: {', '.join(parts)}")
    lines += [f"- {name} was not measured: {why}" for name, why in result["absent"].items()]
    return "\n".join([*lines, "", f"{result['about']}. {fewer_bits(comparison)} {source(with_commands(result), NAME)}"])


def equal_wins() -> str:
    comparison = Comparison(load(NAME))
    lines = []
    for ours in comparison.ours:
        for rival in comparison.rivals:
            cells = []
            for key in comparison.metrics:
                found = {asked: comparison.difference(ours, rival, asked, key) for asked in comparison.rates}
                there = {asked: pair for asked, pair in found.items() if pair}
                won = [f"{asked:g}" for asked, pair in there.items() if pair[0] > 0]
                pictures = f"{sum(p[1] for p in there.values())} of {sum(p[2] for p in there.values())} pictures"
                which = f" ({', '.join(won)})" if won else ""
                rates = f"{len(won)} of {len(there)} rates{which}"
                cells.append(f"{rates}, {pictures}" if there else "no file so small")
            lines.append([f"{ours} against {rival}", *cells])
    head = ["where ours is the better one", *(BY_KEY[key].title for key in comparison.metrics)]
    return table(head, lines) + "\n\n" + sentences(comparison)


def sentences(comparison: Comparison) -> str:
    """Wins and losses of each of ours against all rivals together, by metric and by rate."""
    out = []
    for ours in comparison.ours:
        by_key = [_count(comparison, ours, [key], comparison.rates) for key in comparison.metrics]
        by_rate = [_count(comparison, ours, comparison.metrics, [asked]) for asked in comparison.rates]
        titles = [BY_KEY[key].title for key in comparison.metrics]
        won, lost = _count(comparison, ours, comparison.metrics, comparison.rates)
        out.append(
            f"**{ours}** wins {won} and loses {lost} of {won + lost} comparisons of means. "
            f"By metric: {_listed(titles, by_key)}. "
            f"By rate: {_listed([f'{asked:g} bpp' for asked in comparison.rates], by_rate)}."
        )
    return "\n\n".join(out)


def _count(comparison: Comparison, ours: str, keys: Sequence[str], rates: Sequence[float]) -> tuple[int, int]:
    """(wins, losses) over rivals, metrics and rates; a tie is a loss of ours."""
    found = [comparison.difference(ours, rival, r, key) for rival in comparison.rivals for key in keys for r in rates]
    won = sum(pair[0] > 0 for pair in found if pair)
    return won, sum(pair is not None for pair in found) - won


def _listed(names: Sequence[str], counts: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{name} {won} won, {lost} lost" for name, (won, lost) in zip(names, counts, strict=True))


# ---- the README ---------------------------------------------------------------------------------------------------------
def short() -> str:
    """The picture that rate_plot.py draws, and the sentences. All tables are in docs/rates.md."""
    comparison = Comparison(load(NAME))
    titles = " and ".join(BY_KEY[key].title for key in PLOTTED if key in comparison.metrics)
    caption = (
        f"*{titles} of whole files, means over {comparison.result['about']}. A codec has no point at a rate where it "
        f"lacks a file for some picture. {fewer_bits(comparison)} [All tables](docs/rates.md#at-equal-bytes).*"
    )
    facts = comparison.result
    about = f"<sub>{facts['device']}, {facts['date']}; `bench/results/{NAME}.json` has versions and commands</sub>"
    picture = f"![{titles} against bits per pixel, noisebook and other codecs](docs/images/codecs.svg)"
    return f"{picture}\n\n{caption}\n\n{sentences(comparison)} {about}"


def fewer_bits(comparison: Comparison) -> str:
    """How far the files of rivals stay below ours, whose rates any number of tokens can meet."""
    shares = []
    for asked in comparison.rates:
        ours = comparison.values(comparison.ours[0], asked, "bpp")
        for rival in comparison.rivals:
            theirs = comparison.values(rival, asked, "bpp")
            if theirs:
                shares.append(1 - sum(theirs.values()) / sum(ours[image] for image in theirs))
    most = f"{100 * max(shares):.0f} %" if shares else "0 %"
    return f"A rival's file is the largest of its quality steps that is not above ours: it has up to {most} fewer bits."
