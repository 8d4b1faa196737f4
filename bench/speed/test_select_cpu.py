"""Selection on the CPU against torch.randn + matmul + argmax, in one run with the same number of threads.

pytest bench/speed/test_select_cpu.py --benchmark-enable --benchmark-json=bench/results/select_cpu.json

Random inputs; nothing is extrapolated: torch makes and scores every codeword, 256 MiB of them at a time. Each pair of
a fast path and torch is timed in one test, in turns, and its ratio of medians stands in extra_info.
"""

import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import noisebook._C as native
from bench.lib.record import cpu_model

D = 3072
CHUNK = (256 << 20) // (4 * D)  # 21,845 codewords of float32
ISAS = native.available_isas()


@pytest.fixture
def bench(benchmark):
    """The benchmark with the facts every figure needs."""
    if benchmark.disabled:
        pytest.skip("needs --benchmark-enable")
    before = native.isa(), torch.get_num_threads()
    benchmark.extra_info.update(device=cpu_model(), isa=native.isa())
    yield benchmark
    native.set_isa(before[0])
    torch.set_num_threads(before[1])


def residuals(batch: int) -> np.ndarray:  # float32 [batch, 1, D]
    return np.random.default_rng().standard_normal((batch, 1, D), dtype=np.float32)


def torch_select(residual: torch.Tensor, count: int) -> torch.Tensor:
    """residual [B, D] -> the signed codeword of largest |score| of `count` fresh Gaussian ones, int64 [B]."""
    best, token = torch.full((len(residual),), -1.0), torch.zeros(len(residual), dtype=torch.int64)
    for first in range(0, count, CHUNK):
        codewords = torch.randn(min(CHUNK, count - first), D)
        score = residual @ codewords.T
        size, index = score.abs().max(-1)
        sign = score.gather(-1, index[:, None])[:, 0] < 0
        token = torch.where(size > best, 2 * (first + index) + sign, token)
        best = torch.maximum(best, size)
    return token


def seconds(call, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def against_torch(bench, fast, batch: int, count: int, threads: int, torch_rounds: int, fast_rounds: int):
    """Rounds of torch and of the fast path in turns, so that both see the same machine; then the benchmark itself."""
    torch.set_num_threads(threads)
    r = residuals(batch)
    rows = torch.from_numpy(r[:, 0])
    fast(r)
    slow, quick = [], []
    for _ in range(torch_rounds):
        slow += seconds(lambda: torch_select(rows, count), 1)
        quick += seconds(lambda: fast(r), fast_rounds)
    bench.extra_info.update(
        threads=threads,
        dimensions=D,
        batch=batch,
        codewords=count,
        torch_seconds=slow,
        torch_median=statistics.median(slow),
        native_median=statistics.median(quick),
        times_torch=statistics.median(slow) / statistics.median(quick),
        times_torch_worst=min(slow) / max(quick),
    )
    bench.pedantic(fast, args=(r,), rounds=fast_rounds, warmup_rounds=1)


def test_hadamard_a_million_codewords_one_image(bench):
    """One thread, M = 1, K = 2^20 (A = 4096, J = 256)."""
    against_torch(bench, lambda r: native.hadamard_select(r, 1, 4096, 256, 5, 99, threads=1), 1, 2**20, 1, 3, 100)


def test_hadamard_batch(bench):
    """Two threads, K = 65536, 16 images."""
    against_torch(bench, lambda r: native.hadamard_select(r, 1, 4096, 16, 5, 99, threads=2), 16, 2**16, 2, 5, 100)


def test_independent_batch(bench):
    """Two threads, K = 65536, 16 images."""
    against_torch(bench, lambda r: native.independent_select(r, 1, 2**16, 5, 99, threads=2), 16, 2**16, 2, 5, 5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codebook", ["hadamard", "independent"])
def test_isa_and_threads(bench, codebook, isa, threads):
    """K = 65536, 16 images, every instruction set."""
    native.set_isa(isa)
    bench.extra_info.update(isa=isa, threads=threads, codebook=codebook, batch=16, codewords=2**16, dimensions=D)
    r = residuals(16)
    if codebook == "hadamard":
        bench.pedantic(lambda: native.hadamard_select(r, 1, 4096, 16, 5, 99, threads=threads), rounds=50, warmup_rounds=1)
    else:
        rounds = 3 if isa == "portable" else 9
        bench.pedantic(
            lambda: native.independent_select(r, 1, 2**16, 5, 99, threads=threads), rounds=rounds, warmup_rounds=1
        )


def timed(bench, rounds: int, function, *args, isa: str, threads: int, **facts):
    """One row: a function of the extension by one instruction set and number of threads."""
    native.set_isa(isa)
    bench.extra_info.update(isa=isa, threads=threads, **facts)
    bench.pedantic(function, args=args, kwargs={"threads": threads}, rounds=rounds, warmup_rounds=1)


PHOTO = 2**20  # dimensions of one large view, which the threads share; M = 1024
THREADS = pytest.mark.parametrize("threads", [1, 2])
ISA = pytest.mark.parametrize("isa", ISAS)


@THREADS
@ISA
@pytest.mark.parametrize("bases", [1, 8])
def test_photo(bench, bases, isa, threads):
    """Selection in one photo."""
    facts = {"codebook": "hadamard", "dimensions": PHOTO, "batch": 1, "bins": 1024, "bases": bases}
    r = np.random.default_rng().standard_normal((1, 1, PHOTO), dtype=np.float32)
    timed(bench, 15, native.hadamard_select, r, 1024, 1024, bases, 5, 99, isa=isa, threads=threads, **facts)


@THREADS
@ISA
@pytest.mark.parametrize("bases", [1, 8])
def test_photo_synthesis(bench, bases, isa, threads):
    """The decoder's side of one photo."""
    facts = {"codebook": "hadamard", "dimensions": PHOTO, "batch": 1, "bins": 1024, "bases": bases}
    t = np.random.default_rng().integers(0, 2048 * bases, (1, 1, 1024))
    timed(bench, 15, native.hadamard_noise, t, PHOTO, 1024, 1024, bases, 5, 99, isa=isa, threads=threads, **facts)


@THREADS
@ISA
@pytest.mark.parametrize("what", ["search", "noise"])
def test_megapixels(bench, what, isa, threads):
    """A step of one photograph of 3 megapixels in one view, by the numbers of preset `photo`: M = 2048, four bases."""
    d, shape = 9_000_000, (2048, 8192, 4, 5, 99)
    facts = {"codebook": "hadamard", "dimensions": d, "batch": 1, "bins": 2048, "bases": 4, "what": what}
    rng = np.random.default_rng()
    if what == "search":
        function, args = native.hadamard_select, (rng.standard_normal((1, 1, d), dtype=np.float32), *shape)
    else:
        function, args = native.hadamard_noise, (rng.integers(0, 2**16, (1, 1, 2048)), d, *shape)
    timed(bench, 5, function, *args, isa=isa, threads=threads, **facts)


@THREADS
@ISA
@pytest.mark.parametrize("bins", [1, 64])
def test_synthesis(bench, bins, isa, threads):
    """The decoder's side: 16 views of noise from tokens, D = 3072."""
    facts = {"codebook": "hadamard", "dimensions": D, "batch": 16, "bins": bins}
    t = native.hadamard_select(residuals(16), bins, 4096 // bins, 16, 5, 99)
    timed(bench, 50, native.hadamard_noise, t, D, bins, 4096 // bins, 16, 5, 99, isa=isa, threads=threads, **facts)


@THREADS
@ISA
@pytest.mark.parametrize(("count", "codewords"), [(1, 2**20), (64, 2**20), (1000, 2**20), (1000, 2**14)])
def test_hadamard_top(bench, count, codewords, isa, threads):
    """The `count` best of one bin, one image."""
    facts = {"codebook": "hadamard", "dimensions": D, "batch": 1, "codewords": codewords, "count": count}
    shape = (count, 4096, codewords // 4096)
    timed(bench, 30, native.hadamard_top, residuals(1), *shape, 5, 99, isa=isa, threads=threads, **facts)


@THREADS
@ISA
def test_hadamard_biased(bench, isa, threads):
    """The best of score + bias over K = 2^20, one image."""
    facts = {"codebook": "hadamard", "dimensions": D, "batch": 1, "codewords": 2**20}
    bias = np.random.default_rng().standard_normal((1, 2**20), dtype=np.float32)
    timed(bench, 30, native.hadamard_biased, residuals(1), bias, 4096, 256, 5, 99, isa=isa, threads=threads, **facts)


@THREADS
@ISA
@pytest.mark.parametrize("rule", ["top", "biased"])
def test_independent_pooled(bench, rule, isa, threads):
    """The best 64 of one bin, and the best of score + bias: K = 16384, 16 images."""
    facts = {"codebook": "independent", "rule": rule, "dimensions": D, "batch": 16, "codewords": 2**14}
    bias = np.random.default_rng().standard_normal((1, 2**14), dtype=np.float32)
    function, args = (native.independent_top, (64, 2**14)) if rule == "top" else (native.independent_biased, (bias,))
    timed(bench, 5, function, residuals(16), *args, 5, 99, isa=isa, threads=threads, **facts)


PEAK = """
import re, sys
import numpy as np
import noisebook._C as native
r = np.random.default_rng().standard_normal((16, 1, 3072), dtype=np.float32)
native.independent_select(r, 1, int(sys.argv[1]), 5, 99, threads=2)
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def peak_kib(count: int) -> int:
    """VmHWM of a fresh process that looks through `count` codewords."""
    return int(subprocess.run([sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_codebook(bench):
    """K = 2^12 and 2^16. Stored, the difference would be 30 MiB as bits and 720 MiB as float32."""
    few, many = bench.pedantic(lambda: (peak_kib(2**12), peak_kib(2**16)), rounds=1)
    bench.extra_info.update(threads=2, peak_kib_4096=few, peak_kib_65536=many, growth_kib=many - few)
    assert many - few < 4096
