"""Compiles, without a GPU, every kernel of kind `independent` with the arguments that its wrappers launch it with.

python triton_signs.py 90 prints one JSON list; see triton_offline.py, whose recorder this uses.
"""

import json
import sys

import torch
from triton.runtime.jit import JITFunction
from triton_offline import launches, record, report

from noisebook_kernels import independent, top

KERNELS = ("quantise.quantise_kernel", "independent.search_kernel", "top.rescore_kernel")


def run_wrappers() -> None:
    """One image and as many as a tile takes; each rule; many dimensions, so that scores are wide, and few."""
    for batch in (1, 32, 256):
        residual = torch.zeros(batch, 1, 3072)
        independent.independent_select(residual, 1, 1 << 20, 5, 7)
        independent.independent_select(residual, 64, 1 << 10, 5, 7)
        top.independent_top(residual, 64, 1 << 20, 5, 7)
        independent.independent_biased(residual, torch.zeros(1, 1 << 20), 5, 7)
        independent.independent_select(torch.zeros(batch, 1, 48), 4, 16, 5, 7)
    for batch in (1, 64):
        independent.independent_select(torch.zeros(batch, 1, 1 << 18), 1, 1 << 13, 5, 7)


if __name__ == "__main__":
    arch = int(sys.argv[1])
    independent.hopper = lambda device: arch == 90
    JITFunction.run = record
    run_wrappers()
    print(json.dumps(report(arch, [key for key in launches if key[0] in KERNELS])))
