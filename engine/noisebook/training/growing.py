"""A trained network made wider or deeper without a change of what it computes (Net2Net, Chen et al. 2016), so that a larger
one begins where the smaller one ended."""

from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.nets.convnet import ConvDenoiser
from noisebook.errors import TrainingError


def grown(first: ConvDenoiser, widths: tuple[int, ...] | None, blocks: int | None) -> ConvDenoiser:
    """A `ConvDenoiser` of those widths and blocks per level, which computes what `first` does (up to float32 rounding).

    What is new reads from all and, in the beginning, changes nothing that was there: new blocks add zero, and of what reads
    new channels only new channels are made. Raises TrainingError for fewer levels, channels or blocks than `first` has.
    """
    given = {"widths": widths and list(widths), "blocks": blocks}
    config: dict[str, Any] = first.config | {name: value for name, value in given.items() if value is not None}
    old = first.config["widths"]
    wide = len(config["widths"]) == len(old) and all(new >= had for new, had in zip(config["widths"], old, strict=True))
    if not wide or config["blocks"] < first.config["blocks"]:
        raise TrainingError(
            f"a network of {len(old)} levels only grows: give --widths from {' '.join(map(str, old))} and --blocks from "
            f"{first.config['blocks']}, or train without --init"
        )
    network = type(first)(first.prior, **config)
    state, had = network.state_dict(), first.state_dict()
    for name, tensor in state.items():
        if name.startswith("prior."):  # both have the same one
            continue
        if name not in had:  # of a new block
            if ".conv2." in name:
                tensor.zero_()
            continue
        turn = name.startswith("ups.") and tensor.ndim == 4  # transposed convolutions hold [in, out, height, width]
        new, known = (t.transpose(0, 1) if turn else t for t in (tensor, had[name]))
        halves = 2 if ".level." in name else 1  # scale and shift, one after the other
        for part, half in zip(new.chunk(halves), known.chunk(halves), strict=True):
            _put(part, half)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def _put(new: Tensor, known: Tensor) -> None:
    """`known` into the first corner of `new` [out, in, ...]; its outputs read no more inputs than they did."""
    new[: len(known)] = 0
    new[tuple(slice(n) for n in known.shape)] = known
