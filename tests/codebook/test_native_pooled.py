"""noisebook._C where the vocabulary is one bin: `top`, `biased`, sums of any number of atoms. One view by many threads."""

import numpy as np
import pytest
import torch

import noisebook._C as native
from native_kit import NOISE, SELECT, bits, exact_scores, expected_noise, integer_scores, losses, residuals
from noisebook.codebook import reference

TOP = {"hadamard": native.hadamard_top, "independent": native.independent_top}
BIASED = {"hadamard": native.hadamard_biased, "independent": native.independent_biased}


def everywhere(call):
    """call(threads), which must give the same bits for every instruction set and number of threads."""
    results = []
    try:
        for name in native.available_isas():
            native.set_isa(name)
            results += [call(threads) for threads in (1, 2, 5)]
    finally:
        native.set_isa(native.available_isas()[0])
    assert all(np.array_equal(results[0].view(np.uint8), other.view(np.uint8)) for other in results)
    return results[0]


def streams(rng, block=0):
    return int(rng.integers(2**32)), int(rng.integers(2**64, dtype=np.uint64)), block


def norms(r):
    return np.linalg.norm(r.astype(np.float64), axis=-1, keepdims=True)


# kind, batch, blocks, d, atoms, bases, first block, residuals
CASES = [
    ("hadamard", 3, 1, 1, 1, 9, 0, "normal"),
    ("hadamard", 2, 3, 2, 2, 20, 9, "normal"),
    ("hadamard", 5, 1, 13, 16, 9, 1, "normal"),
    ("hadamard", 1, 2, 100, 77, 5, 2**24 - 2, "normal"),  # A < P
    ("hadamard", 2, 2, 768, 1024, 3, 5, "spike"),
    ("hadamard", 2, 1, 3072, 4096, 4, 0, "smooth"),
    ("hadamard", 1, 1, 3072, 4096, 3, 0, "tiny"),
    ("hadamard", 1, 1, 3072, 4096, 3, 0, "huge"),
    ("hadamard", 1, 1, 5000, 2001, 1, 3, "normal"),
    ("independent", 3, 1, 1, 9, 1, 0, "normal"),
    ("independent", 5, 2, 3, 40, 1, 9, "normal"),
    ("independent", 1, 1, 48, 1, 1, 0, "normal"),
    ("independent", 9, 1, 100, 293, 1, 0, "normal"),
    ("independent", 2, 3, 777, 300, 1, 2**24 - 3, "smooth"),
    ("independent", 1, 2, 3072, 500, 1, 0, "spike"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_top_against_the_definition(case, fresh):
    kind, batch, blocks, d, atoms, bases, block, form = case
    choices, stream = atoms * bases, streams(fresh, block)
    shape = (atoms, bases) if kind == "hadamard" else (atoms,)
    r = residuals(form, fresh, batch, blocks, d)
    for count in {1, min(3, choices), int(fresh.integers(1, choices + 1)), choices}:
        tokens = everywhere(lambda threads, count=count: TOP[kind](r, count, *shape, *stream, threads=threads))
        assert tokens.shape == (batch, blocks, count)
        assert tokens.dtype == np.int64
        for u in range(blocks):
            t, where = tokens[:, u], (*stream[:2], block + u)
            if kind == "independent":
                s = integer_scores(r[:, u], choices, *where)
                assert np.array_equal(t, reference.top_signed(torch.from_numpy(s), count).numpy())
                continue
            s = exact_scores(kind, r[:, u], 1, atoms, bases, *where)[:, 0]
            chosen, size = np.take_along_axis(s, t >> 1, -1), norms(r[:, u])
            assert all(len(set(row)) == count for row in (t >> 1).tolist())
            assert (np.abs(np.abs(chosen) + np.sort(-np.abs(s))[:, :count]) <= 1e-5 * size).all()
            decided = np.abs(chosen) > 1e-5 * size
            assert np.array_equal((chosen < 0)[decided], (t % 2 == 1)[decided])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_biased_against_the_definition(case, fresh):
    kind, batch, blocks, d, atoms, bases, block, form = case
    stream = streams(fresh, block)
    r = residuals(form, fresh, batch, blocks, d)
    for scale in (0.0, 0.1, 3.0):  # in units of the scores
        bias = fresh.standard_normal((blocks, atoms * bases)) * scale * norms(r).max()
        bias = np.clip(bias, -3e38, 3e38).astype(np.float32)
        bias[fresh.random(bias.shape) < 0.2] = -np.inf
        shape = (atoms, bases) if kind == "hadamard" else ()
        tokens = everywhere(lambda threads, bias=bias, shape=shape: BIASED[kind](r, bias, *shape, *stream, threads=threads))
        assert tokens.shape == (batch, blocks, 1)
        assert tokens.dtype == np.int64
        assert not (tokens & 1).any()
        for u in range(blocks):
            keys = exact_scores(kind, r[:, u], 1, atoms, bases, *stream[:2], block + u)[:, 0] + bias[u]
            chosen = np.take_along_axis(keys, tokens[:, u] >> 1, -1)
            best, tolerance = keys.max(-1, keepdims=True), 1e-5 if kind == "hadamard" else 1e-2
            assert (chosen >= best - tolerance * norms(r[:, u])).all(), (scale, u)


def test_biased_independent_choices_are_not_quantised(fresh):
    """By int8 scores alone some 4 of 100 of these choices would be another one."""
    r, stream = residuals("normal", fresh, 100, 3, 300), streams(fresh, 1)
    bias = fresh.standard_normal((3, 1500), np.float32)
    tokens = everywhere(lambda threads: native.independent_biased(r, bias, *stream, threads=threads))
    for u in range(3):
        keys = exact_scores("independent", r[:, u], 1, 1500, 1, *stream[:2], 1 + u)[:, 0] + bias[u]
        chosen = np.take_along_axis(keys, tokens[:, u] >> 1, -1)
        assert (keys.max(-1, keepdims=True) - chosen <= 1e-5 * norms(r[:, u])).all()


def test_ties_go_to_the_smaller_atom(fresh):
    """Small integers and P a power of 4: all scores are exact, most of them tied, across bases and threads too."""
    r = fresh.integers(-2, 3, (3, 2, 13)).astype(np.float32)
    step_index, seed, _ = streams(fresh)
    bias = fresh.integers(-2, 3, (2, 16 * 400)).astype(np.float32)
    for count in (1, 500, 6400):
        tokens = everywhere(
            lambda threads, count=count: native.hadamard_top(r, count, 16, 400, step_index, seed, threads=threads)
        )
        for u in range(2):
            right = reference.hadamard_top(torch.from_numpy(r[:, u]), count, 16, 400, step_index, seed, u)
            assert np.array_equal(tokens[:, u], right)
    tokens = everywhere(lambda threads: native.hadamard_biased(r, bias, 16, 400, step_index, seed, threads=threads))
    alike = everywhere(
        lambda threads: native.independent_biased(r[:, :, :1].copy(), bias, step_index, seed, threads=threads)
    )
    for u in range(2):
        row = torch.from_numpy(r[:, u])
        right = reference.hadamard_biased(row, torch.from_numpy(bias[u]), 16, 400, step_index, seed, u)
        assert np.array_equal(tokens[:, u], right)
        right = reference.independent_biased(row[:, :1], torch.from_numpy(bias[u]), step_index, seed, u)  # P = 1: +r or -r
        assert np.array_equal(alike[:, u], right)


@pytest.mark.parametrize("d", [1, 48, 300])
def test_a_zero_residual(d, fresh):
    """All scores are zero: the first atoms, positive; and the largest bias, the first of equals; atom 0 if all are -inf."""
    r, p, stream = np.zeros((2, 2, d), np.float32), reference.next_pow2(d), streams(fresh)[:2]
    first = np.broadcast_to(2 * np.arange(20), (2, 2, 20))
    assert np.array_equal(everywhere(lambda n: native.hadamard_top(r, 20, p, 70, *stream, threads=n)), first)
    assert np.array_equal(everywhere(lambda n: native.independent_top(r, 20, 333, *stream, threads=n)), first)
    for bias in (fresh.integers(0, 9, (2, 70 * p)), np.full((2, 70 * p), -np.inf)):
        bias = bias.astype(np.float32)
        right = np.broadcast_to(2 * bias.argmax(-1)[:, None], (2, 2, 1))
        assert np.array_equal(everywhere(lambda n, b=bias: native.hadamard_biased(r, b, p, 70, *stream, threads=n)), right)
        assert np.array_equal(everywhere(lambda n, b=bias: native.independent_biased(r, b, *stream, threads=n)), right)


def test_a_large_vocabulary_keeps_the_best(fresh):
    """K = 2^20: the best 1000 are those of the scores of each base, found base by base; the best one is that of `select`."""
    d, bases, (step_index, seed, _) = 3072, 256, streams(fresh)
    r = residuals("normal", fresh, 1, 1, d)
    tokens = everywhere(lambda threads: native.hadamard_top(r, 1000, 4096, bases, step_index, seed, threads=threads))[0, 0]
    assert tokens[0] == native.hadamard_select(r, 1, 4096, bases, step_index, seed)[0, 0, 0]
    assert len(set((tokens >> 1).tolist())) == 1000
    s = exact_scores("hadamard", r[:, 0], 1, 4096, bases, step_index, seed, 0)[0, 0]
    assert (np.abs(np.abs(s[tokens >> 1]) + np.sort(-np.abs(s))[:1000]) <= 1e-5 * norms(r[0, 0])).all()


@pytest.mark.parametrize("columns", [1, 2, 7, 300])
@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_noise_of_any_number_of_atoms(kind, columns, fresh):
    """Repeated and cancelling atoms of one bin included."""
    d, atoms, bases, (step_index, seed, block) = 90, 100, 3 if kind == "hadamard" else 1, streams(fresh, 6)
    shape = (1, atoms, bases) if kind == "hadamard" else (1, atoms)
    tokens = fresh.integers(0, 2 * atoms * bases, (4, 2, columns))
    tokens[0, 0] = tokens[0, 0, 0]
    tokens[1, 0, columns // 2 :] = tokens[1, 0, 0] ^ 1
    z = everywhere(lambda threads: NOISE[kind](tokens, d, *shape, step_index, seed, block, threads))
    assert np.array_equal(bits(z), bits(expected_noise(kind, tokens, d, 1, atoms, bases, step_index, seed, block)))
    with pytest.raises(ValueError, match="column"):
        NOISE[kind](tokens[..., :0].copy(), d, *shape, step_index, seed)


@pytest.mark.parametrize(
    ("d", "bins", "bases"), [(200_000, 1, 1), (2**18, 2**18, 1), (300_000, 64, 12), (600_001, 64, 2), (2**20, 1024, 1)]
)
def test_one_large_view_by_many_threads(d, bins, bases, fresh):
    """One transform, or the bases, are shared by the threads: the same bits, and right by the definition."""
    p = reference.next_pow2(d)
    atoms, stream = p // bins, streams(fresh, 3)
    r = residuals("normal", fresh, 1, 1, d)
    tokens = everywhere(lambda threads: native.hadamard_select(r, bins, atoms, bases, *stream, threads=threads))
    assert losses("hadamard", r[:, 0], tokens[:, 0], bins, atoms, bases, *stream).max() <= 1e-5
    z = everywhere(lambda threads: native.hadamard_noise(tokens, d, bins, atoms, bases, *stream, threads=threads))
    assert np.array_equal(bits(z), bits(expected_noise("hadamard", tokens, d, bins, atoms, bases, *stream)))
    s = exact_scores("hadamard", r[:, 0], 1, p, bases, *stream)[0, 0]
    # so many that another order of additions would swap some of them
    top = everywhere(lambda threads: native.hadamard_top(r, 20_000, p, bases, *stream, threads=threads))[0, 0]
    assert (np.abs(np.abs(s[top >> 1]) + np.sort(-np.abs(s))[:20_000]) <= 1e-5 * norms(r[0, 0])).all()
    bias = fresh.standard_normal((1, p * bases), np.float32) * norms(r[0]).astype(np.float32)
    best = everywhere(lambda threads: native.hadamard_biased(r, bias, p, bases, *stream, threads=threads))[0, 0, 0]
    assert (s + bias[0]).max() - (s + bias[0])[best // 2] <= 1e-5 * norms(r[0, 0])
    few = fresh.integers(0, 20, (1, 1, 4))
    z = everywhere(lambda threads: native.independent_noise(few, d, 4, 10, *stream, threads=threads))
    assert np.array_equal(bits(z), bits(expected_noise("independent", few, d, 4, 10, 1, *stream)))
    for at in (0, d - 1):
        bad = r.copy()
        bad[0, 0, at] = np.nan
        for threads in (1, 5):
            with pytest.raises(ValueError, match=r"^the residual is not finite$"):
                native.hadamard_select(bad, bins, atoms, bases, *stream, threads=threads)


def test_large_views_of_many_blocks(fresh):
    """Views enough for the threads to take one each, and too few for that, give what each gives alone."""
    d, (step_index, seed, block) = 2**18, streams(fresh, 5)
    r = residuals("smooth", fresh, 3, 2, d)
    for threads in (1, 2, 5):
        tokens = native.hadamard_select(r, 256, 1024, 1, step_index, seed, block, threads)
        z = native.hadamard_noise(tokens, d, 256, 1024, 1, step_index, seed, block, threads)
        for b, u in np.ndindex(3, 2):
            alone = native.hadamard_select(r[b : b + 1, u : u + 1].copy(), 256, 1024, 1, step_index, seed, block + u, 1)
            assert np.array_equal(tokens[b, u], alone[0, 0])
            part = native.hadamard_noise(alone, d, 256, 1024, 1, step_index, seed, block + u, threads=1)
            assert np.array_equal(bits(z[b, u]), bits(part[0, 0]))


def test_empty_batch():
    none, bias = np.zeros((0, 2, 5), np.float32), np.zeros((2, 8), np.float32)
    assert native.hadamard_top(none, 3, 8, 1, 0, 0).shape == (0, 2, 3)
    assert native.independent_top(none, 3, 8, 0, 0).shape == (0, 2, 3)
    assert native.hadamard_biased(none, bias, 8, 1, 0, 0).shape == (0, 2, 1)
    assert native.independent_biased(none, bias, 0, 0).shape == (0, 2, 1)


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_bad_arguments(kind):
    r = np.zeros((1, 2, 48), np.float32)
    shape, shape_biased = ((16, 3), (16, 3)) if kind == "hadamard" else ((48,), ())
    good = np.zeros((2, 48), np.float32)
    for count in (0, -1, 49, 2**70, 1.5, None):
        with pytest.raises(ValueError, match="count"):
            TOP[kind](r, count, *shape, 0, 0)
    assert TOP[kind](r, 48, *shape, 0, 0).shape == (1, 2, 48)
    strided = np.zeros((2, 96), np.float32)[:, ::2]
    for bias in (
        good[:1],
        good[:, :47],
        good[:, :0],
        good[0],
        good.astype(np.float64),
        good.tolist(),
        strided,
        good + np.float32("nan"),
        good + np.float32("inf"),
        None,
    ):
        if kind == "independent" and isinstance(bias, np.ndarray) and bias.shape == (2, 47):
            continue  # a smaller codebook
        with pytest.raises(ValueError, match=r"bias|atoms"):
            BIASED[kind](r, bias, *shape_biased, 0, 0)
    bad = r.copy()
    bad[0, 1, 47] = np.nan
    for residual, message in ((bad, "not finite"), (r[0], "residual"), (r.astype(np.float64), "residual")):
        with pytest.raises(ValueError, match=message):
            TOP[kind](residual, 1, *shape, 0, 0)
        with pytest.raises(ValueError, match=message):
            BIASED[kind](residual, good, *shape_biased, 0, 0)
    for change in ({"step_index": -1}, {"seed": 2**64}, {"block": 2**24 - 1}, {"threads": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            TOP[kind](r, 1, *shape, **{"step_index": 0, "seed": 0} | change)
        with pytest.raises(ValueError, match=next(iter(change))):
            BIASED[kind](r, good, *shape_biased, **{"step_index": 0, "seed": 0} | change)


def test_count_1_and_select_agree(fresh):
    """One bin: the best of `top` is the choice of `select`, for both kinds."""
    r, stream = residuals("smooth", fresh, 4, 2, 500), streams(fresh)[:2]
    for kind, shape in (("hadamard", (512, 9)), ("independent", (700,))):
        assert np.array_equal(TOP[kind](r, 5, *shape, *stream)[..., :1], SELECT[kind](r, 1, *shape, *stream))
