"""The tables of docs/published.md: published figures beside what published.py measured, or `not measured yet`."""

from typing import Any

from bench.lib import page
from bench.lib.page import Result, table
from bench.lib.record import ROOT

NAME = "published"
PAGE = ROOT / "docs/published.md"
RATES = (0.05, 0.1, 0.25, 0.5)
CALLS = 20
RULES = {
    "default rule": "default",
    "Turbo-DDCM's rule, `top`": "Turbo-DDCM",
    "DiffC's rule, `poisson`": "DiffC",
}  # -> rivals.MAKERS
WAYS = (
    "gDDCM: p = 0, fixed level, Euler at the end",
    "DDCM: p = 1/2, DDPM's grid",
    "ours: p = 1/2, even levels in ln sigma",
)
UNMEASURED = "not measured yet"
SOURCE = "as published: SD 2.1, Kodak at 512 x 512, [2511.06424](https://arxiv.org/abs/2511.06424)"
PUBLISHED = [["Turbo-DDCM", "0.0999", "", "24.91", ".1076", SOURCE], ["DiffC", "0.1087", "", "25.54", ".0931", SOURCE]]
PUBLISHED_RFID: dict[str, str] = dict(zip(WAYS, ("3.2", "4.5", ""), strict=True))
SOURCE_RFID = "[2511.13387](https://arxiv.org/abs/2511.13387)"


def model(result: Result | None) -> str:
    """Every rule at every rate beside the published rows, all of it named."""
    head = ["codec", "bits per pixel", "network calls of a decode", "PSNR, dB", "LPIPS", "where from"]
    rows = (result or {}).get("rows", [])
    asked = [{"rule": rule, "bpp": bpp, "calls": CALLS} for bpp in RATES for rule in RULES]
    known = [tuple(row[k] for k in ("rule", "bpp", "calls")) for row in rows]
    missing = [row for row in asked if tuple(row.values()) not in known]
    lines = sorted([*rows, *missing], key=lambda row: (row["bpp"], row["calls"], list(RULES).index(row["rule"])))
    text = table(head, [*PUBLISHED, *(model_line(row, result or {}) for row in lines)])
    if result is None:
        return text
    about = (
        f"`{result['model']}`, {len(result['pictures'])} Kodak pictures, {result['size']} x {result['size']}, "
        f"{result['dtype']}; curve {result['curve']}; ± 95 % intervals of the mean over pictures. "
        f"LPIPS: {result['lpips'] or 'no network was given'}."
    )
    return f"{text}\n\n{about}{left(result)}\n\n{page.source(result, NAME)}"


def model_line(row: dict[str, Any], result: Result) -> list[str]:
    name = [row["rule"], f"{row['bpp']:g}", str(row["calls"])]
    if "error" in row:
        return [*name, "failed", "", row["error"]]
    if "psnr" not in row:
        return [*name, UNMEASURED, UNMEASURED, ""]
    lpips = spread(row["lpips"], 4) if row["lpips"] else "not computed"
    return [
        row["rule"],
        f"{row['mean_bpp']:.4f}",
        str(row["decode_calls"]),
        spread(row["psnr"], 2),
        lpips,
        f"here: `{result['model']}`",
    ]


def spread(pair: tuple[float, float], digits: int) -> str:
    """A mean with its interval."""
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def edm(result: Result | None) -> str:
    head = [
        "codec",
        f"rFID as published, {SOURCE_RFID}",
        "Frechet distance here",
        "PSNR here, dB",
        "bits per image",
        "network calls",
    ]
    rows = {row["way"]: row for row in (result or {}).get("rows", [])}
    text = table(head, [edm_line(way, rows.get(way)) for way in WAYS])
    if result is None:
        return text
    about = (
        f"`{result['model']}`: {result['network']}; {result['images']:,} CIFAR-10 test images, against themselves: the "
        f"distance depends on how many. Features: {result['features'] or 'no network was given'}; it is an rFID only where "
        "they are those of the published Inception network."
    )
    return f"{text}\n\n{about}{left(result)}\n\n{page.source(result, NAME)}"


def edm_line(way: str, row: dict[str, Any] | None) -> list[str]:
    name = [way, PUBLISHED_RFID[way]]
    if row is None:
        return [*name, UNMEASURED, UNMEASURED, "", ""]
    if "error" in row:
        return [*name, "failed", row["error"], "", ""]
    distance = "not computed" if row["frechet"] is None else f"{row['frechet']:.2f}"
    return [*name, distance, spread(row["psnr"], 2), f"{row['bits']:.0f}", str(row["decode_calls"])]


def left(result: Result) -> str:
    return f" Not measured, for lack of minutes: {result['left_out']}." if result["left_out"] else ""


def tables_of(result: Result) -> page.Tables:
    return {"published_model": lambda: model(result.get("model")), "published_edm": lambda: edm(result.get("edm"))}


def committed(name: str) -> str:
    return tables_of(page.measured(NAME) or {})[name]()


TABLES: page.Tables = {name: lambda n=name: committed(n) for name in tables_of({})}
