"""The experiments of gDDCM (arXiv 2511.13387) on the shipped networks, one row after another: figures, plots, tables.

    python bench/paper.py                   # needs the data folder ($NOISEBOOK_DATA or ../shared/data); about 50 CPU minutes
    python bench/paper.py --device cuda     # 2000 images a row, and N up to 1000 tokens at one token a call
    python bench/paper.py --only p --out p.json    # one section by itself, then the rest with --merge p.json
    python bench/paper.py --list            # the rows and their network calls
    python bench/paper.py --report          # fills docs/paper.md and draws its plots; --check: only says if it is up to date

Every row codes the same held-out CIFAR-10 test images (the first `--images`; photographs: the last `--photos` of
photos256.npz, centre crops of 256 x 256). Levels that a row is free to choose are chosen on TUNING other images. A row is
written to bench/results/paper.json when it is done, so a run that is stopped goes on where it was; a row is computed again
with --redo, or when its network has changed. What the rows are: paper_rows.py. The metrics: metrics.py.
"""

import argparse
import base64
import io
import json
import time
import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import paper_report
import paper_rows
import paper_walks
import torch
from paper_rows import Options, Row, key
from PIL import Image
from quality import pca_prior
from torch import Tensor

from noisebook.backbones import Backbone, load
from noisebook.backbones.base import fingerprint_of
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets.gaussian import PCAPrior, fit_pca, pca_from_checkpoint
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError, SpecError
from noisebook.spec.presets import Recipe
from record import DATA, RESULTS, provenance, save

RESNET, PCA_FILE = "weights/resnet56-4bfd9763.th", "pca-prior.safetensors"
TUNING = 16  # images of CIFAR-10, the last of the file; a quarter as many photographs
FORMAT = 1


@dataclass
class Bench:
    """Images, networks and the result file of one run."""

    path: Path
    images: int
    photos: int
    device: str = "cpu"
    batch: int = 128
    dry: bool = False
    given: metrics.GivenNetworks | None = None
    models: dict[str, Backbone | None] = field(default_factory=dict)  # None: there is no such network

    # ---- what is measured on -------------------------------------------------------------------------------------------
    @cached_property
    def sets(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(evaluated, tuning) images by data set, uint8 [N, 3, H, W]."""
        if self.dry:
            return {"cifar10": (smooth(self.images, 1), smooth(2, 2)), "photos": (smooth(2, 3), smooth(1, 4))}
        with np.load(DATA / "cifar10_test5k.npz") as data:
            test = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
        if 2 * self.images + TUNING > len(test):
            raise SystemExit(f"--images: at most {(len(test) - TUNING) // 2}, as many others are needed for comparison")
        photos = centre_crops(DATA / "photos256.npz", 64 + TUNING // 4)
        return {
            "cifar10": (test[: self.images], test[-TUNING:]),
            "photos": (photos[-64:][: self.photos], photos[: TUNING // 4]),
        }

    @cached_property
    def resnet(self) -> metrics.ResNet56 | None:
        """The network of CIFAR-FD; random in a dry run; None where its weights are absent."""
        path = DATA / RESNET
        net = metrics.ResNet56().eval() if self.dry else metrics.resnet56(path) if path.exists() else None
        return net.to(self.device) if net else None

    def features(self, images: Tensor) -> Tensor:
        assert self.resnet is not None
        return torch.cat(metrics.in_batches(self.resnet.features, images.to(self.device)))

    @cached_property
    def real_features(self) -> Tensor:
        return self.features(self.sets["cifar10"][0])

    def yardstick(self) -> float | None:
        """CIFAR-FD between the evaluated images and as many others: what two samples of the same law have at this size."""
        if self.resnet is None or self.dry:
            return None
        with np.load(DATA / "cifar10_test5k.npz") as data:
            others = torch.from_numpy(data["images"][self.images : 2 * self.images]).permute(0, 3, 1, 2)
        return metrics.frechet(self.real_features, self.features(others))

    def model(self, name: str) -> Backbone | None:
        """The network of that name, or None (said once) where it is not there."""
        if name not in self.models:
            try:
                self.models[name] = self.build(name)
            except BackboneError as error:
                self.models[name] = None
                print(f"rows of {name} are left out: {error}", flush=True)
        return self.models[name]

    def build(self, name: str) -> Backbone:
        if self.dry:
            return small_gaussian()
        if name == paper_rows.PCA:
            return pca().to(self.device)
        if name == paper_rows.PCA_END:
            return EndPoint(pca()).to(self.device)
        return load(name, self.device)

    # ---- the result file -----------------------------------------------------------------------------------------------
    @cached_property
    def result(self) -> dict[str, Any]:
        """What was measured so far. SystemExit where the file is of other images or another device."""
        device = provenance(0, self.device)["device"]
        about = {"format": FORMAT, "images": self.images, "photos": self.photos, "tuning": TUNING, "dry": self.dry}
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if {k: old.get(k) for k in about} == about and old["device"] == device:
                return old
            raise SystemExit(f"{self.path.name} is of other images or another device; move it away, or give another --out")
        return {"device": device, **about, "trials": {}, "rows": {}}

    def take_over(self, path: Path) -> None:
        """Adds what another run measured of the same images on the same device. SystemExit where it is of others."""
        other, same = json.loads(path.read_text()), ("device", "format", "images", "photos", "tuning", "dry")
        if {k: other.get(k) for k in same} != {k: self.result[k] for k in same}:
            raise SystemExit(f"{path.name} is of other images or another device")
        for kind in ("trials", "rows"):
            self.result[kind].update(other[kind])
        self.result["cifar_fd_of_real_images"] = other["cifar_fd_of_real_images"]
        self.result.setdefault("parts", []).append({k: other[k] for k in ("command", "date", "threads", "versions")})

    def write(self) -> None:
        extra = {"given_networks": self.given.about()} if self.given else {}
        self.result.update({**provenance(0, self.device), **extra})
        save(self.path, self.result)

    # ---- rows ----------------------------------------------------------------------------------------------------------
    def known(self, kind: str, wanted: Options) -> bool:
        """Whether that result is there, of the network as it is now."""
        entry, model = self.result[kind].get(key(wanted)), self.model(wanted["backbone"])
        return entry is not None and model is not None and entry["fingerprint"] == model.fingerprint

    def walk(self, wanted: Options, images: Tensor) -> tuple[Codec, Tensor, Tensor, list[str]]:
        """(codec, tokens, 8-bit pictures, warnings) of the settings on uint8 images. Raises SpecError."""
        model = self.model(wanted["backbone"])
        assert model is not None
        codec = Codec(Recipe(**wanted["recipe"]).build(model), model, graphs=False)
        said = set(codec.spec.warnings())
        tokens, decoded = [], []
        for part in images.split(self.batch if images.shape[-1] <= 32 else max(1, self.batch // 32)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if wanted["walk"] == "forced":
                    chosen, out, _ = paper_walks.forced(codec, part)
                else:
                    chosen, out = codec.reconstruct(part)
            said |= {str(w.message) for w in caught if w.category is RuntimeWarning}
            tokens.append(chosen)
            decoded.append(metrics.to_uint8(out))
        return codec, torch.cat(tokens), torch.cat(decoded), sorted(said)

    def settle(self, row: Row) -> Options | None:
        """The row's settings, after the trials they wait for. None where a network is missing."""
        tuned_on = self.model(row.tuned_on or row.backbone)
        if self.model(row.backbone) is None or tuned_on is None:
            return None
        if len(row.choices) > 1:
            originals = self.sets[row.data][1].to(self.device)
            for _, trial in row.tuning():
                if not self.known("trials", trial):
                    pictures = self.walk(trial, originals)[2]
                    self.result["trials"][key(trial)] = {
                        "settings": trial,
                        "psnr": round(float(metrics.psnr(originals, pictures).mean()), 3),
                        "fingerprint": tuned_on.fingerprint,
                    }
        return paper_rows.resolved(row, trials(self.result))

    def measure(self, wanted: Options) -> dict[str, Any]:
        """One row of the result file."""
        originals = self.sets[wanted["data"]][0].to(self.device)
        begin = time.perf_counter()
        codec, tokens, pictures, said = self.walk(wanted, originals)
        seconds = time.perf_counter() - begin
        psnr, ssim = metrics.psnr(originals, pictures).cpu(), metrics.ssim(originals, pictures).cpu()
        size = (originals.shape[2], originals.shape[3])
        layout = codec.layout_for(*size)
        value = {
            "settings": wanted,
            "fingerprint": codec.spec.fingerprint,
            "codec": codec.spec.hash.hex(),
            "images": len(originals),
            "tokens": len(layout),
            "bits": layout.bits,
            "bpp": layout.bits / (size[0] * size[1]),
            "nfe": codec.nfe,
            "psnr": metrics.interval(psnr),
            "ssim": metrics.interval(ssim),
            "cifar_fd": None,
            "warnings": said,
            "seconds": round(seconds, 1),
            "psnr_of_images": packed(psnr),
        }
        if wanted["data"] == "cifar10" and self.resnet is not None:
            value["cifar_fd"] = metrics.frechet(self.real_features, self.features(pictures))
        if self.given:
            value["given"] = self.given(originals, pictures)
        if codec.spec.blocks > 1:
            some = tokens[:256]
            value["neighbours"] = metrics.neighbours(
                paper_walks.block_means(codec, some, size), codec.spec.rows, codec.spec.columns
            )
        return value

    def run(self, rows: list[Row], redo: bool, minutes: float) -> bool:
        """Computes the rows that are missing; whether all are there. Those of networks that are missing are left out."""
        end, complete = time.monotonic() + 60 * minutes, True
        if "cifar_fd_of_real_images" not in self.result:
            self.result["cifar_fd_of_real_images"] = self.yardstick()
        done: set[str] = set()
        for i, row in enumerate(rows, 1):
            if time.monotonic() > end:
                print(f"stopped after {minutes:g} minutes; the same command goes on")
                return False
            try:
                wanted = self.settle(row)
                if wanted is None:
                    complete = False
                    continue
                name = key(wanted)
                if name not in done and (redo or not self.known("rows", wanted)):
                    self.result["rows"][name] = self.measure(wanted)
                    self.write()
                done.add(name)
            except SpecError as error:  # for instance a model whose grid is too coarse
                complete = False
                print(f"{row.section}: {row.label}: refused: {error}", flush=True)
                continue
            r = self.result["rows"][name]
            print(
                f"{i}/{len(rows)} {row.section}: {row.label}: {r['bits']:.0f} bits, {r['nfe']} calls, "
                f"{r['psnr'][0]:.2f} +- {r['psnr'][1]:.2f} dB, {r['seconds']:.0f} s",
                flush=True,
            )
        return complete


def trials(result: dict[str, Any]) -> dict[str, float]:
    """PSNR of the trials on the tuning images, by key."""
    return {name: trial["psnr"] for name, trial in result["trials"].items()}


def packed(psnr: Tensor) -> str:
    """PSNR of each image in hundredths of a dB, uint16 little-endian, base64: for paired differences between rows."""
    return base64.b64encode((100 * psnr).round().numpy().astype("<u2").tobytes()).decode()


def centre_crops(path: Path, count: int, side: int = 256) -> Tensor:
    """Centre crops of the last `count` photographs of a photos archive: uint8 [count, 3, side, side]."""
    with np.load(path) as data:
        blob, offsets = data["webp"], data["offsets"]
    out = []
    for begin, end in zip(offsets[-count - 1 : -1], offsets[-count:], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(blob[begin:end].tobytes())).convert("RGB"))
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        out.append(torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1))
    return torch.stack(out)


def pca() -> PCAPrior:
    """The PCA prior of 20,000 training images: fitted, or from a carried folder. Raises BackboneError without either."""
    if (DATA / PCA_FILE).exists():
        _, config, tensors = read_checkpoint(DATA / PCA_FILE)
        prior = pca_from_checkpoint(config, tensors)
        prior.fingerprint = fingerprint_of(config, tensors)
        return prior.eval()
    if not (DATA / "cifar10_train.npz").exists():
        raise BackboneError(f"there is neither {PCA_FILE} nor cifar10_train.npz in the data folder")
    return pca_prior(20_000)


class EndPoint(PCAPrior):
    """The consistency model of a PCA prior, in closed form: where the probability-flow ODE of its Gaussian leads from y at
    level sigma, every eigendirection scaled by sqrt(s / (s + sigma^2)) (method.md, section 2)."""

    def __init__(self, prior: PCAPrior):
        assert prior.size is not None
        super().__init__(prior.size, prior.channels, prior.mean, prior.variances, prior.vectors)
        self.name, self.fingerprint = paper_rows.PCA_END, fingerprint_of({"end point of": prior.fingerprint}, {})

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 of the fitted size -> the end point, same shape."""
        scale = (self.variances / (self.variances + sigma * sigma)).sqrt()
        return (self.mean + ((y.flatten(1) - self.mean) @ self.vectors * scale) @ self.vectors.T).view_as(y)


def carry(folder: Path) -> None:
    """What a machine without the data folder needs, about 40 MiB: run there with NOISEBOOK_DATA=FOLDER.

    The prior's eigenvectors go as float16, which costs it less than .01 dB.
    """
    (folder / RESNET).parent.mkdir(parents=True, exist_ok=True)
    for name in ("cifar10_test5k.npz", RESNET):
        (folder / name).write_bytes((DATA / name).read_bytes())
    with np.load(DATA / "photos256.npz") as data:
        offsets = data["offsets"][-(64 + TUNING // 4) - 1 :]
        np.savez(folder / "photos256.npz", webp=data["webp"][offsets[0] :], offsets=offsets - offsets[0])
    with np.load(DATA / "cifar10_train.npz") as data:
        config, tensors = fit_pca(data["images"][:20_000])
    tensors["vectors"] = tensors["vectors"].half()
    write_checkpoint(folder / PCA_FILE, "pca-prior", config, tensors)


# ---- dry runs -----------------------------------------------------------------------------------------------------------
def smooth(count: int, seed: int) -> Tensor:
    """Random smooth pictures, uint8 [count, 3, 16, 16]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=True)
    return (large * 255).to(torch.uint8)


@cache
def small_gaussian() -> PCAPrior:
    """The Gaussian of such pictures."""
    config, tensors = fit_pca(smooth(64, 5).permute(0, 2, 3, 1).numpy())
    prior = PCAPrior((16, 16), 3, **tensors)
    prior.fingerprint = fingerprint_of(config, tensors)
    return prior.eval()


def listing(rows: list[Row]) -> str:
    """The rows with their network calls (the finish `mean`) and how many choices are tried first."""
    lines = [f"{r.section:9s} {r.recipe['steps'] + 1:5d} calls, {len(r.choices):2d} choices  {r.label}" for r in rows]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, help="CIFAR-10 images a row; default 256, on CUDA 2000")
    add("--photos", type=int, help="photographs a row, at most 64; default 8, on CUDA 64")
    add("--device", default="cpu")
    add("--batch", type=int, help="images of 32 x 32 at a time; default 128, on CUDA 1000")
    add("--only", action="append", choices=paper_rows.SECTIONS, help="only this section (repeatable)")
    add("--long", action="store_true", help="also the rows of 320 and 1000 network calls on a CPU")
    add("--minutes", type=float, default=1e9, help="start no row after so many minutes")
    add("--redo", action="store_true", help="compute rows again that are there")
    add(
        "--merge",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="first take over what other runs measured on this "
        "kind of device, for instance other sections in a process beside",
    )
    add("--lpips", type=Path, help="TorchScript file: two batches in [-1, 1] -> distances")
    add("--inception", type=Path, help="TorchScript file: a batch in [-1, 1] -> features, or (features, class scores)")
    add("--out", type=Path, default=RESULTS / "paper.json")
    add("--dry", action="store_true", help="tiny synthetic pictures and a Gaussian model: proves the script (needs --out)")
    add("--carry", type=Path, metavar="FOLDER", help="only pack the data for a machine without them (NOISEBOOK_DATA=FOLDER)")
    add("--list", action="store_true", help="only list the rows")
    add("--report", action="store_true", help="only write docs/paper.md and its plots from the results")
    add("--check", action="store_true", help="with --report: only say whether docs/paper.md is up to date")
    args = parser.parse_args(argv)
    if args.report or args.check:
        return paper_report.main(args.out, args.check)
    if args.carry:
        carry(args.carry)
        return 0
    if args.dry and args.out == parser.get_default("out"):
        parser.error("a dry run is no result: give another --out")
    cuda = args.device.startswith("cuda")
    rows = [r for r in paper_rows.plan(args.dry) if not args.only or r.section in args.only]
    rows = [r for r in rows if args.long or cuda or not r.long]
    if args.list:
        print(listing(rows))
        return 0
    images = args.images or (4 if args.dry else 2000 if cuda else 256)
    given = metrics.GivenNetworks(args.lpips, args.inception, args.device) if args.lpips or args.inception else None
    bench = Bench(
        args.out,
        images,
        args.photos or (64 if cuda else 8),
        args.device,
        args.batch or (1000 if cuda else 128),
        args.dry,
        given,
    )
    for path in args.merge:
        bench.take_over(path)
    complete = bench.run(rows, args.redo, args.minutes)
    bench.write()
    print(f"{'written' if complete else 'written in part'}: {args.out.name}; then: python bench/paper.py --report")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
