"""`hadamard_top` by the best runs: on the GPU where there is one, in Triton's interpreter where not."""

import os

import numpy as np
import pytest
import torch

from noisebook.codebook import reference

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    DEVICE = "cpu"

from noisebook_kernels import top

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def sizes(monkeypatch):
    """How many keys each topk was given, of all rows."""
    seen, keep = [], top.keep_top

    def counted(best, keys, count):
        seen.append(keys.numel())
        return keep(best, keys, count)

    monkeypatch.setattr(top, "keep_top", counted)
    return seen


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "count", "atoms", "bases", "held"),
    [
        (2, 2, 48, 3, 64, 70, None),  # a base is one run
        (1, 2, 3, 1, 3, 300, None),  # shorter than a run would be
        (3, 1, 200, 5, 200, 41, None),  # the last run of a base is not full
        (2, 1, 300, 7, 512, 9, 64),  # few bases at a time, and few winners
        (1, 1, 3000, 4, 4096, 3, None),
        (1, 1, 5000, 2, 8000, 2, None),
    ],
)
def test_the_definition_is_chosen(batch, blocks, d, count, atoms, bases, held, fresh, monkeypatch, sizes):
    """Integers, so that float32 scores are exact and equal scores are equal; the first view has nothing but ties."""
    if held:
        monkeypatch.setattr(top, "HELD", held)
    monkeypatch.setattr(top, "runs_pay", lambda *_: True)
    residual = torch.from_numpy(fresh.integers(-8, 9, (batch, blocks, d)).astype(np.float32))
    residual[0, 0] = 0
    where = (atoms, bases, int(fresh.integers(2**32)), int(fresh.integers(2**63)) * 2 + 1)
    tokens = top.hadamard_top(residual.to(DEVICE), count, *where, 5).cpu()
    assert tokens[0, 0].equal(2 * torch.arange(count))
    for u in range(blocks):
        assert torch.equal(tokens[:, u], reference.hadamard_top(residual[:, u], count, *where, 5 + u))
    run = min(top.RUN, reference.next_pow2(d))
    assert sum(sizes) == batch * blocks * (bases * -(-atoms // run) + run * min(count, bases * -(-atoms // run)))


@pytest.mark.parametrize(("batch", "d", "count", "atoms", "bases"), [(3, 500, 9, 512, 12), (1, 3072, 5, 4096, 2)])
def test_runs_and_all_keys_choose_the_same(batch, d, count, atoms, bases, fresh, monkeypatch):
    """Real residuals, whose scores round: bit for bit, whatever is transformed together. One is a spike: scores tie."""
    residual = torch.from_numpy(fresh.standard_normal((batch, 1, d)).astype(np.float32))
    residual[-1, 0, 1:] = 0
    arguments = (residual.to(DEVICE), count, atoms, bases, 7, int(fresh.integers(2**63)), 5)
    chosen = []
    for way in (True, False):
        monkeypatch.setattr(top, "runs_pay", lambda *_, way=way: way)
        chosen.append(top.hadamard_top(*arguments))
    assert torch.equal(*chosen)


def test_few_keys_are_sorted(fresh, sizes):
    """Of 2 views and 2 bases of 4096 atoms: their runs, and the runs of the best."""
    residual = torch.from_numpy(fresh.standard_normal((2, 1, 3000)).astype(np.float32))
    top.hadamard_top(residual.to(DEVICE), 5, 4096, 2, 1, 2)
    assert sum(sizes) == 2 * (2 * 64 + 5 * 64)


def test_where_runs_do_not_pay(fresh, sizes):
    """Where most runs would win, or a view is longer than one program transforms, all keys are sorted."""
    for d, count, atoms, bases in ((48, 30, 64, 3), (9000, 1, 200, 2)):
        sizes.clear()
        residual = torch.from_numpy(fresh.standard_normal((1, 1, d)).astype(np.float32))
        top.hadamard_top(residual.to(DEVICE), count, atoms, bases, 1, 2)
        assert sum(sizes) == atoms * bases


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_tokens_stay_in_range_when_the_residual_is_not_finite(bad, fresh):
    residual = torch.from_numpy(fresh.standard_normal((1, 2, 48)).astype(np.float32))
    residual[0, 1, int(fresh.integers(48))] = bad
    tokens = top.hadamard_top(residual.to(DEVICE), 3, 50, 40, 0, 0)
    assert tokens.min() >= 0
    assert tokens.max() < 2 * 40 * 50
