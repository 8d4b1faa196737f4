"""Latent models of published sizes with random weights, made on the device: no file is read and no text encoder runs.

Configs are those of the published folders: sizes of layers, of the text and of the autoencoder. A network's speed does not
depend on its weights. Needs diffusers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisebook.backbones.base import fingerprint_of
from noisebook.backbones.diffusers.levels import adapter
from noisebook.backbones.diffusers.nets import SD3, Flux, SD3Flow, TextUNet
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.families.network import NetworkBackbone
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder
from noisebook.backbones.nets.halves import compile_halves
from noisebook.backbones.wrappers.latent import Latent

NOISE = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


@dataclass(frozen=True)
class Size:
    """A published size: how its backbone is made, and the side of the images that it was made for, in pixels."""

    name: str
    side: int
    make: Callable[[bool], Latent]  # (tiny) -> the backbone, on torch's default device

    def build(self, device: torch.device, dry: bool) -> Latent:
        """The backbone in float32, in evaluation mode; with `dry` the same layout at a tiny size."""
        torch.manual_seed(0)
        with torch.device(device):
            backbone = self.make(dry)
        backbone.name = backbone.inner.name = self.name
        backbone.fingerprint = fingerprint_of({"random weights": self.name, "tiny": dry}, {})
        return backbone.to(device).eval().requires_grad_(False)  # type: ignore[return-value]


def library() -> Any:
    """diffusers, imported when a model of its is made."""
    import diffusers

    return diffusers


def autoencoder(channels: int, tiny: bool) -> DiffusersAutoencoder:
    """Stable Diffusion's, of 84 million parameters: 8 x 8 pixels are one place of the state."""
    widths, groups, layers = ((8, 8), 4, 1) if tiny else ((128, 256, 512, 512), 32, 2)
    vae = library().AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        norm_num_groups=groups,
        layers_per_block=layers,
        latent_channels=channels,
    )
    return DiffusersAutoencoder(vae)


def latent(inner: NetworkBackbone, tiny: bool) -> Latent:
    return Latent(inner, autoencoder(inner.channels, tiny), scale=0.18215, factor=2 if tiny else 8)


def text_unet(tiny: bool, options: dict[str, Any], tokens: int, pooled: int = 0) -> Latent:
    """`options` are the config of a full size; SDXL's has `pooled` numbers of the text beside its vectors."""
    if tiny:
        small: dict[str, Any] = {
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        if pooled:
            pooled = 12
            added = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + pooled}
            small |= {"addition_embed_type": "text_time", **added}
        options, tokens = small, 5
    unet = library().UNet2DConditionModel(**options)
    conditions = {"encoder_hidden_states": torch.randn(1, tokens, options["cross_attention_dim"])}
    if pooled:
        conditions["text_embeds"] = torch.randn(1, pooled)
    net = TextUNet(unet, conditions, factor=2 if tiny else 8)
    halvings = 1 << (len(options["block_out_channels"]) - 1)
    with torch.device("cpu"):  # where its levels become numbers
        inner = adapter(net, NOISE, "random weights", channels=4, multiple=halvings)
    return latent(inner, tiny)  # type: ignore[arg-type]


def sd21(tiny: bool) -> Latent:
    """Stable Diffusion 2.1: a UNet of 866 million parameters."""
    options = {
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }
    return text_unet(tiny, options, 77)


def sdxl(tiny: bool) -> Latent:
    """SDXL: a UNet of 2.6 billion parameters."""
    attention = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    options = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", attention[0], attention[0]),
        "up_block_types": (attention[1], attention[1], "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return text_unet(tiny, options, 77, 1280)


def joint_text(tokens: int, width: int, pooled: int) -> dict[str, torch.Tensor]:
    """Random text of a transformer that takes [1, tokens, width] and a pooled [1, pooled]."""
    return {"encoder_hidden_states": torch.randn(1, tokens, width), "pooled_projections": torch.randn(1, pooled)}


def sd3(tiny: bool) -> Latent:
    """SD3-medium: a transformer of 2 billion parameters."""
    heads, width, pooled, tokens, side = (2, 32, 20, 5, 12) if tiny else (24, 4096, 2048, 333, 192)
    model = library().SD3Transformer2DModel(
        sample_size=8 if tiny else 128,
        in_channels=4 if tiny else 16,
        out_channels=4 if tiny else 16,
        num_layers=1 if tiny else 24,
        attention_head_dim=8 if tiny else 64,
        num_attention_heads=heads,
        joint_attention_dim=width,
        caption_projection_dim=heads * (8 if tiny else 64),
        pooled_projection_dim=pooled,
        pos_embed_max_size=side,
    )
    conditions = joint_text(tokens, width, pooled)
    shape: dict[str, Any] = {"channels": 4 if tiny else 16, "multiple": 2}
    return latent(SD3Flow(SD3(model, conditions), side=2 * side, factor=2 if tiny else 8, time_scale=1000.0, **shape), tiny)


def flux(tiny: bool) -> Latent:
    """Flux-dev: a transformer of 12 billion parameters, given its guidance as a number."""
    width, pooled, tokens = (16, 8, 5) if tiny else (4096, 768, 512)
    model = library().FluxTransformer2DModel(
        in_channels=16 if tiny else 64,
        num_layers=1 if tiny else 19,
        num_single_layers=1 if tiny else 38,
        attention_head_dim=8 if tiny else 128,
        num_attention_heads=2 if tiny else 24,
        joint_attention_dim=width,
        pooled_projection_dim=pooled,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2) if tiny else (16, 56, 56),
    )
    conditions = joint_text(tokens, width, pooled)
    net = Flux(model, conditions, guidance=3.5, distilled=True)
    return latent(Flow(net, channels=4 if tiny else 16, multiple=2), tiny)


SIZES = {
    size.name: size
    for size in (
        Size("SD 2.1", 512, sd21),
        Size("SDXL", 1024, sdxl),
        Size("SD3-medium", 1024, sd3),
        Size("Flux-dev", 1024, flux),
    )
}
TINY_SIDE = 8  # pixels of the images of a tiny size


def compile_whole(backbone: Latent) -> None:
    """Compiles the network in one piece, and the autoencoder as `accelerate` does."""
    model: Any = backbone
    model.inner.net.compile()
    compile_halves(model.autoencoder)


# ---- the parts by themselves --------------------------------------------------------------------------------------------
class Noting(nn.Module):
    """Passes calls on to `net` and keeps their arguments."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, *args: Tensor) -> Tensor:
        self.calls.append(args)
        return self.net(*args)


@contextmanager
def noting(inner: NetworkBackbone) -> Iterator[list[tuple[Tensor, ...]]]:
    """The arguments of every call of a backbone's network inside the `with` block, in the precision that it computes in."""
    net = inner.net
    inner.net = Noting(net)
    try:
        yield inner.net.calls
    finally:
        inner.net = net


def network_calls(backbone: Latent, levels: list[float], batch: int, side: int) -> Callable[[int], Tensor]:
    """The bare network, called once for each level on what the backbone gives it there: what a walk cannot do without."""
    state = backbone.state_shape(*backbone.padded(side, side))
    y = torch.randn(batch, *state, device=backbone.device)
    inner: Any = backbone.inner
    with noting(inner) as calls:
        for sigma in levels:
            inner.denoise(y, sigma)
    net = inner.net

    def run(_: int) -> Tensor:
        for args in calls:
            out = net(*args)
        return out

    return run
