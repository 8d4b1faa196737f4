"""A plain U-Net of the kind diffusion models use at 32 x 32, with random weights: what the codec is timed with."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones import Backbone, fingerprint_of

SIDE = 32  # pixels of the images that it is timed on


class Residual(nn.Module):
    """Two normalised 3 x 3 convolutions; the noise level enters between them."""

    def __init__(self, inside: int, outside: int, level: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inside), nn.GroupNorm(32, outside)
        self.conv1, self.conv2 = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
        self.level = nn.Linear(level, outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.level(e)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention over all pixels, heads of about 64 channels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(32, width), max(1, width // 64)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    """50.4 million parameters. `widths` are those at 32, 16, 8 and 4 pixels, each with `blocks` residual blocks (one more on
    the way up); attention at 16 pixels and in the middle."""

    frequencies: Tensor

    def __init__(self, widths: tuple[int, ...] = (128, 288, 320, 320), blocks: int = 2, channels: int = 3):
        super().__init__()
        level = 4 * widths[0]
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -math.log(1e4), widths[0] // 2)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(widths[0], level), nn.SiLU(), nn.Linear(level, level), nn.SiLU())
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up, self.downs, self.ups = (nn.ModuleList() for _ in range(4))
        self.attention_down, self.attention_up = nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for i, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(Residual(width, wide, level))
                self.attention_down.append(Attention(wide) if i == 1 else nn.Identity())
                width = wide
                skips.append(width)
            if i + 1 < len(widths):
                self.downs.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle1, self.attention = Residual(width, width, level), Attention(width)
        self.middle2 = Residual(width, width, level)
        for i, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Residual(width + skips.pop(), wide, level))
                self.attention_up.append(Attention(wide) if i == 1 else nn.Identity())
                width = wide
            if i:
                self.ups.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.leave = nn.GroupNorm(32, width), nn.Conv2d(width, channels, 3, padding=1)
        self.blocks = blocks

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x [B, C, 32, 32], level [B] float32 -> [B, C, 32, 32] float32; computed in the type of the weights."""
        dtype = self.enter.weight.dtype
        angle = level[:, None] * self.frequencies
        e = self.embed(torch.cat([angle.sin(), angle.cos()], 1).to(dtype))
        h = self.enter(x.to(dtype))
        skips = [h]
        for i, (block, attention) in enumerate(zip(self.down, self.attention_down, strict=True)):
            h = attention(block(h, e))
            skips.append(h)
            if (i + 1) % self.blocks == 0 and (i + 1) // self.blocks <= len(self.downs):
                h = self.downs[i // self.blocks](h)
                skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, e)), e)
        for i, (block, attention) in enumerate(zip(self.up, self.attention_up, strict=True)):
            h = attention(block(torch.cat([h, skips.pop()], 1), e))
            if (i + 1) % (self.blocks + 1) == 0 and (i + 1) // (self.blocks + 1) <= len(self.ups):
                h = self.ups[i // (self.blocks + 1)](F.interpolate(h, scale_factor=2.0))
        return self.leave(F.silu(self.norm(h))).float()


class UNetBackbone(Backbone):
    """The network with EDM's preconditioning (Karras et al. 2022, table 1) around it, images of standard deviation .5."""

    name = "bench-unet"
    multiple = 8

    def __init__(self, net: UNet):
        super().__init__()
        self.net, self.layout = net, torch.preserve_format
        self.fingerprint = fingerprint_of({"kind": self.name}, {})

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        total = sigma * sigma + 0.25
        level = torch.full((len(y),), 250 * math.log(sigma), device=y.device)
        x = (y / math.sqrt(total)).contiguous(memory_format=self.layout)
        return torch.add(y * (0.25 / total), self.net(x, level), alpha=0.5 * sigma / math.sqrt(total)).contiguous()

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        frequencies = self.net.frequencies
        self.net.to(dtype)
        self.net.frequencies = frequencies  # the level's angles stay float32
        if channels_last:
            self.layout = torch.channels_last
            self.net.to(memory_format=self.layout)  # type: ignore[call-overload]
        if compile:
            self.net.compile()
