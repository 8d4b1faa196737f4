"""The benches on a machine without a GPU: the timing, the baselines, the checks before it, and gpu.sh run dry."""

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import fake_cuda
from bench.lib import baselines, floors, timing
from common import ROOT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---- timing.py ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that believes the CPU is a GPU: graphs are recordings of torch operations, a run takes a millisecond."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _: 1.0)
    fakes = {
        "CUDAGraph": fake_cuda.FakeGraph,
        "graph": lambda graph: fake_cuda.Recorder(graph.steps),
        "Stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "synchronize": lambda _: None,
        "Event": lambda enable_timing: event,
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: 100 << 20,
        "max_memory_allocated": lambda _: (107 << 20) + 12,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1)
    clock = timing.Clock(torch.device("cpu"), (3, 10))
    clock.cuda = True
    return clock


def test_calls_are_timed_plainly_and_as_graphs(fake_clock, fresh):
    inputs = torch.from_numpy(fresh.standard_normal((6, 3)).astype("float32"))
    seen = []

    def call(i):
        seen.append(i)
        return 2 * inputs[i]

    found = timing.measure(fake_clock, call, 6, seconds=0.01)
    assert found["times"].keys() == {"plain", "graph"}
    assert found["times"]["plain"] == {"median_ms": 1, "q1_ms": 1, "q3_ms": 1, "rounds": 10}
    assert found["peak_mib"] == 7  # the three numbers of the output do not count
    assert set(seen) == set(range(6)), "the inputs take turns"


@pytest.mark.parametrize("graphs", [False, True])
def test_an_output_that_is_left_unwritten_is_found(fake_clock, fresh, monkeypatch, graphs):
    """Once only inside a graph: the plain calls are right, the replay does not write what the call returned."""
    kept, capturing = torch.from_numpy(fresh.standard_normal(3).astype("float32")), []

    @contextlib.contextmanager
    def graph(_):
        capturing.append(True)
        yield
        capturing.pop()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(AssertionError, match="graphed call" if graphs else "eager call"):
        timing.measure(fake_clock, lambda i: kept if capturing or not graphs else kept + 0, 2, seconds=0.01)


def test_quartiles():
    assert timing.quartiles([0.001, 0.002, 0.003, 0.004, 0.005]) == {"median_ms": 3, "q1_ms": 2, "q3_ms": 4, "rounds": 5}


# ---- baselines.py -------------------------------------------------------------------------------------------------------
def gaussian(fresh, *shape):
    return torch.from_numpy(fresh.standard_normal(shape).astype("float32")).to(DEVICE)


def signed(scores, count):
    """tokens [count] of the largest |score|, by sorting."""
    order = sorted(range(len(scores)), key=lambda k: -abs(scores[k]))[:count]
    return [2 * k + (scores[k] < 0) for k in order]


@pytest.mark.parametrize("count", [1, 5])
def test_materialised(fresh, count):
    r, seed = gaussian(fresh, 3, 20), int(fresh.integers(2**31))
    book = torch.randn(70, 20, device=DEVICE, generator=baselines.generator(r.device, seed))
    tokens = baselines.materialised(r, 70, seed, count)
    assert tokens.shape == (3, count)
    assert tokens.tolist() == [signed((book.double() @ x.double()).tolist(), count) for x in r]


@pytest.mark.parametrize("variant", baselines.CHUNKED)
def test_chunked(fresh, variant):
    """70 codewords, 32 or 16 at a time: the last chunk is short."""
    r, seed = gaussian(fresh, 3, 20), int(fresh.integers(2**31))
    dtype = torch.bfloat16 if variant == "bfloat16" else torch.float32
    rows = 32 if variant == "bfloat16" else 16
    source = baselines.generator(r.device, seed)
    counts = [min(rows, 70 - first) for first in range(0, 70, rows)]
    book = torch.cat([torch.randn(n, 20, device=DEVICE, dtype=dtype, generator=source) for n in counts])
    scores = r.to(dtype).double() @ book.double().T
    tokens = baselines.chunked(r, 70, seed, variant, chunk_bytes=rows * 20 * dtype.itemsize)
    picked = scores.gather(-1, (tokens >> 1)[:, None])[:, 0] * (1 - 2 * (tokens & 1))
    slack = 0.0 if variant == "float32" and DEVICE == "cpu" else 0.1
    assert (picked >= scores.abs().amax(-1) - slack).all()
    if variant == "float32":
        assert tokens.tolist() == [signed(s.tolist(), 1)[0] for s in scores]


@pytest.mark.parametrize("d", [8, 11])
def test_per_candidate(fresh, d):
    """One axis at a time gives the candidates' numbers; scores are then linear, and D need not be a multiple of 4."""
    seed, codewords = int(fresh.integers(2**31)), 300
    zero = torch.zeros(codewords, device=DEVICE)
    columns = []
    for axis in torch.eye(d, device=DEVICE):
        out = torch.empty_like(zero)
        baselines.candidate_kernel[(2,)](axis, zero, out, d, codewords, seed, THREADS=256, ASM=DEVICE == "cuda", num_warps=8)
        columns.append(out)
    z = torch.stack(columns, 1).double()
    assert abs(z.mean()) < 6 / z.numel() ** 0.5
    assert abs(z.var() - 1) < 12 / z.numel() ** 0.5
    assert z.flatten().unique().numel() > 0.99 * z.numel(), "every candidate and dimension draws its own number"
    mu = gaussian(fresh, 2, d)
    bias = baselines.arrival_bias(codewords, seed, mu.device)
    assert bias.exp().isfinite().all()
    assert (bias.diff() < 0).all()
    score = mu.double() @ z.T + bias
    chosen = baselines.per_candidate(mu, codewords, seed)
    assert (score.gather(-1, chosen[:, None])[:, 0] >= score.amax(-1) - 1e-4).all()


# ---- gpu_kernels.py -----------------------------------------------------------------------------------------------------
WRONG = {
    "select": lambda tokens: tokens ^ 1,
    "refined": lambda tokens: tokens ^ 1,
    "top": lambda tokens: tokens[..., :1].expand_as(tokens),
    "biased": lambda tokens: (tokens + 2) % 128,
    "noise": lambda z: z * 1.0001,
    "backtrace": lambda y: y * 1.0001,
}


@pytest.mark.parametrize("kernel", WRONG)
def test_a_wrong_kernel_fails_the_check_before_it_is_timed(kernel, monkeypatch):
    from bench.lib import kernels  # not before all tests are collected: the kernels are decorated then
    from bench.speed import gpu_kernels

    case = kernels.Case(kernel, "hadamard", 48, 64, 2, 2 if kernel == "top" else 1)
    gpu_kernels.check(case, torch.device(DEVICE))
    right = case.function
    monkeypatch.setattr(kernels.kernels, f"hadamard_{kernel}", lambda *args: WRONG[kernel](right(*args)))
    with pytest.raises(AssertionError, match=f"hadamard_{kernel}|chosen twice"):
        gpu_kernels.check(case, torch.device(DEVICE))


@pytest.mark.parametrize(
    ("codebook", "kernel", "wrong"),
    [
        ("arrival", "bias", lambda bias: bias + 1e-4),
        ("chunk", "places", lambda found: (found[0], found[1].roll(1))),
        ("chunk", "places", lambda found: (found[0].roll(1), found[1])),
    ],
)
def test_wrong_draws_of_rule_poisson_fail_the_check(codebook, kernel, wrong, monkeypatch):
    from bench.lib import kernels
    from bench.speed import gpu_kernels

    case = kernels.Case(kernel, codebook, 48, 64, 1, 5)
    gpu_kernels.check(case, torch.device(DEVICE))
    right = case.function
    monkeypatch.setattr(kernels.kernels, f"{codebook}_{kernel}", lambda *args: wrong(right(*args)))
    with pytest.raises(AssertionError, match=f"{codebook}_{kernel}"):
        gpu_kernels.check(case, torch.device(DEVICE))


def test_every_row_is_planned_once_and_searches_come_first():
    from bench.speed import gpu_kernels

    names = [one.name for one in gpu_kernels.plan(dry=False)]
    assert len(names) == len(set(names)) > 60
    assert names[0] == "hadamard_select D=3072 K=2^20 B=256 M=1"
    first = next(i for i, name in enumerate(names) if "_select" not in name)
    assert names[first].startswith("chunked float32 D=3072 K=2^20 B=64")
    wanted = {f"independent_select D={d} K=2^20 B={batch} M=1" for d in floors.SIZES for batch in floors.BATCHES}
    assert wanted < set(names)
    again = {f"hadamard_{kernel} D=16384 K=2^21 B={batch} M=64" for kernel in ("refined", "chain") for batch in (1, 32)}
    assert again < set(names)


# ---- gpu.sh -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_gpu_sh_runs_dry(tmp_path):
    """Every step at tiny sizes on the CPU, on a busy machine, too; no figure of it passes for a result."""
    minutes = {f"{step}_MINUTES": "9" for step in ("TESTS", "KERNELS", "THROUGHPUT", "LATENT", "TOKENIZING")}
    environment = {**os.environ, **minutes, "OUT": str(tmp_path / "out"), "DRY": "1", "PYTHON": sys.executable}
    command = ["bash", ROOT / "bench/gpu.sh", "tests", "kernels", "throughput", "latent", "cod", "tokenizing", "train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {
        "machine.json",
        "gpu_tests.xml",
        "kernels.json",
        "throughput.json",
        "latent.json",
        "cod_speed.json",
        "tokenizing.json",
    }
    read = {name: json.loads(path.read_text()) for name, path in files.items() if name.endswith(".json")}
    for found in read.values():
        assert found["dry"] is True
        assert "NVIDIA" not in found["device"]
        assert "gpu" not in found
        assert {"versions", "date", "command"} <= found.keys()
    steps = read["machine.json"]["steps"]
    assert list(steps) == ["tests", "kernels", "throughput", "latent", "cod", "tokenizing", "train"]
    assert all(s["ok"] for s in steps.values())
    assert 'failures="0"' in files["gpu_tests.xml"].read_text()
    assert 'tests="0"' not in files["gpu_tests.xml"].read_text()
    kernels = read["kernels.json"]
    assert not kernels["failed"]
    assert not kernels["left_out"]
    assert all(c["ok"] for c in kernels["checked"])
    names = {f"{row['codebook']}_{row['kernel']}" for row in kernels["rows"]}
    rules = ("select", "top", "biased", "noise", "backtrace")
    others = {"hadamard_refined", "hadamard_chain", "arrival_bias", "chunk_places"}
    assert names == {f"{codebook}_{rule}" for codebook in floors.CODEBOOKS for rule in rules} | others
    for row in kernels["rows"] + kernels["baselines"] + read["throughput.json"]["rows"] + read["latent.json"]["rows"]:
        for times in row["times"].values():
            assert 0 < times["q1_ms"] <= times["median_ms"] <= times["q3_ms"]
    assert {b["kind"].split()[0] for b in kernels["baselines"]} == {"chunked", "DDCM", "Turbo-DDCM", "DiffC", "arrival"}
    assert {r.get("verb") for r in read["throughput.json"]["rows"]} == {"encode", "decode", None}
    assert {(r["input"], r["least"]) for r in read["tokenizing.json"]["rows"]} == {
        ("folder", 0.85),
        ("folder", 0.97),
        ("tar", 0.95),
        ("parquet", 0.9),
    }
    assert not read["tokenizing.json"]["left_out"]
    done = subprocess.run([sys.executable, "-m", "bench.speed.compare", *[files["kernels.json"]] * 2], cwd=ROOT)
    assert done.returncode == 2


@pytest.mark.slow
def test_gpu_sh_goes_on_after_a_step_that_fails(tmp_path):
    """A step out of time: the next one runs, the exit code and machine.json tell."""
    environment = {**os.environ, "OUT": str(tmp_path), "DRY": "1", "PYTHON": sys.executable, "COD_MINUTES": "0.001"}
    command = ["bash", ROOT / "bench/gpu.sh", "cod", "train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cod FAILED: exit code 124" in done.stderr
    steps = json.loads((tmp_path / "machine.json").read_text())["steps"]
    assert [(name, s["ok"], s["exit_code"]) for name, s in steps.items()] == [("cod", False, 124), ("train", True, 0)]


@pytest.mark.parametrize("step", ["fly", "tune"])  # the latter was one once
def test_gpu_sh_refuses_unknown_steps(step, tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "DRY": "1", "PYTHON": sys.executable}
    done = subprocess.run(["bash", ROOT / "bench/gpu.sh", step], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"unknown step: {step}" in done.stderr
    assert not any(tmp_path.iterdir())
