"""A small convolutional denoiser for images of any size: the network behind the embedded backbone `photo`.

A plain U-Net without attention or normalisation. The image enters as 4 x 4 pixel blocks, so no convolution runs above a
quarter of the resolution and one call on a 768 x 512 photograph takes about half a second on two CPU cores.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.base import Backbone
from noisebook.errors import BackboneError

SIGMA_DATA = 0.5  # standard deviation of photographs in [-1, 1], as in EDM


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
    """x0_hat = D(y, lam) under EDM preconditioning (Karras et al. 2022, table 1, sigma_data = .5).

    `widths` are the channels at 1/4, 1/8, 1/16, ... of the resolution; `blocks` how many residual blocks stand on each
    side of each level. Height and width of the input must be multiples of `multiple`.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (64, 128, 160), blocks: int = 2, embedding: int = 128):
        super().__init__()
        self.config = {"channels": channels, "widths": list(widths), "blocks": blocks, "embedding": embedding}
        self.channels, self.multiple = channels, 4 << (len(widths) - 1)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(32), 16)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(16 * channels, widths[0], 3, padding=1)
        self.leave = nn.Conv2d(widths[0], 16 * channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down_blocks.append(nn.ModuleList(Block(width, embedding) for _ in range(blocks)))
            self.up_blocks.append(nn.ModuleList(Block(width, embedding) for _ in range(blocks)))
            if level + 1 < len(widths):
                self.downs.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.ups.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))

    def residual(self, x: Tensor, log_lam: Tensor) -> Tensor:
        """The raw network F: x [B, C, H, W] of unit variance, log_lam [B] -> [B, C, H, W]."""
        angle = log_lam[:, None] * self.frequencies * 0.25
        e = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.enter(F.pixel_unshuffle(x, 4))
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
        return F.pixel_shuffle(self.leave(F.silu(h)), 4)

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """y [B, C, H, W] = x0 + lam * noise, lam [B] -> x0_hat [B, C, H, W]."""
        s = lam[:, None, None, None]
        norm = (s * s + SIGMA_DATA**2).rsqrt()
        return (SIGMA_DATA * norm) ** 2 * y + s * SIGMA_DATA * norm * self.residual(y * norm, lam.log())


class ConvBackbone(Backbone):
    """Adapter of `ConvDenoiser`: it already speaks (y, lam)."""

    def __init__(self, net: ConvDenoiser):
        super().__init__()
        self.net, self.channels, self.multiple = net, net.channels, net.multiple

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        return self.net(y, torch.full((len(y),), lam, device=y.device)).contiguous()


def from_checkpoint(config: dict[str, Any], tensors: dict[str, Tensor]) -> ConvBackbone:
    """The backbone from a checkpoint of kind `convnet`: weights are stored in bf16 and run in float32."""
    try:
        net = ConvDenoiser(**{**config, "widths": tuple(config["widths"])})
        net.load_state_dict({name: t.float() for name, t in tensors.items()})
    except (TypeError, KeyError, RuntimeError) as error:
        raise BackboneError(f"the checkpoint does not fit a convnet: {str(error).splitlines()[0]}") from error
    return ConvBackbone(net.to(memory_format=torch.channels_last))
