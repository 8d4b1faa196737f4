"""What tests of the families share: a Gaussian model whose every prediction is known in closed form."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from noisebook.backbones import Backbone, fingerprint_of
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.wrappers.reparameterised import linear_alphas_cumprod
from noisebook.codebook import Codebook
from noisebook.spec.schedule import falling

SHAPE = (3, 4, 4)


D = math.prod(SHAPE)


ABARS = linear_alphas_cumprod()


LEVELS = [math.sqrt((1 - abar) / abar) for abar in ABARS]


TIMES = [950, 800, 700, 620, 540, 460, 380, 300, 220, 140, 60, 10]  # sigma from 113 to .02


class Gaussian(Backbone):
    """N(mean, covariance) of images [3, 4, 4], a random full covariance: what every network below knows."""

    name, size = "gaussian", (4, 4)

    def __init__(self, rng):
        super().__init__()
        self.mean = torch.from_numpy(rng.normal(0, 0.3, D))
        self.variances = torch.from_numpy(rng.lognormal(-2, 1.5, D))
        self.vectors = torch.linalg.qr(torch.from_numpy(rng.normal(size=(D, D))))[0]
        self.fingerprint = fingerprint_of({"kind": "gaussian"}, {"variances": self.variances})

    def moments(self, x: Tensor, s: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and E[eps | x] for x [B, *SHAPE] = s x0 + sigma eps, s and sigma [B], either of which may be 0."""
        s, sigma, v = s.double()[:, None], sigma.double()[:, None], self.variances
        z = (x.double().flatten(1) - s * self.mean) @ self.vectors / (s * s * v + sigma * sigma)
        x0, eps = self.mean + (s * v * z) @ self.vectors.T, (sigma * z) @ self.vectors.T
        return x0.view_as(x).to(x.dtype), eps.view_as(x).to(x.dtype)

    def end_point(self, y: Tensor, sigma: float, end: float) -> Tensor:
        """Where the probability-flow ODE leads y at level sigma by the level `end`: every eigendirection is scaled."""
        scale = ((self.variances + end**2) / (self.variances + sigma**2)).sqrt()
        z = (y.double().flatten(1) - self.mean) @ self.vectors
        return (self.mean + (scale * z) @ self.vectors.T).view_as(y).to(y.dtype)

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.moments(y, torch.ones_like(sigma), sigma)[0]

    def denoise(self, y: Tensor, sigma: float, cond=None) -> Tensor:
        return self.denoise_each(y, torch.full((len(y),), sigma, dtype=y.dtype))


def in_range(g: Gaussian, low: float, high: float) -> Gaussian:
    """The same images with values in [low, high] in place of [-1, 1]: u = a x + b."""
    a, b = (high - low) / 2, (high + low) / 2
    other = copy.deepcopy(g)
    other.mean, other.variances = a * g.mean + b, a * a * g.variances
    return other


def wide(t: Tensor) -> Tensor:
    return t[:, None, None, None]


class Net(nn.Module):
    """A function as a network, one of whose parameters says where it lives."""

    def __init__(self, function):
        super().__init__()
        self.function, self.device = function, nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return self.function(x, t)


def ddpm(g: Gaussian, prediction: str, abars=ABARS) -> DDPM:
    table = torch.tensor(abars, dtype=torch.float64)

    def net(x, t):
        assert t.dtype == torch.int64
        s, sigma = table[t].sqrt(), (1 - table[t]).sqrt()
        x0, eps = g.moments(x, s, sigma)
        v = wide(s).to(x) * eps - wide(sigma).to(x) * x0
        out = {"epsilon": eps, "v_prediction": v, "sample": x0}[prediction]
        return torch.cat([out, torch.ones_like(out)], 1)  # with a learned variance, which does not count

    return DDPM(Net(net), abars, prediction, size=(4, 4))


def edm(g: Gaussian, sigma_data: float = 0.7) -> EDM:
    def net(x, c_noise):
        sigma = (4 * c_noise).exp()
        total = wide((sigma**2 + sigma_data**2).sqrt())
        y = x * total
        return (g.denoise_each(y, sigma) - sigma_data**2 / total**2 * y) * total / (wide(sigma) * sigma_data)

    return EDM(Net(net), sigma_data, size=(4, 4))


def flow(g: Gaussian, reverse: bool, time_scale: float) -> Flow:
    def net(x, t):
        t = t / time_scale
        s, sigma = (t, 1 - t) if reverse else (1 - t, t)
        x0, eps = g.moments(x, s, sigma)
        return x0 - eps if reverse else eps - x0

    return Flow(Net(net), time_scale, reverse, size=(4, 4))


def walk(backbone: Backbone, z: list[Tensor], levels: list[float], p: float, y: Tensor) -> Tensor:
    """The codec's loop in float64, from y at levels[0], with the noise z[i] at step i and one x0_hat at the end."""
    for step, noise in zip(falling(levels, p, 1), z, strict=True):
        x0_hat = backbone.denoise(y, step.sigma)
        y = x0_hat + step.keep * (y - x0_hat) + step.sigma_up * noise
    return backbone.decode(backbone.denoise(y, levels[-1]))


@pytest.fixture
def noise(fresh) -> list[Tensor]:
    """Codewords of random tokens, one a step, float64 [2, *SHAPE]; the last is the start's."""
    book = Codebook("hadamard", 256, int(fresh.integers(1 << 32)))
    tokens = torch.from_numpy(fresh.integers(0, 256, (len(TIMES), 2, 1, 1)))
    return [book.noise(t, D, i).double().view(2, *SHAPE) for i, t in enumerate(tokens)]
