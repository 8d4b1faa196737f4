"""The page about .nbk files: each picture, how it came about step by step, and where its tokens went."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from noisebook.images.files import codec_name
from noisebook.report import markup
from noisebook.report.charts import Series, chart
from noisebook.report.drawings import where_tokens_go
from noisebook.report.markup import HOTTEST, escape, heat, heat_scale, image, table, with_unit
from noisebook.report.pictures import Look, Picture, Pictures

LARGEST = 768  # pixels per side of a picture that is compared
STEP = 320  # and of one of its steps
NAMED = 4  # different values of a row that are named
HOW = (
    "No original is shown: <code>noisebook report FILE.nbk --inputs PICTURE</code> shows it, and where the decode differs. "
    "What <code>noisebook roundtrip</code> writes beside the file has it, too."
)


def picture_page(made: Pictures) -> str:
    """The whole document."""
    names = [picture.name for picture in made.pictures]
    title = f"noisebook: {names[0]}" if len(names) == 1 else f"noisebook: {len(names):,} pictures"
    parts = [_overview(made)]
    if len(names) > 1:
        parts += ["<h2>All pictures</h2>", _each(made.pictures)]
    if made.failed:
        parts += ["<h2>Files that could not be shown</h2>", _failed(made)]
    parts += [_picture(picture, len(names) > 1) for picture in made.pictures]
    specs = {picture.spec.hash: picture.spec for picture in made.pictures}
    parts.append("<h2>Specification</h2>")
    for spec in specs.values():
        users = ", ".join(p.name for p in made.pictures if p.spec.hash == spec.hash)
        parts.append(f"<h3>{escape(users)}</h3><p>The file is of {escape(codec_name(spec))}.</p>")
        parts.append(markup.specification(json.loads(spec.to_json())))
    return markup.document(title, parts)


def _overview(made: Pictures) -> str:
    pictures = made.pictures
    specs = list({p.spec.hash: p.spec for p in pictures}.values())
    left = made.count - len(pictures) - len(made.failed)
    shown = f"{len(pictures):,}" + (f" of {made.count:,} files" if left or made.failed else "")
    compared = sum(p.shown.original is not None for p in pictures)
    codec = [[name, _several([[row[i]] for i in range(len(row))])] for name, *row in markup.about_codec(specs)]
    rows = [
        ["pictures", shown] if len(pictures) > 1 or made.count > 1 else ["picture", escape(pictures[0].name)],
        ["size", _several([[f"{p.width:,} x {p.height:,} pixels"] for p in pictures])],
        *codec,
        ["rate", with_unit(made.mean("bpp"), 4, " bits per pixel of the whole file")],
        ["bytes", _range([p.size for p in pictures])],
        ["tokens", _range([sum(row.tokens for row in p.spent) for p in pictures])],
        ["PSNR", with_unit(made.mean("psnr"), 2, " dB")],
        ["SSIM", with_unit(made.mean("ssim"), 4, "")],
        *markup.judged_rows([made.judged]),
        ["network calls per decode", _range([p.nfe for p in pictures])],
        ["number type of the network", _several([[escape(p.dtype)] for p in pictures])],
        *([["realism of the decodes", f"{made.realism:g}"]] if made.realism else []),
        [
            "date of the file",
            " to ".join(dict.fromkeys((min(p.written for p in pictures), max(p.written for p in pictures)))),
        ],
    ]
    mean = f"Rate, PSNR and SSIM are means; {compared:,} of {len(pictures):,} pictures have an original to compare with."
    note = f'<p class="soft">{mean}</p>' if len(pictures) > 1 else ""
    return f"{table(rows)}{note}{markup.judged_lines([('all', made.judged)])}"


def _several(values: Sequence[Sequence[str]]) -> str:
    """Different values in a cell, HTML each; not all of many."""
    different = list(dict.fromkeys(value for (value,) in values))
    left = len(different) - NAMED
    return ", ".join(different[:NAMED]) + (f" and {left:,} others" if left > 0 else "")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _each(pictures: Sequence[Picture]) -> str:
    columns: list[tuple[str, Callable[[Picture], Any]]] = [
        ("picture", lambda p: escape(p.name)),
        ("width x height", lambda p: f"{p.width:,} x {p.height:,}"),
        ("bytes", lambda p: f"{p.size:,}"),
        ("bits per pixel", lambda p: f"{p.shown.bpp:.4f}"),
        ("tokens", lambda p: f"{sum(row.tokens for row in p.spent):,}"),
        ("steps", lambda p: f"{len(p.spec.schedule):,}"),
        ("PSNR", lambda p: with_unit(p.shown.psnr, 2, " dB")),
        ("SSIM", lambda p: with_unit(p.shown.ssim, 4, "")),
    ]
    rows = [[title for title, _ in columns], *([value(p) for _, value in columns] for p in pictures)]
    return table(rows, columns=True)


def _failed(made: Pictures) -> str:
    rows = [[escape(name), escape(f"{type(error).__name__}: {error}")] for name, error in made.failed.items()]
    return table([["file", "error"], *rows], columns=True)


def _picture(picture: Picture, named: bool) -> str:
    heading = f"<h2>{escape(picture.name)}</h2>" if named else "<h2>Original and decode</h2>"
    level = "h3" if named else "h2"
    parts = [heading, _compared(picture)]
    parts += [f"<{level}>The picture, step by step</{level}>", _steps(picture)]
    parts += [f"<{level}>Where the tokens go</{level}>", where_tokens_go(picture.spent), _overhead(picture)]
    return "".join(parts)


def _compared(picture: Picture) -> str:
    shown, cells = picture.shown, []
    if shown.original is not None:
        cells.append(image("original", shown.key, shown.original, LARGEST))
    cells.append(image("decoded", shown.key, shown.decoded, LARGEST))
    note = f'<p class="soft">{HOW}</p>'
    if shown.problem:
        note = f"<p>No original is shown: {escape(shown.problem)}.</p>"
    if shown.original is not None:
        cells.append(image("error map", shown.key, heat(shown.decoded, shown.original), LARGEST))
        source = picture.original.path.name if picture.original.path else ""
        half = "the left half of " if picture.original.half else ""
        note = heat_scale() + f'<p class="soft">The original is {half}{escape(source)}.</p>'
    caption = f"<figcaption>The decode has {escape(', '.join(shown.words))}.</figcaption>"
    row = f'<div class="row{markup.small(shown.decoded)}">{"".join(cells)}</div>'
    return f'<figure class="alone">{row}{caption}</figure>{note}'


def _steps(picture: Picture) -> str:
    looks, of = picture.looks, len(picture.spec.schedule)
    if not looks:
        why = "it is drawn from its condition only" if not of else "it is too large to be looked at while it is decoded"
        return f"<p>The steps are not shown, because {why}. <code>noisebook decode --steps N</code> shows one of them.</p>"
    cells = []
    for before, look in zip([None, *looks], looks, strict=False):
        words = _words(look, of)
        change = ""
        if before is not None:
            change = image("change", f"{words[0]} of {picture.name}", heat(look.pixels, before.pixels), STEP)
        shown = image(words[0], picture.name, look.pixels, STEP)
        caption = f"<figcaption>{escape(', '.join(words[1:]))}</figcaption>"
        cells.append(f'<figure class="step{markup.small(look.pixels)}">{shown}{caption}{change}</figure>')
    about = (
        "Each picture is what the decoder knows after that many steps: the mean that the network predicts there. The map "
        "below it shows where it differs from the picture before, from black (not at all) to yellow "
        f"({HOTTEST} levels of 255 or more)."
    )
    if any(row.step_index < 0 for row in picture.spent):
        about += " The first one already has the tokens that come before the steps."
    known = [(look.bpp, look.psnr) for look in looks if look.bpp is not None and look.psnr is not None]
    drawn = ""
    if len(known) > 2:
        series = [Series("PSNR", known, "line", 1), Series("PSNR", known, "marks", 1)]
        drawn = chart("PSNR after each step", "bits per pixel spent", "PSNR, dB", series, from_zero=False)
    return f'<p class="soft">{about}</p><div class="steps">{"".join(cells)}</div>{drawn}'


def _words(look: Look, of: int) -> list[str]:
    after = f"picture after {look.steps} of {of} steps"
    name = {0: "picture before the first step", of: "decode"}.get(look.steps, after)
    cost = ["the bits are not known"] if look.bpp is None else [f"{look.bpp:.3f} bits per pixel"]
    return [name, *cost, *([f"PSNR {look.psnr:.2f} dB"] if look.psnr is not None else [])]


def _overhead(picture: Picture) -> str:
    rest = picture.size - picture.payload
    return (
        f'<p class="soft">The file has {picture.size:,} bytes: {picture.payload:,} of tokens, and {rest:,} that say which '
        "codec made it and which size the picture has, with a checksum.</p>"
    )
