"""What the dtype `auto` is: bfloat16 where the processor multiplies in it and nothing was found to be lost, else float32."""

import torch

from noisebook.backbones.base import Backbone

AUTO = "auto"  # in place of a dtype, for a network that noisebook loads by its name; never one of the caller's own
CAPABILITY = (8, 0)  # of the first NVIDIA GPUs that multiply in bfloat16


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether the device has instructions for it: an NVIDIA GPU from compute capability 8.0 on (of `cuda` without a number:
    every one that is seen), a CPU with AMX or AVX512-BF16. One that only emulates it would be slower than in float32."""
    device = torch.device(device)
    if device.type == "cpu":
        there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # the library that uses them, too
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    gpus = range(torch.cuda.device_count()) if device.index is None else [device.index]
    return all(torch.cuda.get_device_capability(gpu) >= CAPABILITY for gpu in gpus)


def auto_dtype(backbone: Backbone, device: torch.device | str) -> str:
    """What `auto` is for that backbone on that device: bfloat16 or float32."""
    fits = torch.device(device).type in backbone.auto_bfloat16 and multiplies_bfloat16(device)
    return "bfloat16" if fits else "float32"
