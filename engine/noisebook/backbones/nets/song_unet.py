"""The networks of NVIDIA's EDM checkpoints, under the parameter names of those files; for inference only.

`SongUNet` is DDPM++ or NCSN++ (Song et al. 2021), `DhariwalUNet` is ADM (Dhariwal and Nichol 2021), both in the settings of
Karras et al. 2022 (arXiv 2206.00364, appendix F). Dropout is absent: it is the identity in evaluation.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF = math.sqrt(0.5)


def filtered(x: Tensor, taps: Tensor, way: str, padding: int) -> Tensor:
    """x [B, C, h, w] at twice ("up") or half ("down") the size, each channel through the filter `taps` [1, 1, n, n]."""
    channels = x.shape[1]
    if way == "up":
        return F.conv_transpose2d(x, (4 * taps).expand(channels, -1, -1, -1), None, 2, padding, groups=channels)
    return F.conv2d(x, taps.expand(channels, -1, -1, -1), None, 2, padding, groups=channels)


def outer(taps: Sequence[float]) -> Tensor:
    """The separable filter of those taps, float32 [1, 1, n, n], summing to 1."""
    return torch.tensor([[[[a * b / sum(taps) ** 2 for b in taps] for a in taps]]])


class Resample(nn.Module):
    """Twice or half the resolution, without a convolution."""

    resample_filter: Tensor

    def __init__(self, way: str, taps: Sequence[float]):
        super().__init__()
        self.way, self.padding = way, (len(taps) - 1) // 2
        self.register_buffer("resample_filter", outer(taps))

    def forward(self, x: Tensor) -> Tensor:
        return filtered(x, self.resample_filter, self.way, self.padding)


class ResampledConv(nn.Conv2d):
    """A convolution at twice or half the resolution: the filter comes first, or last where it is `fused`, and sees no
    border then. Only "down" is ever fused, in the input pyramid of NCSN++."""

    resample_filter: Tensor

    def __init__(self, channels: int, out: int, kernel: int, way: str, taps: Sequence[float], fused: bool = False):
        pad = (len(taps) - 1) // 2
        super().__init__(channels, out, kernel, padding=kernel // 2 + pad * fused)
        self.way, self.fused, self.pad = way, fused, pad
        self.register_buffer("resample_filter", outer(taps))

    def forward(self, input: Tensor) -> Tensor:
        if self.fused:
            return filtered(super().forward(input), self.resample_filter, self.way, 0)
        return super().forward(filtered(input, self.resample_filter, self.way, self.pad))


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class SongBlock(nn.Module):
    """A residual block: x [B, channels, h, w] and the embedding [B, embedding] -> [B, out, h', w'].

    The embedding is added after the first convolution, or (`adaptive`) scales and shifts the second normalisation. Sums
    with the skip connection are multiplied by `scale`. `attention`: self-attention follows, in heads of `per_head` channels
    (None: in one). `project`: the skip connection of a resampling block is a 1 x 1 convolution also where the number of
    channels stays.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        way: str = "",
        attention: bool = False,
        *,
        taps: Sequence[float],
        eps: float,
        scale: float,
        adaptive: bool,
        project: bool,
        per_head: int | None = None,
    ):
        super().__init__()
        self.heads = (out // per_head if per_head else 1) if attention else 0
        self.scale, self.adaptive = scale, adaptive
        self.norm0 = norm(channels, eps)
        self.conv0 = ResampledConv(channels, out, 3, way, taps) if way else nn.Conv2d(channels, out, 3, padding=1)
        self.affine = nn.Linear(embedding, out * (1 + adaptive))
        self.norm1 = norm(out, eps)
        self.conv1 = nn.Conv2d(out, out, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if way:
            kernel = 1 if project or out != channels else 0
            self.skip = ResampledConv(channels, out, kernel, way, taps) if kernel else Resample(way, taps)
        elif out != channels:
            self.skip = nn.Conv2d(channels, out, 1)
        if self.heads:
            self.norm2 = norm(out, eps)
            self.qkv = nn.Conv2d(out, 3 * out, 1)
            self.proj = nn.Conv2d(out, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        change = self.affine(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = change.chunk(2, 1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + change)
        x = (self.conv1(F.silu(h)) + self.skip(x)) * self.scale
        return (x + self.attention(x)) * self.scale if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """Of all positions to all, in `heads` heads; the channels of `qkv` count head, channel, then q, k, v."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = qkv.permute(3, 0, 1, 4, 2)  # [B, heads, positions, channels of a head] each
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class Positional(nn.Module):
    """noise [B] -> [cos, sin] of its product with n/2 frequencies from 1 down to 1/10000 (`endpoint`: reached)."""

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.count, self.last = channels // 2, channels // 2 - endpoint

    def forward(self, noise: Tensor) -> Tensor:
        fraction = torch.arange(self.count, dtype=noise.dtype, device=noise.device) / self.last
        angle = noise[:, None] * 1e-4**fraction
        return torch.cat([angle.cos(), angle.sin()], 1)


class Fourier(nn.Module):
    """noise [B] -> [cos, sin] of 2 pi times its product with n/2 stored random frequencies."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2))

    def _apply(self, fn: Any, recurse: bool = True) -> "Fourier":
        """Moves, but never rounds: frequencies of 16 and more in bfloat16 would be off by whole turns."""
        exact = self.freqs
        super()._apply(fn, recurse)
        self.freqs = exact.to(self.freqs.device)
        return self

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angle.cos(), angle.sin()], 1)


class UNet(nn.Module):
    """What both networks share: blocks by name in `enc` and `dec`, and the way through them.

    `block(channels, out, way=, attention=)` makes a SongBlock; `widths` are the channels of each level, `first` those of the
    first convolution. Attention is at `attn_resolutions` (in pixels) and in the first block of the decoder; in the other
    blocks of the decoder only in the last of a level, unless `thorough`. `pyramid(channels, out)`, if any, makes the layers
    that carry the image itself down the encoder.
    """

    label: int | None = None  # the class whose images it denoises, where it is class-conditional

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        first: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        block: Callable[..., SongBlock],
        thorough: bool,
        pyramid: Callable[[int, int], nn.Module] | None = None,
    ):
        super().__init__()
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sizes = [img_resolution >> level for level in range(len(widths))]
        names, attends = [f"{n}x{n}" for n in sizes], [n in attn_resolutions for n in sizes]
        self.enc[f"{names[0]}_conv"] = nn.Conv2d(in_channels, first, 3, padding=1)
        width, aux, skips = first, in_channels, [first]
        for level, out in enumerate(widths):
            if level > 0:
                self.enc[f"{names[level]}_down"] = block(width, width, way="down")
                skips.append(width)
                if pyramid:
                    self.enc[f"{names[level]}_aux_residual"] = pyramid(aux, width)
                    aux = width
            for i in range(num_blocks):
                self.enc[f"{names[level]}_block{i}"] = block(width, out, attention=attends[level])
                width = out
                skips.append(width)
        self.dec[f"{names[-1]}_in0"] = block(width, width, attention=True)
        self.dec[f"{names[-1]}_in1"] = block(width, width)
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                self.dec[f"{names[level]}_up"] = block(width, width, way="up")
            for i in range(num_blocks + 1):
                attention = attends[level] and (thorough or i == num_blocks)
                self.dec[f"{names[level]}_block{i}"] = block(width + skips.pop(), widths[level], attention=attention)
                width = widths[level]

    def walk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The image x [B, C, h, w] through encoder and decoder -> features [B, width, h, w]."""
        skips, aux = [], x
        for layer in self.enc.values():
            if isinstance(layer, SongBlock):
                x = layer(x, embedding)
            elif isinstance(layer, ResampledConv):  # the pyramid: it changes what the layer before it left
                x = aux = (skips.pop() + layer(aux)) * HALF
            else:
                x = layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if isinstance(layer, SongBlock):
                x = layer(x if layer.norm0.num_channels == x.shape[1] else torch.cat([x, skips.pop()], 1), embedding)
        return x


class SongUNet(UNet):
    """DDPM++ (positional embedding, standard encoder) or NCSN++ (fourier, residual); defaults as published.

    x [B, in_channels, n, n] of the network's dtype, noise [B] (c_noise of the preconditioning) -> [B, out_channels, n, n].
    Raises ValueError for a setting that no published checkpoint has.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ):
        kinds = (embedding_type, encoder_type, decoder_type)
        if kinds not in (("positional", "standard", "standard"), ("fourier", "residual", "standard")):
            raise ValueError(f"embedding, encoder and decoder of types {kinds} are neither DDPM++ nor NCSN++")
        wide, noise, taps = model_channels * channel_mult_emb, model_channels * channel_mult_noise, resample_filter
        block = partial(SongBlock, embedding=wide, taps=taps, eps=1e-6, scale=HALF, adaptive=False, project=True)
        pyramid = partial(ResampledConv, kernel=3, way="down", taps=taps, fused=True)
        widths = [model_channels * m for m in channel_mult]
        super().__init__(
            img_resolution,
            in_channels,
            model_channels,
            widths,
            num_blocks,
            attn_resolutions,
            block,
            False,
            pyramid if encoder_type == "residual" else None,
        )
        self.map_noise = Fourier(noise) if embedding_type == "fourier" else Positional(noise, endpoint=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None  # times zeros: adds nothing
        self.map_layer0, self.map_layer1 = nn.Linear(noise, wide), nn.Linear(wide, wide)
        self.head = [f"{img_resolution}x{img_resolution}_aux_{part}" for part in ("norm", "conv")]
        self.dec[self.head[0]] = norm(widths[0], 1e-6)
        self.dec[self.head[1]] = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        cos, sin = self.map_noise(noise).chunk(2, 1)
        embedding = torch.cat([sin, cos], 1)
        if self.map_label is not None:
            embedding = embedding + self.map_label.weight[:, self.label] * math.sqrt(self.map_label.in_features)
            embedding = embedding + self.map_label.bias
        embedding = F.silu(self.map_layer0(embedding.to(x.dtype)))
        x = self.walk(x, F.silu(self.map_layer1(embedding)))
        normalise, convolve = (self.dec[name] for name in self.head)
        return convolve(F.silu(normalise(x)))


class DhariwalUNet(UNet):
    """ADM: adaptive normalisation, 64 channels a head, attention in every block of its resolutions; defaults as published.

    x [B, in_channels, n, n] of the network's dtype, noise [B] (c_noise of the preconditioning) -> [B, out_channels, n, n].
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ):
        wide, widths = model_channels * channel_mult_emb, [model_channels * m for m in channel_mult]
        block = partial(
            SongBlock, embedding=wide, taps=(1, 1), eps=1e-5, scale=1.0, adaptive=True, project=False, per_head=64
        )
        super().__init__(img_resolution, in_channels, widths[0], widths, num_blocks, attn_resolutions, block, True)
        self.map_noise = Positional(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None  # as above
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, wide), nn.Linear(wide, wide)
        self.map_label = nn.Linear(label_dim, wide, bias=False) if label_dim else None
        self.out_norm, self.out_conv = norm(widths[0], 1e-5), nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        embedding = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise).to(x.dtype))))
        if self.map_label is not None:
            embedding = embedding + self.map_label.weight[:, self.label]
        return self.out_conv(F.silu(self.out_norm(self.walk(x, F.silu(embedding)))))
