"""noisebook._C against the definition, for every instruction set of this machine."""

import json
import math
import threading
import time

import numpy as np
import pytest
import torch

import noisebook._C as native
from common import ROOT
from native_kit import NOISE, SELECT, bits, exact_scores, expected_noise, integer_scores, losses, residuals
from noisebook.codebook import reference

KNOWN = json.loads((ROOT / "tests/golden/codebook_known_answers.json").read_text())


@pytest.fixture(params=native.available_isas())
def isa(request):
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


def shape_of(kind, bins, atoms, bases):
    return (bins, atoms, bases) if kind == "hadamard" else (bins, atoms)


@pytest.mark.parametrize("case", KNOWN["cases"], ids=lambda c: f"{c['law']}-{c['d']}-{c['bins']}x{c['atoms']}x{c['bases']}")
def test_known_answers(isa, case):
    kind, stream = case["law"], {"step_index": case["step"], "seed": int(case["seed"]), "block": case["unit"]}
    shape = shape_of(kind, case["bins"], case["atoms"], case["bases"])
    z = NOISE[kind](np.array(case["tokens"])[None, None], case["d"], *shape, **stream)
    assert z.dtype == np.float32
    assert z.shape == (1, 1, case["d"])
    assert [float(v).hex() for v in z[0, 0, :4]] == case["z_float32_head_hex"]
    if case["residual"] is None:
        return
    tokens = SELECT[kind](np.array(case["residual"], np.float32)[None, None], *shape, **stream)
    assert tokens.dtype == np.int64
    assert tokens[0, 0].tolist() == case["tokens"]


# kind, batch, blocks, d, bins, atoms, bases, first block, residuals
CASES = [
    ("hadamard", 3, 1, 1, 1, 1, 5, 0, "normal"),
    ("hadamard", 2, 3, 2, 2, 1, 3, 9, "normal"),
    ("hadamard", 5, 1, 7, 8, 1, 2, 0, "normal"),  # bins = P
    ("hadamard", 5, 1, 13, 2, 8, 9, 1, "normal"),
    ("hadamard", 3, 1, 30, 1, 32, 1, 0, "normal"),
    ("hadamard", 3, 2, 64, 4, 16, 70, 2, "normal"),  # several bases to a Philox vector
    ("hadamard", 33, 1, 100, 8, 11, 3, 0, "normal"),  # A < P / M
    ("hadamard", 2, 2, 200, 1, 256, 3, 5, "spike"),
    ("hadamard", 2, 1, 500, 512, 1, 3, 0, "normal"),
    ("hadamard", 2, 1, 1000, 16, 33, 2, 0, "constant"),
    ("hadamard", 33, 2, 768, 16, 64, 4, 2**24 - 2, "normal"),
    ("hadamard", 2, 1, 2048, 2048, 1, 2, 0, "smooth"),
    ("hadamard", 4, 1, 3072, 1, 4096, 8, 3, "smooth"),
    ("hadamard", 2, 1, 3072, 64, 50, 3, 0, "tiny"),
    ("hadamard", 2, 1, 3072, 64, 64, 3, 0, "huge"),
    ("hadamard", 1, 2, 5000, 4, 2000, 2, 0, "normal"),
    ("hadamard", 1, 1, 16384, 128, 128, 2, 0, "smooth"),
    ("hadamard", 1, 1, 30000, 8, 4096, 2, 0, "normal"),
    ("hadamard", 1, 1, 65536, 1024, 64, 1, 0, "constant"),
    ("hadamard", 1, 1, 100_000, 16, 8192, 1, 0, "normal"),
    ("hadamard", 1, 1, 600_000, 1024, 1024, 1, 0, "normal"),
    ("independent", 3, 1, 1, 1, 9, 1, 0, "normal"),
    ("independent", 5, 2, 3, 4, 10, 1, 9, "normal"),
    ("independent", 33, 1, 48, 1, 100, 1, 0, "normal"),
    ("independent", 2, 1, 64, 64, 3, 1, 0, "normal"),  # bins = P
    ("independent", 7, 1, 100, 8, 37, 1, 0, "normal"),
    ("independent", 3, 3, 777, 2, 150, 1, 2, "smooth"),
    ("independent", 33, 1, 768, 4, 64, 1, 2**24 - 1, "constant"),
    ("independent", 6, 1, 3072, 16, 16, 1, 0, "spike"),
    ("independent", 15, 1, 3072, 1, 300, 1, 0, "smooth"),
    ("independent", 2, 1, 3072, 2, 99, 1, 0, "tiny"),
    ("independent", 2, 1, 9000, 1, 65, 1, 0, "huge"),
]


def test_against_the_definition():
    """Every case on fresh random numbers: the same tokens and noise from all instruction sets, right by the definition."""
    entropy = np.random.SeedSequence().entropy
    rng = np.random.default_rng(entropy)
    quantisation = []
    for kind, batch, blocks, d, bins, atoms, bases, block, form in CASES:
        step_index, seed = int(rng.integers(2**32)), int(rng.integers(2**64, dtype=np.uint64))
        shape = shape_of(kind, bins, atoms, bases)
        where = f"{kind} {form} D={d} shape={shape} block={block} step_index={step_index} seed={seed}; rng {entropy}"
        r = residuals(form, rng, batch, blocks, d)
        chosen, made = [], []
        for name in native.available_isas():
            native.set_isa(name)
            chosen.append(SELECT[kind](r, *shape, step_index, seed, block))
            made.append(NOISE[kind](chosen[0], d, *shape, step_index, seed, block))
        native.set_isa(native.available_isas()[0])
        tokens, z = chosen[0], made[0]
        assert tokens.shape == (batch, blocks, bins), where
        assert tokens.min() >= 0, where
        assert tokens.max() < 2 * bases * atoms, where
        for other_tokens, other_z in zip(chosen, made, strict=True):
            assert np.array_equal(tokens, other_tokens), where
            assert np.array_equal(bits(z), bits(other_z)), where
        right = expected_noise(kind, tokens, d, bins, atoms, bases, step_index, seed, block)
        assert np.array_equal(bits(z), bits(right)), where
        for u in range(blocks):
            loss = losses(kind, r[:, u], tokens[:, u], bins, atoms, bases, step_index, seed, block + u)
            if kind == "hadamard":
                assert loss.max() <= 1e-5, where
                continue
            # images that are alike choose alike: each choice counts once
            quantisation.append(loss[np.unique(r[:, u], axis=0, return_index=True)[1]].ravel())
            if form not in ("tiny", "huge"):  # those are rescaled first: the plain float32 sums would overflow or round
                s = integer_scores(r[:, u], bins * atoms, step_index, seed, block + u).reshape(batch, bins, atoms)
                assert np.array_equal(tokens[:, u], reference.best_signed(torch.from_numpy(s))), where
    # int8 costs 0.9 % of |r| r.m.s. on a score, so the rule of 1 % holds for all but some choices in a hundred
    loss = np.concatenate(quantisation)
    assert (loss <= 0.01).mean() > 0.95, f"{(loss <= 0.01).mean()}; rng {entropy}"
    assert loss.max() <= 0.08, f"{loss.max()}; rng {entropy}"


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_ties_and_zero(isa, kind):
    """Scores of exactly one size everywhere go to atom 0; a zero residual is token 0 in every bin."""
    assert not SELECT[kind](np.zeros((3, 2, 300), np.float32), 4, 20, *([5] if kind == "hadamard" else []), 1, 2).any()
    assert not SELECT[kind](-np.zeros((1, 1, 3000), np.float32), 1, 64, *([5] if kind == "hadamard" else []), 1, 2).any()
    if kind == "hadamard":  # D = 1: every atom is +1 or -1
        t = native.hadamard_select(np.full((1, 1, 1), -2.5, np.float32), 1, 1, 400, 3, 4)
        sign = native.hadamard_noise(t, 1, 1, 1, 400, 3, 4)
        assert t[0, 0, 0] in (0, 1)
        assert sign[0, 0, 0] == -1
    else:  # P = 1: so is every codeword
        assert native.independent_select(np.ones((1, 1, 1), np.float32), 1, 5000, 3, 4)[0, 0, 0] in (0, 1)


def test_ties_across_bases(isa):
    """D = 2: all scores of a base are of two sizes, and some sizes return in every base. The smallest atom must win."""
    r = np.array([[[3.0, 1.0]]], np.float32)
    for seed in range(20):
        s = exact_scores("hadamard", r[:, 0], 1, 2, 50, 0, seed, 0)[0, 0]
        first = int(np.flatnonzero(np.isclose(np.abs(s), np.abs(s).max(), rtol=1e-12))[0])
        for threads in (1, 3):
            assert native.hadamard_select(r, 1, 2, 50, 0, seed, threads=threads)[0, 0, 0] == 2 * first + (s[first] < 0)


def test_threads_do_not_matter(isa):
    rng = np.random.default_rng()
    r = residuals("normal", rng, 5, 2, 3072)
    calls = [
        lambda n: native.hadamard_select(r, 4, 1000, 40, 7, 8, 1, n),
        lambda n: native.hadamard_select(r[:1, :1], 1, 4096, 300, 7, 8, 1, n),
        lambda n: native.hadamard_select(r, 4096, 1, 1, 7, 8, 1, n),
        lambda n: native.independent_select(r, 2, 300, 7, 8, 1, n),
    ]
    for i, call in enumerate(calls):
        one = call(1)
        for n in (2, 5):
            assert np.array_equal(one, call(n)), (i, n)
    t = native.hadamard_select(r, 16, 256, 30, 7, 8)
    one = native.hadamard_noise(t, 3072, 16, 256, 30, 7, 8, threads=1)
    for n in (2, 5):
        assert np.array_equal(bits(one), bits(native.hadamard_noise(t, 3072, 16, 256, 30, 7, 8, threads=n)))


def test_blocks_have_their_own_streams(isa):
    r = residuals("normal", np.random.default_rng(), 2, 3, 96)
    for kind, shape in (("hadamard", (2, 64, 3)), ("independent", (2, 64))):
        together = SELECT[kind](r, *shape, 5, 6, 10)
        z = NOISE[kind](together, 96, *shape, 5, 6, 10)
        for u in range(3):
            alone = np.ascontiguousarray(r[:, u : u + 1])
            assert np.array_equal(SELECT[kind](alone, *shape, 5, 6, 10 + u)[:, 0], together[:, u])
            part = NOISE[kind](np.ascontiguousarray(together[:, u : u + 1]), 96, *shape, 5, 6, 10 + u)
            assert np.array_equal(bits(part[:, 0]), bits(z[:, u]))
        same = np.repeat(r[:, :1], 3, 1)
        assert len({SELECT[kind](same, *shape, 5, 6, 10)[0, u].tobytes() for u in range(3)}) > 1


def test_more_than_2_to_33_entries():
    """K D = 2^34: the claimed token is as good as the normal law of the best of 2^20 scores promises, by its own atom."""
    rng = np.random.default_rng()
    d, bases = 16384, 64
    r = residuals("normal", rng, 1, 1, d)
    chosen = set()
    for name in native.available_isas()[:2]:
        native.set_isa(name)
        chosen.add(int(native.hadamard_select(r, 1, d, bases, 3, 2**63 + 1)[0, 0, 0]))
    native.set_isa(native.available_isas()[0])
    assert len(chosen) == 1
    token = chosen.pop()
    atom = reference.hadamard_total(torch.tensor([[token]]), d, 1, d, bases, 3, 2**63 + 1)[0].numpy()
    score = float(atom @ r[0, 0].astype(np.float64)) / math.sqrt(d) / np.linalg.norm(r)  # sign included: positive
    assert 4.2 < score < 7
    best = max(np.abs(exact_scores("hadamard", r[:, 0], bases, d // bases, 1, 3, 2**63 + 1, 0)).max(), 0)  # base 0 alone
    assert score >= best / np.linalg.norm(r) - 1e-5


def test_last_bases_and_codewords_are_looked_at(isa):
    """The residual is the very last atom: the search must find it, and only it."""
    for d, bases in ((48, 1000), (3072, 33)):
        p = reference.next_pow2(d)
        token = 2 * (bases * p - 1) + 1
        r = native.hadamard_noise(np.full((1, 1, 1), token), d, 1, p, bases, 9, 10)
        assert native.hadamard_select(r, 1, p, bases, 9, 10)[0, 0, 0] == token
    for d, atoms in ((48, 1001), (3072, 333)):
        token = 2 * (atoms - 1)
        r = native.independent_noise(np.full((1, 1, 1), token), d, 1, atoms, 9, 10)
        assert native.independent_select(r, 1, atoms, 9, 10)[0, 0, 0] == token


def test_tokens_above_2_to_32(isa):
    for token, atoms, bases in ((2**33 + 5, 64, 2**32), (2**39 - 1, 64, 2**32), (2**32 + 1, 1, 2**32)):
        t = np.full((1, 1, 1), token)
        z = native.hadamard_noise(t, 48, 1, atoms, bases, 1, 11)
        assert np.array_equal(bits(z), bits(expected_noise("hadamard", t, 48, 1, atoms, bases, 1, 11, 0)))
    t = np.full((1, 1, 1), 2**33 - 1)
    z = native.independent_noise(t, 48, 1, 2**32, 1, 11)
    assert np.array_equal(bits(z), bits(expected_noise("independent", t, 48, 1, 2**32, 1, 1, 11, 0)))


def test_totals_beyond_int32():
    """M P = 2^32: all bins of one base, so the sum before the last transform is one spike of M."""
    d = p = bins = 2**16
    t = np.zeros((1, 1, bins), np.int64)
    z = native.hadamard_noise(t, d, bins, 1, 1, 4, 5)
    assert np.array_equal(bits(z), bits(expected_noise("hadamard", t, d, bins, p // bins, 1, 4, 5, 0)))
    t = np.random.default_rng().integers(0, 6, (1, 1, bins))
    z = native.hadamard_noise(t, d - 7, bins, 1, 3, 4, 5)
    assert np.array_equal(bits(z), bits(expected_noise("hadamard", t, d - 7, bins, 1, 3, 4, 5, 0)))


def test_no_negative_zero(isa):
    """Two atoms of one base cancel in many entries: all of those are +0."""
    z = native.hadamard_noise(np.zeros((1, 1, 2), np.int64), 64, 2, 32, 1, 1, 2)
    assert (z == 0).sum() > 10
    assert not np.signbit(z[z == 0]).any()


def test_empty_batch():
    assert native.hadamard_select(np.zeros((0, 2, 5), np.float32), 2, 4, 1, 0, 0).shape == (0, 2, 2)
    assert native.independent_select(np.zeros((2, 0, 5), np.float32), 2, 4, 0, 0).shape == (2, 0, 2)
    assert native.hadamard_noise(np.zeros((0, 2, 2), np.int64), 5, 2, 4, 1, 0, 0).shape == (0, 2, 5)


def test_the_largest_view():
    """D = P = 2^24: an atom's squares sum to P^2 exactly, and the score of a spike is that entry of the atom."""
    d, at = 2**24, 12345678
    r = np.zeros((1, 1, d), np.float32)
    r[0, 0, at] = 1
    entries = []
    for i in range(3):
        z = native.hadamard_noise(np.full((1, 1, 1), 2 * i), d, 1, 3, 1, 2, 3)[0, 0]
        entries.append(float(z[at]))
        integers = z.astype(np.float64) * 4096
        assert np.array_equal(integers, np.rint(integers))
        assert (integers * integers).sum() == 2.0**48
    assert len(set(entries)) == 3
    best = int(np.abs(entries).argmax())
    assert native.hadamard_select(r, 1, 3, 1, 2, 3)[0, 0, 0] == 2 * best + (entries[best] < 0)
    token = native.independent_select(r, 1, 3, 2, 3)  # the row is all of one size: the scores are exact here too
    z = [native.independent_noise(np.full((1, 1, 1), t), d, 1, 3, 2, 3)[0, 0, at] for t in range(6)]
    assert token[0, 0, 0] == int(np.argmax(z))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(isa, value):
    for d, at in ((1, 0), (3072, 0), (3072, 3071), (100, 50)):
        r = np.ones((2, 2, d), np.float32)
        r[1, 1, at] = value
        for kind, shape in (("hadamard", (1, 1, 2)), ("independent", (1, 1))):
            with pytest.raises(ValueError, match=r"^the residual is not finite$"):
                SELECT[kind](r, *shape, 0, 0)


R = np.zeros((1, 1, 48), np.float32)
T = np.zeros((1, 1, 4), np.int64)
GOOD = {"bins": 4, "atoms": 16, "bases": 2, "step_index": 3, "seed": 1}
BAD = [
    ({"bins": 3}, "power of two"),
    ({"bins": 0}, "bins"),
    ({"bins": -4}, "bins"),
    ({"bins": 128}, "bins"),
    ({"bins": 2**70}, "bins"),
    ({"bins": 4.0}, "bins"),
    ({"bins": None}, "bins"),
    ({"atoms": 0}, "atoms"),
    ({"atoms": -1}, "atoms"),
    ({"step_index": -1}, "step_index"),
    ({"step_index": 2**32}, "step_index"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"block": -1}, "block"),
    ({"block": 2**24}, "block"),
    ({"block": 2**64}, "block"),
    ({"threads": -1}, "threads"),
    ({"threads": 2**40}, "threads"),
    ({"atoms": 2**62}, "atoms"),
]


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
@pytest.mark.parametrize(("change", "message"), BAD, ids=str)
def test_bad_numbers(kind, change, message):
    args = GOOD | change
    if kind == "independent":
        del args["bases"]
    for call in (lambda: SELECT[kind](R, **args), lambda: NOISE[kind](T, d=48, **args)):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"atoms": 17}, {"bases": 0}, {"bases": 2**32 + 1}, {"bases": -1}])
def test_bad_numbers_of_hadamard(change):
    for call in (
        lambda: native.hadamard_select(R, **GOOD | change),
        lambda: native.hadamard_noise(T, d=48, **GOOD | change),
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            call()


def test_limits_are_allowed():
    """The largest value of every argument."""
    last = {"step_index": 2**32 - 1, "seed": 2**64 - 1, "block": 2**24 - 1}
    assert native.hadamard_noise(np.zeros((1, 1, 1), np.int64), 1, 1, 1, 2**32, **last).shape == (1, 1, 1)
    assert native.independent_noise(np.zeros((1, 1, 4), np.int64), 3, 4, 2**30, **last).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="atoms"):
        native.independent_noise(np.zeros((1, 1, 4), np.int64), 3, 4, 2**30 + 1, **last)


@pytest.mark.parametrize(
    "residual",
    [
        R[0],
        R.astype(np.float64),
        np.zeros((1, 2, 96), np.float32)[..., ::2],
        R.astype(">f4"),
        R.tolist(),
        None,
        np.zeros((1, 1, 0), np.float32),
        np.frombuffer(b"\0" * 17, np.float32, 4, 1).reshape(1, 1, 4),
        torch.zeros(1, 1, 48),
    ],
    ids=["2-d", "float64", "strided", "big-endian", "list", "none", "no-dimensions", "unaligned", "tensor"],
)
def test_bad_residuals(residual):
    with pytest.raises(ValueError, match="residual"):
        native.hadamard_select(residual, 1, 1, 1, 0, 0)
    with pytest.raises(ValueError, match="residual"):
        native.independent_select(residual, 1, 1, 0, 0)


def test_bad_tokens():
    shape = (4, 16, 2, 3, 1)
    for tokens in (
        T[0],
        T.astype(np.int32),
        T[..., :2],
        T[..., :0],
        np.zeros((1, 1, 8), np.int64),
        T.tolist(),
        T - 1,
        T + 64,
        T + 2**62,
    ):
        with pytest.raises(ValueError, match="token"):
            native.hadamard_noise(tokens, 48, *shape)
        with pytest.raises(ValueError, match="token"):
            native.independent_noise(tokens, 48, 4, 16, 3, 1)
    native.hadamard_noise(T + 63, 48, *shape)  # the last one
    for token, allowed in ((T + 31, True), (T + 32, False)):
        if allowed:
            native.independent_noise(token, 48, 4, 16, 3, 1)
        else:
            with pytest.raises(ValueError, match="token"):
                native.independent_noise(token, 48, 4, 16, 3, 1)
    for d in (0, -1, 2**24 + 1, 2.5):
        with pytest.raises(ValueError, match=r"^d must"):
            native.hadamard_noise(T, d, *shape)


def test_settings():
    before, threads = native.isa(), native.get_threads()
    assert before in native.available_isas()
    assert native.available_isas()[-1] == "portable"
    try:
        for name in native.available_isas():
            native.set_isa(name)
            assert native.isa() == name
        for name in ("sse9", "", "AVX2"):
            with pytest.raises(ValueError, match="instruction set"):
                native.set_isa(name)
        assert native.isa() == "portable"
        native.set_threads(3)
        assert native.get_threads() == 3
        for n in (0, -1, 2**40, "two"):
            with pytest.raises(ValueError, match="threads"):
                native.set_threads(n)
        assert native.get_threads() == 3
    finally:
        native.set_isa(before)
        native.set_threads(threads)


def test_the_interpreter_runs_meanwhile():
    """The search runs without the GIL: while it takes some 0.1 s and more, another thread keeps counting."""
    r = residuals("normal", np.random.default_rng(), 1, 1, 3072)
    bases, elapsed = 1000, 0.0
    while elapsed < 0.2:
        started = time.perf_counter()
        native.hadamard_select(r, 1, 4096, bases, 0, 0, threads=1)
        elapsed = time.perf_counter() - started
        bases *= 2
    done = threading.Event()

    def search():
        native.hadamard_select(r, 1, 4096, bases, 0, 0, threads=1)
        done.set()

    thread = threading.Thread(target=search)
    turns = 0
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 10  # holding the GIL, the search would leave this loop one turn
