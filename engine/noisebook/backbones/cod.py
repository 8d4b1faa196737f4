"""CoD (arXiv 2511.18706): a compression-oriented diffusion model as a tokenizer and as a backbone.

Its condition codec turns an image into a small grid of tokens, one pass of convolutions; its network, told that condition,
samples an image by flow matching. In the loop it is a backbone like any other, conditioned or not.
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.cod_nets import CodConfig, CodNet
from noisebook.backbones.network import NetworkBackbone, full
from noisebook.errors import BackboneError, ImageError, SpecError
from noisebook.graphs import constants

GUIDED = (0.1, 1.0)  # times between which guidance is used
LATENT_SCALE = 0.18215**2  # of Stable Diffusion's latents: the published code multiplies twice


class CoD(NetworkBackbone):
    """x0_hat = x_t + (1 - t) v along x_t = t x0 + (1 - t) eps; lam = (1 - t) / t, and lam = inf is t = 0.

    A latent model walks on latents: wrap it in `Latent` with an autoencoder and scale `LATENT_SCALE`. Images, tokens and
    `grid` count pixels all the same.
    """

    net: CodNet

    def __init__(self, net: CodNet):
        self.stride = net.y_embedder.stride
        self.factor = 8 if net.config.latent else 1  # pixels of a place of the state
        multiple = max(self.stride, net.config.cell)  # both are powers of two
        super().__init__(net, channels=net.config.channels, multiple=multiple // self.factor)
        self.pure_noise = True
        if self._kind() != torch.float32:
            self.inside = {"dtype": self._kind()}
        self._nothing = constants()(self._make_nothing)

    # ---- the tokenizer --------------------------------------------------------------------------------------------------
    @property
    def vocabulary(self) -> int:
        """Values of a condition token."""
        return 1 << self.net.config.bits

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the condition tokens of an image. Raises ImageError for a size that is no multiple."""
        side = self.multiple * self.factor
        if height % side or width % side:
            raise ImageError(f"CoD takes multiples of {side} pixels, not {height} x {width}: pad the image")
        return height // self.stride, width // self.stride

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 or float32 in [-1, 1] -> condition tokens int64 [B, H / stride, W / stride]."""
        self.grid(*images.shape[2:])
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float() / 2 + 0.5
        return self.net.y_embedder.tokens(x.to(self._kind()))

    @torch.no_grad()
    def condition(self, tokens: Tensor) -> Tensor:
        """Condition tokens int64 [B, h, w] -> what `denoise` takes as `cond`, [B, hidden, H / 16, W / 16].

        Raises SpecError for tokens outside the vocabulary."""
        if tokens.ndim != 3 or tokens.dtype != torch.int64 or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise SpecError(f"condition tokens are int64 [B, h, w] from 0 to {self.vocabulary - 1}")
        return self.net.y_embedder.condition(tokens)

    @torch.no_grad()
    def sample(self, tokens: Tensor, steps: int = 25, method: str = "ab2", guidance: float = 3.0, seed: int = 0) -> Tensor:
        """Condition tokens int64 [B, h, w] -> the state [B, C, H, W] that the flow ends at, float32.

        steps     of equal length: 25 for realism, 1 for the least error
        method    ab2 (Adams-Bashforth of order 2, its first step Euler's) or euler
        guidance  v = v_none + guidance (v_told - v_none), inside `GUIDED` alone; elsewhere, and for 1, the network runs once
        seed      of the noise, drawn on the CPU
        """
        if steps < 1 or method not in ("ab2", "euler"):
            raise SpecError(f"sampling needs at least 1 step and method ab2 or euler, not {steps} and {method!r}")
        told = self.condition(tokens)
        side = [n * self.stride // self.factor for n in tokens.shape[1:]]
        shape = (len(tokens), self.channels, *side)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
        before: Tensor | None = None
        for i in range(steps):
            t = i / steps
            if guidance != 1 and GUIDED[0] < t < GUIDED[1]:
                both = torch.cat([self._none(x).expand_as(told), told])
                v_none, v_told = self._velocity(torch.cat([x, x]), t, both).chunk(2)
                v = v_none + guidance * (v_told - v_none)
            else:
                v = self._velocity(x, t, told)
            slope = v if before is None or method == "euler" else 1.5 * v - 0.5 * before
            x, before = x + slope / steps, v
        return x

    # ---- the backbone ---------------------------------------------------------------------------------------------------
    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] at any lam > 0, or eps itself at lam = inf, and `condition`'s result or None -> x0_hat, as y."""
        t = 0.0 if lam == math.inf else 1 / (1 + lam)
        x = t * y if t else y
        return x + (1 - t) * self._velocity(x, t, self._none(y) if cond is None else cond)

    def _velocity(self, x: Tensor, t: float, told: Tensor) -> Tensor:
        return self.call(x, full(x, t), told)

    def _none(self, x: Tensor) -> Tensor:
        """The condition that stands for none at the state's size: kept, for every size by itself."""
        return self._nothing(x.shape[2], x.shape[3], self.version)

    def _make_nothing(self, height: int, width: int, version: int) -> Tensor:
        with torch.no_grad():
            like = next(self.net.parameters())
            return self.net.y_embedder.nothing(height * self.factor, width * self.factor, like)

    def _kind(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> CoD:
    """The backbone in a file that `cod_files.convert` wrote. Raises BackboneError for tensors of another network."""
    return CoD(network(CodConfig(**config), tensors))


def network(config: CodConfig, tensors: dict[str, Tensor]) -> CodNet:
    """The network with these weights, each of them and none else. Raises BackboneError that names what does not fit."""
    with torch.device("meta"):
        net = CodNet(config)
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    have = {name: tuple(t.shape) for name, t in tensors.items()}
    for problem, names in (
        ("lacks", sorted(wanted.keys() - have.keys())), ("has besides", sorted(have.keys() - wanted.keys())),
        ("has of another shape", sorted(n for n in wanted.keys() & have.keys() if wanted[n] != have[n])),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BackboneError(f"the file is no CoD of {asdict(config)}: it {problem} {', '.join(names[:3])}{more}")
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)
