"""What a run begins with: a network and its objective, made as a `TrainingJob` says. The loop is in loop.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from noisebook import backbones
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.cod.cod import read_autoencoder
from noisebook.backbones.cod.nets import CodConfig
from noisebook.backbones.nets.autoencoders import Autoencoder
from noisebook.backbones.nets.convnet import ConvDenoiser, PriorBackbone, PriorDenoiser, checkpoint_tensors
from noisebook.backbones.nets.gaussian import DCTPrior, SpectrumPrior, fit_dct
from noisebook.backbones.wrappers.reparameterised import unviewed
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import TrainingError, first_line
from noisebook.training import cod, objectives
from noisebook.training.data import Crops
from noisebook.training.growing import grown
from noisebook.training.job import TrainingJob
from noisebook.training.loop import Trainable
from noisebook.training.objectives import Objective
from noisebook.training.reflow import pairs


@dataclass(frozen=True)
class Start:
    """The first three arguments of the loop: a fresh network at each call, its loss, and how its checkpoint is written."""

    new_model: Callable[[], Trainable]
    objective: Objective
    write: Callable[[nn.Module, Path], None]


# ---- denoisers around a Gaussian prior --------------------------------------------------------------------------------
def denoiser(job: TrainingJob, images: list[np.ndarray]) -> Start:
    """A run of any objective but cod. Raises TrainingError where the network and the images do not go together."""
    first = _loaded(job.init) if job.init else _fresh(job, images)
    if job.init and (job.widths or job.blocks) and isinstance(first, ConvDenoiser):
        torch.manual_seed(job.seed)
        first = grown(first, job.widths, job.blocks)
    kind = "convnet" if isinstance(first, ConvDenoiser) else "unet"
    _check_crops(job, first.multiple)
    if any(image.shape[2] != first.channels for image in images):
        raise TrainingError(f"this network takes images of {first.channels} channels; some in {job.data} have others")
    if first.prior.size is not None and list(job.sizes) != [first.prior.size[0]]:
        raise TrainingError(f"this network takes images of {first.prior.size}: --sizes {first.prior.size[0]}")

    def new_model() -> PriorDenoiser:
        model = type(first)(first.prior, **first.config)
        model.load_state_dict(first.state_dict())
        return model

    def write(model: nn.Module, path: Path) -> None:
        assert isinstance(model, type(first))
        write_checkpoint(path, kind, model.config, checkpoint_tensors(model))

    return Start(new_model, _objective(job, first), write)


def _check_crops(job: TrainingJob, multiple: int) -> None:
    if any(size < 1 or size % multiple for size in job.sizes):
        raise TrainingError(f"this network takes crops whose sides are multiples of {multiple}, not {list(job.sizes)}")


def _loaded(name: str) -> PriorDenoiser:
    backbone = backbones.load(name)
    backbone = unviewed(backbone.inner if isinstance(backbone, Tiled) else backbone)
    if not isinstance(backbone, PriorBackbone):
        raise TrainingError(f"{name!r} is no network that noisebook trained: only such a one is tuned")
    return backbone.net


def _fresh(job: TrainingJob, images: list[np.ndarray]) -> PriorDenoiser:
    """A new network around a Gaussian prior: one fitted to the images where the crops are the images, else photographs'."""
    if {image.shape[:2] for image in images} == {(job.sizes[-1], job.sizes[-1])}:
        prior = DCTPrior(**fit_dct(np.stack(images[: -job.held_out]))[1])
    else:
        prior = backbones.load("gaussian-prior")
        assert isinstance(prior, SpectrumPrior)
    options = {name: getattr(job, name) for name in ("widths", "blocks", "patch") if getattr(job, name) is not None}
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
    shape, path = (first.channels, job.sizes[-1], job.sizes[-1]), Path(job.output) / "pairs.safetensors"
    return objectives.flow(pairs(first.to(job.device).eval(), shape, job.pairs, 12, path, job.device, job.seed))


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
    extractor, features = cod.read_extractor(Path(job.align), job.device, job.sizes[-1]) if job.align else (None, 0)

    def new_model() -> cod.CodModel:
        return cod.CodModel(config, features, autoencoder)

    def write(average: nn.Module, path: Path) -> None:
        write_checkpoint(path, "cod", *cod.tensors_of(average))

    return Start(new_model, cod.cod(job.share, job.dropped, extractor=extractor), write)


def _latents(job: TrainingJob, images: list[np.ndarray]) -> tuple[Autoencoder, dict[str, Any]]:
    """(the autoencoder, what a CoD's config has of it): the latents are scaled to a root mean square of 1."""
    if any(size % 8 for size in job.sizes) or (job.patch or 16) % 8:
        raise TrainingError("a latent is 8 x 8 pixels: --sizes and --patch are multiples of 8")
    autoencoder, _ = read_autoencoder(str(job.autoencoder), job.latents)
    autoencoder = autoencoder.to(job.device).eval().requires_grad_(False)
    crops = Crops(images[: -job.held_out]).sample(64, job.sizes[-1], np.random.default_rng(job.seed))
    with torch.no_grad():
        power = float(autoencoder.encode(crops.to(job.device)).square().mean())
    return autoencoder, {"latent": True, "latents": job.latents, "scale": power**-0.5}
