"""Triton kernels of the codebook: search, noise and the fused back-trace update, for both laws (docs/codebook.md).

Tensors [B, U, ...] hold B images of U units; view u draws from the random streams of unit `unit + u`. Everything runs
on the tensors' own device without a host synchronisation: on CUDA, or on the CPU when TRITON_INTERPRET=1 was set before
this package was imported.
"""

from .hadamard import hadamard_biased, hadamard_select, hadamard_top
from .independent import independent_biased, independent_select, independent_top
from .update import hadamard_backtrace, hadamard_noise, independent_backtrace, independent_noise

__all__ = [
    "hadamard_backtrace",
    "hadamard_biased",
    "hadamard_noise",
    "hadamard_select",
    "hadamard_top",
    "independent_backtrace",
    "independent_biased",
    "independent_noise",
    "independent_select",
    "independent_top",
]
