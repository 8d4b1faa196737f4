# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false
"""Winners as 64-bit keys: the larger key is the better score, and of equal scores the smaller token.

Programs meet in one atomic maximum per view and bin, which gives the same winner in any order, without a second pass.
A signed token's key holds |score| (31 bits of a float32 that is not negative) above the token's 33 bits, turned; a biased
score may be negative, so its order-preserving integer takes 32 bits, and the atom, without a sign, the other 32.
"""

import triton
import triton.language as tl
from torch import Tensor

NOTHING = -(1 << 63)  # smaller than the key of any candidate


@triton.jit
def signed_key(size, token):
    """float32 sizes >= 0 and int64 tokens in [0, 2^33) -> int64 keys."""
    bits = size.to(tl.int32, bitcast=True).to(tl.int64)
    return ((bits - 0x40000000) << 33) + (0x1FFFFFFFF - token)


@triton.jit
def biased_key(score, atom):
    """float32 scores of any sign and int64 atoms in [0, 2^32) -> int64 keys."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) + (0xFFFFFFFF - atom)


@triton.jit
def signed_token(key):
    """int64 keys of `signed_key` -> their tokens."""
    return 0x1FFFFFFFF - (key & 0x1FFFFFFFF)


@triton.jit
def unpack_kernel(KEYS, n, BIASED: tl.constexpr, SIZE: tl.constexpr):
    """KEYS [n] int64, in place: keys -> tokens."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    key = tl.load(KEYS + at, mask=at < n, other=0)
    if BIASED:
        token = 2 * (0xFFFFFFFF - (key & 0xFFFFFFFF))
    else:
        token = signed_token(key)
    tl.store(KEYS + at, token, mask=at < n)


def unpack(keys: Tensor, biased: bool = False) -> None:
    """Keys -> tokens, in place."""
    if keys.numel():
        unpack_kernel[(triton.cdiv(keys.numel(), 256),)](keys, keys.numel(), BIASED=biased, SIZE=256, num_warps=4)
