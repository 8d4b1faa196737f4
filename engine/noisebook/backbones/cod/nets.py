"""The networks of CoD (arXiv 2511.18706): a DiT over patches and condition, and a head for pixels (PixNerD's) or latents
(DDT's). Time t runs from noise at 0 to images at 1, and they predict v = x0 - eps.

Names of modules are those of the published files.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.backbones.cod.condition import WIDTH, ConditionCodec

LATENT_SCALE = 0.18215**2  # of Stable Diffusion's latents: the published code multiplies twice
FREQUENCIES = 8  # of a pixel's coordinates within its patch, each way
ROPE_SPAN, ROPE_BASE = 16.0, 1e4


@dataclass(frozen=True)
class CodConfig:
    """Sizes of a CoD; the defaults are those of the pixel model of .0039 bits per pixel."""

    latent: bool = False
    hidden: int = 1152
    heads: int = 16
    blocks: int = 30  # all
    cond_blocks: int = 26  # of them the DiT's, the others the head's
    hidden_x: int = 64  # pixel head
    ds: int = 32
    bits: int = 4  # of a token
    up2x: bool = True
    light: bool = False
    width: int = WIDTH
    latents: int = 4  # channels, of a latent model
    scale: float = LATENT_SCALE  # of its latents
    cell: int = 16  # pixels that a token of the DiT stands for, each way: a patch of that size, or of latents of 8 pixels

    @property
    def channels(self) -> int:
        return self.latents if self.latent else 3

    @property
    def patch(self) -> int:
        return self.cell // 8 if self.latent else self.cell


class TimeEmbedding(nn.Module):
    """cos and sin of t at 128 frequencies from 1 down to about 1/10, then two layers."""

    def __init__(self, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * torch.exp(torch.arange(128, device=t.device) * (-math.log(10) / 128))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(next(self.parameters()).dtype))


def rope(height: int, width: int, head: int, device: torch.device) -> Tensor:
    """Rotations of a head's pairs at every place, complex64 [N, head / 2]: pairs turn by x and by y in turns. Positions span
    the same range whatever the grid's size."""
    rate = ROPE_BASE ** (-torch.arange(0, head, 4, device=device).float() / head)
    y, x = (torch.linspace(0, ROPE_SPAN, n, device=device) for n in (height, width))
    grid = torch.meshgrid(y, x, indexing="ij")
    angles = torch.stack([grid[1].flatten()[:, None] * rate, grid[0].flatten()[:, None] * rate], -1).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def turned(x: Tensor, rotations: Tensor) -> Tensor:
    """[B, heads, N, head] with each pair of neighbours turned."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden)
        self.q_norm, self.k_norm = (nn.RMSNorm(hidden // heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, rotations: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = turned(self.q_norm(q), rotations), turned(self.k_norm(k), rotations)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        inner = 8 * hidden // 3
        self.w1, self.w3 = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DiTBlock(nn.Module):
    """A DiT block, shifted, scaled and gated by c [B, 1 or N, hidden]."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(hidden, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = SelfAttention(hidden, heads), SwiGLU(hidden)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, c: Tensor, rotations: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rotations)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PatchEmbedding(nn.Module):
    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PixelEmbedding(nn.Module):
    """Pixels of a patch [P, patch^2, inputs], with the cosines of their places, -> [P, patch^2, hidden_x]."""

    def __init__(self, inputs: int, hidden: int, patch: int):
        super().__init__()
        self.patch = patch
        self.embedder = nn.Sequential(nn.Linear(inputs + FREQUENCIES**2, hidden))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(0, 1, self.patch, device=x.device)
        rate = torch.linspace(0, FREQUENCIES, FREQUENCIES, device=x.device)
        waves = torch.cos(math.pi * place[:, None] * rate)  # [16, 8]
        both = waves[None, :, :, None] * waves[:, None, None, :] / (1 + rate[:, None] * rate)  # [row, column, of x, of y]
        cosines = both.reshape(1, self.patch**2, -1).to(x.dtype).expand(len(x), -1, -1)
        return self.embedder(torch.cat([x, cosines], -1))


class NerfBlock(nn.Module):
    """A small residual network on pixels, whose weights the patch's state s [P, hidden] generates."""

    def __init__(self, hidden: int, hidden_x: int):
        super().__init__()
        self.param_generator1 = nn.Sequential(nn.Linear(hidden, 4 * hidden_x**2))
        self.norm = nn.RMSNorm(hidden_x, eps=1e-6)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        width = x.shape[-1]
        first, second = self.param_generator1(s).chunk(2, -1)
        first = F.normalize(first.reshape(-1, width, 2 * width), dim=-2)
        second = F.normalize(second.reshape(-1, 2 * width, width), dim=-2)
        return x + F.silu(self.norm(x) @ first) @ second


class PixelFinal(nn.Module):
    def __init__(self, hidden_x: int, channels: int):
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(hidden_x, eps=1e-6), nn.Linear(hidden_x, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class LatentFinal(nn.Module):
    def __init__(self, hidden: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(hidden, outputs)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class CodNet(nn.Module):
    """(x_t [B, C, h, w], t [B], condition [B or 1, hidden, N_h, N_w]) -> v, as x_t. `y_embedder` is the condition codec."""

    def __init__(self, config: CodConfig):
        super().__init__()
        c = self.config = config
        patch = c.channels * c.patch**2
        self.y_embedder = ConditionCodec(c.ds, c.bits, c.up2x, c.cell, c.hidden, c.light, c.width)
        self.t_embedder = TimeEmbedding(c.hidden)
        self.s_embedder = PatchEmbedding(patch + c.hidden, c.hidden)
        dit: list[nn.Module] = [DiTBlock(c.hidden, c.heads) for _ in range(c.cond_blocks)]
        late = c.blocks - c.cond_blocks
        if c.latent:
            self.x_embedder = PatchEmbedding(patch + c.hidden, c.hidden)
            dit += [DiTBlock(c.hidden, c.heads) for _ in range(late)]
            self.final_layer = LatentFinal(c.hidden, patch)
        else:
            self.y_embedder_x = nn.Linear(c.hidden, c.hidden_x * c.patch**2)
            self.x_embedder = PixelEmbedding(c.channels + c.hidden_x, c.hidden_x, c.patch)
            dit += [NerfBlock(c.hidden, c.hidden_x) for _ in range(late)]
            self.final_layer = PixelFinal(c.hidden_x, c.channels)
        self.blocks = nn.ModuleList(dit)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        c, (height, width) = self.config, (n // self.config.patch for n in x.shape[2:])
        rotations = rope(height, width, c.hidden // c.heads, x.device)
        patches = F.unfold(x, c.patch, stride=c.patch).transpose(1, 2)  # [B, N, channels of pixels in order]
        cond = condition.flatten(2).transpose(1, 2).expand(len(x), -1, -1).to(patches.dtype)
        time = self.t_embedder(t)[:, None]
        s = self.s_embedder(torch.cat([patches, cond], -1))
        for block in self.blocks[: c.cond_blocks]:
            s = block(s, F.silu(time), rotations)
        s = F.silu(time + s)
        late = self.blocks[c.cond_blocks :]
        if c.latent:
            h = self.x_embedder(torch.cat([patches, cond], -1))
            for block in late:
                h = block(h, s, rotations)
            out = self.final_layer(h, s)
        else:
            pixels = patches.unflatten(-1, (c.channels, -1)).transpose(-1, -2).flatten(0, 1)  # [B N, patch^2, 3]
            conditions = self.y_embedder_x(cond).unflatten(-1, (-1, c.hidden_x)).flatten(0, 1)
            h = self.x_embedder(torch.cat([pixels, conditions], -1))
            for block in late:
                h = block(h, s.flatten(0, 1))
            out = self.final_layer(h).transpose(-1, -2).reshape(patches.shape)
        return F.fold(out.transpose(1, 2), x.shape[2:], c.patch, stride=c.patch)
