"""Rows about pictures, one each: as a line on stderr while the work goes on, as a table or JSON on stdout at the end."""

from typing import TYPE_CHECKING, Any

from noisebook.cli.show import say, shown
from noisebook.images.judges.catalogue import DEFAULT, METRICS

if TYPE_CHECKING:
    from noisebook.format.container import Container

KEYS = ("psnr", "ssim", "bpp", "payload_bpp", "bytes", "nfe", "seconds", "height", "width", "output", "error")
OTHERS = [metric for metric in METRICS.values() if metric.name not in DEFAULT and not metric.of_set]
LINE = (  # key, decimals, unit
    ("bpp", 4, "bpp"),
    ("payload_bpp", 4, "payload"),
    ("psnr", 2, "dB"),
    ("ssim", 4, "SSIM"),
    *((metric.key, metric.decimals, metric.title) for metric in OTHERS),
    ("nfe", 0, "NFE"),
    ("seconds", 1, "s"),
)
COLUMNS = (  # key, title, form
    ("name", "image", "{}"),
    ("bytes", "bytes", "{:d}"),
    ("bpp", "bpp", "{:.4f}"),
    ("payload_bpp", "payload", "{:.4f}"),
    ("psnr", "PSNR", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    *((metric.key, metric.title, f"{{:.{metric.decimals}f}}") for metric in OTHERS),
    ("nfe", "NFE", "{:d}"),
    ("seconds", "seconds", "{:.2f}"),
)
OF_BOTH = "NFE of both"  # the title of `nfe` where a picture was encoded and decoded: the calls of both together
WIDEST = 200  # characters of a cell


def row_of(name: str, **values: Any) -> dict[str, Any]:
    """A row with all KEYS; those without a value are None."""
    return {"name": name, **dict.fromkeys(KEYS), **values}


def file_row(name: str, data: bytes, container: "Container", **values: Any) -> dict[str, Any]:
    """A row with the size of a file: bits per original pixel of the whole file, and of its payload."""
    pixels = container.height * container.width
    sizes = {"bpp": 8 * len(data) / pixels, "payload_bpp": 8 * len(container.payload) / pixels, "bytes": len(data)}
    return row_of(name, **sizes, height=container.height, width=container.width, **values)


def line_of(row: dict[str, Any], both: bool = False) -> str:
    """A row in one line; `both`: of a picture that was encoded and decoded."""
    name = shown(row["name"], WIDEST)
    if row["error"]:
        return f"{name}: {row['error']}"
    units = [(key, decimals, OF_BOTH if both and key == "nfe" else unit) for key, decimals, unit in LINE]
    parts = [f"{row[key]:.{decimals}f} {unit}" for key, decimals, unit in units if row.get(key) is not None]
    return f"{name}: " + ", ".join(parts)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else shown(form.format(value), WIDEST)


def print_table(rows: list[dict[str, Any]], both: bool = False) -> None:
    """The rows without an error as a table, with their mean; then what failed. `both` is as of `line_of`."""
    good = [row for row in rows if not row["error"]]
    columns = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in good)]
    cells = [[_cell(row.get(key), form) for key, _, form in columns] for row in good]
    if len(good) > 1:
        mean = ["mean"]
        for key, _, form in columns[1:]:
            values = [row[key] for row in good if row.get(key) is not None]
            mean.append(form.replace("d", ".0f").format(sum(values) / len(values)))
        cells.append(mean)
    if cells:
        lines = [[OF_BOTH if both and key == "nfe" else title for key, title, _ in columns], *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            first, *others = zip(line, widths, strict=True)
            say("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
    for row in rows:
        if row["error"]:
            say(f"failed: {line_of(row)}")
