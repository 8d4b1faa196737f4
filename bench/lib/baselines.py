"""The search as published codes do it, written plainly, to be timed beside the kernels. None shares code with them.

`materialised`   DDCM and Turbo-DDCM: for every image and step draw all K codewords from a seeded generator, multiply,
                 take the best, or the M largest with their signs.
`per_candidate`  DiffC: for every image one thread a candidate, which draws its Gaussian numbers one after the other; the
                 best of score - log T_k, T the arrival times of a Poisson process.
`chunked`        what a careful torch user would write: 256 MiB of codewords at a time, shared by the whole batch.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_BYTES = 256 << 20
THREADS = 256  # candidates of one program, one a thread


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def signed_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores [B, K] -> (largest |score| float [B], its token 2 k + (score < 0) int64 [B])."""
    size, index = scores.abs().max(-1)
    return size, 2 * index + (scores.gather(-1, index[:, None])[:, 0] < 0)


def materialised(residual: Tensor, codewords: int, seed: int, count: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """residual [B, D] -> tokens int64 [B, count], the `count` largest |score|, best first. Needs K D numbers of memory."""
    tokens = []
    for r in residual:
        book = torch.randn(codewords, len(r), device=r.device, dtype=dtype, generator=generator(r.device, seed))
        scores = book @ r.to(dtype)
        if count == 1:
            tokens.append(signed_best(scores[None])[1])
        else:
            index = scores.abs().topk(count)[1]
            tokens.append(2 * index + (scores[index] < 0))
        del book
    return torch.stack(tokens)


@triton.jit
def unary(x, OP: tl.constexpr):
    """One instruction of the special function unit, as CUDA's fast mathematics uses."""
    return tl.inline_asm_elementwise(OP + ".approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def gaussian_pair(u, w, ASM: tl.constexpr):
    """Two standard normal numbers from two uniform ones in [0, 1) (Box and Muller 1958)."""
    u = tl.maximum(u, 1e-7)
    if ASM:
        radius = tl.sqrt(-1.3862943611198906 * unary(u, "lg2"))  # -2 ln 2
        return radius * unary(6.283185307179586 * w, "cos"), radius * unary(6.283185307179586 * w, "sin")
    radius = tl.sqrt(-2.0 * tl.log(u))
    return radius * tl.cos(6.283185307179586 * w), radius * tl.sin(6.283185307179586 * w)


@triton.jit
def candidate_kernel(R, BIAS, SCORES, d, codewords, seed, THREADS: tl.constexpr, ASM: tl.constexpr):
    """SCORES[k] = sum_i R[i] z[k, i] + BIAS[k], z[k] from Philox stream k, four numbers a block. Grid: (tiles of K,)."""
    k = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    score = tl.load(BIAS + k, mask=k < codewords, other=0.0)
    first = k.to(tl.int64) * ((d + 3) // 4)  # 64 bits: K D exceeds 2^31
    for block in range(0, (d + 3) // 4):
        u0, u1, u2, u3 = tl.rand4x(seed, first + block)
        z0, z1 = gaussian_pair(u0, u1, ASM)
        z2, z3 = gaussian_pair(u2, u3, ASM)
        i = 4 * block
        score += tl.load(R + i) * z0
        score += tl.load(R + i + 1, mask=i + 1 < d, other=0.0) * z1
        score += tl.load(R + i + 2, mask=i + 2 < d, other=0.0) * z2
        score += tl.load(R + i + 3, mask=i + 3 < d, other=0.0) * z3
    tl.store(SCORES + k, score, mask=k < codewords)


def arrival_bias(codewords: int, seed: int, device: torch.device, chunks: int | None = None) -> Tensor:
    """-log T_k float64 [K], T_k the arrival times of a unit Poisson process; many would be one number in float32. Of several
    chunks, each with a process of its own: [chunks, K]."""
    shape = (codewords,) if chunks is None else (chunks, codewords)
    gaps = torch.empty(shape, device=device, dtype=torch.float64).exponential_(generator=generator(device, seed))
    return -gaps.cumsum(-1).log()


def per_candidate(mean: Tensor, codewords: int, seed: int) -> Tensor:
    """mean [B, D] float32, contiguous -> the chosen candidates k int64 [B]."""
    chosen = []
    for mu in mean:
        bias = arrival_bias(codewords, seed, mu.device).float()
        scores = torch.empty_like(bias)
        candidate_kernel[(triton.cdiv(codewords, THREADS),)](
            mu, bias, scores, len(mu), codewords, seed, THREADS=THREADS, ASM=mu.is_cuda, num_warps=THREADS // 32
        )
        chosen.append(scores.argmax())
    return torch.stack(chosen)


CHUNKED = ("float32", "tf32", "bfloat16")


def chunked(residual: Tensor, codewords: int, seed: int, variant: str = "float32", chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """residual [B, D] float32 -> tokens int64 [B], one codebook for the batch, drawn and multiplied in float32, in float32
    with TF32 products, or in bfloat16 (see CHUNKED)."""
    batch, d = residual.shape
    dtype = torch.bfloat16 if variant == "bfloat16" else torch.float32
    rows = max(1, chunk_bytes // (d * dtype.itemsize))
    source = generator(residual.device, seed)
    r = residual.to(dtype)
    best = torch.full((batch,), -math.inf, device=r.device, dtype=dtype)
    token = torch.zeros(batch, dtype=torch.int64, device=r.device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = variant == "tf32"
    try:
        for first in range(0, codewords, rows):
            book = torch.randn(min(rows, codewords - first), d, device=r.device, dtype=dtype, generator=source)
            size, here = signed_best(r @ book.T)
            token = torch.where(size > best, 2 * first + here, token)
            best = torch.maximum(best, size)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return token
