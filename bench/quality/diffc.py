"""DiffC at its best, beside the default: python -m bench.quality.diffc

A step of DiffC sends its bits of divergence in chunks of at most `chunk` index bits, `padding` of them beyond divergence.
The published values are 16 and 2, and 2 cut its code off early. Here all of 12 to 20 and 2 to 6 are tried at equal payload,
with two budgets: *other pictures*, measured with the curve, as a codec can have them; *own*, each picture's own divergence
at each step, as published, where nothing is counted of what would tell a decoder. The best of them is chosen on the very
pictures that are shown, which favours DiffC. `ours` is the default of docs/rates.md at the same payload.

    python -m bench.quality.diffc --minutes 3 --images 16             # every row that is missing, the published values first
    python -m bench.quality.diffc --device cuda
    python -m bench.quality.diffc --report                            # only the tables of docs/rates.md

The coder is that of bench/lib/peers.py with atoms in law. Writes bench/results/diffc.json after every row.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from bench.lib import ground, metrics, page, peers, rates, rivals, walk_errors
from bench.lib.comparison import CIFAR, payload_bits
from bench.lib.ground import BACKBONES, PHOTOS
from bench.lib.per_image import packed, unpacked
from bench.lib.record import ROOT
from noisebook.codebook import start_noise
from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import from_uint8, to_uint8

NAME, PAGE = "diffc", ROOT / "docs/rates.md"
RATES = {CIFAR: (1.0, 0.25, 4.0, 0.5, 2.0), PHOTOS: (0.25, 0.05, 1.0, 0.1, 0.5)}
PIXELS = {CIFAR: 32 * 32, PHOTOS: 256 * 256}
CHUNKS, PADDINGS, PUBLISHED = (16, 20, 18, 14, 12), (2, 3, 4, 5, 6), (16, 2)
OTHER, OWN, OURS = "other pictures", "own", "ours"
CALLS, WALKS, NEAR = 25, 5, 0.005  # walks that may be needed to come near the payload


@dataclass(frozen=True)
class Row:
    data: str
    budgets: str  # or `OURS`
    chunk: int
    padding: int
    bpp: float

    @property
    def key(self) -> str:
        how = self.budgets if self.budgets == OURS else f"{self.budgets}, chunk {self.chunk}, padding {self.padding}"
        return f"{self.data}, {how}, {self.bpp:g} bpp"


def plan() -> Iterator[Row]:
    settings = [PUBLISHED, *((c, p) for c in CHUNKS for p in PADDINGS if (c, p) != PUBLISHED)]
    for data in BACKBONES:
        for bpp in RATES[data]:
            yield Row(data, OURS, 0, 0, bpp)
            yield from (Row(data, budgets, *PUBLISHED, bpp) for budgets in (OTHER, OWN))
    for data in BACKBONES:
        for bpp in RATES[data]:
            yield from (Row(data, budgets, *some, bpp) for some in settings[1:] for budgets in (OTHER, OWN))


# ---- one row ------------------------------------------------------------------------------------------------------------
@dataclass
class Coded:
    psnr: Tensor
    bits: np.ndarray  # of each picture
    ratios: list[tuple[float, float]]
    told: float = 0.0  # bits of divergence of these walks over those that the curve foresees


def coded(row: Row, place: rivals.Place, images: Tensor, useful: float) -> Coded:
    """One walk of DiffC whose schedule tells about `useful` bits."""
    levels, foreseen = rivals.diffc_steps(place, useful, CALLS)
    start = start_noise(1, place.dims, 0, images.device).view(1, *place.backbone.state_shape(place.height, place.width))
    coder = peers.DiffC(foreseen if row.budgets == OTHER else None, row.chunk, row.padding, drawn=False)
    x0, own = from_uint8(images), 0.0

    def choose(residual: Tensor, i: int, gain: float) -> tuple[Tensor, list[float]]:
        nonlocal own
        mu = gain * residual
        own += float(mu.double().square().sum(1).mean()) / (2 * math.log(2))
        return coder.step(mu, i)

    with walk_errors.Watched(place.backbone, x0) as watched:
        shown, bits = peers.walk(place.backbone, x0, start, levels, [True] * len(foreseen), choose)
    return Coded(metrics.psnr(images, to_uint8(shown)).cpu(), bits, watched.ratios(), own / sum(foreseen))


def default(place: rivals.Place, images: Tensor, bits: float) -> Coded:
    codec = Codec(rivals.ours(place, bits, CALLS), place.backbone, graphs=False, effort=1)
    with walk_errors.Watched(place.backbone, from_uint8(images)) as watched:
        tokens, shown = codec.reconstruct(images)
    spent = payload_bits(codec, tokens, (place.height, place.width))
    return Coded(metrics.psnr(images, to_uint8(shown)).cpu(), np.array(spent, np.float64), watched.ratios())


def measure(row: Row, place: rivals.Place, images: Tensor) -> dict[str, Any]:
    """A row whose payload is within half a percent of what is asked for on average, or the nearest of a few walks. Raises
    ValueError where chunks would be empty."""
    wanted = row.bpp * place.height * place.width
    begin = time.perf_counter()
    if row.budgets == OURS:
        best = default(place, images, wanted)
    else:
        useful, best = wanted * (row.chunk - row.padding) / row.chunk, None
        for _ in range(WALKS):
            found = coded(row, place, images, useful)
            if best is None or abs(found.bits.mean() - wanted) < abs(best.bits.mean() - wanted):
                best = found
            if abs(found.bits.mean() / wanted - 1) <= NEAR:
                break
            useful *= wanted / found.bits.mean()
        assert best is not None
    return {
        **asdict(row),
        "images": len(images),
        "nfe": CALLS,
        "mean_bpp": float(best.bits.mean()) / (place.height * place.width),
        "psnr": metrics.interval(best.psnr),
        "psnr_of_images": packed(best.psnr),
        "bits_of_images": np.round(best.bits).astype(int).tolist(),
        "divergence_over_curve": round(best.told, 4),
        **walk_errors.figures(best.ratios),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def measure_all(args: argparse.Namespace) -> list[str]:
    """Measures the rows that are missing; those without figures."""
    file, failed, begin = ground.RowFile(args), [], time.monotonic()
    for row in plan():
        chunked = () if row.budgets == OURS else ((args.chunk, row.chunk), (args.padding, row.padding))
        if ground.excluded((args.only, BACKBONES[row.data]), (args.bpp, row.bpp), *chunked):
            continue
        if file.has(row.key) or time.monotonic() - begin > 60 * args.minutes:
            continue
        images = ground.pictures(row.data, args)
        place = ground.place_of(BACKBONES[row.data], images)
        found = ground.attempted(row, partial(measure, row, place, images))
        file.keep(row.key, found)
        if "error" in found:
            failed.append(row.key)
        figures = found["error"] if "error" in found else f"{found['mean_bpp']:.4f} bpp, {found['psnr'][0]:.2f} dB"
        print(f"{row.key}: {figures}", flush=True)
    return failed


# ---- tables of docs/rates.md --------------------------------------------------------------------------------------------
def tried(rows: dict[str, Any], data: str, budgets: str, bpp: float) -> list[dict[str, Any]]:
    """Measured rows, whatever their chunks and padding."""
    return [r for r in rows.values() if (r["data"], r["budgets"], r["bpp"]) == (data, budgets, bpp) and "psnr" in r]


def best_of(rows: dict[str, Any], data: str, budgets: str, bpp: float, published: bool) -> dict[str, Any] | None:
    """The row of highest mean PSNR, or that of the published chunks and padding."""
    some = tried(rows, data, budgets, bpp)
    some = [r for r in some if not published or (r["chunk"], r["padding"]) == PUBLISHED]
    return max(some, key=lambda r: r["psnr"][0], default=None)


COLUMNS = [(OTHER, True), (OTHER, False), (OWN, True), (OWN, False)]


def psnr_table(result: page.Result) -> str:
    lines = []
    for data, name in BACKBONES.items():
        for bpp in sorted(RATES[data]):
            ours = best_of(result["rows"], data, OURS, bpp, False)
            cells = []
            for budgets, published in COLUMNS:
                count = len(tried(result["rows"], data, budgets, bpp))
                text = cell(best_of(result["rows"], data, budgets, bpp, published))
                cells.append(text if published or not text else f"{text}, best of {count}")
            if ours or any(cells):
                count = f", {ours['images']} images" if ours else ""
                lines.append([f"`{name}`, {bpp:g} bpp{count}", f"{ours['psnr'][0]:.2f}" if ours else "", *cells])
    head = ["dB", "ours", *(title(*column) for column in COLUMNS)]
    reasons = [f"No figure: {key}: {row['error']}" for key, row in result["rows"].items() if "error" in row]
    legend = (
        "In brackets: chunk and padding; walk error: the network's error on the walk over that on ideal states; divergence: "
        "the bits of the walk beyond those that the curve foresees."
    )
    return "\n\n".join([page.table(head, lines), legend, *reasons])


def title(budgets: str, published: bool) -> str:
    where = "budgets of other pictures" if budgets == OTHER else "each picture's own, as published"
    return f"DiffC, {where}: " + ("chunk 16, padding 2" if published else "the best chunk and padding")


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    off = f" at {found['mean_bpp']:.3g}" if abs(found["mean_bpp"] / found["bpp"] - 1) > 2 * NEAR else ""
    more = f"; walk error {found['walk_error']:.2f}, divergence {100 * (found['divergence_over_curve'] - 1):+.0f} %"
    return f"{found['psnr'][0]:.2f}{off} ({found['chunk']}, {found['padding']}{more})"


def bd_table(result: page.Result) -> str:
    """Delta rates over the rates that all of a line's rows have; at each rate DiffC's own best setting."""
    lines = []
    for data, name in BACKBONES.items():
        cells = []
        for column in COLUMNS:
            ours, theirs = [], []
            for bpp in sorted(RATES[data]):
                a, b = (
                    best_of(result["rows"], data, OURS, bpp, False),
                    best_of(result["rows"], data, column[0], bpp, column[1]),
                )
                if a and b and a["images"] == b["images"]:
                    ours.append(points(a))
                    theirs.append(points(b))
            cells.append(delta(ours, theirs))
        if any(cells):
            lines.append([f"`{name}`, {data}", *cells])
    return page.table(["bits of ours beyond those of", *(title(*column) for column in COLUMNS)], lines)


def points(found: dict[str, Any]) -> list[tuple[float, float]]:
    """(bits, PSNR) of each picture."""
    return list(zip(map(float, found["bits_of_images"]), unpacked(found["psnr_of_images"]).tolist(), strict=True))


def delta(ours: list[list[tuple[float, float]]], theirs: list[list[tuple[float, float]]]) -> str:
    if len(ours) < 2:
        return ""
    curves = zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True)
    some = [pair for pair in curves if not math.isnan(rates.bd_rate(*pair))]
    if len(some) < 2:
        return ""
    mean, low, high = rates.bd_rate_interval(some)
    return f"{mean:+.1f} % ({low:+.1f} to {high:+.1f}), {len(some)} images, {len(ours)} rates"


def diffc_table() -> str:
    result = page.load(NAME)
    return "\n\n".join([psnr_table(result), bd_table(result), page.source(page.with_commands(result), NAME)])


TABLES: page.Tables = {"diffc": diffc_table} if page.measured(NAME) else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ground.add_options(parser, NAME)
    parser.add_argument("--bpp", action="append", type=float, help="only this rate (repeatable)")
    parser.add_argument("--chunk", action="append", type=int, help="only this chunk size (repeatable)")
    parser.add_argument("--padding", action="append", type=int, help="only this padding (repeatable)")
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    if failed := measure_all(args):
        raise SystemExit(f"no figures, see {args.out.name}: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
