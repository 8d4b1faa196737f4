"""The definition gives the known answers, and `Codebook` gives the definition, whatever serves it."""

import json

import pytest
import torch

from common import ROOT
from noisebook import ImageError, SpecError, codebook
from noisebook.codebook import Codebook, reference

KNOWN = json.loads((ROOT / "tests/golden/codebook_known_answers.json").read_text())


def test_philox_known_answers():
    zero = reference.philox4x32([torch.zeros(1, dtype=torch.int64)] * 4, 0)
    ones = reference.philox4x32([torch.full((1,), 0xFFFFFFFF)] * 4, 2**64 - 1)
    assert [f"{int(w):08x}" for w in zero] == KNOWN["philox_zero"]
    assert [f"{int(w):08x}" for w in ones] == KNOWN["philox_ones"]
    with pytest.raises(ValueError, match="seed"):
        reference.philox4x32([torch.zeros(1, dtype=torch.int64)] * 4, 2**64)


@pytest.mark.parametrize("case", KNOWN["start"], ids=lambda c: f"d={c['d']}")
def test_start_known_answers(case):
    z = reference.start_noise(case["d"], int(case["seed"]))
    assert [float(v).hex() for v in z[:4]] == case["head_hex"]


@pytest.mark.parametrize(
    "case", KNOWN["cases"], ids=lambda c: f"{c['law']} d={c['d']} K={c['bins'] * c['atoms'] * c['bases']}"
)
def test_definition_gives_the_known_answers(case):
    shape = (case["bins"], case["atoms"]) + ((case["bases"],) if case["law"] == "hadamard" else ())
    where = case["step"], int(case["seed"]), case["unit"]
    if case["residual"] is not None:
        select = getattr(reference, f"{case['law']}_select")
        assert select(torch.tensor([case["residual"]]), *shape, *where)[0].tolist() == case["tokens"]
    total = getattr(reference, f"{case['law']}_total")(torch.tensor([case["tokens"]]), case["d"], *shape, *where)
    assert total[0, :16].tolist() == case["z_integer_head"]
    assert int(total.sum()) == case["z_integer_sum"]
    assert int(total.abs().sum()) == case["z_integer_abs_sum"]
    assert [float(v).hex() for v in reference.unit_rms(total)[0, :4]] == case["z_float32_head_hex"]


@pytest.mark.parametrize("extension", [True, False], ids=["_C", "definition"])
@pytest.mark.parametrize(("kind", "vocab_size"), [("hadamard", 256), ("independent", 66)])
def test_codebook_is_the_definition(kind, vocab_size, extension, fresh, monkeypatch):
    if not extension:
        monkeypatch.setattr(codebook, "backend", lambda device: reference)
    book = Codebook(kind, vocab_size, int(fresh.integers(2**63)))
    residual = torch.from_numpy(fresh.standard_normal((3, 2, 90), "float32"))
    step_index, bins = int(fresh.integers(2**32)), 4
    tokens = book.select(residual, bins, step_index)
    z = book.noise(tokens, 90, step_index)
    for block in range(2):
        shape = book.shape(bins, 90)[: 3 if kind == "hadamard" else 2]
        scores_of = getattr(reference, f"{kind}_select")
        if kind == "hadamard" or not extension:  # the extension quantises `independent` scores, see test_native.py
            assert torch.equal(tokens[:, block], scores_of(residual[:, block], *shape, step_index, book.seed, block))
        total = getattr(reference, f"{kind}_total")(tokens[:, block], 90, *shape, step_index, book.seed, block)
        assert torch.equal(z[:, block], reference.unit_rms(total))
    y, x0_hat = torch.from_numpy(fresh.standard_normal((2, 3, 2, 90), "float32"))
    assert torch.equal(book.backtrace(y, x0_hat, tokens, 0.3, 0.7, step_index), x0_hat + 0.3 * (y - x0_hat) + 0.7 * z)
    assert (z.square().mean(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("extension", [True, False], ids=["_C", "definition"])
@pytest.mark.parametrize(("kind", "vocab_size"), [("hadamard", 2048), ("independent", 666)])
def test_rules_over_one_bin_are_the_definition(kind, vocab_size, extension, fresh, monkeypatch):
    """`top` and `biased` and the noise of their tokens: as good as the definition's, of each block's own codebook."""
    if not extension:
        monkeypatch.setattr(codebook, "backend", lambda device: reference)
    book, d, step_index = Codebook(kind, vocab_size, int(fresh.integers(2**63))), 90, int(fresh.integers(2**32))
    residual = torch.from_numpy(fresh.standard_normal((3, 2, d), "float32"))
    bias = torch.from_numpy(fresh.standard_normal((2, vocab_size // 2), "float32")) * 5
    top, biased = book.top(residual, 7, step_index), book.biased(residual, bias, step_index)
    assert (top.shape, top.dtype) == ((3, 2, 7), torch.int64)
    assert (biased.shape, biased.dtype) == ((3, 2, 1), torch.int64)
    # int8 scores, with which the extension takes the `top` of `independent`, miss by 1 % of |r| r.m.s.
    tolerance = (0.08 if kind == "independent" else 1e-5) if extension else 0
    shape = book.shape(1, d)[: 3 if kind == "hadamard" else 2]
    for block in range(2):
        r, size = residual[:, block], residual[:, block].norm(dim=-1, keepdim=True)
        if kind == "hadamard":
            scores = reference.hadamard_scores(r, shape[2], step_index, book.seed, block).flatten(1)
        else:
            scores = reference.independent_scores(r, vocab_size // 2, step_index, book.seed, block)
        chosen = scores.gather(-1, top[:, block] >> 1) * (1 - 2 * (top[:, block] & 1))
        assert all(len(set(row)) == 7 for row in (top[:, block] >> 1).tolist())
        assert ((scores.abs().topk(7)[0] - chosen).abs() <= tolerance * size).all()
        keys = scores + bias[block]
        assert (keys.amax(-1, keepdim=True) - keys.gather(-1, biased[:, block] >> 1) <= min(tolerance, 0.01) * size).all()
        assert not (biased & 1).any()
        for tokens in (top, biased):
            total = getattr(reference, f"{kind}_total")(tokens[:, block], d, *shape, step_index, book.seed, block)
            assert torch.equal(book.noise(tokens, d, step_index, pooled=True)[:, block], reference.unit_rms(total))
    y, x0_hat = torch.from_numpy(fresh.standard_normal((2, 3, 2, d), "float32"))
    right = x0_hat + 0.3 * (y - x0_hat) + 0.7 * book.noise(top, d, step_index, pooled=True)
    assert torch.equal(book.backtrace(y, x0_hat, top, 0.3, 0.7, step_index, pooled=True), right)


def test_rules_over_one_bin_refuse_what_does_not_fit():
    for kind in ("hadamard", "independent"):
        book, residual = Codebook(kind, 64, 0), torch.zeros(1, 2, 40)
        for count in (0, 33):
            with pytest.raises(SpecError, match="atoms"):
                book.top(residual, count, 0)
        for shape in ((1, 32), (2, 31), (32,)):
            with pytest.raises(SpecError, match="bias"):
                book.biased(residual, torch.zeros(shape), 0)
        residual[0, 1, 39] = float("nan")
        with pytest.raises(ImageError, match="not finite"):
            book.top(residual, 1, 0)
        with pytest.raises(ImageError, match="not finite"):
            book.biased(residual, torch.zeros(2, 32), 0)


def test_canonical_shapes_and_limits():
    assert Codebook("hadamard", 256, 0).shape(1, 3072) == (1, 128, 1)
    assert Codebook("hadamard", 2**21, 0).shape(1, 3072) == (1, 4096, 256)
    assert Codebook("hadamard", 256, 0).shape(64, 3072) == (64, 64, 2)
    assert Codebook("hadamard", 2, 0).shape(1, 1) == (1, 1, 1)
    assert Codebook("independent", 66, 0).shape(4, 3072) == (4, 33, 1)
    for bins, d in ((3, 64), (128, 64), (0, 64)):
        with pytest.raises(SpecError):
            Codebook("hadamard", 256, 0).shape(bins, d)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_residual_that_is_not_finite_is_refused(bad):
    residual = torch.zeros(1, 1, 8)
    residual[0, 0, 3] = bad
    with pytest.raises(ImageError, match="not finite"):
        Codebook("hadamard", 16, 0).select(residual, 1, 0)


def test_best_scores_follow_the_law_of_gaussian_codewords(fresh):
    """Both kinds: the best of K = 4096 unsigned scores of a unit residual, against Phi(x)^K of independent N(0, I)."""
    from math import erf, sqrt

    r = torch.from_numpy(fresh.standard_normal((1, 900)))
    for kind in ("hadamard", "independent"):
        best = []
        for step_index in range(60):
            if kind == "hadamard":
                s = reference.hadamard_scores(r / r.norm(), 4, step_index, 7).flatten()
            else:
                s = reference.independent_scores(r / r.norm(), 512, step_index, 7).flatten()
            best.append(float(s.max()))
        k = 4096 if kind == "hadamard" else 512
        u = sorted((0.5 * (1 + erf(b / sqrt(2)))) ** k for b in best)  # uniform if the law holds
        distance = max(max(abs(v - i / 60), abs(v - (i + 1) / 60)) for i, v in enumerate(u))
        assert distance < 0.27, (kind, distance)  # Kolmogorov-Smirnov, n = 60: p about 2e-4
