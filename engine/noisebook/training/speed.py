"""How much of a chip the training loop uses."""

from typing import Any

import torch
from torch import nn

from noisebook.backbones.nets.convnet import PriorDenoiser

# multiplications and additions a second in bfloat16 with sums in float32, dense, as the vendor's data sheets say
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


@torch.no_grad()
def flop_per_pixel(model: nn.Module, channels: int, side: int, device: str) -> float:
    """Multiplications and additions of one call of the network for a pixel of an image of side x side."""
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a tenth of a second

    y, sigma = torch.zeros(1, channels, side, side, device=device), torch.ones(1, device=device)
    with FlopCounterMode(display=False) as counter:
        if isinstance(model, PriorDenoiser):
            model.residual(torch.cat([y, y], 1), sigma.log())
        else:
            model(y, sigma)
    return counter.get_total_flops() / side**2


def share(pixels_per_second: float, flop: float, name: str) -> dict[str, Any]:
    """What a run on the chip of that name did. A step of training is three calls: forward, and twice as much backward.
    `share_of_peak` is None for a chip that PEAKS does not know."""
    peak = next((value for chip, value in PEAKS.items() if chip in name), None)
    rate = 3 * flop * pixels_per_second
    return {
        "chip": name,
        "pixels_per_second": pixels_per_second,
        "flop_per_pixel": flop,
        "tflops": rate / 1e12,
        "share_of_peak": rate / peak if peak else None,
    }
