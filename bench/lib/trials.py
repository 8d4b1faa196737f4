"""Measures rows (rows.py) on CIFAR-10 and photographs into a result file, one row after another.

Every row codes the same held-out images. Levels that a row is free to choose are chosen on TUNING other images. A row is
written when it is done, so a run that is stopped goes on where it was; a row is computed again on request, or when its
network has changed.
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib import metrics, priors
from bench.lib.images import centre_crops
from bench.lib.per_image import packed
from bench.lib.record import DATA, provenance, save
from bench.lib.rows import PCA, PCA_END, Options, Row, key, resolved
from noisebook.backbones import Backbone, load
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError, SpecError
from noisebook.runtime.pixels import to_uint8
from noisebook.spec.presets import Recipe
from noisebook.spec.step import StepIndex

Walk = Callable[[Codec, Tensor], tuple[Tensor, Tensor]]  # (codec, uint8 images) -> (tokens, decoded)
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
    walks: dict[str, Walk] = field(default_factory=lambda: {"gddcm": Codec.reconstruct})
    models: dict[str, Backbone | None] = field(default_factory=dict)  # None: there is no such network

    # ---- what is measured on -------------------------------------------------------------------------------------------
    @cached_property
    def sets(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(evaluated, tuning) images by data set, uint8 [N, 3, H, W]."""
        if self.dry:
            return {
                "cifar10": (priors.smooth_batch(self.images, 1), priors.smooth_batch(2, 2)),
                "photos": (priors.smooth_batch(2, 3), priors.smooth_batch(1, 4)),
            }
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
        path = DATA / metrics.RESNET
        net = metrics.ResNet56().eval() if self.dry else metrics.resnet56(path) if path.exists() else None
        return net.to(self.device) if net else None

    def features(self, images: Tensor) -> Tensor:
        assert self.resnet is not None
        return torch.cat(metrics.in_batches(self.resnet.features, images.to(self.device)))

    @cached_property
    def real_features(self) -> Tensor:
        return self.features(self.sets["cifar10"][0])

    def yardstick(self) -> float | None:
        """CIFAR-FD between the evaluated images and as many others: that of two samples of one distribution at this size."""
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
            return priors.small_gaussian()
        if name == PCA:
            return priors.pca().to(self.device)
        if name == PCA_END:
            return priors.EndPoint(priors.pca()).to(self.device)
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
        codec = Codec(Recipe(**wanted["recipe"]).build(model), model, graphs=False, effort=0)
        said = set(codec.spec.warnings())
        tokens, decoded = [], []
        for part in images.split(self.batch if images.shape[-1] <= 32 else max(1, self.batch // 32)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                chosen, out = self.walks[wanted["walk"]](codec, part)
            said |= {str(w.message) for w in caught if w.category is RuntimeWarning}
            tokens.append(chosen)
            decoded.append(to_uint8(out))
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
        return resolved(row, trials(self.result))

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
            value["neighbours"] = metrics.neighbours(block_means(codec, some, size), codec.spec.rows, codec.spec.columns)
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


def block_means(codec: Codec, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over each block of the noise that its tokens stand for: tokens [B, L] -> float32 [B * runs, U]."""
    stream = codec.stream(*size)
    out = []
    for segment in stream.segments:
        rule = codec.start_rule if segment.step_index == StepIndex.START else codec.rule
        part = tokens[:, segment.offset : segment.offset + segment.count]
        out.append(rule.noise(part, (stream.blocks, stream.dims), segment.budget, segment.step_index).mean(2))
    return torch.stack(out, 1).reshape(-1, stream.blocks)
