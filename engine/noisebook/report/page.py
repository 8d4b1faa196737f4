"""The page: HTML that needs no other file. Whatever comes from a file's name or a specification is escaped."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from noisebook.datasets.ledger import versions_text
from noisebook.images.judges.words import BY_KEY, line_of, remarks_of, value_of
from noisebook.report.charts import Series, chart, escape, legend
from noisebook.report.collect import ReportRun, Shown, TokenStatistics

LARGEST = 480  # pixels per side of a picture on the page; larger ones are scaled down
GAIN = 4  # by which errors are multiplied, around grey
HOW = "<code>noisebook report --inputs FOLDER</code>, the pictures that were tokenised, shows them and the errors."
VERSIONS = 20  # that are named
BARS = 64  # of a histogram, at most


def page(runs: Sequence[ReportRun]) -> str:
    """The whole document, about one data set or several side by side."""
    title = "noisebook: " + ", ".join(run.name for run in runs)
    parts = [f"<h1>{escape(title)}</h1>", _overview(runs)]
    if len(runs) > 1:
        parts += ["<h2>Rate and distortion</h2>", _rates(runs)]
    parts += [
        "<h2>Pictures</h2>",
        _pictures(runs),
        "<h2>Tokens</h2>",
        _tokens(runs),
        "<h2>Speed</h2>",
        _speed(runs),
        "<h2>Specification</h2>",
        *(_specification(run) for run in runs),
    ]
    style = (files("noisebook.report") / "style.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head += f"<style>\n{style}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _table(rows: Iterable[Sequence[str]]) -> str:
    """The first cell of a row is its heading; cells are HTML already."""
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide"><table>{lines}</table></div>'


def _overview(runs: Sequence[ReportRun]) -> str:
    def codes(counts: Counter) -> str:
        return ", ".join(f"{count:,} {escape(code)}" for code, count in sorted(counts.items())) or "none"

    def with_unit(value: float | None, digits: int, unit: str) -> str:
        return "unknown" if value is None else f"{value:.{digits}f}{unit}"

    rows = [
        ["data set", *(escape(run.name) for run in runs)],
        ["images", *(f"{run.counts['n_ok']:,} of {run.counts['n_in']:,}" for run in runs)],
        ["failed", *(codes(run.failed) for run in runs)],
        ["passed over", *(codes(run.passed_over) for run in runs)],
        ["remarks", *(codes(run.remarks) for run in runs)],
        ["shards", *(f"{run.counts['shards']:,} of {run.counts['of_shards']:,}" for run in runs)],
        ["tokens", *(f"{run.counts['tokens']:,}" for run in runs)],
        ["size of the shards", *(f"{run.counts['bytes'] / 1e6:,.2f} MB" for run in runs)],
        ["network calls per decode", *(str(run.nfe) for run in runs)],
        *([["realism of the decodes", *(f"{run.realism:g}" for run in runs)]] if any(run.realism for run in runs) else []),
        ["images compared below", *(str(len(run.shown)) for run in runs)],
        ["bits per pixel", *(with_unit(run.mean("bpp"), 4, "") for run in runs)],
        ["PSNR", *(with_unit(run.mean("psnr"), 2, " dB") for run in runs)],
        ["SSIM", *(with_unit(run.mean("ssim"), 4, "") for run in runs)],
    ]
    keys = list(runs[0].judged)
    rows += [[escape(BY_KEY[key].title), *(value_of(key, run.judged[key]) for run in runs)] for key in keys]
    lines = [f"{run.name}: {line_of(key, run.judged[key])}" for key in keys for run in runs]
    metrics = f'<p class="soft">{"<br>".join(map(escape, lines))}</p>' if lines else ""
    note = (
        ""
        if all(run.counts["shards"] == run.counts["of_shards"] for run in runs)
        else "<p>Not complete: shards are missing, <code>noisebook tokenize --resume</code> makes them.</p>"
    )
    return f"{_table(rows)}{metrics}{note}"


def _rates(runs: Sequence[ReportRun]) -> str:
    series = [
        Series(run.name, [(run.mean("bpp") or 0, run.mean("psnr") or 0)], "marks", i % 5 + 1, [run.name])
        for i, run in enumerate(runs)
        if run.mean("psnr") is not None
    ]
    if not series:
        return "<p>No original was read again, so no distortion is known.</p>"
    keys = [[shown.key for shown in run.shown] for run in runs]
    alike = all(k == keys[0] for k in keys)
    same = "The same images in each." if alike else "Other images in each: they have none in common."
    drawn = chart("bits per pixel and PSNR of each data set", "bits per pixel", "PSNR, dB", series, from_zero=False)
    return f'{drawn}<p class="soft">Means over the images below. {same}</p>'


def _pictures(runs: Sequence[ReportRun]) -> str:
    figures = []
    for group in zip(*(run.shown for run in runs), strict=False):
        if len({shown.key for shown in group}) == 1:
            figures.append(_figure(group, [run.name for run in runs]))
        else:
            figures += [_figure([shown], [run.name]) for shown, run in zip(group, runs, strict=True)]
    about = f"Errors are shown {GAIN} times as large, around grey."
    if not all(run.with_originals for run in runs):
        about = f"There are no originals: {HOW}"
    note = f'<p class="soft">{about}</p>'
    return f'{note}<div class="pictures">{"".join(figures)}</div>' if figures else "<p>There are none.</p>"


def _figure(group: Sequence[Shown], names: Sequence[str]) -> str:
    first = group[0]
    cells = [("original", first.original)] if first.original is not None else []
    for shown, name in zip(group, names, strict=True):
        cells.append(("decoded" if len(group) == 1 else name, shown.decoded))
        if shown.original is not None:
            cells.append(("error", _error(shown)))
    captions = [
        f"{shown.bpp:.3f} bpp"
        + (f", {shown.psnr:.2f} dB" if shown.psnr is not None else "")
        + "".join(f", {text}" for text in _judged(shown))
        + (f" ({escape(shown.problem)})" if shown.problem else "")
        for shown in group
    ]
    images = "".join(
        f'<div><img alt="{escape(word)} of {escape(first.key)}" src="{_data(pixels)}"><span>{escape(word)}</span></div>'
        for word, pixels in cells
        if pixels is not None
    )
    small = " small" if max(first.decoded.shape[:2]) < 128 else ""
    caption = f"<figcaption>{escape(first.key)}: {'; '.join(captions)}</figcaption>"
    return f'<figure><div class="row{small}">{images}</div>{caption}</figure>'


def _judged(shown: Shown) -> list[str]:
    """The other metrics of an image, and why it has none of them."""
    if shown.verdict is None:
        return []
    values = [(BY_KEY[key], value) for key, value in shown.verdict.values.items() if value is not None]
    return [
        *(f"{metric.title} {metric.shown(value)}" for metric, value in values),
        *map(escape, remarks_of(shown.verdict.remarks)),
    ]


def _error(shown: Shown) -> np.ndarray:
    assert shown.original is not None
    difference = shown.decoded.astype(np.int16) - shown.original
    return np.clip(128 + GAIN * difference, 0, 255).astype(np.uint8)


def _data(pixels: np.ndarray) -> str:
    """A picture uint8 [H, W, C] as a data URI; lossless where it is small."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=max(image.size) < 128, quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tokens(runs: Sequence[ReportRun]) -> str:
    out = []
    for run in runs:
        out.append(f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "")
        out.append(
            "<p>Its codes vary in length, so there are no positions to count.</p>"
            if run.tokens is None
            else _statistics(run.tokens)
        )
    return "".join(out)


def _statistics(tokens: TokenStatistics) -> str:
    vocab_size = len(tokens.histogram)
    bars = min(BARS, vocab_size)
    edges = np.linspace(0, vocab_size, bars + 1).round().astype(int)
    share = np.add.reduceat(tokens.histogram, edges[:-1]) / max(1, tokens.histogram.sum()) / np.diff(edges) * vocab_size
    steps = [(float(edge), float(height)) for i, height in enumerate(share) for edge in edges[i : i + 2]]
    histogram = [Series("tokens", steps, "bars", 1), Series("uniform", [(0, 1), (vocab_size, 1)], "line", 2)]
    length = len(tokens.entropy)
    counted, uniform, most = tokens.entropy, tokens.reachable, np.log2(tokens.vocab_sizes)
    entropy = [
        Series(name, list(enumerate(bits.tolist())), "line", i)
        for i, (name, bits) in enumerate(
            (("counted", counted), (f"uniform tokens of {tokens.images:,} images", uniform), ("maximum", most)), 1
        )
    ]
    about = (
        f"{tokens.images:,} images of one size, {length:,} tokens each: {counted.sum():,.1f} bits as counted at each "
        f"position by itself, {uniform.sum():,.1f} if they were uniform, {most.sum():,.1f} at most."
    )
    note = "Counts of few images show less entropy than there is. The second line is what uniform tokens would show."
    return (
        f"<p>{about}</p>"
        + chart("frequency of token values", f"value of a token, of {vocab_size:,}", "times as often as uniform", histogram)
        + legend(histogram)
        + chart("entropy of the tokens at each position", "position in the stream", "bits per token", entropy)
        + legend(entropy)
        + f'<p class="soft">{note}</p>'
    )


def _speed(runs: Sequence[ReportRun]) -> str:
    series = [
        Series(run.name, [(i + 1, entry["images_per_s"]) for i, entry in enumerate(run.shards)], "line", k % 5 + 1)
        for k, run in enumerate(runs)
        if run.shards
    ]
    if not series:
        return "<p>No shard is done.</p>"
    where: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for entry in run.shards:
            total = where.setdefault((run.name, entry["device"], entry["host"]), [0, 0, 0])
            for i, value in enumerate((1, entry["n_in"], entry["seconds"])):
                total[i] += value
    rows = [["data set", "device", "host", "shards", "images", "images per second of a process"]]
    rows += [
        [*map(escape, key), f"{shards:.0f}", f"{images:,.0f}", f"{images / max(seconds, 1e-9):,.2f}"]
        for key, (shards, images, seconds) in where.items()
    ]
    drawn = chart("images per second of each shard", "shards, in the order of time", "images per second", series)
    return f"{drawn}{legend(series) if len(series) > 1 else ''}{_table(rows)}"


def _specification(run: ReportRun) -> str:
    made = [
        f"{escape(versions_text(versions))}{f' ({count:,} of the shards)' if len(run.versions) > 1 else ''}"
        for versions, count in run.versions[:VERSIONS]
    ]
    left = len(run.versions) - len(made)
    versions = "; ".join([*made, *([f"{left:,} other versions"] if left else [])])
    given = f"--backbone {run.factory}"
    factory = f"<p>The factory of its backbone: <code>{escape(given)}</code>.</p>" if run.factory else ""
    spec: dict[str, Any] = run.spec
    about = _table([[escape(str(k)), escape(_short(v))] for k, v in spec.items()])
    whole = escape(json.dumps(spec, indent=1))
    return (
        f"<h3>{escape(run.name)}</h3><p>Made with {versions or 'unknown versions'}.</p>{factory}{about}"
        f"<details><summary>As JSON</summary><pre>{whole}</pre></details>"
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]} ... ({len(value):,} entries)"
