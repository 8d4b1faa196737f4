"""A small convolutional denoiser: the network behind the embedded `photo` and the CIFAR-10 models.

A plain U-Net without attention or normalisation that corrects a Gaussian prior: the Wiener filter sees the whole image and
does what a linear denoiser can, the network adds what follows from edges and textures. The image enters as blocks of
`patch` x `patch` pixels, so no convolution runs at full resolution.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.base import Backbone
from noisebook.backbones.checkpoint import check_size
from noisebook.backbones.compiling import compiled
from noisebook.backbones.nets.gaussian import DCTPrior, SpectrumPrior
from noisebook.errors import BackboneError, first_line

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}  # torch's annotations of Module.to leave it out
LEAST, MOST = 0.02, 80.0  # noise-to-signal ratios that networks of this kind are trained on


class ConvBlock(nn.Module):
    """Residual block: two 3 x 3 convolutions, the noise level enters as a scale and shift between them."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.level = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.conv1(F.silu(x)), 1 + scale)
        return x + self.conv2(F.silu(h))


class ConvBlocks(nn.ModuleList):
    """Residual blocks one after the other, each given the level's embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class PriorDenoiser(nn.Module):
    """x0_hat = prior(y, sigma) + scale(sigma) * F(prior(y, sigma), y, ln sigma); a subclass gives the raw network F,
    `residual`.

    As in EDM (Karras et al. 2022) the network F sees inputs of about unit variance and its target has about unit variance,
    but the linear part that EDM writes as c_skip y is a whole Wiener filter. At sigma = 0 both parts leave y as it is, which
    is what a consistency model needs. F is given no level beyond those of its training: its output would be arbitrary there,
    while its input, of the same size at every level, hardly changes. `config` are the arguments that make it again, beside
    the prior.
    """

    multiple: int  # height and width of the input are multiples of this; with a `DCTPrior` they are the prior's

    def __init__(self, prior: SpectrumPrior | DCTPrior, config: dict[str, Any]):
        super().__init__()
        self.prior, self.channels, self.config = prior, prior.channels, config
        self.mixed = False  # in training: only F computes in bf16; in the prior's transforms that would be noise

    @staticmethod
    def scale(sigma: Tensor) -> Tensor:
        """About the root mean squared error that a Gaussian prior leaves on photographs at noise-to-signal ratio sigma."""
        return 0.2 * sigma * (sigma * sigma + 0.25).rsqrt()

    def residual(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """The raw network F: x [B, 2 C, H, W] of about unit variance, log_sigma [B] -> [B, C, H, W], all float32."""
        raise NotImplementedError

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """y [B, C, H, W] = x0 + sigma * noise, sigma [B] -> x0_hat [B, C, H, W]."""
        return self.correct(self.prior.posterior_mean(y, sigma), y, sigma)

    def correct(self, guess: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """A guess [B, C, H, W] of x0, and y and sigma as in `forward` -> the guess as the network F corrects it."""
        s = sigma[:, None, None, None]
        x = torch.cat([2 * guess, (y - guess) / s], 1)
        with torch.autocast(y.device.type, torch.bfloat16) if self.mixed else nullcontext():
            return guess + self.scale(s) * self.residual(x, sigma.clamp(LEAST, MOST).log())


class ConvDenoiser(PriorDenoiser):
    """The plain U-Net as F. `widths` are the channels at 1/patch, 1/(2 patch), 1/(4 patch), ... of the resolution;
    `blocks` how many residual blocks stand on each side of each level."""

    frequencies: Tensor

    def __init__(
        self,
        prior: SpectrumPrior | DCTPrior,
        widths: Sequence[int] = (80, 128, 128),
        blocks: int = 2,
        embedding: int = 128,
        patch: int = 4,
    ):
        super().__init__(prior, {"widths": list(widths), "blocks": blocks, "embedding": embedding, "patch": patch})
        self.patch, self.multiple = patch, patch << (len(widths) - 1)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(32), 16)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(2 * patch**2 * self.channels, widths[0], 3, padding=1)
        self.leave = nn.Conv2d(widths[0], patch**2 * self.channels, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down_blocks.append(ConvBlocks(ConvBlock(width, embedding) for _ in range(blocks)))
            self.up_blocks.append(ConvBlocks(ConvBlock(width, embedding) for _ in range(blocks)))
            if level + 1 < len(widths):
                self.downs.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.ups.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))

    def residual(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """F. The level's embedding is computed in float32, all else in the type of the weights."""
        angle, dtype = log_sigma[:, None] * self.frequencies * 0.25, self.enter.weight.dtype
        e = self.embed(torch.cat([angle.sin(), angle.cos()], 1)).to(dtype)
        h = self.enter(F.pixel_unshuffle(x, self.patch).to(dtype))
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            h = blocks(h, e)
            if level < len(self.downs):
                skips.append(h)
                h = self.downs[level](h)
        for level in reversed(range(len(self.up_blocks))):
            h = self.up_blocks[level](h, e)
            if level:
                h = skips[level - 1] + self.ups[level - 1](h)
        return F.pixel_shuffle(self.leave(F.silu(h)), self.patch).float()


class PriorBackbone(Backbone):
    """Adapter of a `PriorDenoiser`: it already speaks (y, sigma)."""

    auto_bfloat16 = ("cpu", "cuda")  # the prior stays float32, and the network only corrects it

    def __init__(self, net: PriorDenoiser):
        super().__init__()
        self.net, self.channels, self.multiple, self.size = net, net.channels, net.multiple, net.prior.size

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        return self.denoise_each(y, torch.full((len(y),), sigma, device=y.device))

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        """As `denoise`, with one sigma per image: float32 [B]."""
        return self.net(y, sigma).contiguous()

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        accelerate_network(self.net, dtype, channels_last, compile)


def accelerate_network(net: PriorDenoiser, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
    """What `Backbone.accelerate` does to a `PriorDenoiser`, in place: its prior and the level's embedding stay float32."""
    for name, part in net.named_children():
        if name not in ("prior", "embed"):
            part.to(dtype)
    if channels_last:
        net.to(**CHANNELS_LAST)
    if compile:
        net.residual = compiled(net.residual)


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> PriorBackbone:
    """The backbone from a checkpoint of kind `convnet`: network weights are stored in bf16 and run in float32."""
    return prior_backbone(ConvDenoiser, config, tensors)


def prior_backbone(kind: Callable[..., PriorDenoiser], config: dict[str, Any], tensors: dict[str, Tensor]) -> PriorBackbone:
    """A backbone around kind(prior, **config) with the weights in `tensors`. Raises BackboneError where they do not fit."""
    prior = {name.removeprefix("prior."): t for name, t in tensors.items() if name.startswith("prior.")}
    try:
        gaussian = DCTPrior(**prior) if "variance" in prior else SpectrumPrior(**prior)
        if len(config.get("widths", ())) > 16:
            raise ValueError("more than 16 widths")
        check_size(lambda: kind(gaussian, **config), tensors)
        net = kind(gaussian, **config)
        net.load_state_dict({name: t.float() for name, t in tensors.items()})
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        raise BackboneError(f"the checkpoint's config and weights do not fit: {first_line(error)}") from error
    return PriorBackbone(net.to(**CHANNELS_LAST))


def checkpoint_tensors(net: PriorDenoiser) -> dict[str, Tensor]:
    """What a checkpoint of a `PriorDenoiser` holds: the network in bf16, the small prior in float32."""
    return {k: v if k.startswith("prior.") else v.bfloat16() for k, v in net.state_dict().items()}
