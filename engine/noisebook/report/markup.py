"""Pieces of a page: the document, tables, pictures. Whatever comes from a file's name or a specification is escaped."""

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

from noisebook.errors import printable
from noisebook.images.judges.words import BY_KEY, line_of, value_of
from noisebook.report.shown import Shown
from noisebook.spec.spec import CodecSpec

LARGEST = 480  # pixels per side of a picture on the page; larger ones are scaled down
SMALL = 128  # pixels per side below which pixels are shown as squares
GAIN = 4  # by which errors are multiplied, around grey
HOTTEST = 32  # levels of 255 at which a map of differences is brightest
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # from none to HOTTEST


def escape(text: object) -> str:
    """Text of a file as HTML that shows it: neither a browser nor a reader of the source obeys it."""
    return html.escape(printable(text))


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page. `title` is escaped here, `parts` are HTML already."""
    style = (files("noisebook.report") / "style.css").read_text(encoding="utf-8")
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{escape(title)}</title><style>\n{style}</style>'
    body = f"<h1>{escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def table(rows: Iterable[Sequence[str]], columns: bool = False) -> str:
    """The first cell of a row is its heading, and with `columns` the first row has those of the columns; cells are HTML
    already. A table that is wider than the page scrolls in its own box."""
    lines, head = list(rows), ""
    if columns:
        head = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in lines.pop(0))}</tr></thead>"
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in lines
    )
    kind = ' class="list"' if columns else ""
    return f'<div class="wide"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def image(word: str, of: str, pixels: np.ndarray, largest: int = LARGEST) -> str:
    """A picture, uint8 [H, W, C], with its word under it."""
    return f'<div><img alt="{escape(f"{word} of {of}")}" src="{data(pixels, largest)}"><span>{escape(word)}</span></div>'


def data(pixels: np.ndarray, largest: int = LARGEST) -> str:
    """A picture uint8 [H, W, C] as a data URI; lossless where it is small."""
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    shown.thumbnail((largest, largest))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", lossless=max(shown.size) < SMALL, quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def small(pixels: np.ndarray) -> str:
    """The class of a row of pictures of that size."""
    return " small" if max(pixels.shape[:2]) < SMALL else ""


def error(shown: Shown) -> np.ndarray:
    """GAIN times the error, around grey."""
    assert shown.original is not None
    difference = shown.decoded.astype(np.int16) - shown.original
    return np.clip(128 + GAIN * difference, 0, 255).astype(np.uint8)


def heat(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two pictures uint8 [H, W, C] differ at each pixel, the mean over channels, as colours uint8 [H, W, 3]."""
    size = np.abs(a.astype(np.float32) - b).mean(2) / HOTTEST
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(size, places, column) for column in zip(*HEAT, strict=True)], 2).round().astype(np.uint8)


def heat_scale() -> str:
    """What the colours of `heat` mean."""
    stops = ", ".join(f"rgb{colour}".replace(" ", "") for colour in HEAT)
    return (
        f'<p class="scale"><span>no difference</span><i style="background:linear-gradient(90deg, {stops})"></i>'
        f"<span>{HOTTEST} levels of 255 or more</span></p>"
    )


def about_codec(specs: Sequence[CodecSpec]) -> list[list[str]]:
    """Rows of a table that name the codecs: of each the backbone, its steps and its vocabulary."""
    return [
        ["backbone", *(f"{escape(s.backbone)} <small>{escape(s.fingerprint[:16])}</small>" for s in specs)],
        ["steps", *(f"{len(s.schedule):,}" for s in specs)],
        ["vocabulary", *(vocabulary(s) for s in specs)],
        ["rule", *(escape(s.rule) for s in specs)],
    ]


def vocabulary(spec: CodecSpec) -> str:
    """The values of a token, in words."""
    start = f", {spec.start_vocab_size:,} of a token of the start" if spec.start_budget else ""
    return f"{spec.vocab_size:,} values of a token{start}"


def with_unit(value: float | None, digits: int, unit: str) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"


def judged_rows(judged: Sequence[dict]) -> list[list[str]]:
    """Rows of a table with the metrics of `Judge.summary`."""
    return [[escape(BY_KEY[key].title), *(value_of(key, summary[key]) for summary in judged)] for key in judged[0]]


def judged_lines(judged: Sequence[tuple[str, dict]]) -> str:
    """The same in whole: over what, and by which files. `judged`: (name, summary) each."""
    lines = [f"{name}: {line_of(key, summary[key])}" for key in judged[0][1] for name, summary in judged]
    return f'<p class="soft">{"<br>".join(map(escape, lines))}</p>' if lines else ""


def specification(written: dict) -> str:
    """A specification, key by key and as JSON."""
    whole = "\n".join(map(escape, json.dumps(written, indent=1).splitlines()))
    fields = table([[escape(str(key)), escape(_short(value))] for key, value in written.items()])
    return f"{fields}<details><summary>The specification as JSON</summary><pre>{whole}</pre></details>"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]} ... ({len(value):,} entries)"  # type: ignore[arg-type]
