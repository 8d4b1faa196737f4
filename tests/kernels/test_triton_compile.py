"""What the compiler makes of every Triton kernel, for the meta-parameters of the wrappers; needs no GPU."""

import functools

import pytest

from common import compiled_kernels

pytestmark = pytest.mark.slow
SHARED = {80: 99 * 1024, 90: 227 * 1024}  # bytes of shared memory; 99 KB also fits the consumer cards like sm_80
KERNELS = {
    "adding.adding_kernel",
    "arrival.bias_kernel",
    "arrival.places_kernel",
    "arrival.sums_kernel",
    "arrival.words_kernel",
    "fwht.transform_kernel",
    "hadamard.search_kernel",
    "missing.missing_kernel",
    "missing.parts_kernel",
    "missing.sums_kernel",
    "refine.fold_kernel",
    "top.keys_kernel",
    "top.rescore_runs_kernel",
    "top.runs_kernel",
    "update.noise_kernel",
    "update.square_sum_kernel",
    "update.superpose_kernel",
    "update.update_kernel",
    "winners.unpack_kernel",
}
INDEPENDENT = {"quantise.quantise_kernel", "independent.search_kernel", "top.rescore_kernel"}  # test_triton_independent.py
WITH_MATRIX_UNITS = {80: set(), 90: {"matrix.matrix_kernel"}}
# Instructions an atom may cost in the loop over bases (threads x instructions / atoms), by what the kernel does
BUDGET = {"matrix": 9.5, "fold": 20, "slots": 24, "biased": 28, "runs": 34}
WAYS = {"matrix.matrix_kernel": "matrix", "top.runs_kernel": "runs"}  # the others by their arguments


report = functools.partial(compiled_kernels, "triton_offline.py")


@pytest.mark.parametrize("arch", SHARED)
def test_nothing_spills_and_everything_fits(arch):
    assert {k["kernel"] for k in report(arch)} - INDEPENDENT == KERNELS | WITH_MATRIX_UNITS[arch]
    for k in report(arch):
        assert k["stack"] == k["ops"]["LDL"] == k["ops"]["STL"] == 0, k
        assert k["shared"] <= SHARED[arch], k
        assert k["registers"] * 32 * k["shape"]["num_warps"] <= 65536, k


def test_an_atom_costs_no_more_than_its_budget():
    """On sm_90; every count is of the loop that walks through the bases."""
    seen = set()
    for k in report(90):
        name, shape = k["kernel"], k["shape"]
        if name not in {*WAYS, "hadamard.search_kernel"} or shape["LOGP"] < 12:
            continue  # a search over small views is bound by its launches
        rules = "biased" if shape.get("BIASED") else "fold" if shape.get("FOLD") else "slots"
        way = WAYS.get(name, rules)
        atoms = shape.get("ROWS", 1) << shape.get("LOGN", shape["LOGP"])
        loop = next(loop for loop in k["loops"] if way != "matrix" or loop["products"])
        assert loop["instructions"] * 32 * shape["num_warps"] / atoms <= BUDGET[way], k
        assert way != "matrix" or k["ops"]["HGMMA"] >= 8, k
        assert k["ops"]["HMMA"] == 0, k
        seen.add(way)
    assert seen == set(BUDGET)


@pytest.mark.parametrize("arch", SHARED)
def test_noise_has_no_fused_multiply_add(arch):
    """But the one that the float64 square root makes, once a row."""
    updates = [k for k in report(arch) if k["kernel"] in ("update.update_kernel", "update.noise_kernel")]
    assert {(k["kernel"], k["shape"]["BACKTRACE"]) for k in updates} == {
        (f"update.{name}_kernel", back) for name in ("update", "noise") for back in (False, True)
    }
    for k in updates:
        assert k["ops"]["FFMA"] <= 1, k
        assert not k["shape"]["enable_fp_fusion"]
