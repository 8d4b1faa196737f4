"""Packing on the device is the packing of files, bit for bit."""

import numpy as np
import pytest
import torch

from noisebook.codec import packing
from noisebook.format import container

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")


def draw(rng, count, most_bits=33):
    """Random runs with vocabularies 2 ... 2^most_bits and tokens of a few images in them, extremes included."""
    runs = tuple((int(rng.integers(0, 40)), 1 << int(b)) for b in rng.integers(1, most_bits + 1, count))
    rows = 1 + int(rng.integers(4))
    columns = [rng.integers(0, v, (rows, n)) for n, v in runs]
    for (_, v), column in zip(runs, columns, strict=True):
        column[:, :1], column[:, 1:2] = v - 1, 0
    return runs, torch.from_numpy(np.concatenate([np.empty((rows, 0), np.int64), *columns], 1))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 30])
def test_pack_and_unpack_are_those_of_files(count, fresh):
    for _ in range(30):
        runs, tokens = draw(fresh, count)
        packed = packing.pack(tokens, runs)
        assert packed.dtype == torch.uint8
        assert packed.shape == (len(tokens), -(-container.packed_bits(runs) // 8))
        assert [row.numpy().tobytes() for row in packed] == [container.pack(row.numpy(), runs) for row in tokens]
        back, valid = packing.unpack(packed, runs)
        assert torch.equal(back, tokens)
        assert valid


@pytest.mark.parametrize("runs", [(), ((0, 256),), ((8, 2),), ((1, 1 << 33),), ((3, 1 << 33), (5, 2), (1, 65536))])
def test_ends_of_the_range(runs, fresh):
    tokens = torch.tensor([[v - 1 for n, v in runs for _ in range(n)]], dtype=torch.int64).reshape(1, -1)
    for some in (tokens, 0 * tokens):
        packed = packing.pack(some, runs)
        assert packed[0].numpy().tobytes() == container.pack(some[0].numpy(), runs)
        assert torch.equal(packing.unpack(packed, runs)[0], some)


def test_padding_bits_that_are_not_zero_are_told(fresh):
    runs = ((3, 4), (1, 8))  # 9 bits: 7 of padding
    packed = packing.pack(torch.from_numpy(fresh.integers(0, 4, (5, 4))), runs)
    assert packing.unpack(packed, runs)[1]
    for bit in range(7):
        bad = packed.clone()
        bad[fresh.integers(5), 1] |= 1 << bit
        assert not packing.unpack(bad, runs)[1]


def test_clamp_forces_tokens_into_any_vocabulary_and_tells(fresh):
    runs = ((5, 66), (9, 256))
    limit = torch.tensor([65] * 5 + [255] * 9)
    tokens = torch.from_numpy(fresh.integers(0, 66, (3, 14)))
    inside, valid = packing.clamp(tokens, runs)
    assert valid
    assert torch.equal(inside, tokens)
    for value in (-1, 66, 256, -(1 << 62), 1 << 62):
        bad = tokens.clone()
        bad[1, 3] = value
        inside, valid = packing.clamp(bad, runs)
        assert not valid
        assert ((inside >= 0) & (inside <= limit)).all()
        bad[1, 3] = tokens[1, 3]
        keep = torch.ones(3, 14, dtype=torch.bool)
        keep[1, 3] = False
        assert torch.equal(inside[keep], tokens[keep])
