"""A judge holds the metrics that were asked for, with their networks, and compares pictures by them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisebook.errors import BackboneError, NoisebookError, SpecError, first_line, printable
from noisebook.images import metrics
from noisebook.images.judges import packages
from noisebook.images.judges.catalogue import Metric
from noisebook.images.judges.frechet import frechet, patches
from noisebook.images.judges.networks import NetworkFile, is_program, named, read_program, read_tensors
from noisebook.runtime.pixels import from_uint8

EQUAL = "the pictures are equal, so that it is infinite"
BATCH = 64  # patches that a network sees at once


class Refused(NoisebookError):
    """A picture that a metric does not take."""


Measure = Callable[[np.ndarray, np.ndarray], float | None]  # uint8 [H, W, 3] twice -> the value


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a picture: a value for the `key` of each metric of single pictures, None where there is none;
    `remarks` says why. `features`: of the original and of the decode, float [N, D] each, for the distance of the set."""

    values: dict[str, float | None]
    remarks: dict[str, str] = field(default_factory=dict)
    features: tuple[Tensor, Tensor] | None = None

    @property
    def refused(self) -> bool:
        """Whether a metric was not computed for another reason than that the pictures are equal."""
        return any(text != EQUAL for text in self.remarks.values())


class Judge:
    """Metrics, ready to compare pictures.

    metrics   what `catalogue.chosen` gives
    networks  files of the networks, by the name of their metric: one TorchScript program, or state dicts that are one
              network together. A program is run: give only paths that the user typed. lpips and dists: two float batches
              [B, 3, H, W] in [-1, 1] -> [B]; frechet: one such batch -> features [B, D], or a tuple that begins with them
    device    where networks compute
    patch     side of the squares whose features `frechet` takes; 0: of whole pictures

    Raises, before any picture is seen, BackboneError for a missing package or a file that is not the network, and
    NoisebookError for a missing program.
    """

    def __init__(
        self,
        chosen: Sequence[Metric],
        networks: Mapping[str, Sequence[Path]] | None = None,
        device: str = "cpu",
        patch: int = 0,
    ):
        if patch < 0 or patch == 1:
            raise SpecError(f"--patch must be 0, for whole pictures, or at least 2 pixels, not {patch}")
        self.metrics, self.device, self.patch = list(chosen), device, patch
        self.files: dict[str, list[NetworkFile]] = {}
        self.by: dict[str, str] = {}  # metric -> package or program that computes it
        self.measures: dict[str, Measure] = {}
        self.extractor: nn.Module | None = None
        for metric in self.metrics:
            paths = [Path(path) for path in (networks or {}).get(metric.name, ())]
            if metric.option:
                self.files[metric.name] = [named(path) for path in paths]
            if metric.of_set:
                self.extractor = self._program(metric, paths)
            else:
                self.measures[metric.name] = self._measure(metric, paths)

    @property
    def blank(self) -> dict[str, Any]:
        """What a row has for a picture that was not judged."""
        return {metric.key: None for metric in self.metrics if not metric.of_set}

    def __call__(self, original: np.ndarray, decoded: np.ndarray) -> Verdict:
        """uint8 [H, W, C] twice, C 1 or 3; grey counts as three equal channels, except for PSNR and SSIM."""
        values, remarks, features = dict(self.blank), {}, None
        for metric in self.metrics:
            try:
                if min(original.shape[:2]) < metric.least:
                    raise Refused(f"it needs {metric.least} pixels a side")
                if metric.of_set:
                    features = self._features(original), self._features(decoded)
                    continue
                value = self.measures[metric.name](original, decoded)
                if value is None:
                    raise Refused(EQUAL)
                if not math.isfinite(value):
                    raise Refused(f"its value is {value}")
                values[metric.key] = value
            except NoisebookError as error:
                remarks[metric.key] = first_line(error)
            except Exception as error:  # of a package, at a picture that it does not take: the others go on
                remarks[metric.key] = f"{self.by.get(metric.name, 'it')} fails: {first_line(error)}"
        return Verdict(values, remarks, features)

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
        """For each metric its mean, or the distance of the set, over the verdicts, with its direction and what computed it:
        `networks` are files with their SHA-256. `value` is None where there is none, and `remark` says why."""
        return {metric.key: self._summary(metric, verdicts) for metric in self.metrics}

    def _summary(self, metric: Metric, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        found = [value for v in verdicts if (value := v.values.get(metric.key)) is not None]
        value, count, remark = (sum(found) / len(found) if found else None), len(found), None
        more: dict[str, Any] = {}
        if metric.of_set:
            sets = [v.features for v in verdicts if v.features is not None]
            count, value = len(sets), None
            a, b = (torch.cat([pair[i] for pair in sets]) if sets else torch.empty(0, 0) for i in (0, 1))
            more = {"patch": self.patch, "samples": len(a), "features": a.shape[1]}
            if len(a) > 1:
                value = frechet(a, b)
            else:
                remark = f"it needs two {'patches' if self.patch else 'pictures'} or more: there are {len(a)}"
        if value is None and remark is None:
            remark = next((text for v in verdicts if (text := v.remarks.get(metric.key))), "no picture was compared")
        return {
            "name": metric.title,
            "better": "higher" if metric.higher else "lower",
            "unit": metric.unit,
            "value": value,
            "pictures": count,
            "of": len(verdicts),
            **more,
            "by": self.by.get(metric.name),
            "networks": [{"file": f.file, "sha256": f.sha256} for f in self.files.get(metric.name, [])],
            "remark": remark,
        }

    # ---- metrics --------------------------------------------------------------------------------------------------------
    def _measure(self, metric: Metric, paths: list[Path]) -> Measure:
        if metric.name in ("psnr", "ssim"):
            return getattr(metrics, metric.name)
        if metric.name == "ms-ssim":
            self.by[metric.name], measure = packages.release("piq"), packages.ms_ssim()
            return lambda a, b: float(measure(_tensor(a, self.device), _tensor(b, self.device)))
        if metric.name == "ssimulacra2":
            measure = packages.ssimulacra2()
            self.by[metric.name] = packages.release("ssimulacra2")
            return lambda a, b: measure(_rgb(a), _rgb(b))
        if metric.name == "butteraugli":
            program = packages.butteraugli_program()
            self.files[metric.name] = [named(program)]
            self.by[metric.name] = f"the program {program.name}"
            return lambda a, b: packages.butteraugli(program, _rgb(a), _rgb(b))
        net = self._program(metric, paths) if len(paths) == 1 and is_program(paths[0]) else self._built(metric, paths)
        return lambda a, b: self._distance(net, _tensor(a, self.device), _tensor(b, self.device))

    def _program(self, metric: Metric, paths: list[Path]) -> nn.Module:
        if len(paths) != 1:
            raise BackboneError(f"{metric.option}: give one file, a TorchScript program")
        self.by[metric.name] = "the TorchScript program"
        return read_program(paths[0], self.device)

    def _built(self, metric: Metric, paths: list[Path]) -> nn.Module:
        tensors = read_tensors(paths)
        try:
            if metric.name == "lpips":
                net, trunk = packages.lpips_network(tensors)
                self.by[metric.name] = f"{packages.release('lpips')}, {trunk}"
            else:
                net = packages.dists_network(tensors)
                self.by[metric.name] = packages.release("piq")
        except packages.Misfit as error:
            names = " and ".join(printable(path) for path in paths)
            raise BackboneError(f"{metric.option} {names}: not the network of {metric.title}: {error}") from error
        return net.to(self.device)

    @torch.no_grad()
    def _distance(self, net: nn.Module, a: Tensor, b: Tensor) -> float:
        try:
            found = net(from_uint8(a), from_uint8(b))
        except Exception as error:  # whatever a program of somebody else raises
            raise Refused(_said(error, a)) from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise Refused(f"its network gives {_shape(found)}, not one distance a picture")
        return float(found)

    @torch.no_grad()
    def _features(self, pixels: np.ndarray) -> Tensor:
        images = _tensor(pixels, self.device)
        if self.patch:
            images = patches(images, self.patch)
            if not len(images):
                raise Refused(f"it is smaller than a patch of {self.patch} pixels")
        assert self.extractor is not None
        try:
            parts = [self.extractor(from_uint8(some)) for some in images.split(BATCH)]
        except Exception as error:  # whatever a program of somebody else raises
            raise Refused(_said(error, images)) from error
        found = [part[0] if isinstance(part, tuple) else part for part in parts]
        if not all(isinstance(f, Tensor) and f.ndim == 2 for f in found) or sum(map(len, found)) != len(images):
            raise Refused(f"its network gives {_shape(found[0])}, not features [B, D]")
        features = torch.cat(found).float().cpu()
        if not features.isfinite().all():
            raise Refused("its network gives features that are not finite")
        return features


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 or 3] -> [H, W, 3]."""
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def _tensor(pixels: np.ndarray, device: str) -> Tensor:
    """uint8 [H, W, 1 or 3] -> [1, 3, H, W]."""
    return torch.from_numpy(_rgb(pixels).copy()).permute(2, 0, 1)[None].to(device)


def _said(error: Exception, images: Tensor) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # TorchScript ends with what went wrong
    height, width = images.shape[2:]
    return f"its network fails at {height} x {width} pixels: {printable(lines[-1] if lines else type(error).__name__, 200)}"


def _shape(found: object) -> str:
    return str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__
