"""What tests share: a tiny backbone that needs no weights, fresh random images, recipes, and compiled kernels."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisebook import backbones
from noisebook.backbones import Backbone, fingerprint_of
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.backbones.nets.realism import RealismNetwork

ROOT = Path(__file__).resolve().parents[1]

# Changes to a recipe that lead through every part of the loop
RECIPES = {
    "plain": {},
    "independent": {"codebook": "independent"},
    "codebook start": {"start_budget": 8, "start_vocab_size": 1024},
    "2-D": {"rows": 2, "columns": 3, "start_budget": 2},
    "p=0 euler": {"p": 0, "sigma_max": 0.5, "solver": "euler", "solver_steps": 4},
    "p=.3 heun": {"p": 0.3, "solver": "heun", "solver_steps": 3},
    "no tokens": {"p": 1},
    "growing": {"budget": 3, "budget_last": 60, "scale_pixels": 40 * 40},
}


#: options of a codec that is quick with any backbone: 32 tokens of 8 bits in 4 steps
TINY = [
    "--steps",
    "4",
    "--budget",
    "8",
    "--budget-last",
    "8",
    "--vocab-size",
    "256",
    "--scale-pixels",
    "0",
    "--start-budget",
    "0",
]


def tiny_backbone(path: Path, seed: int = 0) -> str:
    """Writes a network with a few thousand random weights; its path."""
    torch.manual_seed(seed)
    net = ConvDenoiser(backbones.load("gaussian-prior"), widths=(8, 8), blocks=1, embedding=8)
    write_checkpoint(path, "convnet", net.config, checkpoint_tensors(net))
    return str(path)


def realism_file(path: Path, backbone: str = "", channels: int = 3, **shape) -> str:
    """Writes a realism network of random weights for the backbone of that fingerprint ("": any); its path."""
    torch.manual_seed(1)
    net = RealismNetwork(channels, **{"widths": (8, 8), "blocks": 1, "embedding": 8, "patch": 2, **shape})
    torch.nn.init.normal_(net.leave.weight, std=0.3)
    config = {**net.config, **({"fingerprint": backbone} if backbone else {})}
    write_checkpoint(path, "realism", config, checkpoint_tensors(net))
    return str(path)


class Shrink(Backbone):
    """The exact posterior mean for white Gaussian images of standard deviation .5: one multiplication."""

    name = "shrink"
    fingerprint = fingerprint_of({"kind": "shrink"}, {})

    def denoise(self, y: Tensor, sigma: float, cond=None) -> Tensor:
        return y * (0.25 / (0.25 + sigma * sigma))


def random_images(rng: np.random.Generator, count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth random uint8 images [B, C, H, W]: low-frequency blobs with a little noise."""
    coarse = torch.from_numpy(rng.random((count, channels, 4, 4), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.from_numpy(rng.random((count, channels, height, width), np.float32))
    return ((0.9 * smooth + 0.1 * noise) * 255).to(torch.uint8)


@functools.cache
def compiled_kernels(script: str, arch: int) -> list[dict]:
    """What a script of tests/ prints of the kernels it compiles for sm_ARCH, in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "tests" / script), str(arch)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
