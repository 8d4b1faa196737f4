"""One builder for each class of diffusers' networks: the parts of a folder, put together into a backbone.

What changes x0_hat enters the fingerprint: class, config and weight files of every part, the scheduler's config, the ids of
the prompts' tokens or of the classes, guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone
from noisebook.backbones.diffusers.files import Folder, public
from noisebook.backbones.diffusers.levels import adapter, direction, is_flow, kind_of, reading, times_of
from noisebook.backbones.diffusers.nets import SD3, DiT, Flux, SD3Flow, TextUNet, UNet2D, guidance_embedding
from noisebook.backbones.diffusers.parts import identify_latent, identify_plain
from noisebook.backbones.diffusers.text import Embedded, embed_flux, embed_sd, embed_sd3, embed_sdxl
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError, printable

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
VQ = "VQModel"  # the autoencoder of an LDMPipeline, whose decoder quantises
MOST_WIDTH = 1 << 14  # of an embedding
# Fields of a UNet2DConditionModel that bring other conditions than those of Stable Diffusion, and what is read of them.
TEXT_UNETS = {
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,),
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


# ---- UNets without text ------------------------------------------------------------------------------------------------
def plain_unet(network: Network, options: Options) -> Backbone:
    """`UNet2DModel` in discrete time, or as a score (VE, VP), consistency, EDM or flow model; with classes or without.

    Of pixels, or of the codes of the autoencoder that the pipeline's index names, as in an LDMPipeline.
    """
    folder, config, schedule = network.folder, network.config, network.schedule
    kind = schedule.get("_class_name")
    options.refuse("a UNet2DModel", "prompt", "negative_prompt")
    folder.only("a UNet2DModel", "unet", "scheduler", "vae", "vqvae")
    part = code_part(network)
    if config.get("class_embed_type") is not None:
        raise BackboneError(f"{network.place}: class_embed_type {config['class_embed_type']!r} is not read")
    fourier = config.get("time_embedding_type", "positional") == "fourier"
    if fourier != (kind == "ScoreSdeVeScheduler"):
        embedding = "fourier" if fourier else "positional"
        raise BackboneError(f"{network.place}: a {kind} does not go with a {embedding} time embedding")
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    learned = str(schedule.get("variance_type")).startswith("learned")
    if (part is None and channels not in (1, 3)) or out not in (channels, channels * (1 + learned)):
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
    vae = autoencoder(network, channels, part) if part else None
    if "beta_schedule" not in schedule:
        more["scheduler_class"] = kind
    net = UNet2D(folder.module(network.part, "UNet2DModel"), conditions, options.guidance)
    if vae is not None:
        inner = adapter(net, schedule, network.place, channels=channels, multiple=halvings(config))
        return latent(network, inner, vae, **more)
    size = config.get("sample_size")
    if size is not None:
        size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    multiple = 1 if size else halvings(config)
    backbone = adapter(net, schedule, network.place, channels=channels, size=size, multiple=multiple)
    read, more = folder.read[network.part], {**more, **reading(schedule)}
    identify_plain(backbone, read, public(schedule), kind_of(schedule), more)
    return backbone


def code_part(network: Network) -> str | None:
    """The part that makes the codes which a `UNet2DModel` was trained on; None: it was trained on pixels.

    Raises BackboneError where there are two, or one that no index names."""
    folder, names = network.folder, ("vqvae", "vae")
    parts = [name for name in names if folder.has(name)]
    if len(parts) > 1:
        raise BackboneError(f"{folder.path}: its index names a vqvae and a vae; which one the network works on is not said")
    beside = [] if folder.index else [name for name in names if (folder.path / name / "config.json").is_file()]
    if beside:
        raise BackboneError(
            f"{folder.path}: {beside[0]}/ lies beside the model, and no model_index.json says whether the network works on "
            "its codes: add the pipeline's model_index.json, or move the model away from it"
        )
    return parts[0] if parts else None


# ---- models of latents -------------------------------------------------------------------------------------------------
def text_unet(network: Network, options: Options) -> Backbone:
    """`UNet2DConditionModel`: Stable Diffusion 1 and 2, SDXL, their Turbo and LCM models."""
    folder, config = network.folder, network.config
    options.refuse("a model that reads text", "label")
    for name, known in TEXT_UNETS.items():
        if config.get(name) not in known:
            raise BackboneError(
                f"{network.place}: {name} {config[name]!r} is not read, only Stable Diffusion 1, 2, SDXL and LCM"
            )
    text = ("text_encoder", "tokenizer")
    sdxl = config.get("addition_embed_type") is not None
    folder.only("a model of text", "unet", "scheduler", "vae", *text, *(f"{name}_2" for name in text if sdxl))
    distilled = guidance_width(network)
    if distilled:
        options.refuse("a network that knows guidance itself", "negative_prompt")
    vae = autoencoder(network, config.get("in_channels", 4))
    # SDXL's pipeline takes zeros for a negative prompt that is left out
    zeros = sdxl and options.negative_prompt is None and bool(folder.index.get("force_zeros_for_empty_prompt", True))
    prompts = [options.prompt or ""] if distilled else both_prompts(options, zeros)
    zeros = zeros and len(prompts) == 2
    texts = embed_sdxl(folder, prompts, zeros) if sdxl else embed_sd(folder, prompts)
    widths = {"encoder_hidden_states": config.get("cross_attention_dim", 1280)}
    if sdxl:
        sizes = 6 * (config.get("addition_time_embed_dim") or 0)
        widths["text_embeds"] = (config.get("projection_class_embeddings_input_dim") or 0) - sizes
    check_widths(network, texts, widths)
    if distilled:
        texts.conditions["timestep_cond"] = guidance_embedding(options.guidance, distilled)
    net = TextUNet(folder.module(network.part, network.kind), texts.conditions, options.guidance, vae.factor)
    inner = adapter(net, network.schedule, network.place, channels=vae.channels, multiple=halvings(config))
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens, zeros=zeros)


def dit(network: Network, options: Options) -> Backbone:
    """`DiTTransformer2DModel`: a class in place of a prompt, one size."""
    config = network.config
    options.refuse("a DiT", "prompt", "negative_prompt")
    network.folder.only("a DiT", "transformer", "scheduler", "vae")
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
    text = [f"{name}{end}" for name in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    network.folder.only("a Stable Diffusion 3", "transformer", "scheduler", "vae", *text)
    vae = autoencoder(network, config.get("in_channels", 16))
    width, patch = config.get("joint_attention_dim", 4096), config.get("patch_size", 2)
    texts = embed_sd3(network.folder, both_prompts(options), width)
    pooled = config.get("pooled_projection_dim", 2048)
    check_widths(network, texts, {"encoder_hidden_states": width, "pooled_projections": pooled})
    net = SD3(network.folder.module(network.part, network.kind), texts.conditions, options.guidance)
    side, steps = patch * config.get("pos_embed_max_size", 96), float(times_of(network.schedule, network.place))
    shape = {"channels": vae.channels, "multiple": patch, **direction(network.schedule)}
    inner = SD3Flow(net, side=side, factor=vae.factor, time_scale=steps, **shape)
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens)


def flux(network: Network, options: Options) -> Backbone:
    """`FluxTransformer2DModel`: it is given t itself, and takes 2 x 2 elements of the state as one vector."""
    config = network.config
    options.refuse("a model that reads text", "label")
    check_flow(network)
    text = [f"{name}{end}" for name in ("text_encoder", "tokenizer") for end in ("", "_2")]
    network.folder.only("a Flux", "transformer", "scheduler", "vae", *text)
    vae = autoencoder(network, config.get("in_channels", 64) // 4)
    distilled = bool(config.get("guidance_embeds"))
    if distilled:
        options.refuse("a Flux that knows guidance itself", "negative_prompt")
    texts = embed_flux(network.folder, [options.prompt or ""] if distilled else both_prompts(options))
    widths = {"encoder_hidden_states": config.get("joint_attention_dim", 4096)}
    check_widths(network, texts, {**widths, "pooled_projections": config.get("pooled_projection_dim", 768)})
    net = Flux(network.folder.module(network.part, network.kind), texts.conditions, options.guidance, distilled)
    # the pipeline divides the scheduler's times by 1000, however many there are
    times = times_of(network.schedule, network.place)
    inner = Flow(net, times / 1000, channels=vae.channels, multiple=2, **direction(network.schedule))
    more = {} if times == 1000 else {"time_scale": times / 1000}
    return latent(network, inner, vae, guidance=options.guidance, tokens=texts.tokens, **more)


Builder = Callable[[Network, Options], Backbone]
BUILDERS: dict[str, Builder] = {
    "UNet2DModel": plain_unet,
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


def autoencoder(network: Network, channels: int, part: str = "vae") -> PipelineAutoencoder:
    """The autoencoder of a pipeline whose network takes `channels` channels. Raises BackboneError where they do not fit."""
    place, kind = network.folder.path / part, str(network.folder.config(part).get("_class_name"))
    known = (*AUTOENCODERS, VQ) if network.kind == "UNet2DModel" else AUTOENCODERS
    if kind not in known:
        raise BackboneError(f"{place}: holds a {kind}; read are {', '.join(known)}")
    module = network.folder.module(part, kind)
    config: Any = module.config
    codes = (config.get("vq_embed_dim") or config.latent_channels) if kind == VQ else config.latent_channels
    if (config.in_channels, config.out_channels, codes) != (3, 3, channels):
        raise BackboneError(
            f"{network.place}: a network of {channels} channels on the {codes} of the autoencoder, whose images have "
            f"{config.in_channels}: inpainting, depth and upscaling models are not read"
        )
    for name in ("latents_mean", "latents_std"):
        if getattr(config, name, None) is not None:
            raise BackboneError(f"{place}: an autoencoder with {name}, one number a channel, is not read")
    if getattr(config, "lookup_from_codebook", False):
        raise BackboneError(f"{place}: a {VQ} with lookup_from_codebook is not read")
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    if not all(type(n) in (int, float) and math.isfinite(n) for n in (scale, shift)) or not scale:
        raise BackboneError(
            f"{place}: scaling_factor and shift_factor are numbers, the first not 0, not {printable(scale, 40)} and "
            f"{printable(shift, 40)}"
        )
    widths = config.encoder_block_out_channels if kind == "AutoencoderTiny" else config.block_out_channels
    return PipelineAutoencoder(DiffusersAutoencoder(module), channels, 1 << (len(widths) - 1), scale, shift)


def latent(network: Network, inner: Backbone, vae: PipelineAutoencoder, **conditions: Any) -> Latent:
    """`inner` behind the autoencoder; the fingerprint names the `conditions`."""
    backbone = Latent(inner, vae.module, scale=vae.scale, shift=vae.shift, factor=vae.factor)
    schedule = {**public(network.schedule), "class": network.schedule.get("_class_name")}
    header = {"scheduler": schedule, **conditions, **reading(network.schedule)}
    identify_latent(backbone, network.folder.read, header)
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


def guidance_width(network: Network) -> int:
    """How many numbers a UNet is given that stand for the guidance scale (LCM); 0: none. Raises BackboneError for a width
    that is none."""
    width = network.config.get("time_cond_proj_dim")
    if width is not None and (type(width) is not int or not 4 <= width <= MOST_WIDTH):
        raise BackboneError(
            f"{network.place}: time_cond_proj_dim is a whole number from 4 to {MOST_WIDTH:,}, not {printable(width, 40)}"
        )
    return width or 0


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
