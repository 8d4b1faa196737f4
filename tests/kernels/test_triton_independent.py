"""The Triton kernels of kind `independent` against exact integer scores, and what the compiler makes of them.

On the GPU where there is one, in Triton's interpreter where not; the compiled code is looked at without a GPU.
"""

import functools
import math
import os

import numpy as np
import pytest
import torch

from common import compiled_kernels
from noisebook.codebook import reference

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    DEVICE = "cpu"

from noisebook_kernels import independent, layout, quantise, top

pytestmark = pytest.mark.usefixtures("poisoned")

# Instructions a sign of the loop that makes signs and scores them; .98 is the least for the signs alone. Counted in the
# code of Triton 3.9: 1.13 (16 images), 1.16 (32) and 1.21 (64) for sm_90, 1.09 and 1.27 for sm_80; of 3.6: 1.09, 1.11 and
# 1.18 for sm_90, but 1.33 and 1.75 for sm_80.
BUDGET = {90: {16: 1.16, 32: 1.19, 64: 1.25}, 80: {16: 1.36, 32: 1.80}}
RESCORE_BUDGET = 1.5  # a tile of 16 images for one
SHARED = {80: 99 * 1024, 90: 227 * 1024}  # bytes of shared memory
RESIDENT = {16: 4, 32: 3, 64: 2}  # programs that fit a multiprocessor's registers: one makes signs while another multiplies


def integer_scores(residual, count, step_index, seed, block):
    """(exact scores of the int8 search float64 [B, count], the scale that makes them true ones float32 [B, 1])."""
    p = reference.next_pow2(residual.shape[-1])
    a = reference.signs(p, 0, step_index, reference.STREAM_ROTATION, seed, block)
    v = reference.fwht(a.float() * torch.nn.functional.pad(residual, (0, p - residual.shape[-1])))
    top = v.abs().amax(-1, keepdim=True).numpy()
    q = np.rint(np.divide(np.float32(127) * v.numpy(), top, out=np.zeros_like(v.numpy()), where=top > 0))
    u = reference.signs(p, torch.arange(count), step_index, reference.STREAM_INDEPENDENT, seed, block)
    return torch.from_numpy(q).double() @ u.double().T, top / np.float32(127 * math.sqrt(p))


def draw(rng, batch, blocks, d):
    """(residual with its last image zero where there are several, step_index, seed)."""
    residual = torch.from_numpy(rng.standard_normal((batch, blocks, d)).astype(np.float32))
    residual[-1] *= 0 if batch > 1 else 1
    return residual, int(rng.integers(2**32)), int(rng.integers(2**63)) * 2 + 1


def check_select(residual, bins, atoms, step_index, seed, block=0):
    tokens = independent.independent_select(residual.to(DEVICE), bins, atoms, step_index, seed, block).cpu()
    for u in range(residual.shape[1]):
        scores, _ = integer_scores(residual[:, u], bins * atoms, step_index, seed, block + u)
        assert torch.equal(tokens[:, u], reference.best_signed(scores.unflatten(-1, (bins, atoms))))


SHAPES = [  # batch, blocks, d, bins, atoms, block
    (1, 1, 1, 1, 300, 0),  # every score is a tie
    (3, 1, 3, 2, 5, 3),  # most are; a tile of images that is not full
    (2, 2, 100, 32, 3, 2**24 - 2),  # many bins in a tile of codewords
    (2, 1, 130, 4, 64, 0),  # two draws
    (1, 2, 300, 2, 260, 1),  # bins of several tiles
    (2, 1, 1500, 1, 140, 0),
]


@pytest.mark.parametrize(("batch", "blocks", "d", "bins", "atoms", "block"), SHAPES)
@pytest.mark.parametrize("hopper", [False, True])
def test_select(batch, blocks, d, bins, atoms, block, hopper, monkeypatch, fresh):
    monkeypatch.setattr(independent, "hopper", lambda device: hopper)
    residual, step_index, seed = draw(fresh, batch, blocks, d)
    check_select(residual, bins, atoms, step_index, seed, block)
    if batch > 1:
        tokens = independent.independent_select(residual.to(DEVICE), bins, atoms, step_index, seed, block)
        assert tokens[-1].eq(0).all()


@pytest.mark.parametrize(("bins", "atoms"), [(1, 300), (8, 9)])
def test_select_where_a_score_and_its_codeword_do_not_fit_one_word(bins, atoms, monkeypatch, fresh):
    """From P = 2^16 on; here at a small P, with ties."""
    monkeypatch.setattr(independent, "PACKED", 0)
    residual, step_index, seed = draw(fresh, 3, 1, int(fresh.integers(8, 300)))
    check_select(residual, bins, atoms, step_index, seed)


@pytest.mark.parametrize(
    ("words", "images", "draws", "warps", "stages"),
    [(128, 16, 2, 4, 2), (128, 32, 2, 4, 2), (128, 64, 2, 4, 2), (256, 64, 2, 8, 2), (256, 128, 1, 8, 2)],
)
def test_settings_change_nothing(words, images, draws, warps, stages, monkeypatch, fresh):
    settings = {"words": words, "images": images, "draws": draws, "warps": warps, "stages": stages}
    residual, step_index, seed = draw(fresh, 18 if images == 16 else 2, 1, 260)  # 18: two tiles of images
    monkeypatch.setattr(independent, "launch_settings", lambda device, logp, batch: dict(settings))
    check_select(residual, 1, 270, step_index, seed)
    tokens = top.independent_top(residual[:2].to(DEVICE), 3, 40, step_index, seed).cpu()
    assert torch.equal(tokens[:, 0], reference.top_signed(integer_scores(residual[:2, 0], 40, step_index, seed, 0)[0], 3))


@pytest.mark.parametrize("larger", [1, 2, 16])
def test_cutting_the_work_changes_nothing(larger, monkeypatch, fresh):
    residual, step_index, seed = draw(fresh, 2, 2, 400)
    monkeypatch.setattr(layout, "GROUP", 512)  # one view at a time, or what `larger` says
    monkeypatch.setattr(independent, "LARGER", larger)
    monkeypatch.setattr(quantise, "TILE", 256)  # a view is quantised by two programs
    check_select(residual, 2, 40, step_index, seed)


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "count", "atoms", "held"),
    [
        (1, 1, 1, 40, 300, None),  # nothing but ties
        (3, 2, 48, 7, 333, None),
        (2, 1, 300, 64, 64, None),  # all of them
        (4, 2, 40, 1, 33, None),  # most of a run is not there
        (2, 1, 20, 3, 400, 10),  # in slabs of five runs, rescored one by one
        (2, 1, 100, 9, 200, None),  # more than there are runs
    ],
)
def test_top(batch, blocks, d, count, atoms, held, monkeypatch, fresh):
    if held:
        monkeypatch.setattr(top, "HELD", held)
    residual, step_index, seed = draw(fresh, batch, blocks, d)
    tokens = top.independent_top(residual.to(DEVICE), count, atoms, step_index, seed, 5).cpu()
    for u in range(blocks):
        scores, _ = integer_scores(residual[:, u], atoms, step_index, seed, 5 + u)
        assert torch.equal(tokens[:, u], reference.top_signed(scores, count))


@pytest.mark.parametrize(("batch", "blocks", "d", "atoms"), [(1, 1, 1, 5), (3, 2, 48, 300), (2, 1, 20, 129)])
def test_biased(batch, blocks, d, atoms, fresh):
    residual, step_index, seed = draw(fresh, batch, blocks, d)
    bias = fresh.standard_normal((blocks, atoms)).astype(np.float32)
    bias[fresh.random((blocks, atoms)) < 0.3] = -np.inf
    bias[:, -1] = 0
    tokens = independent.independent_biased(
        residual.to(DEVICE), torch.from_numpy(bias).to(DEVICE), step_index, seed, 9
    ).cpu()
    for u in range(blocks):
        scores, scale = integer_scores(residual[:, u], atoms, step_index, seed, 9 + u)
        values = scores.float().numpy() * scale + bias[u]
        assert torch.equal(tokens[:, u, 0], torch.from_numpy(2 * values.argmax(-1)))


def test_biased_ties_and_exclusion(fresh):
    residual, step_index, seed = draw(fresh, 2, 1, 60)
    bias = torch.full((1, 300), -float("inf"), device=DEVICE)
    assert independent.independent_biased(residual.to(DEVICE), bias, step_index, seed).eq(0).all()
    only = int(fresh.integers(300))
    bias[0, only] = -1e30
    assert independent.independent_biased(residual.to(DEVICE), bias, step_index, seed).eq(2 * only).all()
    first, second = sorted(fresh.choice(300, 2, replace=False).tolist())
    bias[0, [first, second]] = 1e30  # larger than any score by so much that both sums are the same
    assert independent.independent_biased(residual.to(DEVICE), bias, step_index, seed).eq(2 * first).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_tokens_stay_in_range_when_the_residual_is_not_finite(bad, fresh):
    residual, step_index, seed = draw(fresh, 1, 2, 48)
    residual[0, 1, int(fresh.integers(48))] = bad
    bias = torch.zeros(2, 9, device=DEVICE)
    for tokens in (
        independent.independent_select(residual.to(DEVICE), 4, 9, step_index, seed),
        top.independent_top(residual.to(DEVICE), 4, 9, step_index, seed),
        independent.independent_biased(residual.to(DEVICE), bias, step_index, seed),
    ):
        assert tokens.min() >= 0
        assert tokens.max() < 18


def test_arguments_out_of_range_are_refused(monkeypatch):
    residual = torch.zeros(1, 2, 48, device=DEVICE)
    with pytest.raises(ValueError, match="bias must be"):
        independent.independent_biased(residual, torch.zeros(1, 9, device=DEVICE), 0, 0)
    with pytest.raises(ValueError, match="count 10"):
        top.independent_top(residual, 10, 9, 0, 0)
    monkeypatch.setattr(independent, "MOST", 32)
    with pytest.raises(ValueError, match="at most 32 dimensions"):
        independent.independent_select(residual, 1, 9, 0, 0)


report = functools.partial(compiled_kernels, "triton_signs.py")


@pytest.mark.slow
@pytest.mark.parametrize("arch", BUDGET)
def test_compiled_code_is_within_its_budget(arch):
    kernels = {"quantise.quantise_kernel", "independent.search_kernel", "top.rescore_kernel"}
    assert {k["kernel"] for k in report(arch)} == kernels
    searches = [k for k in report(arch) if k["kernel"] == "independent.search_kernel"]
    assert {k["shape"]["BATCH"] for k in searches} == set(BUDGET[arch])
    assert {k["shape"]["WIDE"] for k in searches} == {k["shape"]["BIASED"] for k in searches} == {False, True}
    assert sum(bool(k["loops"]) for k in searches) >= len(searches) // 2
    for k in report(arch):
        assert k["stack"] == k["ops"]["LDL"] == k["ops"]["STL"] == 0, k
        assert k["shared"] <= SHARED[arch], k
        if k["kernel"] == "quantise.quantise_kernel":
            continue
        shape, images = k["shape"], k["shape"].get("BATCH", 16)
        signs = shape["K"] * 128 * shape["DRAWS"]  # of one round of the loop
        assert k["ops"]["IGMMA" if arch == 90 else "IMMA"] > 0, k
        rounds = [loop["instructions"] for loop in k["loops"] if loop["products"]]  # none where a view has one chunk
        budget = BUDGET[arch][images] if k in searches else RESCORE_BUDGET
        assert all(n * 32 * shape["num_warps"] / signs <= budget for n in rounds), k
        registers = -(-k["registers"] // 8) * 8 * 32 * shape["num_warps"]
        assert registers * RESIDENT[images] <= 65536, k
