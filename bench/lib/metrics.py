"""PSNR, SSIM, Frechet distances, intervals, fits, and how alike the tokens of neighbours are.

CIFAR-FD is the Frechet distance on the 64 pooled features of a CIFAR-10 ResNet-56 (93.4 % accuracy). It is no FID: other
features, other sizes of sample. LPIPS, FID and IS are computed only with networks that the user gives.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.images.judges import networks
from noisebook.images.judges.frechet import frechet
from noisebook.runtime.pixels import from_uint8

Z95 = 1.959964  # of the standard normal distribution
RESNET = "weights/resnet56-4bfd9763.th"  # of CIFAR-FD, in the data folder


# ---- one figure an image ------------------------------------------------------------------------------------------------
def psnr(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [B, C, H, W] twice -> dB over all values, float64 [B]; equal pictures count as 99 dB."""
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).clamp(max=99)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [B, C, H, W] twice -> mean structural similarity, float64 [B] (Wang et al. 2004; 7 x 7 uniform windows that
    lie inside the picture, unbiased covariances: as scikit-image's, with which the package's own `ssim` computes)."""
    x, y, n = a.double(), b.double(), 49
    mean = [F.avg_pool2d(v, 7, 1) for v in (x, y, x * x, y * y, x * y)]
    mx, my = mean[:2]
    vx, vy, vxy = (n / (n - 1) * (m - p) for m, p in zip(mean[2:], (mx * mx, my * my, mx * my), strict=True))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    s = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return s.mean((1, 2, 3))


# ---- sets of figures ----------------------------------------------------------------------------------------------------
def interval(values: Sequence[float] | np.ndarray | Tensor) -> tuple[float, float]:
    """(mean, half width) of the normal 95 % confidence interval of the mean over independent images."""
    v = np.asarray(values, np.float64)
    return float(v.mean()), float(Z95 * v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.inf


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, R^2) of the least squares line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), float(1 - rest.var() / np.var(y))


# ---- networks -----------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    """Two 3 x 3 convolutions; the shortcut takes every other pixel and pads channels with zeros (He et al. 2016, A)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride, self.pad = (2 if after > before else 1), (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)))


class ResNet56(nn.Module):
    """ResNet-56 of CIFAR-10 (He et al. 2016, section 4.2): `features` [B, 64] and class scores [B, 10]."""

    mean: Tensor  # [3, 1, 1], of pixels in [0, 1]
    std: Tensor
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (before, after) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            setattr(self, f"layer{i}", nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(8))))
        self.linear = nn.Linear(64, 10)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):  # what it was trained with
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 64], averaged over the picture."""
        x = F.relu(self.bn1(self.conv1((images.float() / 255 - self.mean) / self.std)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images))


def resnet56(path: Path) -> ResNet56:
    """The network with the weights of a checkpoint {"state_dict": {"module.NAME": ...}}, in evaluation mode."""
    tensors = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    net = ResNet56()
    net.load_state_dict({name.removeprefix("module."): t for name, t in tensors.items()})
    return net.eval()


@torch.no_grad()
def in_batches(function: Callable[..., Any], *images: Tensor, batch: int = 256) -> list[Any]:
    """What `function` makes of equal batches of all `images`."""
    return [function(*parts) for parts in zip(*(x.split(batch) for x in images), strict=True)]


class GivenNetworks:
    """Metrics of networks that the user gives as TorchScript files, reported by file name and SHA-256. TorchScript is a
    program, and it is run: give only files that you trust.

    lpips: (a, b), float [B, 3, H, W] in [-1, 1] -> distances [B]. features: images -> features [B, D] for a Frechet
    distance, or (features, class scores [B, K]) for an inception score too. Whether the results may be called LPIPS, FID and
    IS depends only on these files: a result names them.
    """

    def __init__(self, lpips: Path | None, features: Path | None, device: str):
        self.paths = {name: path for name, path in (("lpips", lpips), ("frechet", features)) if path}
        self.nets = {name: networks.read_program(path, device) for name, path in self.paths.items()}

    def about(self) -> dict[str, str]:
        """File name and SHA-256 of the network of each metric."""
        return {name: str(networks.named(path)) for name, path in self.paths.items()}

    def __call__(self, originals: Tensor, decoded: Tensor) -> dict[str, float]:
        """uint8 [B, 3, H, W] twice -> the metrics, by name."""
        out: dict[str, float] = {}
        if "lpips" in self.nets:
            net = self.nets["lpips"]
            parts = in_batches(lambda a, b: net(from_uint8(a), from_uint8(b)).flatten(), originals, decoded)
            out["lpips"] = float(torch.cat(parts).mean())
        if "frechet" in self.nets:
            net = self.nets["frechet"]
            pairs = [
                [x if isinstance(x, tuple) else (x, None) for x in in_batches(lambda a: net(from_uint8(a)), images)]
                for images in (originals, decoded)
            ]
            out["frechet"] = frechet(*(torch.cat([f for f, _ in side]) for side in pairs))
            scores = [s for _, s in pairs[1] if s is not None]
            if scores:
                out["inception_score"] = inception_score(torch.cat(scores))
        return out


def inception_score(scores: Tensor) -> float:
    """exp E[KL(p(class | image) | p(class))] of class scores [N, K] (Salimans et al. 2016), over all images at once."""
    log_p = scores.double().log_softmax(1)
    marginal = log_p.exp().mean(0).log()
    return float((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())


# ---- tokens -------------------------------------------------------------------------------------------------------------
def neighbours(means: Tensor, rows: int, columns: int) -> dict[str, float]:
    """How alike the tokens of neighbouring blocks are: means [N, U], U = rows * columns blocks in raster order.

    A token's number says nothing (every block has a codebook of its own), so it is the noise that the token stands for that
    is compared, by its mean over the block. `correlation` is that of the means of two blocks side by side or one above the
    other, pooled over all such pairs and N; `information` the mutual information of their signs in bits (of 1 at most);
    `shuffled` the same information between a block and the neighbour of another image, which is what chance gives.
    """
    grid = means.double().reshape(-1, rows, columns)

    def pairs(other: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.cat([grid[:, :, :-1].flatten(), grid[:, :-1].flatten()])
        return a, torch.cat([other[:, :, 1:].flatten(), other[:, 1:].flatten()])

    a, b = pairs(grid)
    correlation = float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())
    shuffled = sign_information(*pairs(grid.roll(1, 0)))
    return {"correlation": correlation, "information": sign_information(a, b), "shuffled": shuffled}


def sign_information(a: Tensor, b: Tensor) -> float:
    """Mutual information, in bits, of the signs of paired values [N], from their 2 x 2 table."""
    joint = torch.bincount(2 * (a > 0).long() + (b > 0).long(), minlength=4).double().view(2, 2) / len(a)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / independent).log2(), 0.0).sum())
