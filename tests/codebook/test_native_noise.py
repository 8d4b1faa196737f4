"""Noise by noisebook._C where it is made in runs and by several threads: the bits of the definition, and of every
instruction set alike."""

import subprocess
import sys

import numpy as np
import pytest

import noisebook._C as native
from native_kit import NOISE, bits, expected_noise

# kind, batch, blocks, d, bins, atoms, bases, tokens of a view. A run has 1024 to 8192 entries; more where a base has more
# rows than that.
CASES = [
    ("hadamard", 2, 2, 8191, 64, 128, 5, 64),  # one run
    ("hadamard", 2, 1, 8193, 64, 256, 5, 64),  # the shortest runs, of 2048 entries
    ("hadamard", 1, 2, 16384, 16384, 1, 2, 16384),  # more rows of a base than a run would have entries
    ("hadamard", 1, 1, 20_001, 4, 3, 2**32, 4),
    ("hadamard", 2, 1, 33_333, 1, 65536, 3, 150),  # any number of tokens of one bin
    ("hadamard", 1, 1, 65_537, 1024, 100, 1, 1024),
    ("hadamard", 1, 1, 140_000, 256, 1024, 4, 256),  # threads share a view from here on
    ("hadamard", 1, 1, 300_007, 16384, 32, 2, 16384),  # M P above 2^31, though no entry is
    ("independent", 2, 2, 8191, 4, 1000, 1, 4),
    ("independent", 3, 1, 9000, 1, 2**32, 1, 7),
    ("independent", 1, 1, 140_000, 2, 2**20, 1, 2),
]


def made(kind, threads, *args):
    """Noise by every instruction set and number of threads, which must be the same."""
    out, before = [], native.isa()
    try:
        for name in native.available_isas():
            native.set_isa(name)
            out += [NOISE[kind](*args, threads=n) for n in threads]
    finally:
        native.set_isa(before)
    for other in out:
        assert np.array_equal(bits(out[0]), bits(other)), args[1:]
    return out[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs(case):
    kind, batch, blocks, d, bins, atoms, bases, count = case
    rng = np.random.default_rng()
    step_index, seed, block = int(rng.integers(2**32)), int(rng.integers(2**64, dtype=np.uint64)), int(rng.integers(2**20))
    tokens = rng.integers(0, 2 * atoms * bases, (batch, blocks, count))
    shape = (bins, atoms, bases)[: 3 if kind == "hadamard" else 2]
    z = made(kind, (1, 2, 5), tokens, d, *shape, step_index, seed, block)
    right = expected_noise(kind, tokens, d, bins, atoms, bases, step_index, seed, block)
    assert np.array_equal(bits(z), bits(right)), (step_index, seed, block)


# kind, d, tokens: M P is 2^31 and more. 2^20 copies have a total above 2^31; 2^17 have not, but that does not follow from
# the bound that is looked at; 2^22 pass it within a run; the others stay below the bound.
COPIES = [
    ("hadamard", 2**18 - 5, 2**20),
    ("hadamard", 2**18 - 5, 2**17),
    ("hadamard", 3000, 2**22),
    ("hadamard", 2**18 - 5, 2**13),
]


@pytest.mark.parametrize("case", COPIES, ids=str)
def test_totals_beyond_int32(case):
    """A power of two copies of one token have that token's noise, bit for bit: totals and factor only change exponents."""
    kind, d, count = case
    rng = np.random.default_rng()
    shape = (1, 16, 3) if kind == "hadamard" else (1, 48)
    token = rng.integers(0, 96, (1, 1, 1))
    where = int(rng.integers(2**32)), int(rng.integers(2**64, dtype=np.uint64))
    one = NOISE[kind](token, d, *shape, *where)
    z = made(kind, (3,) if d > 2**17 else (1,), np.repeat(token, count, 2), d, *shape, *where)
    assert np.array_equal(bits(z), bits(one)), (token, where)


def test_one_dimension():
    """The total is the number of tokens, less those of the other sign."""
    tokens = np.array([0] * (2**16 + 1) + [1]).reshape(1, 1, -1)
    z = made("hadamard", (1,), tokens, 1, 1, 1, 1, 5, 6)
    assert np.array_equal(z, NOISE["hadamard"](tokens[..., :1], 1, 1, 1, 1, 5, 6))
    assert abs(z[0, 0, 0]) == 1


PEAK = """
import re
import numpy as np
import noisebook._C as native
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
tokens = np.random.default_rng().integers(0, 2**16, (1, 1, 4096))
before = peak()
z = native.hadamard_noise(tokens, 2**22 - 9, 4096, 1024, 32, 5, 6, threads=2)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_photograph():
    """P = 2^22 and M P = 2^34: the noise itself and one total of 4 bytes an entry, 32 MiB, and little else."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 44 * 1024
