# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""The last step of both searches: the partial winners of several programs become one token for each bin."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def merge_kernel(
    SCORES, TOKENS, BEST, OUT, bins, chunks,
    PARTS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SCORES, TOKENS [chunks, bins, PARTS] into the running winners BEST, OUT [bins]; ties go to the smaller token.

    `bins` counts the bins of all views. One program: BINS bins, BLOCK candidates of each at a time."""
    b = tl.program_id(0) * BINS + tl.arange(0, BINS)
    best = tl.load(BEST + b, mask=b < bins, other=0)
    token = tl.load(OUT + b, mask=b < bins, other=0)
    for start in range(0, chunks * PARTS, BLOCK):
        c = start + tl.arange(0, BLOCK)[None, :]
        at = ((c // PARTS).to(tl.int64) * bins + b[:, None]) * PARTS + c % PARTS
        mask = (c < chunks * PARTS) & (b < bins)[:, None]
        score = tl.load(SCORES + at, mask=mask, other=-1)
        candidate = tl.load(TOKENS + at, mask=mask, other=0)
        top = tl.max(score, axis=1)
        candidate = tl.min(tl.where(score == top[:, None], candidate, 0x7FFFFFFFFFFFFFFF), axis=1)
        better = (top > best) | ((top == best) & (candidate < token))
        best = tl.where(better, top, best)
        token = tl.where(better, candidate, token)
    tl.store(BEST + b, best, mask=b < bins)
    tl.store(OUT + b, token, mask=b < bins)


def merge(scores: Tensor, candidates: Tensor, best: Tensor, tokens: Tensor) -> None:
    """scores, candidates [chunks, rows, bins * parts] into best, tokens [rows, bins]; scores >= 0 or -1 for none."""
    chunks, bins = len(scores), tokens.numel()
    parts = scores[0].numel() // bins
    block = min(triton.next_power_of_2(chunks * parts), 1024)
    together = min(512 // block, triton.next_power_of_2(bins)) or 1
    merge_kernel[(triton.cdiv(bins, together),)](
        scores, candidates, best, tokens, bins, chunks,
        PARTS=parts, BINS=together, BLOCK=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
