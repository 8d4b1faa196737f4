"""Pairs of noise and image for rectified flow: a trained model's own probability-flow ODE joins them (Liu et al. 2023)."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from noisebook.codec.solvers import solve_ode
from noisebook.runtime.atomic import replacing
from noisebook.spec.schedule import karras
from noisebook.training.objectives import LEAST, MOST, column

Pairs = Callable[[int], tuple[Tensor, Tensor]]  # count -> (x0, eps), each [count, C, H, W]


@torch.no_grad()
def ode(model: nn.Module, noise: Tensor, steps: int) -> Tensor:
    """Where the ODE dy/dsigma = (y - x0_hat) / sigma takes y = MOST * noise: Heun's method, 2 `steps` + 1 NFE."""

    def denoise(y: Tensor, sigma: float) -> Tensor:
        return model(y, y.new_full((len(y),), sigma))

    first, *levels = karras(MOST, LEAST, steps)
    return denoise(solve_ode("heun", denoise, first * noise, first, levels), LEAST)


def pairs(model: nn.Module, shape: tuple[int, ...], count: int, steps: int, path: Path, device: str, seed: int) -> Pairs:
    """`count` pairs made with `model` once and kept in `path` (float16), drawn at random from then on."""
    if not path.exists():
        generator, images, noises = torch.Generator().manual_seed(seed), [], []
        for start in range(0, count, 64):
            noise = torch.randn(min(64, count - start), *shape, generator=generator)
            images.append(ode(model, noise.to(device), steps).half().cpu())
            noises.append(noise.half())
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({"x0": torch.cat(images), "noise": torch.cat(noises)}, temporary)
    stored = load_file(path, device=device)

    def draw(wanted: int) -> tuple[Tensor, Tensor]:
        i = torch.randint(len(stored["x0"]), (wanted,), device=device)
        mirrored = column(torch.rand(wanted, device=device) < 0.5)
        x0, noise = (stored[name][i].float() for name in ("x0", "noise"))
        return torch.where(mirrored, x0.flip(3), x0), torch.where(mirrored, noise.flip(3), noise)

    return draw
