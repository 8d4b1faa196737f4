"""Adapter of unconditional pixel models in diffusers' layout: a `UNet2DModel` and the schedule it was trained with."""

import importlib
import json
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.errors import BackboneError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Attention layers of UNets that were saved before diffusers 0.15, and what they are called since.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class DiffusersUNet(Backbone):
    """x0_hat of a discrete-time model that predicts eps, v or x0 from x = s y (s = sqrt(abar), sigma = s lam).

    `unet` is called as `unet(x [B, C, H, W] float32, timesteps [B] int64)` and returns an object with `.sample`
    [B, C or more, H, W], of which the first C channels count (the others are a learned variance). `alphas_cumprod` are
    the model's abar over t = 0, 1, ..., falling, in (0, 1); a last level with abar = 0 has no lam and is left out.
    Raises BackboneError on other levels or on another prediction type.
    """

    def __init__(self, unet: nn.Module, alphas_cumprod: list[float], prediction_type: str, channels: int = 3):
        super().__init__()
        if prediction_type not in PREDICTIONS:
            raise BackboneError(f"prediction type {prediction_type!r} is none of {', '.join(PREDICTIONS)}")
        levels = alphas_cumprod[:-1] if alphas_cumprod and alphas_cumprod[-1] == 0 else alphas_cumprod
        if not levels or not levels[0] < 1 or not levels[-1] > 0 or sorted(set(levels), reverse=True) != list(levels):
            raise BackboneError("the scheduler's alphas_cumprod do not fall from below 1 towards 0")
        self.unet, self.channels, self.prediction_type = unet, channels, prediction_type
        self.scales = [math.sqrt(abar) for abar in levels]  # s of timestep t
        self.levels = [math.sqrt((1 - abar) / abar) for abar in levels]  # lam of timestep t, rising
        self.inside: dict[str, Any] = {}  # dtype and memory format of the UNet's inputs, where they are not y's

    def timestep(self, lam: float) -> int:
        """The timestep whose level is nearest to lam > 0 in log distance."""
        t = bisect_left(self.levels, lam)
        if t == 0 or t == len(self.levels):
            return min(t, len(self.levels) - 1)
        return t if lam * lam > self.levels[t - 1] * self.levels[t] else t - 1

    def snap(self, lam: float) -> float:
        """The model's level nearest to lam in log distance."""
        return self.levels[self.timestep(lam)]

    def denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 at the model's level nearest to lam -> x0_hat, same shape and dtype (method.md, 1).

        That level serves the input's scale, the timestep and the formula alike. x0_hat is not clipped. No scalar is read
        back from the device.
        """
        t = self.timestep(lam)
        lam, s = self.levels[t], self.scales[t]
        x = y * s
        times = torch.full((len(y),), t, dtype=torch.long, device=y.device)
        out = self.unet(x.to(**self.inside), times).sample[:, : self.channels].float()
        if self.prediction_type == "epsilon":
            return y - lam * out
        if self.prediction_type == "v_prediction":
            return s * x - s * lam * out
        return out

    def _accelerate(self, dtype: torch.dtype, channels_last: bool, compile: bool) -> None:
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.inside = {"dtype": dtype, "memory_format": layout}
        self.unet.to(**self.inside)
        if compile:
            self.unet.compile()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BackboneError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise BackboneError(f"{path}: not a JSON object")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder, as stored. Raises BackboneError: none, only pickles, or a damaged file."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*.bin")]
        reason = f"{pickles[0]} is a pickle, which can run code; convert it" if pickles else "there are no weights"
        raise BackboneError(f"{folder}: no {WEIGHTS_FILE}: {reason} (diffusers: save_pretrained with safetensors)")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: damaged or no safetensors file ({error})") from error


def find_scheduler(folder: Path, model: Path) -> dict[str, Any]:
    """The scheduler's config of a pipeline or model folder. Raises BackboneError: none, or of another kind."""
    names = ("scheduler/scheduler_config.json", "scheduler_config.json")
    path = next((p for p in (base / name for base in (folder, model) for name in names) if p.is_file()), None)
    if path is None:
        raise BackboneError(f"{folder}: no {' or '.join(names)}: the weights alone do not say which noise levels they know")
    config = read_json(path)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise BackboneError(f"{path}: {config.get('_class_name')} has no beta_schedule; only discrete-time models are read")
    return config


def from_folder(path: str | Path) -> Backbone:
    """The model in a folder: a pipeline (`model_index.json`, `unet/`, `scheduler/`) or a bare `UNet2DModel`.

    A bare model (`config.json` and its weights) needs the scheduler's config beside it or in `scheduler/`. Weights come
    from safetensors only and run in float32. Levels are diffusers' own betas, multiplied up in float64. Raises
    BackboneError where something is missing, damaged, or of a kind that is not read.
    """
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        raise BackboneError("this backbone needs diffusers: pip install 'noisebook[diffusers]'") from error
    folder = Path(path)
    model = folder / "unet" if (folder / "model_index.json").is_file() else folder
    if not (model / "config.json").is_file():
        raise BackboneError(f"{model}: no config.json, so this is no model folder of diffusers")
    config, schedule = read_json(model / "config.json"), find_scheduler(folder, model)
    if config.get("_class_name") != "UNet2DModel":
        raise BackboneError(f"{model}: holds a {config.get('_class_name')}; only UNet2DModel is read")
    if config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None:
        raise BackboneError(f"{model}: a class-conditional UNet2DModel; these are not read yet")
    if config.get("time_embedding_type", "positional") == "fourier":
        raise BackboneError(f"{model}: a model of continuous noise levels (fourier embedding); these are not read")
    tensors = read_weights(model)
    channels = config.get("in_channels", 3)
    learned = str(schedule.get("variance_type")).startswith("learned")
    if channels not in (1, 3) or config.get("out_channels", 3) not in (channels, channels * (1 + learned)):
        raise BackboneError(f"{model}: {channels} channels in, {config.get('out_channels', 3)} out; only 1 or 3 are read")
    try:
        size = config.get("sample_size")
        if size is not None:
            size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        unet = diffusers.UNet2DModel.from_config(config)
        unet.load_state_dict({_renamed(name): t.float() for name, t in tensors.items()})
        scheduler = diffusers.DDPMScheduler.from_config(schedule)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{folder}: config and weights do not make a UNet2DModel: {reason}") from error
    levels = (1 - scheduler.betas.double()).cumprod(0).tolist()
    backbone = DiffusersUNet(unet, levels, schedule.get("prediction_type", "epsilon"), channels)
    backbone.size, backbone.name = size, folder.resolve().name
    if size is None:
        backbone.multiple = 1 << (len(unet.config["block_out_channels"]) - 1)
    kept = [{k: v for k, v in c.items() if not k.startswith("_")} for c in (config, schedule)]
    backbone.fingerprint = fingerprint_of({"config": kept[0], "scheduler": kept[1]}, tensors)
    return backbone


def _renamed(name: str) -> str:
    """A parameter's present name: attention layers were called otherwise before diffusers 0.15."""
    if "attentions" in name:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
    return name
