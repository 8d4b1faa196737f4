"""Tokens chosen again, against the definition: on the GPU where there is one, in Triton's interpreter where not."""

import os

import numpy as np
import pytest
import torch

from noisebook.codebook import reference, refining
from refining_kit import NEAR, exact, near_ties

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    DEVICE = "cpu"

import noisebook_kernels as kernels
from noisebook_kernels import fwht, hadamard, layout, refine

pytestmark = pytest.mark.usefixtures("poisoned")

SLOW = pytest.mark.slow  # in the interpreter
SHAPES = [  # batch, blocks, D, bins, atoms, bases, first block
    (2, 1, 64, 4, 16, 5, 0),  # D = P
    (1, 2, 48, 4, 9, 70, 2**24 - 2),  # padded; atoms do not fill a bin
    (1, 1, 8, 8, 1, 20, 3),  # a bin is one row of the Walsh matrix
    (1, 1, 2, 2, 1, 40, 0),  # two parts
    (1, 1, 1024, 4, 256, 3, 3),  # two tiles
    pytest.param(3, 1, 20, 2, 16, 6, 1, marks=SLOW),
    pytest.param(2, 2, 2048, 64, 32, 20, 3, marks=SLOW),
    pytest.param(2, 1, 3072, 64, 64, 6, 0, marks=SLOW),  # CIFAR-10
    pytest.param(1, 1, 16384, 64, 256, 2, 0, marks=SLOW),  # latents of Stable Diffusion
    pytest.param(1, 1, 32768, 2, 16384, 1, 0, marks=SLOW),  # strided passes in the search
    pytest.param(1, 1, 5000, 8, 1000, 2, 5, marks=SLOW),  # and before it
]


def draw(fresh, batch, blocks, d, bins, atoms, bases):
    """A residual, tokens of which some are good and some are not, and (step index, seed)."""
    where = (int(fresh.integers(2**32)), int(fresh.integers(2**63)) * 2 + 1)
    residual = torch.from_numpy(fresh.standard_normal((batch, blocks, d)).astype(np.float32))
    tokens = torch.from_numpy(fresh.integers(0, 2 * atoms * bases, (batch, blocks, bins)))
    return residual, tokens, where


def refined(residual, tokens, shape: refining.Shape, where: tuple[int, int], block=0):
    parts = refining.parts_of(shape[0])
    return kernels.hadamard_refined(residual.to(DEVICE), tokens.to(DEVICE), parts, *shape, *where, block).cpu()


@pytest.mark.parametrize(("batch", "blocks", "d", "bins", "atoms", "bases", "block"), SHAPES)
def test_tokens_are_those_of_the_definition(batch, blocks, d, bins, atoms, bases, block, fresh):
    """Each is the best given the parts before it, in float64, and all equal the plain path's but where scores tie."""
    shape = (bins, atoms, bases)
    residual, tokens, where = draw(fresh, batch, blocks, d, *shape)
    tokens[:, :, ::3] = kernels.hadamard_select(residual.to(DEVICE), *shape, *where, block).cpu()[:, :, ::3]
    given = tokens.clone()
    for _ in range(1 if batch * blocks * d > 64 else 2):
        chosen = refined(residual, tokens, shape, where, block)
        plain = refining.refined(reference.select, reference.noise, residual, tokens, "hadamard", shape, *where, block)
        ties = sum(
            near_ties(residual[:, u], tokens[:, u], of[:, u], shape, where, block + u)
            for u in range(blocks)
            for of in (chosen, plain)
        )
        assert ties or torch.equal(chosen, plain)
        assert ties <= 2
        assert torch.equal(tokens, given)
        tokens = given = chosen.clone()


@pytest.mark.parametrize(("d", "bins", "bases"), [(1024, 4, 2), (50, 2, 3), pytest.param(3000, 8, 2, marks=SLOW)])
def test_scores_have_the_precision_of_float32(d, bins, bases, fresh, monkeypatch):
    """What is searched for each part are the exact scores of its bins and of no other."""
    shape = (bins, reference.next_pow2(d) // bins, bases)
    residual, tokens, where = draw(fresh, 1, 2, d, *shape)
    seen, launch = [], refine.search
    monkeypatch.setattr(refine, "search", lambda work, *rest, **how: (seen.append(work.clone()), launch(work, *rest, **how)))
    chosen, parts = refined(residual, tokens, shape, where), refining.parts_of(bins)
    assert len(seen) == parts
    for part, work in enumerate(seen):
        found = reference.fwht(work.cpu().double()).unflatten(1, (1, 2)) / reference.next_pow2(d) ** 0.5  # [J, B, U, Q]
        for u in range(2):
            missing, scores = exact(residual[:, u], tokens[:, u], part, parts, shape, where, u)
            wanted = scores[:, part::parts].unflatten(-1, (bases, -1)).permute(2, 0, 1, 3).flatten(2)
            assert ((found[:, :, u] - wanted).abs() <= NEAR * missing.norm(dim=-1)[:, None]).all()
        tokens[..., part::parts] = chosen[..., part::parts]


@pytest.mark.parametrize("d", [128, pytest.param(100, marks=SLOW)])
def test_cutting_the_work_changes_nothing(d, fresh, monkeypatch):
    """Other tiles, groups and launches: the same bits of all that is searched."""
    shape = (8, 9, 3)
    residual, tokens, where = draw(fresh, 1, 2 if DEVICE == "cuda" else 1, d, *shape)

    def everything(**sizes):
        seen, launch = [], refine.search

        def search(work, *rest, **how):
            seen.append(work[: rest[5][1]].clone())
            launch(work, *rest, **how)

        with monkeypatch.context() as patch:
            for name, size in sizes.items():
                patch.setattr(refine, name, size)
            patch.setattr(refine, "search", search)
            chosen = refined(residual, tokens, shape, where)
        return chosen, torch.cat(seen).cpu()

    chosen, searched = everything()
    for sizes in (
        {"chunk": lambda columns, logn: 4, "OUTPUTS": 8, "warps": lambda entries: 1},
        {"WORKSPACE": 64, "tile_bits": lambda logp: 6},
    ):
        again, seen = everything(**sizes)
        assert torch.equal(again, chosen)
        assert torch.equal(seen.view(torch.int32), searched.view(torch.int32))


@pytest.mark.parametrize("d", [512, pytest.param(400, marks=SLOW)])
def test_views_longer_than_a_program(d, fresh, monkeypatch):
    """Strided passes, before and in the search, and one view at a time."""
    shape, blocks = (8, 50, 3), 2 if DEVICE == "cuda" else 1
    residual, tokens, where = draw(fresh, 1, blocks, d, *shape)
    for module in (fwht, hadamard, refine):
        monkeypatch.setattr(module, "TILE", 32)
    monkeypatch.setattr(fwht, "HIGH_BITS", 2)
    assert fwht.high_passes(fwht.low_bits(9, 1), 9) == [(5, 2), (7, 2)]
    assert fwht.high_passes(fwht.low_bits(7, 2), 7) == [(5, 2)]
    monkeypatch.setattr(layout, "GROUP", 512)
    chosen = refined(residual, tokens, shape, where)
    plain = refining.refined(reference.select, reference.noise, residual, tokens, "hadamard", shape, *where)
    for u in range(blocks):
        ties = sum(near_ties(residual[:, u], tokens[:, u], of[:, u], shape, where, u) for of in (chosen, plain))
        assert ties or torch.equal(chosen[:, u], plain[:, u])


@pytest.mark.parametrize("d", [12, pytest.param(16, marks=SLOW)])
def test_the_length_of_a_residual_does_not_matter(d, fresh):
    """From far below what float32 can square to far above; and one of no length has the first token everywhere."""
    shape = (4, 4, 5)
    residual, tokens, where = draw(fresh, 2, 1, d, *shape)
    chosen = refined(residual, tokens, shape, where)
    for power in (-90, 80):
        assert torch.equal(refined(residual * 2.0**power, tokens, shape, where), chosen)
    residual[1] = 0
    again = refined(residual, tokens, shape, where)
    assert torch.equal(again[0], chosen[0])
    assert again[1].eq(0).all()
    plain = refining.refined(reference.select, reference.noise, residual, tokens, "hadamard", shape, *where)
    assert plain[1].eq(0).all()


@pytest.mark.parametrize(("bad", "d"), [(float("nan"), 8), (float("inf"), 6), (-float("inf"), 8)])
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
def test_tokens_stay_in_range_when_the_residual_is_not_finite(bad, d, fresh):
    residual, tokens, where = draw(fresh, 1, 2, d, 4, 2, 3)
    residual[0, 1, int(fresh.integers(d))] = bad
    chosen = refined(residual, tokens, (4, 2, 3), where)
    assert chosen.min() >= 0
    assert chosen.max() < 2 * 3 * 2


@SLOW
def test_launches_of_a_part(fresh, monkeypatch):
    """Latents: the sums, the fold and the search, and nothing else of ours for each part."""
    count = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            count.append(grid)
            return self.kernel[grid]

    for module, name in ((refine, "parts_kernel"), (refine, "fold_kernel"), (hadamard, "search_kernel")):
        monkeypatch.setattr(module, name, Counted(module.__dict__[name]))
    monkeypatch.setattr(refine, "transform", None)
    monkeypatch.setattr(refine, "missing_kernel", None)
    monkeypatch.setattr(refine, "sums_kernel", None)
    residual, tokens, where = draw(fresh, 1, 1, 16384, 64, 256, 1)
    refined(residual, tokens, (64, 256, 1), where)
    assert len(count) == 3 * 4


def test_wrong_arguments_are_refused():
    residual, tokens = torch.zeros(1, 1, 48, device=DEVICE), torch.zeros(1, 1, 4, dtype=torch.int64, device=DEVICE)
    for parts in (1, 3, 8, 0):
        with pytest.raises(ValueError, match=f"parts {parts}"):
            kernels.hadamard_refined(residual, tokens, parts, 4, 16, 1, 0, 0)
    for some in (tokens.int(), tokens[..., :2].contiguous(), tokens[..., ::2]):
        with pytest.raises(ValueError, match="tokens must be"):
            kernels.hadamard_refined(residual, some, 4, 4, 16, 1, 0, 0)
    with pytest.raises(ValueError, match="contiguous float32"):
        kernels.hadamard_refined(residual.double(), tokens, 4, 4, 16, 1, 0, 0)
