"""What the compiler makes of every Triton kernel, for the meta-parameters of the wrappers; needs no GPU."""

import functools
import json
import os
import subprocess
import sys

import pytest

from common import ROOT

pytestmark = pytest.mark.slow
SHARED = {80: 99 * 1024, 90: 227 * 1024}  # bytes of shared memory; 99 KB also fits the consumer cards like sm_80
KERNELS = {
    "fwht.transform_kernel",
    "hadamard.search_kernel",
    "independent.search_kernel",
    "merge.merge_kernel",
    "update.square_sum_kernel",
    "update.superpose_kernel",
    "update.update_kernel",
}


@functools.cache
def report(arch: int) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    script = [sys.executable, str(ROOT / "tests/triton_offline.py"), str(arch)]
    run = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("arch", SHARED)
def test_nothing_spills_and_everything_fits(arch):
    assert {k["kernel"] for k in report(arch)} == KERNELS
    for k in report(arch):
        assert k["stack"] == k["ops"]["LDL"] == k["ops"]["STL"] == 0, k
        assert k["shared"] <= SHARED[arch], k
        assert k["registers"] * 32 * k["shape"]["num_warps"] <= 65536, k


@pytest.mark.parametrize("arch", SHARED)
def test_independent_uses_the_integer_tensor_cores(arch):
    searches = [k for k in report(arch) if k["kernel"] == "independent.search_kernel"]
    assert {k["shape"]["BATCH"] for k in searches} == ({16, 32} if arch == 80 else {16, 64})
    for k in searches:
        assert k["ops"]["IMMA" if arch == 80 else "IGMMA"] >= 32, k  # one for each bit plane at least
        per_sign = k["instructions"] * 32 * k["shape"]["num_warps"] / (k["shape"]["K"] * 1024)
        assert per_sign < 5, k  # bytes are handled four at a time (else at about 8)


@pytest.mark.parametrize("arch", SHARED)
def test_noise_has_no_fused_multiply_add(arch):
    updates = [k for k in report(arch) if k["kernel"] == "update.update_kernel"]
    assert {k["shape"]["BACKTRACE"] for k in updates} == {False, True}
    for k in updates:
        assert k["ops"]["FFMA"] == 0, k
        assert not k["shape"]["enable_fp_fusion"]
