"""Gaussian image models: the denoiser is then the exact posterior mean, a Wiener filter, and needs no network.

`PCAPrior` has a full covariance over all pixels of one small size; `DCTPrior` only the diagonal of it in a colour
rotation and a 2-D DCT, a thousandth of the numbers; `SpectrumPrior` is stationary, has one power spectrum per
colour channel, and takes any size: the shipped `gaussian-prior`. All are fitted in seconds to minutes:

    noisebook fit-prior pca cifar10_train.npz -o pca.safetensors
    noisebook fit-prior dct cifar10_train.npz -o dct.safetensors
    noisebook fit-prior spectrum photos256.npz -o gaussian-prior.safetensors --count 2000
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.errors import BackboneError, ImageError
from noisebook.runtime.cuda_graphs import graph_cached

MOST = 16384  # points of a DCT
CROP = 256  # side of the crops that a spectrum is fitted on
# The frequencies with an entry in a spectrum's table, in units of 1 / (2 CROP) cycles per pixel: zero, then 24 of them
# that grow evenly, then by a quarter from each to the next, up to the last of a 256-point DCT.
NODES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 38, 48, 60, 75, 94, 118, 148, 180, 210, 235, 255)
FLOOR = 1e-8  # least variance of a coefficient; 8-bit rounding by itself has 5e-6


@graph_cached()
def dct_matrix(n: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of n points, float32 [n, n], computed in float64: row k has frequency k / (2 n). Raises
    ImageError for more than MOST points: the matrix would take more than a gigabyte."""
    if n > MOST:
        raise ImageError(f"a side of {n:,} pixels; the Gaussian model takes at most {MOST:,}: split the image")
    k = torch.arange(n, dtype=torch.float64)
    out = torch.empty(n, n, dtype=torch.float32)
    for some in k.split(max(1, (1 << 22) // n)):  # float64 only for a few rows at a time
        rows = torch.cos(torch.pi / n * (k[None, :] + 0.5) * some[:, None]) * (2 / n) ** 0.5
        out[int(some[0]) : int(some[0]) + len(some)] = rows
    out[0] = n**-0.5
    return out.to(device)


@graph_cached()
def hat_matrix(n: int, device: torch.device) -> Tensor:
    """Linear interpolation from the NODES to the n frequencies of a DCT, float32 [n, len(NODES)]; beyond the last: it.

    Row 0 stands for all frequencies up to half a step. Where a step is wider than the table's (n < CROP) it reads the
    table near that half, not at zero: on 32 x 32 crops of Kodak 8 % less squared error at sigma = 3.
    """
    f = np.arange(n) * (CROP / n)
    f[0] = max(0, (CROP / n - 1) / 2)
    rows = np.stack([np.interp(f, NODES, unit) for unit in np.eye(len(NODES))], 1)
    return torch.from_numpy(rows).float().to(device)


class PCAPrior(Backbone):
    """Images of one size as one Gaussian, full covariance: x0_hat = mean + U diag(s / (s + sigma^2)) U^T (y - mean)."""

    mean: Tensor  # [D] float32, D = C H W
    variances: Tensor  # [D] float32, the eigenvalues s >= 0
    vectors: Tensor  # [D, D] float32, eigenvectors U in the columns

    def __init__(self, size: tuple[int, int], channels: int, mean: Tensor, variances: Tensor, vectors: Tensor):
        super().__init__()
        dim = channels * size[0] * size[1]
        if mean.shape != (dim,) or variances.shape != (dim,) or vectors.shape != (dim, dim):
            raise BackboneError(f"the tensors of a pca-prior do not fit {channels} x {size[0]} x {size[1]} pixels")
        self.name, self.size, self.channels = "pca-prior", size, channels
        for name, tensor in (("mean", mean), ("variances", variances), ("vectors", vectors)):
            self.register_buffer(name, tensor.float().contiguous())  # strides would change the last bits

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 of the fitted size, sigma > 0 -> E[x0 | y], same shape. Raises ImageError on another."""
        if self.size is None or y.shape[1:] != (self.channels, *self.size):
            raise ImageError(f"this pca-prior takes images of {self.channels} x {self.size}, not {tuple(y.shape[1:])}")
        shrink = self.variances / (self.variances + sigma * sigma)
        coefficients = (y.flatten(1) - self.mean) @ self.vectors
        return (self.mean + (coefficients * shrink) @ self.vectors.T).view_as(y)


class DCTPrior(Backbone):
    """Images of one size as independent Gaussian coefficients of a colour rotation and a 2-D DCT around a mean image."""

    mean: Tensor  # [C, H, W] float32
    colour: Tensor  # [C, C] float32, orthonormal, rows are the decorrelated channels
    variance: Tensor  # [C, H, W] float32, of the orthonormal DCT's coefficients of those channels

    def __init__(self, mean: Tensor, colour: Tensor, variance: Tensor):
        super().__init__()
        if mean.ndim != 3 or variance.shape != mean.shape or colour.shape != (len(mean), len(mean)):
            raise BackboneError("the tensors of a dct-prior do not fit each other")
        self.name, self.channels, self.size = "dct-prior", len(mean), (mean.shape[1], mean.shape[2])
        for name, tensor in (("mean", mean), ("colour", colour), ("variance", variance)):
            self.register_buffer(name, tensor.float().contiguous())  # strides would change the last bits

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 of the fitted size, sigma > 0 -> E[x0 | y], same shape. Raises ImageError on another."""
        return self.posterior_mean(y, torch.full((len(y),), sigma, dtype=y.dtype, device=y.device))

    def posterior_mean(self, y: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | y] as `denoise`, with one sigma per image: float32 [B]."""
        if y.shape[1:] != self.mean.shape:
            raise ImageError(f"this dct-prior takes images of {tuple(self.mean.shape)}, not {tuple(y.shape[1:])}")
        rows, columns = dct_matrix(y.shape[2], y.device), dct_matrix(y.shape[3], y.device)
        z = rows @ torch.einsum("dc,bchw->bdhw", self.colour, y - self.mean) @ columns.T
        z = z * (self.variance / (self.variance + sigma.square()[:, None, None, None]))
        return self.mean + torch.einsum("dc,bdhw->bchw", self.colour, rows.T @ z @ columns)


class SpectrumPrior(Backbone):
    """Photographs of any size as a stationary Gaussian: independent coefficients of a colour rotation and a 2-D DCT."""

    mean: Tensor  # [3] float32, of R, G, B in [-1, 1]
    colour: Tensor  # [3, 3] float32, orthonormal, rows are the decorrelated channels
    log_variance: Tensor  # [3, nodes, nodes] float32, natural log, over (fy, fx)
    log_dc: Tensor  # [3, 9] float32, natural log of the variance of the mean over 1, 2, 4, ... 256 pixels squared

    def __init__(self, mean: Tensor, colour: Tensor, log_variance: Tensor, log_dc: Tensor):
        super().__init__()
        shapes = [(3,), (3, 3), (3, len(NODES), len(NODES)), (3, CROP.bit_length())]
        if [tuple(t.shape) for t in (mean, colour, log_variance, log_dc)] != shapes:
            raise BackboneError("the tensors of a spectrum-prior do not have the shapes of this version")
        self.name = "spectrum-prior"
        for name, tensor in (("mean", mean), ("colour", colour), ("log_variance", log_variance), ("log_dc", log_dc)):
            self.register_buffer(name, tensor.float().contiguous())  # strides would change the last bits

    def spectrum(self, height: int, width: int) -> Tensor:
        """Variances of the orthonormal DCT coefficients, float32 [3, H, W], on the buffers' device.

        Away from zero frequency a coefficient's variance is the power density there, whatever the image's size. The
        constant coefficient is sqrt(H W) times the image's mean, whose variance is tabled by area (above 256 x 256: as
        there). Frequencies between zero and 1/512 of larger images lie between those two nodes.
        """
        device = self.mean.device
        variance = (hat_matrix(height, device) @ self.log_variance @ hat_matrix(width, device).T).exp()
        octave = min(0.5 * np.log2(height * width), CROP.bit_length() - 1.0)
        low = min(int(octave), CROP.bit_length() - 2)
        log_dc = torch.lerp(self.log_dc[:, low], self.log_dc[:, low + 1], float(octave - low))
        variance[:, 0, 0] = log_dc.exp() * (height * width)
        return variance

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, 3, H, W] float32, sigma > 0 -> E[x0 | y], same shape. Raises ImageError where y has not 3 channels."""
        return self.posterior_mean(y, torch.full((len(y),), sigma, dtype=y.dtype, device=y.device))

    def posterior_mean(self, y: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | y] as `denoise`, with one sigma per image: float32 [B]."""
        if y.ndim != 4 or y.shape[1] != 3:
            raise ImageError(f"the spectrum prior takes images [B, 3, H, W], not {list(y.shape)}")
        rows, columns = (dct_matrix(n, y.device) for n in y.shape[2:])
        variance = self.spectrum(y.shape[2], y.shape[3])
        z = torch.einsum("dc,bchw->bdhw", self.colour, y - self.mean[:, None, None])
        z = rows @ z @ columns.T * (variance / (variance + sigma.square()[:, None, None, None]))
        return torch.einsum("dc,bdhw->bchw", self.colour, rows.T @ z @ columns) + self.mean[:, None, None]


def fit_pca(images: np.ndarray) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Mean and covariance of uint8 [N, H, W, C] images (mapped to [-1, 1]) -> (config, float32 tensors) of a PCAPrior.

    Computed in float64; eigenvalues below 0 (rounding, N < D) become 0. Raises ImageError on another shape or dtype.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2 or images.shape[3] not in (1, 3):
        raise ImageError(f"a pca-prior is fitted on uint8 [N, H, W, 1 or 3], N > 1, not {images.dtype} {list(images.shape)}")
    count, height, width, channels = images.shape
    dim = height * width * channels
    total, square = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for chunk in np.array_split(images, -(-count // 1000)):
        x = torch.from_numpy(chunk).permute(0, 3, 1, 2).flatten(1).double() * (2 / 255) - 1
        total += x.sum(0)
        square.addmm_(x.T, x)
    mean = total / count
    variances, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    tensors = {"mean": mean.float(), "variances": variances.clamp_min(0).float(), "vectors": vectors.float()}
    return {"size": [height, width], "channels": channels}, tensors


def fit_dct(images: np.ndarray) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Mean image, colour rotation and DCT variances of uint8 [N, H, W, C] images and their mirror images (mapped to
    [-1, 1]) -> (config, float32 tensors) of a DCTPrior. The rotation is the Karhunen-Loeve transform of single pixels.

    Computed in float64. Raises ImageError on another shape or dtype.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2 or images.shape[3] not in (1, 3):
        raise ImageError(f"a dct-prior is fitted on uint8 [N, H, W, 1 or 3], N > 1, not {images.dtype} {list(images.shape)}")
    chunks = torch.from_numpy(images).permute(0, 3, 1, 2).split(1000)  # float64 in chunks only
    mean = torch.stack([c.double().sum(0) for c in chunks]).sum(0) * (2 / 255 / len(images)) - 1
    mean = 0.5 * (mean + mean.flip(-1))
    square = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for c in chunks:
        pixels = (c.double() * (2 / 255) - 1 - mean).transpose(0, 1).flatten(1)
        square += pixels @ pixels.T
    colour = _strongest_first(square)
    rows, columns = (dct_matrix(n, mean.device).double() for n in mean.shape[1:])
    variance = torch.zeros_like(mean)
    for c in chunks:  # mirroring only changes signs of coefficients
        z = torch.einsum("dc,bchw->bdhw", colour, c.double() * (2 / 255) - 1 - mean)
        variance += (rows @ z @ columns.T).square().sum(0) / len(images)
    tensors = {"mean": mean, "colour": colour, "variance": variance.clamp_min(FLOOR)}
    return {"images": len(images)}, {k: v.float() for k, v in tensors.items()}


def _strongest_first(covariance: Tensor) -> Tensor:
    """Orthonormal eigenvectors in rows, the largest eigenvalue first, the largest entry of each positive."""
    vectors = torch.linalg.eigh(covariance)[1].T.flip(0)
    return vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()


def fit_spectrum(images: Sequence[np.ndarray]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Power spectra of the centre 256 x 256 crops of uint8 [H, W, 3] images -> (config, tensors) of a SpectrumPrior.

    The colour rotation is the Karhunen-Loeve transform of single pixels. The table is the least-squares fit, of the log
    of the mean squared DCT coefficients, by bilinear interpolation between NODES. Images smaller than a crop are
    left out. Raises ImageError where none is left, or one is not RGB.
    """
    if any(x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 for x in images):
        raise ImageError("a spectrum-prior is fitted on RGB images, uint8 [H, W, 3]")
    sized = [(x, (x.shape[0] - CROP) // 2, (x.shape[1] - CROP) // 2) for x in images]
    crops = [x[top:, left:][:CROP, :CROP] for x, top, left in sized if min(top, left) >= 0]
    if not crops:
        raise ImageError(f"a spectrum-prior is fitted on images of at least {CROP} x {CROP} pixels")
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # [N, 3, 256, 256] uint8; float64 in chunks only
    total, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for c in x.split(32):
        pixels = c.transpose(0, 1).flatten(1).double() * (2 / 255) - 1
        total += pixels.sum(1)
        square += pixels @ pixels.T
    mean = total / (len(x) * CROP**2)
    colour = _strongest_first(square / (len(x) * CROP**2) - torch.outer(mean, mean))
    dct = dct_matrix(CROP, x.device).double()
    power = torch.zeros(3, CROP, CROP, dtype=torch.float64)
    dc = torch.zeros(3, CROP.bit_length(), dtype=torch.float64)
    for c in x.split(32):
        z = torch.einsum("dc,bchw->bdhw", colour, c.double() * (2 / 255) - 1 - mean[:, None, None])
        power += (dct @ z @ dct.T).square().sum(0) / len(x)
        for octave in range(CROP.bit_length()):
            dc[:, octave] += z.square().mean((2, 3)).sum(0) / len(x)
            z = torch.nn.functional.avg_pool2d(z, 2) if octave + 1 < CROP.bit_length() else z
    power[:, 0, 0] = (power[:, 0, 1] * power[:, 1, 0]).sqrt()  # the table leaves the constant coefficient to `log_dc`
    solve = torch.linalg.pinv(hat_matrix(CROP, x.device).double())
    table = solve @ power.clamp_min(FLOOR).log() @ solve.T
    tensors = {"mean": mean, "colour": colour, "log_variance": table, "log_dc": dc.clamp_min(FLOOR).log()}
    return {"nodes": list(NODES), "crop": CROP, "images": len(x)}, {k: v.float() for k, v in tensors.items()}


def pca_from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> PCAPrior:
    """The PCAPrior of a checkpoint of kind `pca-prior`. Raises BackboneError where config and tensors do not fit."""
    try:
        height, width = config["size"]
        return PCAPrior((height, width), config["channels"], **tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"the checkpoint does not fit a pca-prior: {error}") from error


def dct_from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> DCTPrior:
    """The DCTPrior of a checkpoint of kind `dct-prior`. Raises BackboneError where the tensors are not one's."""
    try:
        return DCTPrior(**tensors)
    except (TypeError, AttributeError) as error:
        raise BackboneError(f"the checkpoint does not fit a dct-prior: {error}") from error


def spectrum_from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> SpectrumPrior:
    """The SpectrumPrior of a checkpoint of kind `spectrum-prior`. Raises BackboneError where they do not fit."""
    if config.get("nodes") != list(NODES) or config.get("crop") != CROP:
        raise BackboneError("the checkpoint's table of frequencies is not the one of this version of noisebook")
    try:
        return SpectrumPrior(**tensors)
    except TypeError as error:
        raise BackboneError(f"the checkpoint does not fit a spectrum-prior: {error}") from error
