"""What a run begins with: a network and its objective, made as a `TrainingJob` says. The loop is in loop.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.cod.cod import read_autoencoder
from noisebook.backbones.cod.nets import CodConfig
from noisebook.backbones.nets.autoencoders import Autoencoder
from noisebook.backbones.nets.convnet import ConvDenoiser, PriorBackbone, PriorDenoiser, checkpoint_tensors
from noisebook.backbones.nets.gaussian import DCTPrior, SpectrumPrior, fit_dct
from noisebook.backbones.nets.realism import RealismNetwork
from noisebook.backbones.wrappers.reparameterised import unviewed
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import TrainingError, first_line
from noisebook.images.targets import curve_of
from noisebook.spec.curve import Curve
from noisebook.training import cod, objectives
from noisebook.training.data import Crops, check_sides
from noisebook.training.decodes import DecodeSet, decodes
from noisebook.training.growing import grown
from noisebook.training.job import TrainingJob
from noisebook.training.loop import Trainable
from noisebook.training.objectives import Objective
from noisebook.training.perceptual import read_trunk
from noisebook.training.realism import Realism
from noisebook.training.reflow import pairs


@dataclass(frozen=True)
class Start:
    """Arguments of the loop: a fresh network at each call, its loss, and how its checkpoint is written. Then what the run's
    recipe says beside the job's own, and what is measured at each save, where it is not the error at some levels."""

    new_model: Callable[[], Trainable]
    objective: Objective
    write: Callable[[nn.Module, Path], None]
    recipe: str = ""
    measure: Callable[[nn.Module], dict[str, Any]] | None = None


# ---- denoisers around a Gaussian prior --------------------------------------------------------------------------------
def denoiser(job: TrainingJob, images: list[np.ndarray]) -> Start:
    """A run of any objective but cod. Raises TrainingError where the network and the images do not go together."""
    first = _loaded(job.init) if job.init else _fresh(job, images)
    if job.init and (shape := _shape_of(job)):
        if "patch" in shape or not isinstance(first, ConvDenoiser):
            raise TrainingError("with --init only --widths and --blocks of a convnet change: leave out the others")
        torch.manual_seed(job.seed)
        first = grown(first, job.widths, job.blocks)
    kind = "convnet" if isinstance(first, ConvDenoiser) else "unet"
    _check_crops(job, first.multiple)
    _check_channels(job, images, first.channels)
    if first.prior.size is not None and list(job.crops) != [first.prior.size[0]]:
        raise TrainingError(f"this network takes images of {first.prior.size}: --sizes {first.prior.size[0]}")

    def new_model() -> PriorDenoiser:
        model = type(first)(first.prior, **first.config)
        model.load_state_dict(first.state_dict())
        return model

    def write(model: nn.Module, path: Path) -> None:
        assert isinstance(model, type(first))
        write_checkpoint(path, kind, model.config, checkpoint_tensors(model))

    return Start(new_model, _objective(job, first), write)


def _check_channels(job: TrainingJob, images: list[np.ndarray], channels: int) -> None:
    if any(image.shape[2] != channels for image in images):
        raise TrainingError(f"this network takes images of {channels} channels; some in {job.data} have others")


def _shape_of(job: TrainingJob) -> dict[str, Any]:
    """What the job says of a network's shape."""
    return {name: getattr(job, name) for name in ("widths", "blocks", "patch") if getattr(job, name) is not None}


def _check_crops(job: TrainingJob, multiple: int) -> None:
    if any(size < 1 or size % multiple for size in job.crops):
        raise TrainingError(f"this network takes crops whose sides are multiples of {multiple}, not {list(job.crops)}")


def _loaded(name: str) -> PriorDenoiser:
    if (net := _network_of(backbones.load(name))) is None:
        raise TrainingError(f"{name!r} is no network that noisebook trained: only such a one is tuned")
    return net


def _network_of(backbone: Backbone) -> PriorDenoiser | None:
    backbone = unviewed(backbone.inner if isinstance(backbone, Tiled) else backbone)
    return backbone.net if isinstance(backbone, PriorBackbone) else None


def _fresh(job: TrainingJob, images: list[np.ndarray]) -> PriorDenoiser:
    """A new network around a Gaussian prior: one fitted to the images where the crops are the images, else photographs'."""
    if {image.shape[:2] for image in images} == {(job.crops[-1], job.crops[-1])}:
        prior = DCTPrior(**fit_dct(np.stack(images[: -job.held_out]))[1])
    else:
        prior = backbones.load("gaussian-prior")
        assert isinstance(prior, SpectrumPrior)
    options = _shape_of(job)
    if job.network == "conv":
        return ConvDenoiser(prior, **options)
    from noisebook.backbones.nets.unet import UNetDenoiser

    try:
        return UNetDenoiser(prior, **options)
    except ValueError as error:
        raise TrainingError(f"no UNet2DModel of these widths: {first_line(error)}") from error


def _objective(job: TrainingJob, first: PriorDenoiser) -> Objective:
    if job.objective == "edm":
        return objectives.edm(*job.level) if job.level else objectives.edm()
    if job.objective == "consistency":
        return objectives.consistency(*job.level) if job.level else objectives.consistency()
    if job.objective == "flow":
        return objectives.flow()
    shape, path = (first.channels, job.crops[-1], job.crops[-1]), Path(job.output) / "pairs.safetensors"
    return objectives.flow(pairs(first.to(job.device).eval(), shape, job.pair_count, 12, path, job.device, job.seed))


# ---- the network of the realism dial ----------------------------------------------------------------------------------
def realism_network(job: TrainingJob, images: list[np.ndarray]) -> Start:
    """A network that makes the convincing picture of the decodes of --init's codec. Raises TrainingError where that has no
    curve, or options and images do not go together."""
    backbone = backbones.load(str(job.init), job.device)
    curve = _curve(job, backbone)
    channels = backbone.channels
    _check_channels(job, images, channels)
    inner = _network_of(backbone)
    config = {"channels": channels, **(inner.config if isinstance(inner, ConvDenoiser) else {}), **_shape_of(job)}
    multiple = math.lcm(RealismNetwork(**config).multiple, backbone.padded(1, 1)[0])
    _check_crops(job, multiple)
    check_sides(images, job.crops)
    trunk, digest = read_trunk(str(job.features))
    mixed = job.number_type == "bfloat16"
    # the codec computes in the same type; the network's own weights are kept as they are
    codec = backbones.load(str(job.init), job.device, {"dtype": job.number_type}) if mixed else backbone
    out, each = Path(job.output), job.pair_count // len(job.crops)
    seen, unseen = images[: -job.held_out], images[-job.held_out :]

    def made(images: list[np.ndarray], size: int, count: int, name: object, seed: int) -> DecodeSet:
        return decodes(curve, codec, images, size, count, out / f"decodes-{name}.safetensors", job.device, seed)

    train = {size: made(seen, size, each, size, job.seed) for size in job.crops}
    size, count = job.crops[-1], max(32, job.held_out)
    held_out = made(unseen, size, count, "held-out", job.seed + 1)
    objective = Realism(
        lambda count, side: train[side].draw(count), trunk, job.device, mixed, job.error, job.adversarial, channels
    )

    def new_model() -> RealismNetwork:
        model = RealismNetwork(**config)
        own, given = model.state_dict(), {} if inner is None else inner.state_dict()
        alike = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape and not k.startswith("leave.")}
        model.load_state_dict(own | alike)
        return model

    def write(model: nn.Module, path: Path) -> None:
        assert isinstance(model, RealismNetwork)
        write_checkpoint(path, "realism", model.config | {"fingerprint": backbone.fingerprint}, checkpoint_tensors(model))

    judged = {"train": (train[size], train[size].spread(count // 2)), "held_out": (held_out, held_out.spread(count))}
    means: dict[str, float] = {}

    def measure(model: nn.Module) -> dict[str, Any]:
        lines: dict[str, Any] = {}
        for name, some in judged.items():
            if f"{name}_loss_mean" not in means:
                given = objective.measure(lambda given: given.mean, *some)
                means.update({f"{name}_{key}_mean": value for key, value in given.items()})
            made = objective.measure(lambda given: model(given.mean, given.y, given.sigma), *some)
            for key, value in made.items():
                lines |= {f"{name}_{key}": value, f"{name}_{key}_mean": means[f"{name}_{key}_mean"]}
        return {**lines, "features_file": digest}

    recipe = f"backbone={backbone.fingerprint} features={digest}"
    return Start(new_model, objective, write, recipe, measure)


def _curve(job: TrainingJob, backbone: Backbone) -> Curve:
    """That of --curve, or the one that came with the backbone. Raises SpecError where there is none, TrainingError for one
    that does not go with it."""
    curve = curve_of(backbone, None if job.curve is None else str(job.curve))
    if curve.fingerprint != backbone.fingerprint:
        raise TrainingError(f"{job.curve}: the curve of another backbone than {job.init!r}")
    if not curve.channels or curve.condition:
        raise TrainingError(f"{job.init!r}: realism takes the codec of a pixel model without a condition")
    return curve


# ---- CoD --------------------------------------------------------------------------------------------------------------
def cod_model(job: TrainingJob, images: list[np.ndarray]) -> Start:
    """A CoD from nothing. Raises TrainingError for options or images that it does not take."""
    hidden, width = (*(job.widths or ()), *(192, 64)[len(job.widths or ()) :])[:2]
    blocks, cell = job.blocks or 8, job.patch or (16 if job.autoencoder else 4)
    if job.init or job.network != "conv" or job.level:
        raise TrainingError("cod begins with a network of its own: without --init, --network and --level")
    shares = 0 <= job.share <= 1 and 0 <= job.dropped <= 1
    if hidden % 64 or width % 32 or blocks < 3 or not 1 <= job.bits <= 16 or not shares:
        raise TrainingError(
            "cod takes --widths HIDDEN WIDTH (multiples of 64 and 32), --blocks from 3, --bits from 1 to "
            "16, --share and --dropped from 0 to 1"
        )
    if any(image.shape[2] != 3 for image in images):
        raise TrainingError(f"cod takes images of 3 channels; some in {job.data} have others")
    autoencoder, latent = _latents(job, images) if job.autoencoder else (None, {})
    config = CodConfig(
        **latent,
        hidden=hidden,
        heads=hidden // 64,
        blocks=blocks,
        cond_blocks=blocks - 2,
        hidden_x=64 if latent else 32,
        ds=job.stride,
        bits=job.bits,
        width=width,
        cell=cell,
    )
    _check_crops(job, cod.CodModel(config, 0, autoencoder).multiple)  # raises BackboneError for some strides of a patch
    extractor, features = cod.read_extractor(Path(job.align), job.device, job.crops[-1]) if job.align else (None, 0)

    def new_model() -> cod.CodModel:
        return cod.CodModel(config, features, autoencoder)

    def write(average: nn.Module, path: Path) -> None:
        write_checkpoint(path, "cod", *cod.tensors_of(average))

    # the loss of dropped images was another before: a run of that time is not resumed with this one
    return Start(new_model, cod.cod(job.share, job.dropped, extractor=extractor), write, "loss=2")


def _latents(job: TrainingJob, images: list[np.ndarray]) -> tuple[Autoencoder, dict[str, Any]]:
    """(the autoencoder, what a CoD's config has of it): the latents are scaled to a root mean square of 1."""
    if any(size % 8 for size in job.crops) or (job.patch or 16) % 8:
        raise TrainingError("a latent is 8 x 8 pixels: --sizes and --patch are multiples of 8")
    autoencoder, _ = read_autoencoder(str(job.autoencoder), job.latents)
    autoencoder = autoencoder.to(job.device).eval().requires_grad_(False)
    crops = Crops(images[: -job.held_out]).sample(64, job.crops[-1], np.random.default_rng(job.seed))
    with torch.no_grad():
        power = float(autoencoder.encode(crops.to(job.device)).square().mean())
    return autoencoder, {"latent": True, "latents": job.latents, "scale": power**-0.5}
