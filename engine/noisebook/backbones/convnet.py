"""A small convolutional denoiser for images of any size: the network behind the embedded backbone `photo`.

A plain U-Net without attention or normalisation that corrects a Gaussian prior: the Wiener filter sees the whole image and
does what a linear denoiser can, the network adds what edges and textures tell. The image enters as 4 x 4 pixel blocks,
so no convolution runs above a quarter of the resolution.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.base import Backbone
from noisebook.backbones.gaussian import SpectrumPrior
from noisebook.errors import BackboneError


class Block(nn.Module):
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


class ConvDenoiser(nn.Module):
    """x0_hat = prior(y, lam) + scale(lam) * F(prior(y, lam), y, ln lam).

    As in EDM (Karras et al. 2022) the network F sees inputs of about unit variance and its target has about unit variance,
    but the linear part that EDM writes as c_skip y is a whole Wiener filter. `widths` are the channels at 1/4, 1/8, 1/16,
    ... of the resolution; `blocks` how many residual blocks stand on each side of each level. Height and width of the
    input must be multiples of `multiple`.
    """

    frequencies: Tensor

    def __init__(
        self, prior: SpectrumPrior, widths: tuple[int, ...] = (80, 128, 128), blocks: int = 2, embedding: int = 128
    ):
        super().__init__()
        self.config = {"widths": list(widths), "blocks": blocks, "embedding": embedding}
        self.prior, self.channels, self.multiple = prior, prior.channels, 4 << (len(widths) - 1)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(32), 16)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(32 * self.channels, widths[0], 3, padding=1)
        self.leave = nn.Conv2d(widths[0], 16 * self.channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down_blocks.append(nn.ModuleList(Block(width, embedding) for _ in range(blocks)))
            self.up_blocks.append(nn.ModuleList(Block(width, embedding) for _ in range(blocks)))
            if level + 1 < len(widths):
                self.downs.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.ups.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))

    def residual(self, x: Tensor, log_lam: Tensor) -> Tensor:
        """The raw network F: x [B, 2 C, H, W] of about unit variance, log_lam [B] -> [B, C, H, W], all float32.

        The level's embedding is computed in float32, all else in the type of the weights."""
        angle, dtype = log_lam[:, None] * self.frequencies * 0.25, self.enter.weight.dtype
        e = self.embed(torch.cat([angle.sin(), angle.cos()], 1)).to(dtype)
        h = self.enter(F.pixel_unshuffle(x, 4).to(dtype))
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, e)
            if level < len(self.downs):
                skips.append(h)
                h = self.downs[level](h)
        for level in reversed(range(len(self.up_blocks))):
            for block in self.up_blocks[level]:  # type: ignore[union-attr]
                h = block(h, e)
            if level:
                h = skips[level - 1] + self.ups[level - 1](h)
        return F.pixel_shuffle(self.leave(F.silu(h)), 4).float()

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """y [B, C, H, W] = x0 + lam * noise, lam [B] -> x0_hat [B, C, H, W]."""
        linear = self.prior.posterior_mean(y, lam)
        s = lam[:, None, None, None]
        x = torch.cat([2 * linear, (y - linear) / s], 1)
        return linear + correction_scale(s) * self.residual(x, lam.log())


def correction_scale(lam: Tensor) -> Tensor:
    """About the root mean squared error that the Gaussian prior leaves on photographs at noise-to-signal ratio lam."""
    return 0.2 * lam * (lam * lam + 0.25).rsqrt()


class ConvBackbone(Backbone):
    """Adapter of `ConvDenoiser`: it already speaks (y, lam)."""

    def __init__(self, net: ConvDenoiser):
        super().__init__()
        self.net, self.channels, self.multiple = net, net.channels, net.multiple

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        return self.net(y, torch.full((len(y),), lam, device=y.device)).contiguous()

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        for name, part in self.net.named_children():
            if name not in ("prior", "embed"):
                part.to(dtype)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.net.residual = torch.compile(self.net.residual)


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> ConvBackbone:
    """The backbone from a checkpoint of kind `convnet`: network weights are stored in bf16 and run in float32."""
    prior = {name.removeprefix("prior."): t for name, t in tensors.items() if name.startswith("prior.")}
    try:
        net = ConvDenoiser(SpectrumPrior(**prior), **{**config, "widths": tuple(config["widths"])})
        net.load_state_dict({name: t.float() for name, t in tensors.items()})
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        raise BackboneError(f"the checkpoint does not fit a convnet: {str(error).splitlines()[0]}") from error
    return ConvBackbone(net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def checkpoint_tensors(net: ConvDenoiser) -> dict[str, Tensor]:
    """What a checkpoint of kind `convnet` holds: the network in bf16, the small prior in float32."""
    return {k: v if k.startswith("prior.") else v.bfloat16() for k, v in net.state_dict().items()}
