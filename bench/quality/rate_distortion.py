"""Rate-distortion curves of all rules on the same backbones, beside classical codecs.

    python -m bench.quality.rate_distortion                        # every row that is missing, then the page and its plots
    python -m bench.quality.rate_distortion --classical            # JPEG, WebP, AVIF, JPEG XL, VVC instead
    python -m bench.quality.rate_distortion --report               # only the page and its plots; --check: is it up to date?
    python -m bench.quality.rate_distortion --carry carry/rates    # what a machine without the data folder needs
    python -m bench.quality.rate_distortion --device cuda --minutes 5 --out runs/rate_distortion.json --no-report

A row is one codec (bench/lib/rivals.py) on one backbone at one rate: PSNR of every image, SSIM and MS-SSIM, payload bits,
NFE of a decode, seconds of an encode, and the distances (LPIPS, DISTS, ...) of networks that are given (--distance).
Results: bench/results/rate_distortion.json and classical.json; a run goes on where the last one stopped.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib import classical, metrics, page, priors, rates, rivals
from bench.lib.comparison import (
    CIFAR,
    FILE,
    KODAK,
    Row,
    backbone_of,
    cifar,
    curve_of,
    kodak,
    measured,
    payload_bits,
    plan,
    scaled,
)
from bench.lib.ground import attempted, excluded
from bench.lib.per_image import packed
from bench.lib.record import DATA, RESULTS, provenance, save
from bench.lib.rows import PCA
from bench.quality import rate_report
from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import to_uint8


def carry(folder: Path) -> None:
    """What a machine without the data folder needs, about 30 MiB: run there with NOISEBOOK_DATA=FOLDER."""
    (folder / "kodak").mkdir(parents=True, exist_ok=True)
    for path in sorted((DATA / "kodak").iterdir()):
        (folder / "kodak" / path.name).write_bytes(path.read_bytes())
    with np.load(DATA / "cifar10_test5k.npz") as data:
        np.savez(folder / "cifar10_test5k.npz", images=data["images"][:1000])
    priors.carry_pca(folder)
    (folder / f"{PCA}.curve.json").write_text(curve_of(PCA).to_json())


# ---- one row ------------------------------------------------------------------------------------------------------------
@dataclass
class Measured:
    psnr: Tensor
    ssim: Tensor
    ms_ssim: Tensor
    distances: dict[str, float]  # means, of the networks given
    bits: list[int]
    codec: Codec
    seconds: float  # of the walk of all images


Given = dict[str, metrics.GivenNetworks]


def walk(
    place: rivals.Place, row: Row, bits_wanted: float, images: Tensor, device: str, batch: int, given: Given
) -> Measured:
    spec = rivals.MAKERS[row.codec](place, bits_wanted, row.nfe)
    codec = Codec(spec, place.backbone, graphs=False, effort=1, candidates=rivals.CANDIDATES.get(row.codec, 1))
    parts, bits, seconds = [], [], 0.0
    distances = dict.fromkeys(given, 0.0)
    for some in images.split(batch):
        on = some.to(device)
        begin = time.perf_counter()
        tokens, decoded = codec.reconstruct(on)
        tokens = tokens.cpu()
        seconds += time.perf_counter() - begin
        bits += payload_bits(codec, tokens, (place.height, place.width))
        shown = to_uint8(decoded)
        parts.append([f(on, shown).cpu() for f in (metrics.psnr, metrics.ssim, rates.ms_ssim)])
        for name, network in given.items():
            distances[name] += network(on, shown)["lpips"] * len(some) / len(images)
    return Measured(*(torch.cat(part) for part in zip(*parts, strict=True)), distances, bits, codec, seconds)


def measure(row: Row, names: list[str], batches: list[Tensor], device: str, batch: int, given: Given) -> dict[str, Any]:
    backbone, curve = backbone_of(row.backbone, device), curve_of(row.backbone)
    found: list[Measured] = []
    for images in batches:
        place = rivals.Place(backbone, curve, images.shape[2], images.shape[3])
        wanted = row.bpp * place.height * place.width
        out = walk(place, row, wanted, images, device, batch, given)
        share = wanted / (sum(out.bits) / len(out.bits))
        if out.codec.spec.rule == "poisson" and abs(share - 1) > 0.02:  # its bits follow the picture: ask once more
            out = walk(place, row, wanted * share, images, device, batch, given)
        found.append(out)
    pixels = [images.shape[2] * images.shape[3] for images in batches for _ in images]
    bits = [b for out in found for b in out.bits]
    spec, psnr = found[0].codec.spec, torch.cat([out.psnr for out in found])
    multi = torch.cat([out.ms_ssim for out in found])
    distances = {
        name: {
            "mean": sum(out.distances[name] * len(out.psnr) for out in found) / len(psnr),
            "network": network.about()["lpips"],
        }
        for name, network in given.items()
    }
    return {
        **asdict(row),
        "images": " ".join(names) if row.data == KODAK else len(names),
        "mean_bpp": sum(b / n for b, n in zip(bits, pixels, strict=True)) / len(bits),
        "psnr": metrics.interval(psnr),
        "ssim": float(torch.cat([out.ssim for out in found]).mean()),
        "ms_ssim": None if multi.isnan().any() else float(multi.mean()),
        **({"distances": distances} if given else {}),
        "psnr_of_images": packed(psnr),
        "bits_of_images": sorted(set(bits))[0] if len(set(bits)) == 1 else bits,
        "decode_nfe": found[0].codec.nfe,
        "encode_nfe": found[0].codec.encode_nfe,
        "seconds": sum(out.seconds for out in found) / len(psnr),
        "spec": {
            "hash": spec.hash.hex(),
            "rule": spec.rule,
            "codebook": spec.codebook,
            "vocab_size": spec.vocab_size,
            "rows": spec.rows,
            "columns": spec.columns,
            "budget": [spec.start_budget, *(s.budget for s in spec.schedule)],
            "levels": [float(f"{s.sigma:.5g}") for s in spec.schedule],
        },
    }


def measure_all(args: argparse.Namespace) -> dict[str, str]:
    """Measures the rows that are missing; why some have no figures, by their keys."""
    device = args.device
    cuda = device.startswith("cuda")
    count = args.images or (500 if cuda else 64)
    pictures = args.pictures or 12
    result = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}, "runs": {}}
    mine = provenance(0, device)
    name = f"{mine['device']}, {mine['date']}, torch {mine['versions']['torch']}"
    for path in args.merge:
        other = json.loads(path.read_text())
        mine_are_current = {key: found for key, found in result["rows"].items() if current(found)}
        result = {"rows": result["rows"] | other["rows"] | mine_are_current, "runs": other["runs"] | result["runs"]}
    before = result["runs"].get(name, {})
    mine["commands"] = sorted({mine["command"], *before.get("commands", [before["command"]] if before else [])})
    result["runs"][name] = mine
    given = {path.stem: metrics.GivenNetworks(path, None, device) for path in args.distance}
    begin, failed = time.monotonic(), dict[str, str]()
    for row in plan():
        if excluded((args.only, row.backbone), (args.codec, row.codec), (args.nfe, row.nfe)):
            continue
        if current(result["rows"].get(row.key)) or time.monotonic() - begin > 60 * args.minutes:
            continue
        started = time.monotonic()
        # arrival times are drawn once for all pictures of a batch, and take longer than all else
        size = {KODAK: 12 if cuda or row.codec == "DiffC" else 1, CIFAR: 500 if cuda else 64}[row.data]
        names, batches = kodak(pictures) if row.data == KODAK else cifar(count)
        found = {**attempted(row, partial(measure, row, names, batches, device, size, given)), "run": name}
        if measured(found) or not measured(result["rows"].get(row.key)):  # an older row keeps its figures
            result["rows"][row.key] = found
            save(args.out, result)
        if not measured(found):
            failed[row.key] = found["error"]
            print(f"{row.key}: {failed[row.key]}", flush=True)
            continue
        print(
            f"{row.key}: {found['mean_bpp']:.4f} bpp, {found['psnr'][0]:.2f} dB, {found['decode_nfe']} calls, "
            f"{found['seconds']:.3f} s an image, {time.monotonic() - started:.1f} s",
            flush=True,
        )
    return failed


def current(found: dict[str, Any] | None) -> bool:
    """Whether a row need not be measured: it has figures, of the codec as it is now."""
    return found is not None and measured(found) and scaled(found)


# ---- classical codecs ---------------------------------------------------------------------------------------------------
def measure_classical(args: argparse.Namespace) -> None:
    path = RESULTS / "classical.json"
    result = json.loads(path.read_text()) if path.exists() else {"curves": {}}
    result = {**provenance(None), "codecs": classical.versions(), "curves": result["curves"]}
    sets = {KODAK: (kodak(12), 1.3), CIFAR: (cifar(64), 12.0)}
    for data, ((_, batches), most) in sets.items():
        pictures = [p.permute(1, 2, 0).numpy() for batch in batches for p in batch]
        for name in classical.versions():
            have = result["curves"].setdefault(data, {}).setdefault(name, [])
            for pixels in pictures[len(have) :]:
                begin = time.perf_counter()
                have.append(classical.curve(name, pixels, most))
                save(path, result)
                print(f"{data} {name} {len(have)}: {time.perf_counter() - begin:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu")
    add("--images", type=int, help="CIFAR-10 images a row; default 64, on CUDA 500")
    add("--pictures", type=int, help="Kodak pictures a row, the first in order of their names; default all 12")
    add("--only", action="append", help="only this backbone (repeatable)")
    add("--codec", action="append", help="only this codec (repeatable)")
    add("--nfe", action="append", type=int, help="only this number of network calls (repeatable)")
    add("--merge", type=Path, nargs="+", default=[], metavar="FILE", help="first take over the rows of other runs")
    add("--minutes", type=float, default=math.inf, help="start no row after this many minutes")
    add("--out", type=Path, default=FILE, help="result file")
    add(
        "--distance",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="TorchScript file: two batches [B, 3, H, W] in [-1, 1] -> distances [B]; with an --out of its own, for rows "
        "that are there are not measured again (repeatable)",
    )
    add("--classical", action="store_true")
    add("--carry", type=Path, metavar="FOLDER")
    page.add_options(parser)
    add("--no-report", action="store_true", help="do not write the page after measuring")
    args = parser.parse_args()
    if args.carry:
        carry(args.carry)
        return
    failed: dict[str, str] = {}
    if args.classical:
        measure_classical(args)
    elif not (args.report or args.check):
        failed = measure_all(args)
    if not args.no_report:
        rate_report.main(args.check)
    if failed:
        raise SystemExit(f"no figures, see {args.out.name}: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
