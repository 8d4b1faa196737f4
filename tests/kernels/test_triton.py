"""The Triton kernels against the definition: on the GPU where there is one, in Triton's interpreter where not."""

import json
import os
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from common import ROOT
from noisebook.codebook import reference

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    assert "noisebook_kernels" not in sys.modules, "imported before TRITON_INTERPRET was set"
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    DEVICE = "cpu"

import noisebook_kernels as kernels
from noisebook_kernels import fwht, hadamard, layout, update

pytestmark = pytest.mark.usefixtures("poisoned")
KNOWN = json.loads((ROOT / "tests/golden/codebook_known_answers.json").read_text())["cases"]


def exact_z(total: torch.Tensor) -> torch.Tensor:
    """Exact integers [B, D] -> z, with numpy's IEEE division and square root."""
    total = total.numpy()
    squares = (total * total).sum(-1, keepdims=True)
    factor = np.sqrt(np.float64(total.shape[-1]) / np.maximum(squares, 1)).astype(np.float32)
    return torch.from_numpy(total.astype(np.float32) * np.where(squares > 0, factor, np.float32(0)))


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.cpu().view(torch.int32), y.cpu().view(torch.int32))


def quantised_tokens(residual, bins, atoms, step_index, seed, block):
    """The int8 search of `independent` from the definition: residual [B, D] -> tokens [B, bins]."""
    p = reference.next_pow2(residual.shape[-1])
    a = reference.signs(p, 0, step_index, reference.STREAM_ROTATION, seed, block)
    v = reference.fwht(a.float() * torch.nn.functional.pad(residual, (0, p - residual.shape[-1])))
    top = v.abs().amax(-1, keepdim=True).numpy()
    q = np.rint(np.divide(np.float32(127) * v.numpy(), top, out=np.zeros_like(v.numpy()), where=top > 0))
    u = reference.signs(p, torch.arange(bins * atoms), step_index, reference.STREAM_INDEPENDENT, seed, block)
    scores = torch.from_numpy(q).double() @ u.double().T  # integers: exact
    return reference.best_signed(scores.unflatten(-1, (bins, atoms)))


class Counted:
    """A kernel that also notes its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(grid)
        return self.kernel[grid]


def draw(rng, batch, blocks, d):
    """Integers, so that float32 scores are exact and equal scores are equal."""
    return torch.from_numpy(rng.integers(-8, 9, (batch, blocks, d)).astype(np.float32))


@pytest.mark.parametrize("case", KNOWN, ids=lambda c: f"{c['law']}-{c['d']}-{c['bins']}x{c['atoms']}x{c['bases']}")
def test_known_answers(case):
    shape = (case["bins"], case["atoms"], *([case["bases"]] if case["law"] == "hadamard" else []))
    counter = (case["step"], int(case["seed"]), case["unit"])
    tokens = torch.tensor(case["tokens"]).view(1, 1, -1)
    if case["residual"] is not None:
        residual = torch.tensor(case["residual"], dtype=torch.float32).view(1, 1, -1).to(DEVICE)
        got = getattr(kernels, f"{case['law']}_select")(residual, *shape, *counter)
        assert torch.equal(got.cpu(), tokens)
    z = getattr(kernels, f"{case['law']}_noise")(tokens.to(DEVICE), case["d"], *shape, *counter)[0, 0].tolist()
    assert [v.hex() for v in z[:4]] == case["z_float32_head_hex"]
    integers = np.array(case["z_integer_head"])
    assert (np.sign(z[: len(integers)]) == np.sign(integers)).all()


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "bins", "atoms", "bases", "block"),
    [
        (1, 1, 1, 1, 1, 5, 0),
        (5, 1, 3, 2, 2, 3, 0),
        (1, 3, 48, 4, 9, 70, 2**24 - 3),
        (1, 1, 20, 32, 1, 2, 5),
        (2, 1, 300, 1, 512, 3, 0),
        (1, 1, 3072, 8, 100, 2, 0),
        (1, 1, 6000, 4, 1500, 2, 1),
        (3, 1, 100, 1, 128, 9, 0),  # one bin of all atoms: a thread keeps one maximum
        (2, 2, 3000, 1, 4096, 5, 3),
        (1, 1, 9000, 1, 16384, 2, 0),
    ],
)
def test_hadamard(batch, blocks, d, bins, atoms, bases, block, fresh):
    residual = draw(fresh, batch, blocks, d)
    step_index, seed = int(fresh.integers(2**32)), int(fresh.integers(2**63)) * 2 + 1
    residual[0, 0] = 0
    shape = (bins, atoms, bases)
    tokens = kernels.hadamard_select(residual.to(DEVICE), *shape, step_index, seed, block).cpu()
    assert tokens[0, 0].eq(0).all()
    for u in range(blocks):
        want = reference.hadamard_select(residual[:, u], *shape, step_index, seed, block + u)
        assert torch.equal(tokens[:, u], want)
    drawn = torch.from_numpy(fresh.integers(0, 2 * bases * atoms, (min(batch, 2), blocks, bins)))
    z = kernels.hadamard_noise(drawn.to(DEVICE), d, *shape, step_index, seed, block)
    for u in range(blocks):
        total = reference.hadamard_total(drawn[:, u], d, *shape, step_index, seed, block + u)
        assert same_bits(z[:, u], exact_z(total))


@pytest.mark.parametrize(
    ("batch", "d", "bases", "programs"), [(2, 3072, 9, 6), (2, 2100, 3, 1), (1, 8192, 3, 2), (1, 12000, 2, 1)]
)
def test_hadamard_on_matrix_units_gives_the_same_tokens(batch, d, bases, programs, fresh, monkeypatch):
    """Real residuals, so that fp16 rounds: the float32 butterflies must still decide, bit for bit."""
    monkeypatch.setattr(hadamard, "PROGRAMS", programs)
    monkeypatch.setattr(hadamard, "matrix_units", lambda device: False)
    residual = torch.from_numpy(
        fresh.standard_normal((batch, 2, d)).astype(np.float32) * np.float32(10.0 ** fresh.integers(-20, 15))
    )
    residual[0, 0] = 0
    residual[0, 1, 1:] = 0  # one spike: many scores are equal
    arguments = (residual.to(DEVICE), 1, reference.next_pow2(d), bases, 7, int(fresh.integers(2**63)), 5)
    want = kernels.hadamard_select(*arguments)
    monkeypatch.setattr(hadamard, "matrix_units", lambda device: True)
    launches = []
    monkeypatch.setattr(hadamard, "matrix_kernel", Counted(hadamard.matrix_kernel, launches))
    assert torch.equal(kernels.hadamard_select(*arguments), want)
    assert launches


def test_the_slack_of_matrix_units_holds(fresh):
    """fp16 scores of random, smooth and sparse residuals stay far within the bound that decides what is looked at again."""
    h = torch.tensor([[1 - 2 * ((i & j).bit_count() & 1) for j in range(64)] for i in range(64)], dtype=torch.float64)
    for kind in ("normal", "smooth", "sparse"):
        v = torch.from_numpy(fresh.standard_normal((64, 64)))
        v = v.cumsum(0).cumsum(1) if kind == "smooth" else v * (v.abs() > 2.5) if kind == "sparse" else v
        v /= v.abs().max()
        exact = h @ v @ h
        rounded = (h @ v.half().double()).half().double() @ h
        assert (exact - rounded).abs().max() < 2 * 2**-11 * 64 * v.norm()


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "count", "atoms", "bases", "block"),
    [
        (2, 2, 48, 9, 64, 3, 5),
        (1, 1, 1, 1, 1, 1, 0),
        (5, 1, 3, 4, 2, 2, 0),
        (1, 2, 3000, 300, 4096, 2, 1),
        (1, 1, 9000, 40, 9999, 2, 0),
    ],
)
def test_hadamard_over_the_whole_vocabulary(batch, blocks, d, count, atoms, bases, block, fresh):
    """`top` is the definition's choice in its order, `biased` its maximum, and tokens of one bin add up to its noise."""
    residual, step_index, seed = draw(fresh, batch, blocks, d), int(fresh.integers(2**32)), int(fresh.integers(2**63))
    residual[0, 0] = 0
    bias = torch.from_numpy(fresh.integers(-40, 9, (blocks, atoms * bases)).astype(np.float32))
    bias[:, fresh.random(atoms * bases) < 0.3] = -float("inf")
    where = (atoms, bases, step_index, seed)
    tokens = kernels.hadamard_top(residual.to(DEVICE), count, *where, block)
    biased = kernels.hadamard_biased(residual.to(DEVICE), bias.to(DEVICE), *where, block)
    few = tokens[:2, :, :16].contiguous()  # in the interpreter a token costs a tenth of a second
    z = kernels.hadamard_noise(few, d, 1, *where, block)
    assert biased.remainder(2).eq(0).all()
    for u in range(blocks):
        assert torch.equal(tokens[:, u].cpu(), reference.hadamard_top(residual[:, u], count, *where, block + u))
        scores = (
            reference.hadamard_scores(residual[:, u], bases, step_index, seed, block + u)[..., :atoms].flatten(1) + bias[u]
        )
        picked = scores.gather(-1, biased[:, u].cpu() >> 1)[:, 0]
        assert (picked >= scores.amax(-1) - 1e-5 * residual[:, u].double().norm(dim=-1) - 1e-5 * 40).all()
        assert same_bits(z[:, u], exact_z(reference.hadamard_total(few[:, u].cpu(), d, 1, *where, block + u)))


def test_an_excluded_atom_is_never_chosen(fresh):
    residual = torch.from_numpy(fresh.standard_normal((2, 1, 48)).astype(np.float32)).to(DEVICE)
    for k in fresh.integers(0, 192, 3):
        bias = torch.full((1, 192), -float("inf"), device=DEVICE)
        bias[0, k] = -1e6
        assert kernels.hadamard_biased(residual, bias, 64, 3, 0, 0).eq(2 * k).all()


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "bins", "atoms", "bases"), [(3, 2, 700, 4, 256, 4), (1, 1, 100_000, 2, 65536, 1)]
)
def test_hadamard_scores_are_near_the_best(batch, blocks, d, bins, atoms, bases, fresh):
    """Real residuals: the picked atom's exact score is within 1e-5 |r| of the best. The second shape has K D > 2^33."""
    residual = torch.from_numpy(fresh.standard_normal((batch, blocks, d)).astype(np.float32))
    tokens = kernels.hadamard_select(residual.to(DEVICE), bins, atoms, bases, 3, 2**64 - 1).cpu()
    for u in range(blocks):
        scores = reference.hadamard_scores(residual[:, u], bases, 3, 2**64 - 1, u)
        scores = scores.unflatten(-1, (bins, -1))[..., :atoms].transpose(1, 2).flatten(2)
        picked = scores.gather(-1, tokens[:, u, :, None] >> 1)[..., 0] * (1 - 2 * (tokens[:, u] & 1))
        slack = 1e-5 * residual[:, u].double().norm(dim=-1, keepdim=True)
        assert (picked >= scores.abs().amax(-1) - slack).all()
    total = reference.hadamard_total(tokens[:, 0], d, bins, atoms, bases, 3, 2**64 - 1)
    z = kernels.hadamard_noise(tokens.to(DEVICE), d, bins, atoms, bases, 3, 2**64 - 1)
    assert same_bits(z[:, 0], exact_z(total))


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "bins", "atoms", "block"),
    [
        (1, 1, 1, 1, 7, 0),
        (33, 1, 48, 4, 5, 3),
        (2, 2, 300, 1, 300, 2**24 - 2),
        (1, 1, 1500, 8, 1, 0),
        (3, 1, 3072, 2, 128, 0),
        (1, 1, 6000, 1, 140, 0),
    ],
)
def test_independent(batch, blocks, d, bins, atoms, block, fresh):
    residual = torch.from_numpy(fresh.standard_normal((batch, blocks, d)).astype(np.float32))
    residual[-1] *= 0 if batch > 1 else 1
    step_index, seed = int(fresh.integers(2**32)), int(fresh.integers(2**63)) * 2 + 1
    tokens = kernels.independent_select(residual.to(DEVICE), bins, atoms, step_index, seed, block).cpu()
    drawn = torch.from_numpy(fresh.integers(0, 2 * atoms, (min(batch, 2), blocks, bins)))
    z = kernels.independent_noise(drawn.to(DEVICE), d, bins, atoms, step_index, seed, block)
    for u in range(blocks):
        assert torch.equal(tokens[:, u], quantised_tokens(residual[:, u], bins, atoms, step_index, seed, block + u))
        total = reference.independent_total(drawn[:, u], d, bins, atoms, step_index, seed, block + u)
        assert same_bits(z[:, u], exact_z(total))


def test_picks_of_int8_are_near_the_best(fresh):
    """What exact integers are worth: 95 % of the picks are within 1 % of |r| of the best score, none beyond 8 %."""
    d, seed = 200, int(fresh.integers(2**63))
    residual = torch.from_numpy(fresh.standard_normal((4, 1, d)).astype(np.float32))
    scores = reference.independent_scores(residual[:, 0], 64 * 16, 3, seed, 0).unflatten(-1, (64, -1))
    tokens = kernels.independent_select(residual.to(DEVICE), 64, 16, 3, seed).cpu()[:, 0]
    picked = scores.gather(-1, tokens[..., None] >> 1)[..., 0] * (1 - 2 * (tokens & 1))
    short = (scores.abs().amax(-1) - picked) / residual[:, 0].double().norm(dim=-1, keepdim=True)
    assert (short < 0.01).double().mean() >= 0.95
    assert short.max() < 0.08


def test_cutting_the_work_changes_nothing(monkeypatch, fresh):
    """Small tiles, groups, workspaces and launches: several strided passes, several merges, the same tokens and z."""
    residual, seed = draw(fresh, 2, 1, 200), int(fresh.integers(2**63))
    tokens = torch.from_numpy(fresh.integers(0, 2 * 3 * 50, (2, 1, 4)))
    many = torch.from_numpy(fresh.integers(0, 2 * 3 * 16, (1, 1, 16)))  # whose sign vectors are added at once

    def everything():
        return (
            kernels.hadamard_select(residual.to(DEVICE), 4, 50, 3, 1, seed),
            kernels.hadamard_noise(tokens.to(DEVICE), 200, 4, 50, 3, 1, seed),
            kernels.hadamard_noise(many.to(DEVICE), 200, 16, 16, 3, 1, seed),
            kernels.independent_select(residual.to(DEVICE), 1, 300, 1, seed),
        )

    want = everything()
    with monkeypatch.context() as patch:
        patch.setattr(hadamard, "BASES", 2)  # a launch has two bases at most
        assert torch.equal(kernels.hadamard_select(residual.to(DEVICE), 4, 50, 3, 1, seed), want[0])
    with monkeypatch.context() as patch:
        for module in (fwht, hadamard):
            patch.setattr(module, "TILE", 32)
        patch.setattr(fwht, "HIGH_BITS", 2)
        assert (fwht.low_bits(8), fwht.high_passes(5, 8)) == (5, [(5, 1), (6, 2)])
        patch.setattr(layout, "GROUP", 256)  # one view at a time
        patch.setattr(hadamard, "WORKSPACE", 512)  # two bases at a time
        for x, y in zip(everything(), want, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
@pytest.mark.parametrize(("d", "count", "bins"), [(300, 8, 8), (100, 150, 1), (16, 16, 16), (3, 9, 1)])
def test_many_tokens_are_added_at_once(kind, d, count, bins, fresh, monkeypatch):
    """The same bits as one after the other, and as the definition's."""
    shape = (bins, min(5, reference.next_pow2(d) // bins), *((4,) if kind == "hadamard" else ()))
    choices = 2 * shape[1] * (shape[2] if kind == "hadamard" else 1)
    tokens = torch.from_numpy(fresh.integers(0, choices, (1, 2, count))).to(DEVICE)
    where = (d, *shape, int(fresh.integers(2**32)), int(fresh.integers(2**63)), 7)
    z = getattr(kernels, f"{kind}_noise")(tokens, *where)
    for u in range(2):
        total = getattr(reference, f"{kind}_total")(tokens[:, u].cpu(), *where[:-1], where[-1] + u)
        assert same_bits(z[:, u], exact_z(total))
    with monkeypatch.context() as patch:
        patch.setattr(update, "MANY", count + 1)
        few = tokens[..., :8].contiguous() if bins == 1 else tokens  # in the interpreter each takes a tenth of a second
        wanted = getattr(kernels, f"{kind}_noise")(few, *where)
    assert same_bits(getattr(kernels, f"{kind}_noise")(few, *where), wanted)


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_backtrace_equals_its_parts(kind, fresh):
    d, shape = 3000, (4, 64, 3) if kind == "hadamard" else (4, 64)
    y, x0 = (torch.from_numpy(fresh.standard_normal((2, 2, d)).astype(np.float32)) for _ in range(2))
    keep, sigma_up = (float(np.float32(v)) for v in fresh.random(2))
    tokens = torch.from_numpy(fresh.integers(0, 128, (2, 2, 4))).to(DEVICE)
    z = getattr(kernels, f"{kind}_noise")(tokens, d, *shape, 4, 5, 6).cpu()
    got = getattr(kernels, f"{kind}_backtrace")(y.to(DEVICE), x0.to(DEVICE), tokens, keep, sigma_up, *shape, 4, 5, 6)
    assert same_bits(got, (x0 + keep * (y - x0)) + sigma_up * z)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_tokens_stay_in_range_when_the_residual_is_not_finite(bad, fresh):
    residual = torch.from_numpy(fresh.standard_normal((1, 2, 48)).astype(np.float32))
    residual[0, 1, int(fresh.integers(48))] = bad
    tokens = kernels.hadamard_select(residual.to(DEVICE), 4, 9, 3, 0, 0)
    assert tokens.min() >= 0
    assert tokens.max() < 2 * 3 * 9
    tokens = kernels.independent_select(residual.to(DEVICE), 4, 9, 0, 0)
    assert tokens.min() >= 0
    assert tokens.max() < 2 * 9


def test_groups_cover_every_view_once(fresh):
    for _ in range(20):
        batch, blocks, entries = (int(fresh.integers(0, high)) for high in (9, 9, 24))
        seen = torch.zeros(batch, blocks)
        for b, u in layout.groups(batch, blocks, 1 << entries):
            assert seen[b, u].is_contiguous()
            assert seen[b, u].numel() == 1 or seen[b, u].numel() << entries <= layout.GROUP
            seen[b, u] += 1
        assert seen.eq(1).all()


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_passes_cover_every_bit_once(tiles):
    for logp in range(31):
        low = fwht.low_bits(logp, tiles)
        passes = [(0, low), *fwht.high_passes(low, logp)]
        assert all(a + n == b for (a, n), (b, _) in pairwise(passes))
        assert sum(passes[-1]) == logp
        assert 1 << low <= tiles * fwht.TILE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 3}, "bins 3"),
        ({"bins": 128}, "bins 128"),
        ({"atoms": 17}, "atoms 17"),
        ({"bases": 0}, "bases 0"),
        ({"step_index": 2**32}, "step_index"),
        ({"seed": -1}, "seed"),
        ({"block": 2**24}, "blocks"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    arguments = {"bins": 4, "atoms": 16, "bases": 2, "step_index": 0, "seed": 0, "block": 0} | change
    with pytest.raises(ValueError, match=message):
        kernels.hadamard_select(torch.zeros(1, 1, 48, device=DEVICE), **arguments)


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match="contiguous float32"):
        kernels.hadamard_select(torch.zeros(1, 1, 48, device=DEVICE).double(), 1, 64, 1, 0, 0)
    with pytest.raises(ValueError, match="three axes"):
        kernels.hadamard_select(torch.zeros(1, 48, device=DEVICE), 1, 64, 1, 0, 0)
    with pytest.raises(ValueError, match="tokens must be"):
        kernels.hadamard_noise(torch.zeros(1, 1, 2, dtype=torch.int64, device=DEVICE), 48, 4, 16, 1, 0, 0)
    with pytest.raises(ValueError, match="count 65"):
        kernels.hadamard_top(torch.zeros(1, 1, 48, device=DEVICE), 65, 64, 1, 0, 0)
    with pytest.raises(ValueError, match="bias must be"):
        kernels.hadamard_biased(torch.zeros(1, 2, 48, device=DEVICE), torch.zeros(1, 64, device=DEVICE), 64, 1, 0, 0)
    tokens, y = torch.zeros(1, 1, 1, dtype=torch.int64, device=DEVICE), torch.zeros(1, 1, 48, device=DEVICE)
    with pytest.raises(ValueError, match="x0_hat must be"):
        kernels.hadamard_backtrace(y, y[..., :47].contiguous(), tokens, 0.5, 0.5, 1, 64, 1, 0, 0)
