"""A codec's own decodes as training data: made once with the codec of a backbone, at rates between a twentieth and one bit a
pixel, and kept in the run's folder."""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from noisebook.backbones import Backbone
from noisebook.codec.codec import Codec
from noisebook.errors import TrainingError, first_line
from noisebook.runtime.atomic import replacing
from noisebook.spec.curve import Curve, spec_for, with_known_levels
from noisebook.training.data import Crops
from noisebook.training.objectives import column

RATES = (0.05, 1.0)  # bits per pixel: the lowest and the highest
GROUPS = 16  # rates, evenly spaced by their logarithm; each with its own number of steps
STEPS = (8, 16)
VOCAB_SIZE = 65536
PARTS = 16.0  # of sigma: the unit in which (y - mean) / sigma is kept, int8


@dataclass(frozen=True)
class Decodes:
    """x0, mean and y float32 [B, C, H, W], sigma float32 [B]: images, their decodes to the least error, and the state and
    level at which the tokens end."""

    x0: Tensor
    mean: Tensor
    y: Tensor
    sigma: Tensor


class DecodeSet:
    """Decodes of one size, kept small: x0 uint8, mean float16, (y - mean) / sigma int8 in sixteenths."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["sigma"])

    def take(self, rows: Tensor) -> Decodes:
        """Those rows, int64 [B] on the set's device."""
        x0, mean, noise, sigma = (self.tensors[name][rows].float() for name in ("x0", "mean", "noise", "sigma"))
        return Decodes(x0.div_(127.5).sub_(1), mean, mean + noise * column(sigma / PARTS), sigma)

    def draw(self, count: int) -> Decodes:
        """`count` of them at random, half of them mirrored."""
        device = self.tensors["sigma"].device
        some = self.take(torch.randint(len(self), (count,), device=device))
        mirrored = column(torch.rand(count, device=device) < 0.5)
        x0, mean, y = (torch.where(mirrored, x.flip(3), x) for x in (some.x0, some.mean, some.y))
        return Decodes(x0, mean, y, some.sigma)

    def spread(self, count: int) -> Tensor:
        """Rows of about `count` of them, of all rates alike."""
        return torch.linspace(0, len(self) - 1, min(count, len(self)), device=self.tensors["sigma"].device).long()


def specs(curve: Curve, backbone: Backbone, size: int, seed: int) -> Iterator[Codec]:
    """A codec for each group, for images of size x size, as the curve spends the tokens."""
    rng = np.random.default_rng(seed)
    for i in range(GROUPS):
        rate = RATES[0] * (RATES[1] / RATES[0]) ** (i / (GROUPS - 1))
        steps = int(rng.integers(STEPS[0], STEPS[1] + 1))
        tokens = max(steps + 1, round(rate * size * size / math.log2(VOCAB_SIZE)))
        dims = curve.dims(size, size)
        spec = with_known_levels(spec_for(curve, dims, tokens, steps, VOCAB_SIZE), backbone, dims)
        yield Codec(spec, backbone, graphs=False)


@torch.no_grad()
def decode_each(codec: Codec, images: Tensor) -> Decodes:
    """What a decoder makes of images [B, C, H, W] in [-1, 1], one after the other in the codec's own walk. Its last network
    call is the mean."""
    seen: list[Tensor] = []

    def look(network: nn.Module, given: tuple[Any, ...], x0_hat: Tensor) -> None:
        seen[:] = [given[0]]

    with codec.backbone.register_forward_hook(look):
        _, mean = codec.reconstruct(images)
    sigma = torch.full((len(images),), codec.spec.sigma_last, device=mean.device)
    return Decodes(images.to(mean.device), mean, seen[0].to(mean.device), sigma)


def decodes(
    curve: Curve, backbone: Backbone, images: list[np.ndarray], size: int, count: int, path: Path, device: str, seed: int
) -> DecodeSet:
    """`count` decodes of random crops of the images, of all rates alike: made once and kept in `path`, on `device`.

    Raises TrainingError where `path` holds decodes of another codec, size, number or seed."""
    wanted = {"backbone": backbone.fingerprint, "curve": curve.fingerprint, "size": size, "count": count, "seed": seed}
    if not path.exists():
        tensors = _made(curve, backbone, images, size, count, path.name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary, {"decodes": json.dumps(wanted)})
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: cannot be written: {first_line(error)}") from error
    try:
        with safe_open(path, "pt") as file:
            made = json.loads((file.metadata() or {}).get("decodes", "{}"))
        if made != wanted:
            raise TrainingError(f"{path}: decodes of another codec or number; give the same options, or another -o")
        return DecodeSet(load_file(path, device=device))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{path}: no decodes ({first_line(error)}); remove it, and they are made anew") from error


def _made(
    curve: Curve, backbone: Backbone, images: list[np.ndarray], size: int, count: int, name: str, seed: int
) -> dict[str, Tensor]:
    shape = (count, images[0].shape[2], size, size)
    tensors = {
        "x0": torch.empty(shape, dtype=torch.uint8),
        "mean": torch.empty(shape, dtype=torch.float16),
        "noise": torch.empty(shape, dtype=torch.int8),
        "sigma": torch.empty(count),
    }
    source, rng, row, begin = Crops(images), np.random.default_rng((seed, size)), 0, time.monotonic()
    batch = max(1, (1 << (20 if backbone.device.type == "cuda" else 18)) // size**2)
    for group, codec in enumerate(specs(curve, backbone, size, seed)):
        end = count * (group + 1) // GROUPS
        while row < end:
            made = decode_each(codec, source.sample(min(batch, end - row), size, rng))
            to = slice(row, row + len(made.x0))
            tensors["x0"][to] = (made.x0 * 127.5 + 127.5).round().to(torch.uint8).cpu()
            tensors["mean"][to] = made.mean.half().cpu()
            tensors["noise"][to] = ((made.y - made.mean) * (PARTS / codec.spec.sigma_last)).round().clamp(-127, 127).cpu()
            tensors["sigma"][to] = made.sigma.cpu()
            row = to.stop
        line = {"made": name, "decodes": row, "of": count, "seconds": round(time.monotonic() - begin, 1)}
        print(json.dumps(line), file=sys.stderr, flush=True)
    return tensors
