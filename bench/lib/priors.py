"""The Gaussian (PCA) prior of CIFAR-10's training images, in closed form: what networks are held against."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib.record import DATA
from bench.lib.rows import PCA_END
from noisebook.backbones import fingerprint_of
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets.gaussian import PCAPrior, fit_pca, pca_from_checkpoint
from noisebook.errors import BackboneError

PCA_FILE = "pca-prior.safetensors"  # in a carried data folder
FITTED = 20_000  # training images


def pca_prior(images: np.ndarray) -> PCAPrior:
    """The PCA prior of images uint8 [N, H, W, 3]."""
    config, tensors = fit_pca(images)
    prior = PCAPrior((images.shape[1], images.shape[2]), 3, **tensors)
    prior.fingerprint = fingerprint_of(config, tensors)
    return prior.eval()


def training_images(count: int) -> np.ndarray:
    """The first of CIFAR-10's training images, uint8 [N, 32, 32, 3]."""
    with np.load(DATA / "cifar10_train.npz") as data:
        return data["images"][:count]


def pca() -> PCAPrior:
    """The PCA prior of the first FITTED training images: fitted, or from a carried folder. BackboneError without either."""
    if (DATA / PCA_FILE).exists():
        _, config, tensors = read_checkpoint(DATA / PCA_FILE)
        prior = pca_from_checkpoint(config, tensors)
        prior.fingerprint = fingerprint_of(config, tensors)
        return prior.eval()
    if not (DATA / "cifar10_train.npz").exists():
        raise BackboneError(f"there is neither {PCA_FILE} nor cifar10_train.npz in the data folder")
    return pca_prior(training_images(FITTED))


def carry_pca(folder: Path) -> None:
    """Writes the prior for a machine without the data. Its eigenvectors go as float16, which costs it less than .01 dB."""
    config, tensors = fit_pca(training_images(FITTED))
    tensors["vectors"] = tensors["vectors"].half()
    write_checkpoint(folder / PCA_FILE, "pca-prior", config, tensors)


class EndPoint(PCAPrior):
    """The consistency model of a PCA prior, in closed form: where the probability-flow ODE of its Gaussian leads from y at
    level sigma, every eigendirection scaled by sqrt(s / (s + sigma^2)) (method.md, section 2)."""

    def __init__(self, prior: PCAPrior):
        assert prior.size is not None
        super().__init__(prior.size, prior.channels, prior.mean, prior.variances, prior.vectors)
        self.name, self.fingerprint = PCA_END, fingerprint_of({"end point of": prior.fingerprint}, {})

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 of the fitted size -> the end point, same shape."""
        scale = (self.variances / (self.variances + sigma * sigma)).sqrt()
        return (self.mean + ((y.flatten(1) - self.mean) @ self.vectors * scale) @ self.vectors.T).view_as(y)


# ---- dry runs -----------------------------------------------------------------------------------------------------------
def smooth_batch(count: int, seed: int) -> Tensor:
    """Random smooth pictures, uint8 [count, 3, 16, 16]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=True)
    return (large * 255).to(torch.uint8)


@cache
def small_gaussian() -> PCAPrior:
    """The Gaussian of such pictures."""
    return pca_prior(smooth_batch(64, 5).permute(0, 2, 3, 1).numpy())
