"""CoD (arXiv 2511.18706): a compression-oriented diffusion model as a tokenizer and as a backbone.

Its condition codec turns an image into a small grid of tokens, one pass of convolutions. Its network, conditioned on them,
samples an image by flow matching. In the loop it is a backbone like any other, with the condition or without.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import fingerprint_of
from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.backbones.families.network import NetworkBackbone, full
from noisebook.backbones.nets.autoencoders import Autoencoder, read_taesd
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError, ImageError, SpecError
from noisebook.runtime.cuda_graphs import graph_cached

GUIDED_TIMES = (0.1, 1.0)  # guidance is used between these


@dataclass(frozen=True)
class Guided:
    """A condition that is used with guidance."""

    cond: Tensor
    weight: float


class CoD(NetworkBackbone):
    """x0_hat = x_t + (1 - t) v along x_t = t x0 + (1 - t) eps; sigma = (1 - t) / t, and sigma = inf is t = 0.

    A latent model walks on latents: wrap it in `Latent` with an autoencoder and its config's scale. Images, tokens and
    `condition_grid` count pixels all the same.

    guidance  of a conditional codec's ODE solver, where no token is chosen: v = v_none + guidance (v_cond - v_none) for
              times inside `GUIDED_TIMES`; elsewhere, and for 1, the network runs once. The published pixel models have 3,
              the latent ones 1.25
    """

    net: CodNet

    def __init__(self, net: CodNet, guidance: float = 1.0):
        self.stride = net.y_embedder.stride
        self.factor = 8 if net.config.latent else 1  # pixels of a place of the state
        side = max(self.stride, net.config.cell)  # both are powers of two
        super().__init__(net, channels=net.config.channels, multiple=side // self.factor)
        self.pure_noise, self.guidance, self.unfingerprinted_options = True, guidance, ("guidance", "autoencoder")
        self.condition_grid = (self.stride, 1 << net.config.bits, side)
        if self._dtype() != torch.float32:
            self.net_input = {"dtype": self._dtype()}
        self._none_of_size = graph_cached()(self._make_none)

    # ---- the tokenizer --------------------------------------------------------------------------------------------------
    def encode_condition(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 or float32 in [-1, 1] -> condition tokens int64 [B, H / stride, W / stride].

        Raises ImageError for a size that is no multiple."""
        side = self.multiple * self.factor
        if images.shape[2] % side or images.shape[3] % side:
            raise ImageError(
                f"CoD takes multiples of {side} pixels, not {images.shape[2]} x {images.shape[3]}: pad the image"
            )
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float() / 2 + 0.5
        with torch.no_grad():
            return self.net.y_embedder.tokens(x.to(self._dtype()))

    def condition(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Condition tokens int64 [B, h w], row by row, of images of height x width pixels -> what `denoise` takes as `cond`,
        [B, hidden, H / cell, W / cell]. Raises SpecError for another number of them; their values are not checked."""
        grid = (height // self.stride, width // self.stride)
        if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.shape[1] != math.prod(grid):
            raise SpecError(
                f"condition tokens of {height} x {width} pixels are int64 [B, {math.prod(grid)}], not "
                f"{tokens.dtype} {list(tokens.shape)}"
            )
        with torch.no_grad():
            return self.net.y_embedder.condition(tokens.unflatten(1, grid))

    def guided(self, cond: Tensor) -> "Tensor | Guided":
        """The condition as an ODE solver uses it."""
        return cond if self.guidance == 1 else Guided(cond, self.guidance)

    # ---- the backbone ---------------------------------------------------------------------------------------------------
    def denoise(self, y: Tensor, sigma: float, cond: "Tensor | Guided | None" = None) -> Tensor:
        """y [B, C, H, W] at any sigma > 0, or eps itself at sigma = inf, and what `condition` or `guided` gave, or None ->
        x0_hat, as y."""
        t = 0.0 if sigma == math.inf else 1 / (1 + sigma)
        x = t * y if t else y
        if isinstance(cond, Guided):
            return x + (1 - t) * self._guided(x, t, cond)
        return x + (1 - t) * self._velocity(x, t, self._none(y) if cond is None else cond)

    def _guided(self, x: Tensor, t: float, guided: Guided) -> Tensor:
        if not GUIDED_TIMES[0] < t < GUIDED_TIMES[1]:
            return self._velocity(x, t, guided.cond)
        both = torch.cat([self._none(x).expand_as(guided.cond), guided.cond])
        v_none, v_cond = self._velocity(torch.cat([x, x]), t, both).chunk(2)
        return v_none + guided.weight * (v_cond - v_none)

    def _velocity(self, x: Tensor, t: float, cond: Tensor) -> Tensor:
        return self.call(x, full(x, t), cond)

    def _none(self, x: Tensor) -> Tensor:
        """The condition that means none at the state's size: kept for each size."""
        return self._none_of_size(x.shape[2], x.shape[3], self.version)

    def _make_none(self, height: int, width: int, version: int) -> Tensor:
        with torch.no_grad():
            like = next(self.net.parameters())
            return self.net.y_embedder.unconditional(height * self.factor, width * self.factor, like)

    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


def from_checkpoint(
    config: dict[str, Any], tensors: dict[str, Tensor], guidance: float = 1.0, autoencoder: str | None = None
) -> "CoD | Latent":
    """The backbone in a file that `files.convert` wrote; see `complete`. Raises BackboneError for another config, or for
    tensors of another network."""
    try:
        sizes = CodConfig(**config)
    except TypeError as error:
        raise BackboneError(f"the checkpoint's config is not a CoD's: {error}") from error
    return complete(CoD(network(sizes, tensors), guidance), autoencoder)


def complete(cod: CoD, autoencoder: str | None) -> "CoD | Latent":
    """A pixel model itself; a latent one behind its autoencoder, whose fingerprint it has until it is named. `autoencoder`
    is a folder in diffusers layout, or ENCODER:DECODER, a pair of TAESD files.

    Raises BackboneError where a latent model has no autoencoder, or a pixel model one."""
    if not cod.net.config.latent:
        if autoencoder is not None:
            raise BackboneError("a CoD of pixels has no autoencoder: leave it out")
        return cod
    if autoencoder is None:
        raise BackboneError(
            "a latent CoD needs its autoencoder (--autoencoder DIR): that of Stable Diffusion, in diffusers layout"
        )
    module, digest = read_autoencoder(autoencoder, cod.channels)
    backbone = Latent(cod, module, scale=cod.net.config.scale)
    backbone.fingerprint = digest
    return backbone


def network(config: CodConfig, tensors: dict[str, Tensor]) -> CodNet:
    """The network with these weights, each of them and no other. Raises BackboneError that names what does not fit."""
    with torch.device("meta"):
        net = CodNet(config)
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    have = {name: tuple(t.shape) for name, t in tensors.items()}
    for problem, names in (
        ("lacks", sorted(wanted.keys() - have.keys())),
        ("has besides", sorted(have.keys() - wanted.keys())),
        ("has of another shape", sorted(n for n in wanted.keys() & have.keys() if wanted[n] != have[n])),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BackboneError(f"the file is no CoD of {asdict(config)}: it {problem} {', '.join(names[:3])}{more}")
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


def read_autoencoder(place: str, channels: int) -> tuple[Autoencoder, str]:
    """(an autoencoder of 8 x 8 pixels, its fingerprint), from a folder or ENCODER:DECODER, see `complete`. Raises
    BackboneError where there is none with that many channels."""
    encoder, _, decoder = place.rpartition(":")
    if encoder and not Path(place).is_dir():
        module = read_taesd(encoder, decoder)
        if module.latent_channels != channels:
            raise BackboneError(f"{place}: latents of {module.latent_channels} channels; the network takes {channels}")
        return module, fingerprint_of({}, module.state_dict())
    from noisebook.backbones.diffusers.folder import autoencoder_in

    return autoencoder_in(place, channels)
