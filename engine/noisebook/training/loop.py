"""The one training loop: a budget of minutes, a moving average of the weights, checkpoints that resume.

The learning rate follows the share of the budget that is spent, so a run that is stopped and resumed ends like a run in one
piece. A run's folder holds `state.pt` (to resume, see state.py), `model.safetensors` (the moving average, bf16) and
`log.json`; each is replaced whole, so a killed run loses at most the minutes since the last save.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from noisebook.backbones.compiling import compile_network, compiled
from noisebook.backbones.nets.convnet import CHANNELS_LAST, PriorDenoiser
from noisebook.errors import TrainingError, first_line
from noisebook.runtime.atomic import replacing
from noisebook.training.cod import CodModel
from noisebook.training.data import Crops, CropsOnDevice, batch, check_sides
from noisebook.training.objectives import Objective
from noisebook.training.optimizer import Optimizer
from noisebook.training.speed import flop_per_pixel, share
from noisebook.training.state import read_state, write_state

Trainable = PriorDenoiser | CodModel


@dataclass(frozen=True)
class TrainingSettings:
    """Numbers of a run; all but `minutes` must be the same when it is resumed.

    sizes      sides of the crops in pixels: each takes an equal share of the budget, unless `random_sizes`
    pixels     in a batch, whatever the size of its crops
    optimizer  adamw or muon, see `optimizer.py`
    dtype      in which the network computes while it is trained; weights and moving average stay float32
    """

    minutes: float = 60.0
    sizes: tuple[int, ...] = (64, 128)
    pixels: int = 3 << 14
    learning_rate: float = 5e-4
    decay: float = 0.9995  # of the moving average
    seed: int = 0
    optimizer: str = "adamw"
    dtype: str = "float32"  # or "bfloat16"
    held_out: int = 64  # the last images are never trained on
    recipe: str = ""  # what else must be the same when the run is resumed, as the caller writes it
    random_sizes: bool = False  # each batch draws its side, between the least and the largest of `sizes`
    shrink: bool = False  # images are also seen at 1/2 to 1 of their size


@runtime_checkable
class Stateful(Protocol):
    """An objective with weights of its own."""

    def __call__(self, model: nn.Module, x0: Tensor, progress: float, /) -> Tensor: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@torch.no_grad()
def validate(model: nn.Module, x0: Tensor, levels: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)) -> dict[str, float]:
    """Mean squared error of x0_hat on held-out crops at a few noise levels, with fixed noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    errors = {}
    for sigma in levels:
        error = sum(
            (model(x + sigma * n, x.new_full((len(x),), sigma)) - x).square().sum().item()
            for x, n in zip(x0.split(8), noise.split(8), strict=True)
        )
        errors[f"mse@{sigma}"] = error / x0.numel()
    return errors


def train(
    new_model: Callable[[], Trainable],
    objective: Objective,
    images: list[np.ndarray],
    out: Path,
    write: Callable[[nn.Module, Path], None],
    settings: TrainingSettings,
    device: str = "cpu",
    save_every: float = 5.0,
    measure: Callable[[nn.Module], dict[str, Any]] | None = None,
    compile: bool = False,
) -> list[dict[str, Any]]:
    """Trains until `settings.minutes` of training time (summed over resumed runs) are spent; returns the log.

    `new_model()` gives a fresh network, `write(average, path)` writes a checkpoint of it. With dtype bfloat16 the network
    computes what it can in that type (its attribute `mixed`). `measure(average)` is what the log says of it; None: the
    error of x0_hat at a few levels, of held-out crops and (`train_`) of others. `compile`: of the network in the loop.
    An objective that learns has `state_dict` and `load_state_dict`.

    Raises TrainingError where `out` holds a run of other settings or images, or files that are no run's, or an image is too
    small.
    """
    check_sides(images, settings.sizes)
    _refuse_other(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    torch.set_flush_denormal(True)  # zero-initialised layers fill Adam's moments with denormals: slow on a CPU
    model, average = (new_model().to(device).to(**CHANNELS_LAST) for _ in range(2))
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False)
    model.mixed = settings.dtype == "bfloat16"  # not the average: it is measured as it will be used
    if compile:
        compile_model(model)
    optimizer = Optimizer(model, settings.optimizer)
    kept = {"objective": objective} if isinstance(objective, Stateful) else {}
    run: dict[str, Any] = {"spent": 0.0, "iteration": 0, "log": []}
    data = _digest(images)
    if (out / "state.pt").exists():
        run = _resume(out / "state.pt", settings, data, device, model=model, average=average, optimizer=optimizer, **kept)
    rng = np.random.default_rng((settings.seed, run["iteration"]))
    torch.manual_seed(settings.seed + run["iteration"])
    seen, unseen, size = images[: -settings.held_out], images[-settings.held_out :], settings.sizes[-1]
    source = CropsOnDevice(seen, device) if device.startswith("cuda") else Crops(seen)
    judged = {} if measure else {name: Crops(some) for name, some in (("", unseen), ("train_", seen))}
    judged = {k: c.sample(max(32, settings.held_out), size, np.random.default_rng(1)).to(device) for k, c in judged.items()}
    judged = {name: model.states(x) if isinstance(model, CodModel) else x for name, x in judged.items()}

    def errors() -> dict[str, Any]:
        return {f"{name}{key}": value for name, x in judged.items() for key, value in validate(average, x).items()}

    def save() -> None:
        entry = {"minutes": run["spent"] / 60, "iteration": run["iteration"], "loss": running}
        run["log"].append(entry | (measure(average) if measure else errors()))
        print(json.dumps(run["log"][-1]), file=sys.stderr, flush=True)
        parts = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        parts |= {name: part.state_dict() for name, part in kept.items()}
        state = {**parts, **run, "settings": _identity(settings), "data": data}
        try:
            write_state(out, state)
            with replacing(out / "model.safetensors") as path:
                write(average, path)
            with replacing(out / "log.json") as path:
                path.write_text(json.dumps(run["log"], indent=1) + "\n")
        except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
            reason = first_line(error)
            raise TrainingError(f"{out}: cannot be written ({reason}); what was saved before is whole: resume") from error

    begun, pixels = run["spent"], 0
    running, last, next_save = None, time.monotonic(), run["spent"] / 60 + save_every
    while (progress := run["spent"] / 60 / settings.minutes) < 1:
        warm = min(1.0, progress / 0.05 + 1e-3)
        rate = settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        x0 = batch(source, settings.pixels, _sides(settings, model.multiple, progress), settings.shrink, rng)
        x0 = x0.to(device, memory_format=torch.channels_last)
        loss = objective(model, x0, progress)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate)
        pixels += x0.numel() // x0.shape[1]
        run["iteration"] += 1
        decay = min(settings.decay, (run["iteration"] + 1) / (run["iteration"] + 10))
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        if run["iteration"] % 20 == 1:
            running = loss.item() if running is None else 0.9 * running + 0.1 * loss.item()
            if not math.isfinite(running):
                raise TrainingError(
                    f"the loss is {running} at iteration {run['iteration']}: begin anew with a lower --learning-rate"
                )
        now = time.monotonic()
        run["spent"], last = run["spent"] + now - last, now
        if run["spent"] / 60 >= next_save:
            save()
            next_save, last = run["spent"] / 60 + save_every, time.monotonic()
    if not run["log"] or run["log"][-1]["iteration"] < run["iteration"]:
        save()
    if pixels and device.startswith("cuda"):
        flop = flop_per_pixel(average, images[0].shape[2], size, device)
        line = share(pixels / (run["spent"] - begun), flop, torch.cuda.get_device_name(device))
        print(json.dumps(line), file=sys.stderr, flush=True)
    return run["log"]


def _sides(settings: TrainingSettings, multiple: int, progress: float) -> tuple[int, ...]:
    """Of which the next batch draws one."""
    if settings.random_sizes:
        return tuple(range(min(settings.sizes), max(settings.sizes) + 1, multiple))
    return (settings.sizes[int(progress * len(settings.sizes))],)


def compile_model(model: Trainable) -> None:
    """Runs the network of a model through torch.compile, in place."""
    if isinstance(model, CodModel):
        compile_network(model.net)
    else:
        model.residual = compiled(model.residual)


def _refuse_other(out: Path) -> None:
    """Raises TrainingError where a run would replace files that are no run's: without its state."""
    if not (out / "state.pt").exists():
        for path in (out / "model.safetensors", out / "log.json"):
            if path.exists():
                raise TrainingError(f"{path}: it is there already, and no run that could go on: give another -o")


def _identity(settings: TrainingSettings) -> str:
    """What must not change between the parts of a run."""
    left_out = {"minutes", *(name for name in ("random_sizes", "shrink") if not getattr(settings, name))}  # as before them
    return json.dumps({k: v for k, v in asdict(settings).items() if k not in left_out}, sort_keys=True)


def _digest(images: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.hexdigest()


def _resume(path: Path, settings: TrainingSettings, data: str, device: str, **parts: Any) -> dict[str, Any]:
    """Loads the parts from a saved state; returns the run's counters and log."""
    try:
        state = read_state(path, device)
        same = state["settings"] == _identity(settings)
        for name, part in parts.items() if same else ():
            part.load_state_dict(state[name])
        run = {name: state[name] for name in ("spent", "iteration", "log")}
    except Exception as error:  # torch.load raises many types for a damaged file
        raise TrainingError(f"{path}: no state to resume ({first_line(error)}); give another -o") from error
    if state.get("data", data) != data:  # older runs do not say
        raise TrainingError(f"{path}: a run on other images; give the same ones, or another -o")
    if not same:
        raise TrainingError(f"{path}: a run of other settings; give the same ones, or another -o")
    return run
