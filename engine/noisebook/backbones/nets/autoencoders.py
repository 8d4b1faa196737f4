"""Autoencoders of latent models: a tiny one of our own, and those of diffusers. Both speak images in [-1, 1].

The tiny one has the layout of the published TAESD weights (github.com/madebyollin/taesd, MIT): three times a strided
convolution between residual blocks on 64 channels, and the mirror image of it.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from noisebook.backbones.checkpoint import one_line
from noisebook.errors import BackboneError

WIDTH = 64


class Clamp(nn.Module):
    """Soft bounds on the latent values, +-3."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


class TinyBlock(nn.Module):
    """Residual block of three 3 x 3 convolutions; those of newer models see group statistics of the whole image first."""

    def __init__(self, pooled: bool):
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH), nn.ReLU(), conv(WIDTH), nn.ReLU(), conv(WIDTH))
        self.pool = None
        if pooled:
            wide = 4 * WIDTH
            inward, outward = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(inward, nn.GroupNorm(4, wide), nn.ReLU(), outward)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(x + self.conv(x))


def conv(channels: int, out: int = WIDTH, **options: Any) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, unless it strides."""
    return nn.Conv2d(channels, out, 3, padding=1, **options)


class TinyAutoencoder(nn.Module):
    """TAESD: 8 x 8 pixels to `latent_channels` values and back, always the same for the same image."""

    def __init__(self, latent_channels: int = 4, pooled: bool = False, channels: int = 3):
        super().__init__()
        self.latent_channels = latent_channels
        halve: dict[str, Any] = {"stride": 2, "bias": False}
        self.encoder = nn.Sequential(
            conv(channels),
            TinyBlock(False),
            conv(WIDTH, **halve),
            *(TinyBlock(False) for _ in range(3)),
            conv(WIDTH, **halve),
            *(TinyBlock(False) for _ in range(3)),
            conv(WIDTH, **halve),
            *(TinyBlock(pooled) for _ in range(3)),
            conv(WIDTH, latent_channels),
        )
        self.decoder = nn.Sequential(
            Clamp(),
            conv(latent_channels),
            nn.ReLU(),
            *(TinyBlock(pooled) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            conv(WIDTH, bias=False),
            *(TinyBlock(False) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            conv(WIDTH, bias=False),
            *(TinyBlock(False) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            conv(WIDTH, bias=False),
            TinyBlock(False),
            conv(WIDTH, channels),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> z [B, latent_channels, H / 8, W / 8]."""
        return self.encoder(0.5 * images + 0.5)  # the published networks take images in [0, 1]

    def decode(self, z: Tensor) -> Tensor:
        """z [B, latent_channels, h, w] -> images [B, channels, 8 h, 8 w], about in [-1, 1]."""
        return 2 * self.decoder(z) - 1


def read_taesd(encoder: str | Path, decoder: str | Path) -> TinyAutoencoder:
    """The autoencoder in a pair of published TAESD files, `.pth` or `.safetensors`, in float32.

    Raises BackboneError where a file is missing, damaged or of another layout. No pickled code is run.
    """
    halves = {"encoder": _read_tensors(Path(encoder)), "decoder": _read_tensors(Path(decoder))}
    try:
        latent, colours = (halves[half][name].shape[1] for half, name in (("decoder", "1.weight"), ("encoder", "0.weight")))
        model = TinyAutoencoder(latent, "3.pool.0.weight" in halves["decoder"], colours)
        model.load_state_dict({f"{half}.{name}": t.float() for half, part in halves.items() for name, t in part.items()})
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        reason = one_line(error)
        raise BackboneError(f"{encoder}, {decoder}: not an encoder and a decoder of TAESD's layout: {reason}") from error
    return model.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: no such file") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise BackboneError(f"{path}: damaged, or more than a dictionary of tensors ({type(error).__name__})") from error


class DiffusersAutoencoder(nn.Module):
    """An `AutoencoderKL`, `AutoencoderTiny` or `VQModel` of diffusers. Of a posterior its mean is taken, never a sample; a
    `VQModel` gives its codes as they are before they are quantised, and quantises when it decodes, as in diffusers.

    A `VQModel` needs float32: codes that are rounded have other nearest ones. An `AutoencoderKL` with `force_upcast` does
    not: its activations leave the range of float16, and bfloat16 has that of float32.
    """

    vae: Any  # a module of theirs

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae
        self.needs_float32 = hasattr(vae, "quantize")

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> z [B, c, h, w]."""
        out = self.vae.encode(images)
        return out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents

    def decode(self, z: Tensor) -> Tensor:
        """z [B, c, h, w] -> images [B, C, H, W], about in [-1, 1]."""
        return self.vae.decode(z).sample


Autoencoder = TinyAutoencoder | DiffusersAutoencoder
