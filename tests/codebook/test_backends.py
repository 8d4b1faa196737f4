"""The back ends of the codebook: the same functions in each, and the same tensors from each.

The Triton kernels run on the GPU where there is one, in Triton's interpreter where not (conftest.py).
"""

import ast
import inspect

import numpy as np
import pytest
import torch

from common import ROOT
from noisebook import ImageError, codebook
from noisebook.codebook import Backend, Codebook, reference
from noisebook.runtime.native import native as extension

pytestmark = pytest.mark.quick

FUNCTIONS = ["select", "refined", "top", "biased", "arrival_bias", "chunk_places", "noise", "backtrace"]
KINDS = ["hadamard", "independent"]
GPU = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, BLOCKS, D, P, BINS = 3, 2, 50, 64, 4
VOCAB_SIZE = {"hadamard": 64, "independent": 2 * 19}  # of one of the bins; hadamard: two bases


def module(name: str):
    """The module of a back end; skips where it cannot run here."""
    if name == "reference":
        return reference
    if name == "native":
        if extension() is None:
            pytest.skip("the C++ extension is not built")
        return codebook.native
    pytest.importorskip("triton")
    from noisebook.codebook import triton

    return triton


@pytest.fixture(params=["reference", "native", "triton"])
def backend(request):
    return module(request.param)


# ---- the same functions -------------------------------------------------------------------------------------------------
def test_nothing_is_reached_by_a_string():
    files = sorted((ROOT / "engine/noisebook/codebook").glob("*.py"))
    assert {path.stem for path in files} >= {"__init__", "reference", "native", "triton"}
    for path in files:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"getattr", "globals", "vars", "eval"}, path


def test_back_ends_have_the_same_functions(backend):
    for name in FUNCTIONS:
        wanted = inspect.signature(Backend.__dict__[name])
        parameters = [p for p in wanted.parameters.values() if p.name != "self"]
        assert inspect.signature(backend.__dict__[name]) == wanted.replace(parameters=parameters)
    assert [name for name in Backend.__dict__ if not name.startswith("_")] == FUNCTIONS
    if backend is not reference:  # which holds the definition as well
        own = [name for name, f in inspect.getmembers(backend, inspect.isfunction) if f.__module__ == backend.__name__]
        assert sorted(name for name in own if not name.startswith("_")) == sorted(FUNCTIONS)


def test_the_device_chooses():
    cpu = codebook.backend(torch.device("cpu"))
    assert cpu is (reference if extension() is None else codebook.native)
    assert codebook.backend(torch.device("cuda", 1)) is module("triton")


# ---- the same tensors ---------------------------------------------------------------------------------------------------
def sylvester() -> np.ndarray:
    """H of order P."""
    h = np.ones((1, 1), np.int64)
    while len(h) < P:
        h = np.kron(np.array([[1, 1], [1, -1]]), h)
    return h


def codewords(kind: str, bins: int, atoms: int, bases: int, step_index: int, seed: int, block: int) -> np.ndarray:
    """All atoms of every bin as integers, [bins, bases * atoms, P], written out as in docs/codebook.md."""
    h, where = sylvester(), (step_index, reference.STREAM_ROTATION, seed, block)
    rotation = reference.signs(P, 0, *where).numpy()
    if kind == "independent":
        where = (step_index, reference.STREAM_INDEPENDENT, seed, block)
        words = rotation * (reference.signs(P, torch.arange(bins * atoms), *where).numpy() @ h)
        return words.reshape(bins, atoms, P)
    where = (step_index, reference.STREAM_BASIS, seed, block)
    b = reference.signs(P, torch.arange(bases), *where).numpy()[:, None]
    words = rotation * ((h * b) @ h)  # [bases, P, P]: H e_i is row i of H
    return words.reshape(bases, bins, P // bins, P)[:, :, :atoms].swapaxes(0, 1).reshape(bins, bases * atoms, P)


class Case:
    """Fresh input of one kind whose scores are exact in float32 and int8 alike: whole numbers, or for `independent` a
    single entry, which the rotation spreads evenly over all."""

    def __init__(self, kind: str, fresh: np.random.Generator, bins: int):
        vocab_size = VOCAB_SIZE[kind] * (BINS // bins)
        self.step_index, seed = int(fresh.integers(2**32)), int(fresh.integers(2**64, dtype=np.uint64))
        self.shape = Codebook(kind, vocab_size, seed).shape(bins, D)
        self.where = (kind, self.shape, self.step_index, seed)
        residual = fresh.integers(-8, 9, (BATCH, BLOCKS, D))
        if kind == "independent":
            place = fresh.integers(D, size=(BATCH, BLOCKS, 1))
            residual = np.where(np.arange(D) == place, fresh.integers(1, 9, (BATCH, BLOCKS, 1)), 0)
        residual[0, 0] = 0
        words = [codewords(kind, *self.shape, self.step_index, seed, block) for block in range(BLOCKS)]
        self.words = np.stack(words)  # [U, M, K, P]
        padded = np.pad(residual, ((0, 0), (0, 0), (0, P - D)))
        self.scores = np.einsum("umkp,bup->bumk", self.words, padded)  # integers: sqrt(P) times the scores
        self.residual = torch.from_numpy(residual.astype(np.float32))

    def noise(self, tokens: np.ndarray) -> torch.Tensor:
        """z by IEEE arithmetic: int64 [B, U, T] -> float32 [B, U, D]; any number of tokens where there is one bin."""
        bins = np.arange(tokens.shape[-1]) if self.shape[0] > 1 else 0
        chosen = self.words[np.arange(BLOCKS)[:, None], bins, tokens >> 1] * (1 - 2 * (tokens & 1))[..., None]
        total = chosen.sum(2)[..., :D]
        squares = np.square(total).sum(-1, keepdims=True)
        factor = np.where(squares > 0, np.sqrt(D / np.maximum(squares, 1)), 0).astype(np.float32)
        return torch.from_numpy(total.astype(np.float32) * factor)


def call(backend, function: str, *arguments):
    """Runs a function of a back end on the device that it is for."""
    device = GPU if backend.__name__.endswith("triton") else "cpu"
    given = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
    return backend.__dict__[function](*given).cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_select(kind, backend, fresh):
    case = Case(kind, fresh, BINS)
    best = np.abs(case.scores).argmax(-1)  # the first of equals
    wanted = 2 * best + (np.take_along_axis(case.scores, best[..., None], -1)[..., 0] < 0)
    tokens = call(backend, "select", case.residual, *case.where)
    assert torch.equal(tokens, torch.from_numpy(wanted))
    assert tokens[0, 0].eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_refined(kind, backend, fresh):
    """Each token is the best for what the others leave, as written in refining.py, in float64. A score is |word| |missing|
    cosine; int8, in which all but the reference search `independent` (docs/codebook.md), may miss the best by some percent
    of that."""
    case, parts = Case(kind, fresh, BINS), 4
    residual = torch.from_numpy(fresh.standard_normal((1, BLOCKS, D)).astype(np.float32))
    tokens = torch.from_numpy(fresh.integers(0, 2 * case.words.shape[2], (1, BLOCKS, BINS)))
    chosen = call(backend, "refined", residual, tokens, *case.where)
    state, blocks, bins = tokens.clone().numpy(), np.arange(BLOCKS)[:, None], np.arange(BINS)
    for part in range(parts):
        atoms = case.words[blocks, bins, state >> 1, :D] * (1 - 2 * (state & 1))[..., None]
        total, rest = atoms.sum(2), atoms[:, :, bins % parts != part].sum(2)
        r = residual.double().numpy()
        length = np.linalg.norm(total, axis=-1) * np.linalg.norm(rest, axis=-1)
        missing = r - 0.75**0.5 * ((total * r).sum(-1) / length)[..., None] * rest
        scores = np.einsum("umkd,bud->bumk", case.words[..., :D], missing)[:, :, part::parts]
        got = chosen.numpy()[..., part::parts]
        picked = np.take_along_axis(scores, got[..., None] >> 1, -1)[..., 0] * (1 - 2 * (got & 1))
        slack = 1e-6 if kind == "hadamard" or backend.__name__.endswith("reference") else 0.08
        assert (picked >= np.abs(scores).max(-1) - slack * P * np.linalg.norm(missing, axis=-1)[..., None]).all()
        state[..., part::parts] = got
    assert (chosen != tokens).any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_bin_is_not_chosen_again(kind, backend, fresh):
    case = Case(kind, fresh, 1)
    tokens = call(backend, "select", case.residual, *case.where)
    assert torch.equal(call(backend, "refined", case.residual, tokens, *case.where), tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_top(kind, backend, fresh):
    case, count = Case(kind, fresh, 1), 9
    scores = case.scores[:, :, 0]
    best = np.argsort(-np.abs(scores), axis=-1, kind="stable")[..., :count]
    wanted = 2 * best + (np.take_along_axis(scores, best, -1) < 0)
    tokens = call(backend, "top", case.residual, count, *case.where)
    assert torch.equal(tokens, torch.from_numpy(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_biased(kind, backend, fresh):
    """Scores are multiples of 1 / sqrt(P), and the bias puts a different fraction of that on top of each: no ties."""
    case = Case(kind, fresh, 1)
    scores = case.scores[:, :, 0]
    atoms = scores.shape[-1]
    bias = np.stack([fresh.permutation(atoms) for _ in range(BLOCKS)]) / atoms + fresh.integers(-99, 99, (BLOCKS, atoms))
    bias[fresh.random(bias.shape) < 0.2] = -np.inf
    wanted = 2 * (scores + bias).argmax(-1)[..., None]
    bias = torch.from_numpy((bias / P**0.5).astype(np.float32))
    tokens = call(backend, "biased", case.residual, bias, *case.where)
    assert torch.equal(tokens, torch.from_numpy(wanted))


def device_of(backend) -> torch.device:
    return torch.device(GPU if backend.__name__.endswith("triton") else "cpu")


@pytest.mark.parametrize("sizes", [(64,), (32, 32, 16)])
def test_arrival_bias(sizes, backend, fresh):
    """-log of the sums of exponential gaps; -inf from a chunk's size on."""
    step_index, seed = int(fresh.integers(2**32)), int(fresh.integers(2**64, dtype=np.uint64))
    bias = backend.arrival_bias(sizes, step_index, seed, device_of(backend))
    assert bias.dtype == torch.float32
    for chunk, size in enumerate(sizes):
        words = reference.words(size, 0, step_index, reference.STREAM_ARRIVAL, seed, chunk).numpy()
        wanted = np.log(np.cumsum(np.log(2.0**32) - np.log(words + 0.5)))
        np.testing.assert_allclose(bias[chunk, :size].cpu().numpy(), -wanted, rtol=1e-6, atol=1e-6)
        assert (bias[chunk, size:] == -np.inf).all()


@pytest.mark.parametrize(("dims", "chunks"), [(12, 3), (13, 3), (5, 5), (9, 1)])
def test_chunk_places(dims, chunks, backend, fresh):
    """Dimensions sorted by their words, dealt out in runs; the first runs are longer by one where they must be."""
    step_index, seed = int(fresh.integers(2**32)), int(fresh.integers(2**64, dtype=np.uint64))
    places, lies = backend.chunk_places(dims, chunks, step_index, seed, device_of(backend))
    word = reference.words(dims, 0, step_index, reference.STREAM_CHUNK, seed).tolist()
    runs = np.array_split(sorted(range(dims), key=lambda i: (word[i], i)), chunks)
    assert [[d for d in row if d >= 0] for row in places.tolist()] == [run.tolist() for run in runs]
    assert places.shape == (chunks, len(runs[0]))
    assert places.flatten()[lies].tolist() == list(range(dims))


@pytest.mark.parametrize("bins", [1, BINS])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_backtrace(kind, bins, backend, fresh):
    """Also of repeated and cancelling atoms where one bin gives several."""
    case = Case(kind, fresh, bins)
    tokens = fresh.integers(0, 2 * case.scores.shape[-1], (BATCH, BLOCKS, BINS))
    if bins == 1:
        tokens[0, 0], tokens[1, 0] = tokens[0, 0, 0], [2, 3, 4, 5]
    z, given = case.noise(tokens), torch.from_numpy(tokens)
    assert torch.equal(call(backend, "noise", given, D, *case.where), z)
    y, x0_hat = torch.from_numpy(fresh.standard_normal((2, BATCH, BLOCKS, D), np.float32))
    keep, sigma_up = (float(x) for x in fresh.random(2, np.float32))
    wanted = x0_hat + keep * (y - x0_hat) + sigma_up * z
    assert torch.equal(call(backend, "backtrace", y, x0_hat, given, keep, sigma_up, *case.where), wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["reference", "native"])
def test_what_is_not_finite_is_refused_on_the_cpu(name, kind, bad, fresh):
    case = Case(kind, fresh, 1)
    case.residual[1, 1, int(fresh.integers(D))] = bad
    bias = torch.zeros(BLOCKS, case.scores.shape[-1])
    for function, rest in (("select", ()), ("top", (2,)), ("biased", (bias,))):
        with pytest.raises(ImageError, match="not finite"):
            call(module(name), function, case.residual, *rest, *case.where)
