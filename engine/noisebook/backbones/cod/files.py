"""The published files of CoD: `.pt` files of PyTorch Lightning or DeepSpeed, read without running any code in them.

noisebook convert CoD_pixel_vpred.pt -o cod-pixel.safetensors
"""

import pickle
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from noisebook.backbones.base import identify
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.cod.cod import CoD, complete, network
from noisebook.backbones.cod.nets import CodConfig
from noisebook.backbones.foreign import what_is, what_tensors_are
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError

PREFIX = "ema_denoiser."  # the averaged weights: the published figures are theirs
HEAD = {True: 6, False: 4}  # blocks of the head: latent models (which do not say), pixel models


def read_published(path: str | Path) -> tuple[CodConfig, dict[str, Tensor]]:
    """(sizes, averaged weights by the network's own names) of a published file. The sizes follow from the weights.

    Raises BackboneError for a missing or damaged file, one that holds more than tensors, or no averaged weights."""
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: no such file") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = f"damaged, or holds more than tensors ({type(error).__name__})"
        raise BackboneError(f"{path}: {reason}{what_is(Path(path))}") from error
    for key in ("state_dict", "module"):
        whole = whole[key] if isinstance(whole, dict) and isinstance(whole.get(key), dict) else whole
    names = [n for n in whole if isinstance(n, str) and n.startswith(PREFIX)] if isinstance(whole, dict) else []
    tensors = {name.removeprefix(PREFIX): whole[name] for name in names}
    if not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        what = what_tensors_are(map(str, whole)) if isinstance(whole, dict) else ""
        more = f"; it is {what}" if what else what_is(Path(path))
        raise BackboneError(f"{path}: no averaged weights ({PREFIX}...): not a published CoD{more}")
    return _config(path, tensors), tensors


def _config(path: str | Path, tensors: dict[str, Tensor]) -> CodConfig:
    def has(name: str) -> bool:
        return name in tensors

    try:
        latent = has("final_layer.adaLN_modulation.0.weight")
        hidden = tensors["s_embedder.proj.weight"].shape[0]
        blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        dit = sum(has(f"blocks.{i}.attn.qkv.weight") for i in range(blocks))
        width = tensors["y_embedder.encoder.conv_in.weight"].shape[0]
        top = tensors["y_embedder.encoder.conv_out.weight"].shape[1]
        return CodConfig(
            latents=tensors["final_layer.linear.weight"].shape[0] // 4 if latent else CodConfig.latents,
            latent=latent,
            hidden=hidden,
            heads=hidden // tensors["blocks.0.attn.q_norm.weight"].shape[0],
            blocks=blocks,
            cond_blocks=blocks - HEAD[True] if latent else dit,
            hidden_x=64 if latent else tensors["y_embedder_x.weight"].shape[0] // 16**2,
            ds=128 if top == 8 * width else 32,
            width=width,
            bits=(len(tensors["y_embedder.bottleneck.embedding.weight"]) - 1).bit_length(),
            up2x=has("y_embedder.decoder.ada.block.conv1.weight"),
            light=not has("y_embedder.decoder.block.6.conv1.weight"),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise BackboneError(f"{path}: its averaged weights are no CoD's ({type(error).__name__}: {error})") from error


def load_published(path: str | Path, guidance: float = 1.0, autoencoder: str | None = None) -> CoD | Latent:
    """The backbone in a published file; `guidance` as of `CoD`, `autoencoder` the folder of a latent model's.

    Raises BackboneError as `read_published` and `complete`, or where a tensor is missing, surplus or of another shape."""
    config, tensors = read_published(path)
    backbone = complete(CoD(network(config, tensors), guidance), autoencoder)
    identify(backbone, Path(path), "cod", asdict(config), tensors, {})  # as if converted
    return backbone


def convert(path: str | Path, output: str | Path, replace: bool = True) -> CodConfig:
    """Writes a published file's averaged weights as a checkpoint of noisebook (safetensors), whole or not at all, if all of
    them fit. Raises BackboneError as `load_published`, OSError or SafetensorError where it cannot be written."""
    config, tensors = read_published(path)
    network(config, tensors)
    write_checkpoint(output, "cod", asdict(config), tensors, replace)
    return config


def convert_file(path: Path, output: Path, replace: bool = True) -> str:
    """Converts a published `.pt`; what it was, in words. Raises BackboneError as `convert`."""
    config = convert(path, output, replace)
    stride = config.ds if config.up2x else config.ds // 2
    return f"{'latent' if config.latent else 'pixel'} CoD, tokens of {config.bits} bits, stride {stride}"
