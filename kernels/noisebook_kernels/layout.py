"""What the wrappers share: checked arguments, the counter of a step, and work cut so that memory stays bounded."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 4096  # entries that one program transforms, or the low part of what does not fit one
GROUP = 1 << 21  # entries of all views that are in flight at once
WORKSPACE = 1 << 22  # scores of all bases that are in flight at once


class Key(NamedTuple):
    """The counter and key of one step, as int32 of the same bits: a kernel argument must not change type with its value.

    Row r of a launch is view r % blocks, and block number block + r % blocks."""

    blocks: int
    block: int
    step_index: int
    k0: int
    k1: int

    @classmethod
    def of(cls, blocks: int, block: int, step_index: int, seed: int) -> "Key":
        return cls(blocks, block, int32(step_index), int32(seed), int32(seed >> 32))


KEY = ["block", "step_index", "k0", "k1"]  # arguments whose value must not be compiled in


def int32(x: int) -> int:
    """The int32 with the low 32 bits of x."""
    return ((x + 2**31) & 0xFFFFFFFF) - 2**31


def log2_padded(d: int) -> int:
    """log2 of P, the smallest power of two >= d."""
    return (d - 1).bit_length()


def warps(entries: int) -> int:
    """Sixteen entries a thread, for one to eight warps."""
    return max(1, min(8, entries // 512))


def check(x: Tensor, d: int, bins: int, atoms: int, bases: int | None, step_index: int, seed: int, block: int) -> None:
    """ValueError unless the limits of the codebook hold; looks at shapes and Python numbers only. bases: None for
    kind `independent`, whose atoms are not rows of a basis."""
    if x.ndim != 3:
        raise ValueError(f"expected three axes, batch, block and one more, got shape {tuple(x.shape)}")
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"expected a tensor on a CUDA device, got one on {x.device}")
    if not 1 <= d <= 1 << 30:
        raise ValueError(f"dimensions {d} not in [1, 2^30]")
    padded = 1 << log2_padded(d)
    if bins < 1 or bins & (bins - 1) or bins > padded:
        raise ValueError(f"bins {bins} is not a power of two from 1 to {padded}")
    most = (1 << 32 if bases is None else padded) // bins
    if not 1 <= atoms <= most:
        raise ValueError(f"atoms {atoms} not in [1, {most}]")
    if bases is not None and not 1 <= bases <= 1 << 32:
        raise ValueError(f"bases {bases} not in [1, 2^32]")
    if not 0 <= step_index < 1 << 32:
        raise ValueError(f"step_index {step_index} not in [0, 2^32)")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} not in [0, 2^64)")
    if block < 0 or block + x.shape[1] > 1 << 24:
        raise ValueError(f"blocks {block} to {block + x.shape[1]} not in [0, 2^24)")


def check_floats(name: str, x: Tensor) -> None:
    """ValueError unless x is float32 and contiguous."""
    if x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous float32, got {x.dtype}")


def check_bias(bias: Tensor, blocks: int, atoms: int) -> None:
    """ValueError unless bias is contiguous float32 [blocks, atoms]."""
    check_floats("bias", bias)
    if bias.shape != (blocks, atoms):
        raise ValueError(f"bias must be [{blocks}, {atoms}], got {list(bias.shape)}")


def check_count(count: int, atoms: int) -> None:
    """ValueError unless `count` of `atoms` can be chosen."""
    if not 1 <= count <= atoms:
        raise ValueError(f"count {count} not in [1, {atoms}]")


def groups(batch: int, blocks: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Cuts [batch, blocks] views of `entries` each into groups of at most GROUP entries (one view at least).

    A group has all blocks or one image, so a contiguous tensor's group is contiguous too."""
    views = max(1, GROUP // entries)  # of a group
    if blocks <= views:
        for b in range(0, batch if blocks else 0, views // blocks if blocks else 1):
            yield slice(b, min(b + views // blocks, batch)), slice(0, blocks)
    else:
        for b in range(batch):
            for u in range(0, blocks, views):
                yield slice(b, b + 1), slice(u, min(u + views, blocks))


def on(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes the device of x the one that kernels are launched on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
