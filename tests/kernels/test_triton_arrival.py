"""The Triton kernels of what rule `poisson` draws, against the definition in plain torch.

On the GPU where there is one, in Triton's interpreter where not.
"""

import os

import numpy as np
import pytest
import torch

from noisebook import codebook
from noisebook.codebook import Codebook, reference
from noisebook.rules.poisson import Poisson

if torch.cuda.is_available():
    DEVICE = torch.device("cuda")
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    DEVICE = torch.device("cpu")

from noisebook.codebook import triton
from noisebook_kernels import arrival

pytestmark = pytest.mark.usefixtures("poisoned")
CPU = torch.device("cpu")


def draw(rng) -> tuple[int, int]:
    """(step_index, seed)."""
    return int(rng.integers(2**32)), int(rng.integers(2**64, dtype=np.uint64))


def check_bias(sizes: tuple[int, ...], step_index: int, seed: int) -> None:
    got = arrival.arrival_bias(sizes, step_index, seed, DEVICE).cpu()
    wanted = reference.arrival_bias(sizes, step_index, seed, CPU)
    assert got.shape == wanted.shape == (len(sizes), sizes[0])
    there = torch.arange(sizes[0]) < torch.tensor(sizes)[:, None]
    assert got[~there].eq(-torch.inf).all()
    # one rounding to float32 of the same float64 number, but for its last bits
    assert ((got - wanted)[there].abs() <= 2**-23 * wanted[there].abs() + 1e-12).all()


@pytest.mark.parametrize(
    "sizes",
    [
        (1,),
        (3, 2),  # less than one draw
        (16, 16, 16),  # one size only
        (256, 128, 128, 128),
        (8192, 4096),  # a tile beyond the smaller chunk
        (5000, 4097),  # tiles that are not full
    ],
)
def test_arrival_bias(sizes, fresh):
    check_bias(sizes, *draw(fresh))


@pytest.mark.parametrize("sizes", [(64, 32), (17 * 16 + 3, 16), (33, 33, 31)])
def test_arrival_bias_of_many_tiles(sizes, monkeypatch, fresh):
    """Also of more tiles before one than a program adds up at a time."""
    monkeypatch.setattr(arrival, "TIMES", 16)
    check_bias(sizes, *draw(fresh))


WHERE = [(0, 0), (2**32 - 1, 2**64 - 1), (2**31, 2**63), (2**31 - 1, 2**32), (7, 2**31)]


@pytest.mark.parametrize(("step_index", "seed"), WHERE)
def test_steps_and_seeds_of_any_size(step_index, seed):
    check_bias((40, 24), step_index, seed)
    check_places(50, 7, step_index, seed)


def check_places(dims: int, chunks: int, step_index: int, seed: int) -> None:
    got = arrival.chunk_places(dims, chunks, step_index, seed, DEVICE)
    wanted = reference.chunk_places(dims, chunks, step_index, seed, CPU)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype == torch.int64
        assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize(
    ("dims", "chunks"), [(1, 1), (2, 1), (7, 7), (8, 5), (1024, 4), (1025, 2), (1023, 1), (2048, 99), (1501, 1499)]
)
def test_chunk_places(dims, chunks, fresh):
    check_places(dims, chunks, *draw(fresh))


def test_dimensions_of_equal_words_keep_their_order():
    """Dimensions 7,646 and 12,761 have one word, so an order by words alone would be any."""
    dims, step_index, seed = 13_000, 3, 17
    assert reference.words(dims, 0, step_index, reference.STREAM_CHUNK, seed).unique().numel() < dims
    check_places(dims, 90, step_index, seed)


def test_rule_poisson_on_both_back_ends(monkeypatch, fresh):
    """The same choices, but where scores nearly tie, and the same noise of the same tokens."""
    budget, step_index, dims = 28, int(fresh.integers(2**31)), 60  # five chunks, of 256 and 128 values
    rule = Poisson(Codebook("hadamard", 512, int(fresh.integers(2**63))))
    assert [run[:2] for run in rule.runs(budget, 1, 512, 0)] == [(3, 256), (2, 128)]
    residual = torch.from_numpy(fresh.standard_normal((3, 1, dims)).astype("float32"))
    found = []
    for backend in (reference, triton):
        monkeypatch.setattr(codebook, "backend", lambda device, backend=backend: backend)
        device = DEVICE if backend is triton else CPU
        tokens = rule.select(residual.to(device), budget, step_index, 0.5, 0.4)
        z = rule.noise(tokens if not found else found[0][0].to(device), (1, dims), budget, step_index)
        found.append((tokens.cpu(), z.cpu()))
    assert (found[0][0] == found[1][0]).float().mean() > 0.9
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("sizes", [(2, 4), (4, 2, 4), (4, 3, 2), (4, 0), ((1 << 30) + 1,)])
def test_other_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="at most two numbers from 1 to 1073741824, the larger first"):
        arrival.arrival_bias(sizes, 0, 0, DEVICE)


def test_more_chunks_than_dimensions_are_refused():
    for chunks in (0, 6):
        with pytest.raises(ValueError, match=r"chunks . not in \[1, 5\]"):
            arrival.chunk_places(5, chunks, 0, 0, DEVICE)


def test_a_step_or_seed_out_of_range_is_refused():
    for step_index, seed, name in ((-1, 0, "step_index"), (2**32, 0, "step_index"), (0, 2**64, "seed")):
        with pytest.raises(ValueError, match=name):
            arrival.arrival_bias((4,), step_index, seed, DEVICE)
        with pytest.raises(ValueError, match=name):
            arrival.chunk_places(4, 2, step_index, seed, DEVICE)
