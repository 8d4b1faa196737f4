"""What rule `poisson` draws beside codewords: which dimensions make a chunk, and the arrival times of each chunk's
indices."""

import math

import torch
from torch import Tensor

from noisebook.codebook.reference import arrival_times, chunk_order
from noisebook.runtime.cuda_graphs import graph_cached

KEPT = 1 << 22  # numbers of a bias that stays in memory: the chunks of a photograph would fill gigabytes


@graph_cached(64)  # one or more per step
def chunk_places(dims: int, chunks: int, step_index: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the dimension at each place of each chunk, int64 [U, W], -1: padding; where each dimension is among all those places,
    int64 [D])."""
    order = chunk_order(dims, step_index, seed)
    width = -(-dims // chunks)
    full = dims - chunks * (width - 1)  # that many chunks have that width, the others one place less
    places = torch.full((chunks, width), -1)
    places[:full] = order[: full * width].view(full, width)
    places[full:, : width - 1] = order[full * width :].view(chunks - full, width - 1)
    lies = torch.empty_like(order)
    lies[order] = torch.nonzero(places.flatten() >= 0)[:, 0]
    return places.to(device), lies.to(device)


def arrival_bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    """-log T_k of the arrival times of each chunk, -inf from its size on: float32 [U, K], K the largest size."""
    few = len(sizes) * max(sizes) <= KEPT
    return (_kept_bias if few else _bias)(sizes, step_index, seed, device)


def _bias(sizes: tuple[int, ...], step_index: int, seed: int, device: torch.device) -> Tensor:
    with device:  # times are drawn there: on a CPU those of a photograph's chunks take minutes
        out = torch.full((len(sizes), max(sizes)), -math.inf, dtype=torch.float32)
        for chunk, size in enumerate(sizes):
            out[chunk, :size] = -arrival_times(size, step_index, seed, chunk).log().float()
    return out


_kept_bias = graph_cached(64)(_bias)  # one or more per step
