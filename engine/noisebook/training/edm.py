"""Trains a `ConvDenoiser` on photographs within a budget of minutes, on a CPU or a CUDA device.

    python -m noisebook.training.edm photos.npz -o runs/photo --minutes 60      # again to resume an unfinished run

`photos.npz` holds WebP images end to end (`webp` uint8, `offsets` int64 [N+1]) or an array `images` uint8 [N, H, W, 3].
The learning rate follows the share of the budget that is spent, so a run that is stopped and resumed ends as one that
was not. Writes `state.pt` (to resume), `model.safetensors` (bf16, the moving average) and `log.json`.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisebook import backbones
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.convnet import ConvDenoiser, checkpoint_tensors, correction_scale
from noisebook.backbones.gaussian import SpectrumPrior
from noisebook.backbones.npz import load_npz_images

HELD_OUT = 64  # the last images are never trained on


def crops(images: list[np.ndarray], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Random square crops with random flips, float32 [count, 3, size, size] in [-1, 1]."""
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        image = images[rng.integers(len(images))]
        y, x = (rng.integers(n - size + 1) for n in image.shape[:2])
        crop = image[y : y + size, x : x + size]
        out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() * (2 / 255) - 1


def weighted_loss(model: ConvDenoiser, x0: Tensor, lam: Tensor) -> Tensor:
    """Denoising error with unit weight on the raw network's target at every level (as Karras et al. 2022, eq. 8)."""
    x0_hat = model(x0 + lam[:, None, None, None] * torch.randn_like(x0), lam)
    return (correction_scale(lam) ** -2 * (x0_hat - x0).square().mean((1, 2, 3))).mean()


@torch.no_grad()
def validate(model: ConvDenoiser, x0: Tensor, levels: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)) -> dict[str, float]:
    """Mean squared error of x0_hat on held-out crops at a few noise levels, with fixed noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    errors = {}
    for lam in levels:
        error = sum(
            (model(x + lam * n, x.new_full((len(x),), lam)) - x).square().sum().item()
            for x, n in zip(x0.split(8), noise.split(8), strict=True)
        )
        errors[f"mse@{lam}"] = error / x0.numel()
    return errors


def _new_network(device: str) -> ConvDenoiser:
    prior = backbones.load("gaussian-prior")
    assert isinstance(prior, SpectrumPrior)
    return ConvDenoiser(prior).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(
    images: list[np.ndarray], out: Path, minutes: float, device: str, seed: int = 0, pixels: int = 3 << 14,
    learning_rate: float = 5e-4, save_every: float = 5.0,
) -> ConvDenoiser:  # fmt: skip
    """Trains until `minutes` of training time (summed over resumed runs) are spent; returns the moving average."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # zero-initialised layers fill Adam's moments with denormals: slow on a CPU
    model, average = (_new_network(device) for _ in range(2))
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    spent, iteration, log = 0.0, 0, []
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        spent, iteration, log = state["spent"], state["iteration"], state["log"]
    rng = np.random.default_rng((seed, iteration))
    torch.manual_seed(seed + iteration)
    held_out = crops(images[-HELD_OUT:], 32, 128, np.random.default_rng(1)).to(device)
    images = images[:-HELD_OUT]

    def save() -> None:
        log.append({"minutes": spent / 60, "iteration": iteration, "loss": running, **validate(average, held_out)})
        print(json.dumps(log[-1]), flush=True)
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                 "spent": spent, "iteration": iteration, "log": log}  # fmt: skip
        torch.save(state, out / "state.tmp")
        os.replace(out / "state.tmp", out / "state.pt")
        write_checkpoint(out / "model.tmp", "convnet", average.config, checkpoint_tensors(average))
        os.chmod(out / "model.tmp", 0o644)
        os.replace(out / "model.tmp", out / "model.safetensors")
        (out / "log.json").write_text(json.dumps(log, indent=1))

    running, last, next_save = 1.0, time.monotonic(), spent / 60 + save_every
    while (progress := spent / 60 / minutes) < 1:
        size = 64 if progress < 0.5 else 128  # small crops first: more variety a second while the rate is high
        warm = min(1.0, (iteration + 1) / 500)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        x0 = crops(images, max(1, pixels // size**2), size, rng).to(device, memory_format=torch.channels_last)
        lam = (torch.randn(len(x0), device=device) * 1.3 - 0.7).exp().clamp(0.02, 40)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = weighted_loss(model, x0, lam)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        iteration += 1
        decay = min(0.9995, (iteration + 1) / (iteration + 10))
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        if iteration % 20 == 0:
            running = 0.9 * running + 0.1 * loss.item()
        now = time.monotonic()
        spent, last = spent + now - last, now
        if spent / 60 >= next_save:
            save()
            next_save, last = spent / 60 + save_every, time.monotonic()
    save()
    return average


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m noisebook.training.edm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="an .npz of photographs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pixels", type=int, default=3 << 14, help="pixels in a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    train(load_npz_images(args.data), args.output, args.minutes, args.device, args.seed, args.pixels)


if __name__ == "__main__":
    main()
