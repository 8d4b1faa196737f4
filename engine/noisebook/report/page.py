"""The page about data sets: HTML that needs no other file. Whatever comes from a file's name or a plan is escaped."""

from collections import Counter
from collections.abc import Sequence

from noisebook.datasets.ledger import versions_text
from noisebook.report import markup
from noisebook.report.charts import Series, chart, legend
from noisebook.report.collect import ReportRun
from noisebook.report.drawings import entropy_of, where_tokens_go
from noisebook.report.markup import GAIN, escape, table, with_unit
from noisebook.report.shown import Shown

HOW = "<code>noisebook report --inputs FOLDER</code>, with the pictures that were tokenised, shows them and the errors."
VERSIONS = 20  # that are named
FAILURES = 20  # images that are named of each data set


def page(runs: Sequence[ReportRun]) -> str:
    """The whole document, about one data set or several side by side."""
    parts = [_overview(runs), *(_failures(run) for run in runs if run.failures)]
    if len(runs) > 1:
        parts += ["<h2>Rate and distortion</h2>", _rates(runs)]
    parts += [
        "<h2>Pictures</h2>",
        _pictures(runs),
        "<h2>Where the tokens go</h2>",
        _spending(runs),
        "<h2>What the tokens say</h2>",
        _tokens(runs),
        "<h2>Speed</h2>",
        _speed(runs),
        "<h2>Specification</h2>",
        *(_specification(run) for run in runs),
    ]
    return markup.document("noisebook: " + ", ".join(run.name for run in runs), parts)


def _overview(runs: Sequence[ReportRun]) -> str:
    def codes(counts: Counter) -> str:
        return ", ".join(f"{count:,} {escape(code)}" for code, count in sorted(counts.items())) or "none"

    rows = [
        ["data set", *(escape(run.name) for run in runs)],
        *markup.about_codec([run.spec for run in runs]),
        ["rate", *(with_unit(run.mean("bpp"), 4, " bits per pixel") for run in runs)],
        ["PSNR", *(with_unit(run.mean("psnr"), 2, " dB") for run in runs)],
        ["SSIM", *(with_unit(run.mean("ssim"), 4, "") for run in runs)],
        *markup.judged_rows([run.judged for run in runs]),
        ["images compared below", *(str(len(run.shown)) for run in runs)],
        ["date of the tokens", *(escape(_dates(run)) for run in runs)],
        ["images", *(f"{run.counts['n_ok']:,} of {run.counts['n_in']:,}" for run in runs)],
        ["failures", *(codes(run.failed) for run in runs)],
        ["files passed over", *(codes(run.passed_over) for run in runs)],
        ["remarks", *(codes(run.remarks) for run in runs)],
        ["shards", *(f"{run.counts['shards']:,} of {run.counts['of_shards']:,}" for run in runs)],
        ["tokens", *(f"{run.counts['tokens']:,}" for run in runs)],
        ["size of the shards", *(f"{run.counts['bytes'] / 1e6:,.2f} MB" for run in runs)],
        ["network calls per decode", *(str(run.nfe) for run in runs)],
        *([["realism of the decodes", *(f"{run.realism:g}" for run in runs)]] if any(run.realism for run in runs) else []),
    ]
    note = (
        ""
        if all(run.counts["shards"] == run.counts["of_shards"] for run in runs)
        else "<p>Not complete: shards are missing, and <code>noisebook tokenize --resume</code> makes them.</p>"
    )
    return f"{table(rows)}{markup.judged_lines([(run.name, run.judged) for run in runs])}{note}"


def _failures(run: ReportRun) -> str:
    """A list of the first images that failed."""
    rows = [["image", "code", "what is wrong"]]
    rows += [[escape(row["key"]), escape(row["code"]), escape(row["message"])] for row in run.failures[:FAILURES]]
    left = run.failed.total() - len(rows) + 1
    more = f"<p>... and {left:,} more: the ledger of the data set names all.</p>" if left else ""
    return f"<h2>Failures of {escape(run.name)}</h2>{table(rows, columns=True)}{more}"


def _dates(run: ReportRun) -> str:
    """The day of the first shard, and of the last one where that is another."""
    days = sorted({entry["finished"][:10] for entry in run.shards})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "unknown"


def _rates(runs: Sequence[ReportRun]) -> str:
    series = [
        Series(f"{i + 1}: {run.name}", [(run.mean("bpp") or 0, run.mean("psnr") or 0)], "marks", i % 5 + 1, [str(i + 1)])
        for i, run in enumerate(runs)
        if run.mean("psnr") is not None
    ]
    if not series:
        return "<p>No original was read again, so no distortion is known.</p>"
    keys = [[shown.key for shown in run.shown] for run in runs]
    alike = all(k == keys[0] for k in keys)
    same = "Each has the same images." if alike else "Each has other images, because they have none in common."
    drawn = chart("bits per pixel and PSNR of each data set", "bits per pixel", "PSNR, dB", series, from_zero=False)
    return f'{drawn}{legend(series)}<p class="soft">Each point is the mean over the images below. {same}</p>'


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
    kind = "pictures" if len(runs) == 1 else "pictures wide-ones"
    return f'{note}<div class="{kind}">{"".join(figures)}</div>' if figures else "<p>No picture was asked for.</p>"


def _figure(group: Sequence[Shown], names: Sequence[str]) -> str:
    first = group[0]
    cells = [("original", first.original)] if first.original is not None else []
    for shown, name in zip(group, names, strict=True):
        cells.append(("decoded" if len(group) == 1 else name, shown.decoded))
        if shown.original is not None:
            cells.append(("error" if len(group) == 1 else f"error of {name}", markup.error(shown)))
    captions = [
        (f"{escape(name)}: " if len(group) > 1 else "")
        + ", ".join(map(escape, shown.words))
        + (f" ({escape(shown.problem)})" if shown.problem else "")
        for shown, name in zip(group, names, strict=True)
    ]
    images = "".join(markup.image(word, first.key, pixels) for word, pixels in cells)
    caption = f"<figcaption><b>{escape(first.key)}</b><br>{'<br>'.join(captions)}</figcaption>"
    return f'<figure><div class="row{markup.small(first.decoded)}">{images}</div>{caption}</figure>'


def _spending(runs: Sequence[ReportRun]) -> str:
    out = []
    for run in runs:
        subject = f"An image of {run.size[1]:,} x {run.size[0]:,} pixels, the most common size,"
        out.append((f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "") + where_tokens_go(run.spent, subject))
    return "".join(out)


def _tokens(runs: Sequence[ReportRun]) -> str:
    out = []
    for run in runs:
        out.append(f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "")
        out.append(
            "<p>Its codes vary in length, so there are no positions to count.</p>"
            if run.tokens is None
            else entropy_of(run.tokens)
        )
    return "".join(out)


def _speed(runs: Sequence[ReportRun]) -> str:
    series = [
        Series(run.name, [(i + 1, entry["images_per_s"]) for i, entry in enumerate(run.shards)], "line", k % 5 + 1)
        for k, run in enumerate(runs)
        if run.shards
    ]
    if not series:
        return "<p>No shard is done yet.</p>"
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
    return f"{drawn}{legend(series) if len(series) > 1 else ''}{table(rows, columns=True)}"


def _specification(run: ReportRun) -> str:
    made = [
        f"{escape(versions_text(versions))}{f' ({count:,} of the shards)' if len(run.versions) > 1 else ''}"
        for versions, count in run.versions[:VERSIONS]
    ]
    left = len(run.versions) - len(made)
    versions = "; ".join([*made, *([f"{left:,} other versions"] if left else [])])
    given = f"--backbone {run.factory}"
    factory = f"<p>The factory of its backbone is <code>{escape(given)}</code>.</p>" if run.factory else ""
    made = f"<p>The tokens were made with {versions or 'unknown versions'}.</p>"
    return f"<h3>{escape(run.name)}</h3>{made}{factory}{markup.specification(run.written)}"
