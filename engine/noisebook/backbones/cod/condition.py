"""The condition codec of CoD (arXiv 2511.18706): images to a grid of tokens, and tokens to what conditions the network.

Names of modules are those of the published files. All convolutions; attention is over the whole grid.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebook.errors import BackboneError

WIDTH = 128  # channels of the encoder's first level and of the code vectors, in every published model


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """GroupNorm, swish, 3 x 3, twice; a 1 x 1 shortcut where channels change."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of the grid."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Down(nn.Module):
    """Half the height and width: 3 x 3 of stride 2, padded below and at the right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the height and width: nearest neighbours, then a residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.block = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.interpolate(x, scale_factor=2.0, mode="nearest"))


STRIDES = (4, 8, 16, 32, 128)


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> [B, width, H / stride, W / stride] before quantisation. `ds` is one of `STRIDES`; the
    stride is ds, or half of it without `up2x` (the published models of 256 x 256 pixels)."""

    def __init__(self, ds: int, up2x: bool, width: int = WIDTH):
        super().__init__()
        w = width

        def halved(channels: int, least: int) -> nn.Module:
            return Down(channels) if ds >= least else nn.Identity()

        self.conv_in = nn.Conv2d(3, w, 3, stride=2 if up2x else 1, padding=1)
        self.down_block_0 = nn.Sequential(Residual(w, w), Residual(w, w), Down(w))
        self.down_block_1 = nn.Sequential(Residual(w, w), Residual(w, w), halved(w, 8))
        self.down_block_2 = nn.Sequential(Residual(w, 2 * w), Residual(2 * w, 2 * w), halved(2 * w, 16))
        self.down_block_3 = nn.Sequential(Residual(2 * w, 2 * w), Residual(2 * w, 2 * w), halved(2 * w, 32))
        last = [Residual(2 * w, 4 * w), Attention(4 * w), Residual(4 * w, 4 * w), Attention(4 * w)]
        top = 4 * w
        if ds == 128:
            top = 8 * w
            last += [Down(4 * w), Residual(4 * w, top), Attention(top), Residual(top, top), Attention(top), Down(top)]
        self.down_block_4 = nn.Sequential(*last)
        self.mid_block = nn.Sequential(Residual(top, top), Attention(top), Residual(top, top))
        self.norm_out, self.conv_out = _norm(top), nn.Conv2d(top, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (self.down_block_0, self.down_block_1, self.down_block_2, self.down_block_3, self.down_block_4):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Bottleneck(nn.Module):
    """The code vectors; a token is the number of the nearest."""

    def __init__(self, bits: int, width: int = WIDTH):
        super().__init__()
        self.embedding = nn.Embedding(1 << bits, width)

    def tokens(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> int64 [B, h, w]: argmin |z - e|^2, the first of equals."""
        codes = self.embedding.weight.float()
        flat = z.float().permute(0, 2, 3, 1)
        distance = flat.square().sum(-1, keepdim=True) - 2 * flat @ codes.T + codes.square().sum(-1)
        return distance.argmin(-1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, C, h, w]."""
        return self.embedding(tokens).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Code vectors [B, width, h, w], a place for `stride` pixels, -> the condition [B, hidden, H / cell, W / cell].

    `stride` is twice, once, half or a quarter of `cell`; with `ds` 128 eight times: two doublings come before."""

    def __init__(self, ds: int, stride: int, cell: int, hidden: int, light: bool = False, width: int = WIDTH):
        super().__init__()
        self.conv_in = nn.Conv2d(width, hidden, 3, padding=1)
        between = [Up(hidden), Up(hidden)] if ds == 128 else []
        blocks: list[nn.Module] = []
        for n in range(2 if light or ds == 128 else 3):
            blocks += [Residual(hidden, hidden), Attention(hidden), *between[n : n + 1]]
        if ds == 128:
            blocks += [Residual(hidden, hidden), Attention(hidden)]
        self.block = nn.Sequential(*blocks, Residual(hidden, hidden))
        self.norm_out = _norm(hidden)
        stride //= 1 << len(between)
        if stride == 2 * cell:
            self.conv_out, self.ada = nn.Conv2d(hidden, hidden, 3, padding=1), Up(hidden)
        elif stride in (cell, cell // 2):
            self.conv_out = nn.Conv2d(hidden, hidden, 3, stride=cell // stride, padding=1)
        elif stride == cell // 4:
            ends = (nn.Conv2d(hidden, hidden, 3, stride=2, padding=1) for _ in range(2))
            self.conv_out = nn.Sequential(next(ends), Residual(hidden, hidden), next(ends))
        else:
            raise BackboneError(f"tokens of {stride} pixels do not lead to a condition of {cell}")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_out(F.silu(self.norm_out(self.block(self.conv_in(x)))))
        return self.ada(x) if hasattr(self, "ada") else x


EMPTY = -1.0  # the image, constant and outside of [0, 1], whose condition means "none"


class ConditionCodec(nn.Module):
    """Encoder, code vectors and decoder, one after the other."""

    def __init__(self, ds: int, bits: int, up2x: bool, cell: int, hidden: int, light: bool = False, width: int = WIDTH):
        super().__init__()
        if ds not in STRIDES:
            raise BackboneError(f"a condition codec has ds {', '.join(map(str, STRIDES))}, not {ds}")
        self.stride = ds if up2x else ds // 2
        self.encoder = Encoder(ds, up2x, width)
        self.bottleneck = Bottleneck(bits, width)
        self.decoder = Decoder(ds, self.stride, cell, hidden, light, width)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> int64 [B, H / stride, W / stride]."""
        return self.bottleneck.tokens(self.encoder(images))

    def condition(self, tokens: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, hidden, H / cell, W / cell]."""
        return self.decoder(self.bottleneck.vectors(tokens))

    def unconditional(self, height: int, width: int, like: Tensor) -> Tensor:
        """The condition that means none, [1, hidden, H / cell, W / cell]: that of an image of constant EMPTY."""
        empty = torch.full((1, 3, height, width), EMPTY, dtype=like.dtype, device=like.device)
        return self.condition(self.tokens(empty))
