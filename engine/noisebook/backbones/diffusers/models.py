"""One builder for each class of diffusers' networks: the parts of a folder, put together into a backbone.

What changes x0_hat enters the fingerprint: config and stored tensors of every part, the scheduler's config, the ids of
the prompts' tokens or of the classes, guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.diffusers.files import Folder, public
from noisebook.backbones.diffusers.levels import adapter, is_flow
from noisebook.backbones.diffusers.nets import SD3, DiT, Flux, SD3Flow, TextUNet, UNet2D
from noisebook.backbones.diffusers.text import Embedded, embed_flux, embed_sd, embed_sd3, embed_sdxl
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
# Fields of a UNet2DConditionModel that bring other conditions than those of Stable Diffusion, and what is read of them.
TEXT_UNETS = {
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,),
    "time_cond_proj_dim": (None,),
}


@dataclass(frozen=True)
class Options:
    """The conditions that `from_folder` takes; what is left out is None, guidance 1."""

    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    label: int | None = None

    def refuse(self, what: str, *names: str) -> None:
        """Raises BackboneError if one of these options, for which `what` has no use, is set."""
        for name in names:
            if getattr(self, name) != getattr(Options, name):
                raise BackboneError(f"{what} takes no {name}; leave it out")


@dataclass(frozen=True)
class Network:
    """The part of a folder that holds the network, its class, its config, and the config of the folder's scheduler."""

    folder: Folder
    part: str
    kind: str
    config: dict[str, Any]
    schedule: dict[str, Any]

    @property
    def place(self) -> Path:
        """For messages."""
        return self.folder.path / self.part


# ---- models of pixels --------------------------------------------------------------------------------------------------
def pixel_unet(network: Network, options: Options) -> Backbone:
    """`UNet2DModel` in discrete time, or as a score (VE, VP), consistency, EDM or flow model; with classes or without."""
    folder, config, schedule = network.folder, network.config, network.schedule
    kind = schedule.get("_class_name")
    options.refuse("a UNet2DModel", "prompt", "negative_prompt")
    if config.get("class_embed_type") is not None:
        raise BackboneError(f"{network.place}: class_embed_type {config['class_embed_type']!r} is not read")
    fourier = config.get("time_embedding_type", "positional") == "fourier"
    if fourier != (kind == "ScoreSdeVeScheduler"):
        embedding = "fourier" if fourier else "positional"
        raise BackboneError(f"{network.place}: a {kind} does not go with a {embedding} time embedding")
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    learned = str(schedule.get("variance_type")).startswith("learned")
    if channels not in (1, 3) or out not in (channels, channels * (1 + learned)):
        raise BackboneError(f"{network.place}: {channels} channels in, {out} out; only 1 or 3 are read")
    conditions: dict[str, Tensor] = {}
    classes, more = config.get("num_class_embeds"), {}
    if classes is None:
        options.refuse("an unconditional model", "label", "guidance")
    else:
        names = folder.index.get("id2label") or config.get("id2label") or ()
        labels = class_labels(network, classes, len(names) if classes == len(names) + 1 else None, options)
        conditions = {"class_labels": torch.tensor(labels)}
        more = {"labels": labels, "guidance": options.guidance}
    if "beta_schedule" not in schedule:
        more["scheduler_class"] = kind
    tensors = folder.tensors(network.part)
    net = UNet2D(folder.module(network.part, "UNet2DModel", tensors), conditions, options.guidance)
    size = config.get("sample_size")
    if size is not None:
        size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    multiple = 1 if size else halvings(config)
    backbone = adapter(net, schedule, network.place, channels=channels, size=size, multiple=multiple)
    header = {"config": public(config), "scheduler": public(schedule), **more}
    backbone.fingerprint = fingerprint_of(header, tensors)
    return backbone


# ---- models of latents -------------------------------------------------------------------------------------------------
def text_unet(network: Network, options: Options) -> Backbone:
    """`UNet2DConditionModel`: Stable Diffusion 1 and 2, SDXL."""
    folder, config = network.folder, network.config
    options.refuse("a model that reads text", "label")
    for name, known in TEXT_UNETS.items():
        if config.get(name) not in known:
            raise BackboneError(f"{network.place}: {name} {config[name]!r} is not read, only Stable Diffusion 1, 2 and SDXL")
    vae = autoencoder(network, config.get("in_channels", 4))
    # SDXL's pipeline takes zeros for a negative prompt that is left out
    sdxl = config.get("addition_embed_type") is not None
    zeros = sdxl and options.negative_prompt is None and bool(folder.index.get("force_zeros_for_empty_prompt", True))
    prompts = both_prompts(options, zeros)
    texts = embed_sdxl(folder, prompts, zeros and len(prompts) == 2) if sdxl else embed_sd(folder, prompts)
    widths = {"encoder_hidden_states": config.get("cross_attention_dim", 1280)}
    if sdxl:
        sizes = 6 * (config.get("addition_time_embed_dim") or 0)
        widths["text_embeds"] = (config.get("projection_class_embeddings_input_dim") or 0) - sizes
    check_widths(network, texts, widths)
    net = TextUNet(folder.module(network.part, network.kind), texts.conditions, options.guidance, vae.factor)
    inner = adapter(net, network.schedule, network.place, channels=vae.channels, multiple=halvings(config))
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens, zeros=zeros and len(prompts) == 2)


def dit(network: Network, options: Options) -> Backbone:
    """`DiTTransformer2DModel`: a class in place of a prompt, one size."""
    config = network.config
    options.refuse("a DiT", "prompt", "negative_prompt")
    if config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise BackboneError(f"{network.place}: a transformer with norm_type {config['norm_type']!r}; only DiTs are read")
    vae = autoencoder(network, config.get("in_channels", 4))
    classes, side = config.get("num_embeds_ada_norm", 1000), config.get("sample_size", 32)
    labels = class_labels(network, classes + 1, classes, options)
    module = network.folder.module(network.part, "DiTTransformer2DModel")
    net = DiT(module, {"class_labels": torch.tensor(labels)}, options.guidance)
    inner = adapter(net, network.schedule, network.place, channels=vae.channels, size=(side, side))
    return latent(network, inner, vae, guidance=options.guidance, labels=labels)


def sd3(network: Network, options: Options) -> Backbone:
    """`SD3Transformer2DModel`: Stable Diffusion 3 and 3.5."""
    config = network.config
    options.refuse("a model that reads text", "label")
    check_flow(network)
    vae = autoencoder(network, config.get("in_channels", 16))
    width, patch = config.get("joint_attention_dim", 4096), config.get("patch_size", 2)
    texts = embed_sd3(network.folder, both_prompts(options), width)
    pooled = config.get("pooled_projection_dim", 2048)
    check_widths(network, texts, {"encoder_hidden_states": width, "pooled_projections": pooled})
    net = SD3(network.folder.module(network.part, network.kind), texts.conditions, options.guidance)
    side, steps = patch * config.get("pos_embed_max_size", 96), float(network.schedule.get("num_train_timesteps", 1000))
    shape = {"channels": vae.channels, "multiple": patch}
    inner = SD3Flow(net, side=side, factor=vae.factor, time_scale=steps, **shape)
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens)


def flux(network: Network, options: Options) -> Backbone:
    """`FluxTransformer2DModel`: it is given t itself, and takes 2 x 2 elements of the state as one vector."""
    config = network.config
    options.refuse("a model that reads text", "label")
    check_flow(network)
    vae = autoencoder(network, config.get("in_channels", 64) // 4)
    distilled = bool(config.get("guidance_embeds"))
    if distilled:
        options.refuse("a Flux that knows guidance itself", "negative_prompt")
    texts = embed_flux(network.folder, [options.prompt or ""] if distilled else both_prompts(options))
    widths = {"encoder_hidden_states": config.get("joint_attention_dim", 4096)}
    check_widths(network, texts, {**widths, "pooled_projections": config.get("pooled_projection_dim", 768)})
    net = Flux(network.folder.module(network.part, network.kind), texts.conditions, options.guidance, distilled)
    inner = Flow(net, channels=vae.channels, multiple=2)
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens)


Builder = Callable[[Network, Options], Backbone]
BUILDERS: dict[str, Builder] = {
    "UNet2DModel": pixel_unet,
    "UNet2DConditionModel": text_unet,
    "DiTTransformer2DModel": dit,
    "Transformer2DModel": dit,  # what a DiT was called before diffusers 0.29
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
}


# ---- what the builders share -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PipelineAutoencoder:
    """A pipeline's autoencoder: one element of the state stands for `factor` x `factor` pixels."""

    module: DiffusersAutoencoder
    channels: int
    factor: int
    scale: float
    shift: float


def autoencoder(network: Network, channels: int) -> PipelineAutoencoder:
    """The autoencoder of a pipeline whose network takes `channels` channels. Raises BackboneError where they do not fit."""
    place, kind = network.folder.path / "vae", network.folder.config("vae").get("_class_name")
    if kind not in AUTOENCODERS:
        raise BackboneError(f"{place}: holds a {kind}; read are {', '.join(AUTOENCODERS)}")
    module = network.folder.module("vae", kind)
    config: Any = module.config
    if config.in_channels != 3 or config.latent_channels != channels:
        raise BackboneError(
            f"{network.place}: a network of {channels} channels on the {config.latent_channels} of the "
            "autoencoder: inpainting, depth and upscaling models are not read"
        )
    if getattr(config, "latents_mean", None) is not None:
        raise BackboneError(f"{place}: an autoencoder with latents_mean, one shift a channel, is not read")
    widths = config.block_out_channels if kind == "AutoencoderKL" else config.encoder_block_out_channels
    shift = getattr(config, "shift_factor", None) or 0.0
    return PipelineAutoencoder(DiffusersAutoencoder(module), channels, 1 << (len(widths) - 1), config.scaling_factor, shift)


def latent(network: Network, inner: Backbone, vae: PipelineAutoencoder, **conditions: Any) -> Latent:
    """`inner` behind the autoencoder; the fingerprint names the `conditions`."""
    backbone = Latent(inner, vae.module, scale=vae.scale, shift=vae.shift, factor=vae.factor)
    schedule = {**public(network.schedule), "class": network.schedule.get("_class_name")}
    backbone.fingerprint = fingerprint_of({"parts": network.folder.digests, "scheduler": schedule, **conditions}, {})
    return backbone


def both_prompts(options: Options, zeros: bool = False) -> list[str]:
    """The prompt; under guidance [what to go away from, prompt]. Raises BackboneError where guidance has no use of them.

    `zeros` says that the first is replaced by zeros, so that it may be the same text.
    """
    prompt, away = options.prompt or "", options.negative_prompt
    if options.guidance == 1:
        if away is not None:
            raise BackboneError("negative_prompt is what guidance leads away from: give guidance too, 7.5 for example")
        return [prompt]
    if not zeros and prompt == (away or ""):
        raise BackboneError("guidance from a prompt to the same prompt changes nothing: give prompt or negative_prompt")
    return [away or "", prompt]


def class_labels(network: Network, count: int, null: int | None, options: Options) -> list[int]:
    """The class; under guidance [the class that means none, class]. Raises BackboneError: none to take, or out of range."""
    label = null if options.label is None else options.label
    if label is None or not 0 <= label < count:
        raise BackboneError(f"{network.place}: a class-conditional model; give label=0 ... {count - 1}, not {label}")
    if options.guidance == 1:
        return [label]
    if null is None or label == null:
        raise BackboneError(
            f"{network.place}: guidance leads from the class that means none to a label: "
            + ("this model has no such class" if null is None else "give label")
        )
    return [null, label]


def check_widths(network: Network, texts: Embedded, widths: dict[str, Any]) -> None:
    """Raises BackboneError where the text encoders give other widths than the network takes."""
    for name, width in widths.items():
        given = texts.conditions[name].shape[-1]
        if given != width:
            raise BackboneError(f"{network.place}: takes {name} of width {width}; the text encoders give {given}")


def check_flow(network: Network) -> None:
    """Raises BackboneError where the scheduler is not one of flow matching."""
    if not is_flow(network.schedule):
        kind = network.schedule.get("_class_name")
        raise BackboneError(f"{network.place}: a {network.kind} is a flow model, and {kind} is no flow scheduler")


def halvings(config: dict[str, Any]) -> int:
    """How often a UNet halves its input, as the number that height and width are multiples of."""
    return 1 << (len(config.get("block_out_channels") or (1, 1, 1, 1)) - 1)
