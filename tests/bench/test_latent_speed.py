"""latent_speed.py at tiny sizes: what is timed is what it says, an error is told, and the page says what is not measured."""

import contextlib
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch

import fake_cuda

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

pytest.importorskip("diffusers")

from bench.lib import latents, loops
from bench.speed import latent_speed, latent_speed_page
from noisebook.spec import schedule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = schedule.falling(schedule.log_uniform(14.0, 0.05, 3), 0.5, 1)


def run(monkeypatch, path, cases, *options):
    monkeypatch.setattr(latent_speed, "plan", lambda: cases)
    monkeypatch.setattr(latent_speed, "dry_plan", lambda: cases)
    monkeypatch.setattr(sys, "argv", ["latent_speed", str(path), *options])
    return latent_speed.main(), json.loads(path.read_text())


@pytest.fixture
def tiny():
    return latents.SIZES["SD 2.1"].build(DEVICE, True)


@pytest.mark.parametrize("sizes", [["SD 2.1"], pytest.param(list(latents.SIZES)[1:], marks=pytest.mark.slow)])
def test_every_way_and_size_runs_dry(monkeypatch, tmp_path, sizes):
    """All rules and loops on one size, the default rule on the others; the kernel of DiffC's loop has tests of its own."""
    monkeypatch.setattr(loops, "per_candidate", lambda mu, codewords, seed: mu.new_tensor([seed % codewords]).long())
    cases = [case for case in latent_speed.dry_plan() if case.size in sizes]
    code, result = run(monkeypatch, tmp_path / "out.json", cases, "--dry")
    assert code == 0
    assert result["dry"] is True
    assert not result["left_out"]
    rows = result["rows"]
    assert {row["size"] for row in rows} == set(sizes)
    assert {row["way"] for row in rows} == ({*latent_speed.OURS, *latent_speed.LOOPS} if sizes == ["SD 2.1"] else {"bins"})
    assert [row["verb"] for row in rows] == ["encode", "decode"] * (len(rows) // 2)
    for row in rows:
        total, inside = (
            sum(row["times"][part]["median_ms"] for part in parts) for parts in (["total"], ["network", "autoencoder"])
        )
        assert row["share_outside"] == pytest.approx(1 - inside / total)
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / total)
        assert row["calls"] == 2 + (row["verb"] == "decode")


def test_an_error_is_a_row_and_the_exit_code_and_what_was_left_out_is_named(monkeypatch, tmp_path, capsys):
    cases = [latent_speed.Case("SD 2.1", way, 1) for way in ("bins", "top")]

    def rows(self, case):
        if case.way == "bins":
            raise RuntimeError("out of memory\nmore")
        return [
            {
                **latent_speed.describe(case, "encode"),
                "ms_an_image": 1.0,
                "images_per_s": 1e3,
                "share_outside": 0.5,
                "peak_gib": 1.0,
            }
        ]

    monkeypatch.setattr(latent_speed.Bench, "rows", rows)
    code, result = run(monkeypatch, tmp_path / "out.json", cases, "--dry")
    assert code == 1
    assert [row.get("error") for row in result["rows"]] == ["RuntimeError: out of memory", None]
    assert "FAILED SD 2.1, bins, graph, B=1: RuntimeError: out of memory" in capsys.readouterr().err
    code, result = run(monkeypatch, tmp_path / "late.json", cases, "--dry", "--minutes", "0")
    assert (code, result["rows"]) == (1, [])
    assert result["left_out"] == [case.name for case in cases]
    assert "left out, no time: SD 2.1, top" in capsys.readouterr().out


def test_a_batch_that_one_image_shows_to_take_too_long_is_left_out():
    case = latent_speed.Case("SD 2.1", "poisson", 32)
    slow = [
        {**latent_speed.describe(latent_speed.Case("SD 2.1", "poisson", 1), verb), "ms_an_image": 3e3}
        for verb in ("encode", "decode")
    ]
    assert latent_speed.expected(case, {}, []) == 15
    assert latent_speed.expected(case, {("SD 2.1", 32, False, False): 40.0}, []) == 40
    assert latent_speed.expected(case, {}, slow) == pytest.approx(32 * 18)
    assert latent_speed.expected(case, {}, [{**slow[0], "way": "bins"}]) == 15


class FakeEvent:
    def __init__(self, enable_timing):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests run on the GPU itself")
@pytest.mark.usefixtures("tiny")  # diffusers is imported before a part of torch is replaced
def test_what_is_recorded_on_a_gpu_reads_nothing_back(monkeypatch):
    """The CPU stands for a GPU: network, autoencoder and Turbo-DDCM's loop are captured by a recorder that refuses what CUDA
    refuses, and replayed. A codec that could not be recorded says so in its row."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    recordings = []

    class Graph(fake_cuda.FakeGraph):
        def __init__(self):
            super().__init__()
            recordings.append(self)

    fakes = {
        "CUDAGraph": Graph,
        "graph": lambda graph: fake_cuda.Recorder(graph.steps),
        "Stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "Event": FakeEvent,
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: 1 << 30,
        "max_memory_allocated": lambda _: 3 << 30,
        "empty_cache": lambda: None,
        "synchronize": lambda _: None,
    }
    bench = latent_speed.Bench(torch.device("cpu"), True)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    bench.cuda = bench.clock.cuda = True
    rows = bench.rows(latent_speed.Case("SD 2.1", "bins", 1)) + bench.rows(
        latent_speed.Case("SD 2.1", latent_speed.LOOPS[0], 2)
    )
    assert len(recordings) == 4 + 4 + 2  # network and autoencoder, twice, for both; the loop's encode and decode
    assert [row["recorded"] for row in rows] == [False, False, True, True]
    assert all(2 < row["peak_gib"] < 2.01 for row in rows)
    assert all(row["times"]["total"]["median_ms"] == 2 for row in rows)
    assert all(row["first_network_calls_s"] > 0 for row in rows)
    recordings.clear()
    bench.rows(latent_speed.Case("SD 2.1", "top", 1, graph=False))
    assert not recordings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_all_is_recorded_and_measured():
    bench = latent_speed.Bench(DEVICE, True)
    for case in latent_speed.dry_plan():
        for row in bench.rows(case):
            assert row["recorded"] == case.graph, row["name"]
            assert row["peak_gib"] > 0
            assert row["share_outside"] < 1
    for row in bench.rows(latent_speed.Case("SD 2.1", latent_speed.LOOPS[0], 2)):
        assert row["recorded"]


def test_the_plan_names_each_case_once_and_holds_what_the_page_asks_for():
    names = [f"{verb}, {case.name}" for case in latent_speed.plan() for verb in ("encode", "decode")]
    assert len(names) == len(set(names))
    ours = [(case.way, case.batch, case.compile) for case in latent_speed.plan() if case.size == "SD 2.1" and case.graph]
    assert {(way, b, c) for way in latent_speed.OURS for b in (1, 8, 32) for c in (False, True)} <= set(ours)

    class Asked(dict):
        def __contains__(self, name):
            asked.append(name)
            return False

        def keys(self):
            return Asked.Keys()

        class Keys:
            def __ge__(self, wanted):
                asked.extend(wanted)
                return False

    asked: list[str] = []
    assert all(line.find(Asked()) is None for line in latent_speed_page.LINES)
    assert set(asked) <= set(names)
    assert len(set(asked)) > 12


def test_sizes_are_those_that_were_published():
    """Parameters of the networks in the published folders, counted without making them."""
    wanted = {"SD 2.1": 865_910_724, "SDXL": 2_567_463_684, "SD3-medium": 2_028_328_000, "Flux-dev": 11_901_408_320}
    for name, size in latents.SIZES.items():
        with torch.device("meta"):
            backbone = size.make(False)
        assert sum(p.numel() for p in backbone.inner.net.model.parameters()) == wanted[name]
        assert sum(p.numel() for p in backbone.autoencoder.parameters()) in (83_653_863, 83_821_011)  # 4 or 16 channels
        assert backbone.state_shape(size.side, size.side)[1:] == (size.side // 8, size.side // 8)


@torch.no_grad()
def test_the_bare_network_is_called_on_what_the_backbone_gives_it(tiny):
    seen = []
    tiny.inner.net.register_forward_hook(lambda module, given, out: seen.append((*given, out)))
    call = latents.network_calls(tiny, [9.0, 1.0, 0.1], 2, 8)
    made, _ = seen[:], seen.clear()
    out = call(0)
    assert len(made) == len(seen) == 3
    for there, here in zip(made, seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    assert torch.equal(out, seen[-1][-1])


@torch.no_grad()
def test_turbo_ddcms_loop_takes_the_largest_scores_and_its_decoder_walks_the_same_way(tiny, monkeypatch):
    loop = loops.TurboLoop(tiny, STEPS, torch.float32)
    loop.codewords, loop.atoms = 32, 4
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, device=DEVICE)
    x0 = loop.images_in(images).flatten(1)
    monkeypatch.setattr(tiny.inner, "denoise", lambda y, sigma: 0.3 * y)
    states = []
    monkeypatch.setattr(loop, "down", lambda *args: states.append(loops.Loop.down(loop, *args)) or states[-1])
    torch.manual_seed(3)
    tokens = loop.encode(images)
    encoded = states[:]
    assert tokens.shape == (3, 2, 2, 4)
    torch.manual_seed(3)
    residual = x0 - 0.3 * loop.start((2, 4, 4, 4), DEVICE).flatten(1)
    scores = residual @ loop.book(x0, 0, False).T
    for row, numbers, signs in zip(scores, *tokens[0], strict=True):
        assert set(numbers.tolist()) == set(row.abs().topk(4)[1].tolist())
        assert torch.equal(signs, row[numbers].sign().long())
    states.clear()
    torch.manual_seed(3)
    decoded = loop.decode(tokens, (4, 4, 4))
    assert decoded.shape == (2, 3, 8, 8)
    assert len(states) == 3
    assert all(torch.allclose(a, b) for a, b in zip(encoded, states, strict=False))


@torch.no_grad()
def test_diffcs_loop_cuts_every_dimension_once_and_its_decoder_walks_the_same_way(tiny, monkeypatch):
    loop = loops.DiffCLoop(tiny, STEPS, torch.float32)
    loop.bits, loop.chunk = 50, 6
    sizes = []
    monkeypatch.setattr(
        loops, "per_candidate", lambda mu, codewords, seed: sizes.append((mu.shape[1], codewords)) or mu.new_tensor([7])
    )
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, device=DEVICE)
    states = []
    monkeypatch.setattr(loop, "down", lambda *args: states.append(loops.Loop.down(loop, *args)) or states[-1])
    torch.manual_seed(3)
    tokens = loop.encode(images)
    assert [len(step) for step in tokens] == [13] * 3  # ceil(50 / 4) chunks
    assert sum(size for size, _ in sizes[:13]) == 64
    assert {codewords for _, codewords in sizes} == {64}
    encoded, _ = states[:], states.clear()
    torch.manual_seed(3)
    assert loop.decode(tokens, (4, 4, 4), DEVICE).shape == (1, 3, 8, 8)
    assert len(states) == 3
    assert all(torch.allclose(a, b) for a, b in zip(encoded, states, strict=False))


def test_the_page_says_what_is_not_measured_and_what_a_run_reached(monkeypatch):
    monkeypatch.setattr(latent_speed_page.page, "measured", lambda name: None)
    text = latent_speed_page.latent_speed()
    assert "Nothing here was measured yet" in text
    assert text.count(latent_speed_page.UNMEASURED) == len(latent_speed_page.LINES)

    def row(case, verb, ms):
        parts = {"total": ms, "network": 0.9 * ms, "autoencoder": 0.05 * ms}
        return {
            **latent_speed.describe(case, verb),
            "times": {name: {"median_ms": value} for name, value in parts.items()},
            "ms_an_image": ms / case.batch,
            "images_per_s": 1e3 * case.batch / ms,
            "times_of_parts": 1 / 0.95,
            "share_outside": 0.05,
            "peak_gib": 3.0,
            "recorded": case.way != "poisson",
        }

    cases = latent_speed.plan()
    rows = [row(case, verb, 40.0 * case.batch) for case in cases for verb in ("encode", "decode")]
    rows[0] = {**latent_speed.describe(cases[-1]), "error": "RuntimeError: no"}
    facts = {"versions": {}, "threads": 1, "device": "D", "date": "2026-01-01", "command": "c"}
    monkeypatch.setattr(latent_speed_page.page, "measured", lambda name: {**facts, "rows": rows, "left_out": ["X, B=8"]})
    text = latent_speed_page.latent_speed()
    assert "| encode, `compile`, batch 32 | >= 22.5 images/s | 25 images/s | yes |" in text
    assert "| encode, `compile`, batch 32, of network and autoencoder by themselves | <= 1.03 x | 1.05 x | no |" in text
    assert "failed: RuntimeError: no" in text
    assert "for lack of minutes: X, B=8" in text
    assert "no graph could be recorded" in text


def test_the_page_lists_what_data_sets_and_refinement_are_to_reach(monkeypatch):
    from bench.speed import gpu_kernels  # not before all tests are collected: the kernels are decorated then

    monkeypatch.setattr(latent_speed_page.page, "measured", lambda name: None)
    text = latent_speed_page.gpu_lines()
    assert text.count(latent_speed_page.UNMEASURED) == len(latent_speed_page.DATASETS) + 1
    assert [line.limit for line in latent_speed_page.DATASETS] == [85, 97, 95, 90]
    facts = {"versions": {}, "threads": 1, "device": "D", "date": "2026-01-01", "command": "c"}
    cases = latent_speed_page.GPU_CASES
    rows = [{"name": case["name"], "input": case["input"], "ratio": 0.93} for case in cases]
    kernels = [case.name for case in gpu_kernels.plan(dry=False)]
    assert latent_speed_page.REFINED in kernels
    times = [{"name": name, "times": {"graph": {"median_ms": 0.25}}} for name in kernels]
    found = {"gpu_tokenizing": {**facts, "rows": rows}, "gpu_kernels": {**facts, "rows": times}}
    monkeypatch.setattr(latent_speed_page.page, "measured", found.get)
    lines = [line for line in latent_speed_page.gpu_lines().splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[-1] for line in lines] == ["yes |", "no |", "no |", "yes |", "no |"]
    assert "| >= 97 % | 93 % | no |" in lines[1]
    assert "| <= 0.2 ms | 0.25 ms | no |" in lines[-1]
