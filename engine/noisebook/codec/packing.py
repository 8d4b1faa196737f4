"""The payload of a file made and read on the device, for a whole batch: `container.pack` and `unpack` in torch.

Only for vocabularies that are powers of two, where each token is a whole number of bits. Which bits of which tokens
make a byte is a table for each layout, made once; there is no host synchronisation.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.format.runs import Run
from noisebook.runtime.cuda_graphs import graph_cached

Runs = tuple[Run, ...] | tuple[tuple[int, int], ...]  # as `container.pack` takes them, all of them plain
WINDOW = 5  # bytes that hold any token: up to 33 bits, which begin anywhere in the first byte


def _each(values: list[int], runs: Runs) -> Tensor:
    """One value a run -> one a token: int64 [L]."""
    return torch.tensor(values, dtype=torch.int64).repeat_interleave(
        torch.tensor([run[0] for run in runs], dtype=torch.int64)
    )


def _ends(runs: Runs) -> tuple[Tensor, Tensor]:
    """Bits of every token, and where its bits end in the payload: int64 [L] each."""
    bits = _each([run[1].bit_length() - 1 for run in runs], runs)
    return bits, bits.cumsum(0)


@graph_cached()
def _bytes_from_tokens(runs: Runs, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token, shift), int64 [8, bytes]: bit k of a byte, the highest first, is bit `shift` of that token."""
    bits, ends = _ends(runs)
    token = torch.arange(len(bits)).repeat_interleave(bits)
    shift = ends[token] - 1 - torch.arange(len(token))
    padding = -len(token) % 8
    token, shift = F.pad(token, (0, padding)), F.pad(shift, (0, padding), value=63)  # bit 63 of a token is 0
    return token.reshape(-1, 8).T.contiguous().to(device), shift.reshape(-1, 8).T.contiguous().to(device)


@graph_cached()
def _tokens_from_bytes(runs: Runs, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(first, shift, mask), int64 [L]: a token is (the WINDOW bytes from `first` on) >> shift & mask."""
    bits, ends = _ends(runs)
    first = (ends - bits) // 8
    return first.to(device), (8 * (first + WINDOW) - ends).to(device), ((1 << bits) - 1).to(device)


@graph_cached()
def _largest(runs: Runs, device: torch.device) -> Tensor:
    """The largest value of every token, int64 [L]."""
    return _each([run[1] - 1 for run in runs], runs).to(device)


def pack(tokens: Tensor, runs: Runs) -> Tensor:
    """Tokens int64 [B, L], each inside its vocabulary -> uint8 [B, bytes]: row by row what `container.pack` gives."""
    token, shift = _bytes_from_tokens(runs, tokens.device)
    out = torch.zeros(len(tokens), token.shape[1], dtype=torch.int64, device=tokens.device)
    for k in range(8):
        out = 2 * out + (tokens.index_select(1, token[k]) >> shift[k] & 1)
    return out.to(torch.uint8)


def unpack(payload: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """uint8 [B, bytes] of the right length -> (tokens int64 [B, L], whether all padding bits are zero: bool [])."""
    first, shift, mask = _tokens_from_bytes(runs, payload.device)
    wide = F.pad(payload.long(), (0, WINDOW - 1))
    out = torch.zeros(len(payload), len(first), dtype=torch.int64, device=payload.device)
    for k in range(WINDOW):
        out = 256 * out + wide[:, k:].index_select(1, first)
    padding = -sum(run[0] * (run[1].bit_length() - 1) for run in runs) % 8
    return out >> shift & mask, (payload[:, -1:] & ((1 << padding) - 1) == 0).all()


def clamp(tokens: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, L] -> (the same, forced into their vocabularies, whether all were: bool []). Any vocabularies."""
    inside = torch.minimum(tokens.clamp(min=0), _largest(runs, tokens.device))
    return inside, (inside == tokens).all()


__all__ = ["clamp", "pack", "unpack"]
