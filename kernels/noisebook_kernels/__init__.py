"""Triton kernels of the codebook: search, noise and the fused back-trace update, for both kinds (docs/codebook.md), and
what rule `poisson` draws beside codewords.

Tensors [B, U, ...] hold B images of U blocks; view u draws from the random streams of block `block + u`. Everything runs
on the tensors' own device without a host synchronisation: on CUDA, or on the CPU when TRITON_INTERPRET=1 was set before
this package was imported.

Each kernel has a definition, which says what it computes, and tests. Definitions are functions of
engine/noisebook/codebook/reference.py, tests are in tests/kernels/. bench/ times all of them (gpu_kernels.py) beside the
least time that each can take (floors.py).

    module       kernels                   definition                                 test
    hadamard     search_kernel             hadamard_select, hadamard_biased           test_triton
    matrix       matrix_kernel             hadamard_select, with the same bits        test_triton
    independent  search_kernel             independent_select, independent_biased     test_triton_independent
    quantise     quantise_kernel           docs/codebook.md, "Tokens"                 test_triton_independent
    top          runs_, keys_, rescore_    hadamard_top, independent_top              test_triton_top,
                                                                                      test_triton_independent
    adding       adding_kernel             hadamard_total, independent_total          test_triton
    refine       fold_kernel               engine/noisebook/codebook/refining.py      test_triton_refine
    missing      parts_kernel and others   the same                                   test_triton_refine
    update       noise_kernel and others   hadamard_total, independent_total,         test_triton
                                           unit_rms
    arrival      bias_, sums_kernel        arrival_bias                               test_triton_arrival
                 words_, places_kernel     chunk_places                               test_triton_arrival
    fwht         transform_kernel          fwht                                       all of these
    philox       helpers of the kernels    philox4x32, signs                          all of these
    winners      unpack_kernel             best_signed, top_signed                    all of these

tests/kernels/test_triton_compile.py holds what the compiler makes of them to budgets, without a GPU.
"""

from .arrival import arrival_bias, chunk_places
from .hadamard import hadamard_biased, hadamard_select
from .independent import independent_biased, independent_select
from .refine import hadamard_refined
from .top import hadamard_top, independent_top
from .update import hadamard_backtrace, hadamard_noise, independent_backtrace, independent_noise

__all__ = [
    "arrival_bias",
    "chunk_places",
    "hadamard_backtrace",
    "hadamard_biased",
    "hadamard_noise",
    "hadamard_refined",
    "hadamard_select",
    "hadamard_top",
    "independent_backtrace",
    "independent_biased",
    "independent_noise",
    "independent_select",
    "independent_top",
]
