"""Comparing results, computed floors and the README's tables: what they compute is right, and what they refuse."""

import json
import subprocess
import sys

import pytest

from bench import report, report_gpu
from bench.lib import floors, page, record
from bench.speed import compare
from common import ROOT


def timed(name, median, spread=0.01, way="graph"):
    return {"name": name, "times": {way: {"q1_ms": median - spread, "median_ms": median, "q3_ms": median + spread}}}


def result(*rows, device="a GPU", dry=False, **rest):
    return {"device": device, "dry": dry, "rows": list(rows), **rest}


def run_compare(tmp_path, old, new, *options):
    for name, content in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "bench.speed.compare", tmp_path / "old.json", tmp_path / "new.json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


# ---- compare.py ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "after", "options", "code", "said"),
    [
        ((1.0, 0.01), (1.2, 0.01), (), 1, "SLOWER  row [graph]: 1 -> 1.2 ms, 20.0%"),
        ((1.0, 0.01), (1.2, 0.01), ("--threshold", ".3"), 0, "slower  row [graph]: 1 -> 1.2 ms, 20.0%"),
        ((1.0, 0.01), (1.04, 0.01), (), 0, "slower  row [graph]: 1 -> 1.04 ms, 4.0%"),
        ((1.0, 0.01), (0.8, 0.01), (), 0, "faster  row [graph]: 1 -> 0.8 ms, 20.0%"),
        ((1.0, 0.15), (1.2, 0.15), (), 0, "1 rows in both, 0 lines above"),
        ((1.0, 0.15), (0.8, 0.15), (), 0, "1 rows in both, 0 lines above"),
        ((1.0, 0.0), (1.0, 0.0), (), 0, "1 rows in both, 0 lines above"),
    ],
)
def test_slower_and_faster_beyond_both_spreads(tmp_path, before, after, options, code, said):
    got, out, _ = run_compare(tmp_path, result(timed("row", *before)), result(timed("row", *after)), *options)
    assert got == code
    assert said in out
    assert out.count("row [graph]") == ("0 lines" not in said)


def test_rows_of_one_file_are_named_and_ways_are_kept_apart(tmp_path):
    old = result(timed("a", 1), timed("gone", 1), timed("b", 1, way="plain"), baselines=[timed("torch", 5, way="plain")])
    new = result(timed("a", 1), timed("b", 9), timed("new", 1), baselines=[timed("torch", 9, way="plain")])
    code, out, _ = run_compare(tmp_path, old, new)
    assert code == 1
    assert out.splitlines()[:-1] == [
        "SLOWER  torch [plain]: 5 -> 9 ms, 80.0%",
        "only in NEW  b [graph]",
        "only in NEW  new [graph]",
        "only in OLD  b [plain]",
        "only in OLD  gone [graph]",
    ]


def test_files_of_pytest_benchmark_compare_too():
    stats = json.loads((ROOT / "bench/results/select_cpu.json").read_text())
    times = compare.times_of(stats)
    assert len(times) == len(stats["benchmarks"]) > 5
    assert all(q1 <= median <= q3 for q1, median, q3 in times.values())
    slow = {name: tuple(2 * t for t in row) for name, row in times.items()}
    lines, too_slow = compare.compare(times, slow, 0.05)
    assert too_slow
    assert sum(line.startswith("SLOWER") for line in lines) > len(times) // 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (result(timed("row", 1), dry=True), result(timed("row", 1)), "OLD is of a dry run"),
        (result(timed("row", 1)), result(timed("row", 1), dry=True), "NEW is of a dry run"),
        (result(timed("row", 1)), result(timed("row", 1), device="another"), "different devices: a GPU and another"),
        (result(timed("row", 1), device=None), result(timed("row", 1), device=None), "different devices"),
        (result(timed("row", 1)), result(timed("other", 1)), "no row in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, old, new, said):
    code, out, error = run_compare(tmp_path, old, new)
    assert code == 2
    assert not out
    assert error.count("\n") == 1
    assert said in error


# ---- floors.py ----------------------------------------------------------------------------------------------------------
def test_floors_by_hand():
    """132 * 1.98e9 * 128 = 3.3454e13 instructions a second."""
    hadamard = floors.select("hadamard", 3072, 2**20, 256)
    assert hadamard["issue"] == pytest.approx(0.10030, abs=1e-5)  # 2^28 * 12.5 / 3.3454e13 s
    assert hadamard["tensor"] == pytest.approx(0.08699, abs=1e-5)  # 2^28 * 256 / 790e12 s
    assert floors.select("hadamard", 3072, 2**20, 64)["issue"] == pytest.approx(0.02508, abs=1e-5)
    assert floors.select("hadamard", 3072, 2**30, 1)["issue"] == pytest.approx(0.40120, abs=1e-5)
    independent = floors.select("independent", 3072, 2**20, 256)
    assert independent["tensor"] == pytest.approx(1.39179, abs=1e-5)  # 2 * 2^20 * 4096 * 256 / 1.58e15 s
    assert independent["generation"] == pytest.approx(0.17318, abs=1e-5)  # 2^20 * 4096 / 24.8e12 s
    one, sixteen = (floors.select("independent", 3072, 2**20, batch)["tensor"] for batch in (1, 16))
    assert one == sixteen, "the matrix unit's tile is never narrower"
    update = floors.update("hadamard", 3072, 2**20, 256, 1, backtrace=True)
    assert update["hbm"] == pytest.approx(1e3 * (3 * 4 * 256 * 3072 + 8 * 256) / 4.8e12)
    large = floors.select("hadamard", 786432, 2**20, 1)  # two passes: each of 2^20 scores is written and read once more
    assert large["l2"] == pytest.approx(1e3 * (4 * 786432 + 8 * 2**20 + 8 * 2**20 + 8) / 5.5e12)
    assert [floors.matrix_flop(1 << n) for n in (12, 14, 20)] == [256, 160, 256]
    drawn = floors.of_kernel("bias", "arrival", 16384, 2**16, 1, 99)
    assert drawn["hbm"] == pytest.approx(1e3 * 4 * 99 * 2**16 / 4.8e12)
    assert drawn["issue"] == pytest.approx(1e3 * 99 * 2**16 * (9.6 + 2 * floors.LOG + 1) / 3.3454e13, rel=1e-4)
    places = floors.of_kernel("places", "chunk", 16384, 2**16, 1, 99)
    assert places["hbm"] == pytest.approx(1e3 * 2 * 8 * 16384 / 4.8e12)
    assert floors.binding(hadamard) == ("issue", hadamard["issue"])
    assert floors.binding(independent) == ("tensor", independent["tensor"])


def test_counted_instructions_replace_the_bound():
    counted = {"hadamard": {"12": 25.0}}
    assert floors.select("hadamard", 4000, 2**20, 8, counted=counted)["issue"] == pytest.approx(
        2 * floors.select("hadamard", 4000, 2**20, 8)["issue"]
    )
    assert floors.instructions("hadamard", 16384, counted) == 14.5
    assert floors.instructions("independent", 4000, counted) == 0.98


def test_instructions_are_counted_in_what_the_compiler_made():
    shape = {"LOGP": 12, "LOGN": 12, "ROWS": 1, "BIASED": False, "num_warps": 4}
    loops = [{"instructions": 252, "products": 8}, {"instructions": 852, "products": 0}]
    sign = {"K": 128, "DRAWS": 2, "num_warps": 4}
    compiled = [
        {"kernel": "hadamard.search_kernel", "shape": shape, "loops": [{"instructions": 640, "products": 0}]},
        {
            "kernel": "hadamard.search_kernel",
            "shape": shape | {"BIASED": True},
            "loops": [{"instructions": 1, "products": 0}],
        },
        {"kernel": "hadamard.search_kernel", "shape": shape | {"LOGP": 14}, "loops": [{"instructions": 1, "products": 0}]},
        {"kernel": "matrix.matrix_kernel", "shape": {"LOGP": 12, "num_warps": 4}, "loops": loops},
        {"kernel": "independent.search_kernel", "shape": sign, "loops": [{"instructions": 256, "products": 16}]},
        {"kernel": "independent.search_kernel", "shape": sign, "loops": []},
        {"kernel": "merge.merge_kernel", "shape": {"num_warps": 4}, "loops": [{"instructions": 1, "products": 0}]},
    ]
    counted = floors.count(compiled)
    assert counted == {"hadamard": {"12": 7.875}, "independent": {"12": 1.0, "14": 1.0, "20": 1.0}}
    del compiled[3]
    assert floors.count(compiled)["hadamard"] == {"12": 20.0}


def test_the_committed_floors_are_what_the_code_computes():
    written = json.loads((ROOT / "bench/results/floors.json").read_text())
    assert written["computed"] is True
    assert written["measured"] is False
    assert written == json.loads(json.dumps(floors.result(written["counted_instructions"])))


def test_a_command_line_names_no_place_outside_the_checkout(monkeypatch):
    arguments = [
        "first=/elsewhere/a.safetensors",
        "/elsewhere/b.json",
        str(record.ROOT / "bench/c.json"),
        "--steps=3",
        "edm",
    ]
    monkeypatch.setattr(record.sys, "argv", [str(record.ROOT / "bench/findings/recipes.py"), *arguments])
    assert record.command_line() == "python -m bench.findings.recipes first=a.safetensors b.json bench/c.json --steps=3 edm"


# ---- report.py ----------------------------------------------------------------------------------------------------------
FACTS = {"gpu": {"driver_version": "1"}, "versions": {"torch": "2"}, "date": "2026-01-01", "command": "c", "seed": None}


OTHERS = (("chunked tf32", 64, 26.0), ("DDCM float16", 1, 9.0), ("Turbo-DDCM float16 M=64", 1, 10.0), ("DiffC", 1, 4.0))


def gpu_results(kernels_ms):
    """What a run of gpu.sh would leave, with made-up figures: a plain call takes twice as long as a graph."""
    rows = []
    searches = [("select", 1, batch, 2**20) for batch in (256, 64, 16, 1024, 1)]
    searches += [("select", 1, 1, 2**30), ("top", 64, 1, 2**20), ("biased", 1, 1, 2**20)]
    for codebook in floors.CODEBOOKS:
        for kernel, bins, batch, codewords in searches:
            ms = kernels_ms * {"select": 1, "top": 5, "biased": 4}[kernel]
            row = timed(f"{codebook} {kernel} {batch}", ms)
            row["times"]["plain"] = timed("", 2 * ms)["times"]["graph"]
            size = {"kernel": kernel, "codebook": codebook, "d": 3072, "codewords": codewords, "batch": batch, "bins": bins}
            bounds = floors.of_kernel(kernel, codebook, 3072, codewords, batch, bins)
            ratio = ms / floors.binding(bounds)[1]
            rows.append(row | size | {"ratio": ratio, "workspace_mib": 3.0, "floors_ms": bounds})
    slow = [
        timed(kind, ms, way="plain") | {"kind": kind, "d": 3072, "codewords": 2**20, "batch": batch}
        for kind, batch, ms in OTHERS
    ]
    return result(*rows, baselines=slow, device="made-up GPU", **FACTS)


def gpu_throughput(of_network):
    rows = [
        {
            "verb": verb,
            "codebook": "hadamard",
            "graphs": graphs,
            "batch": 256,
            "images_per_s": speed - 500 * (not graphs),
            "way": {"dtype": "bfloat16", "channels_last": True},
            "share_outside": 1 - of_network,
            "of_network_speed": of_network,
        }
        for verb, speed in (("encode", 1000), ("decode", 900))
        for graphs in (True, False)
    ]
    return result({"name": "network"}, *rows, device="made-up GPU", **FACTS)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(report_gpu, "PLOT", tmp_path / "roofline.svg")
    return tmp_path


def test_without_gpu_results_the_readme_lists_what_is_unmeasured(results):
    text = report_gpu.gpu()
    assert text.startswith("Nothing here was measured on a GPU yet.")
    assert "reached" not in text
    assert text.count("\n| ") == len(report_gpu.GOALS) + 2
    assert not report_gpu.roofline()
    assert not any(results.iterdir())


def test_gpu_tables_come_from_measured_json(results):
    (results / "gpu_kernels.json").write_text(json.dumps(gpu_results(0.2)))
    lines = report_gpu.gpu().splitlines()
    assert "| `hadamard` search, 256 images | <= 0.25 ms | 0.2 ms | yes |" in lines
    assert "| `hadamard` search, 64 images | <= 0.1 ms | 0.2 ms | no |" in lines
    assert (
        "| `hadamard`, 64 images, times faster than chunked torch, plain launches in both | >= 60 x | 65 x | yes |" in lines
    )
    assert "| encode, time outside a 50 M parameter network | <= 2 % | not measured yet |  |" in lines
    found = {line.split(" |")[0]: line for line in lines}
    row = found["| `hadamard`, D = 3,072"].split(" | ")
    one, *floors_ms = [floors.select("hadamard", 3072, 2**20, batch)["issue"] for batch in (1, 16, 64, 256, 1024)]
    assert row[1:] == [
        f"0.2 ms ({0.2 / one:.1f} x)",
        *(f"0.2 ms ({0.2 / floor:.1f} x)" for floor in floors_ms[:-1]),
        f"0.2 ms ({0.2 / floors_ms[-1]:.1f} x) |",
    ]
    assert "made-up GPU, driver 1" in lines[-1]
    throughput = gpu_throughput(0.985)
    (results / "gpu_throughput.json").write_text(json.dumps(throughput))
    lines = report_gpu.gpu().splitlines()
    assert "| encode, time outside a 50 M parameter network | <= 2 % | 1.5 % | yes |" in lines
    assert "| encode, of the images per second of the network by itself | >= 95 % | 98.5 % | yes |" in lines
    assert (
        "| `hadamard` | bfloat16, channels last | 1,000 per second (1.5 % outside) | 900 per second (1.5 % outside) |"
        in lines
    )
    text = "head\n<!-- gpu -->\nold\n<!-- /gpu -->\ntail\n"
    assert (
        page.render(text, report.PAGES["docs/performance.md"])
        == f"head\n<!-- gpu -->\n{report_gpu.gpu()}\n<!-- /gpu -->\ntail\n"
    )


def test_the_line_of_the_readme_is_the_fastest_encode_and_its_decode(results):
    assert report_gpu.gpu_speed() == "Nothing was measured on a GPU yet."
    found = gpu_throughput(0.985)
    for row in found["rows"][1:]:
        row |= {"steps": 10, "parameters": 50_400_000}
    slow = [row | {"way": {"dtype": "float32"}, "images_per_s": 100} for row in found["rows"][1:]]
    (results / "gpu_throughput.json").write_text(json.dumps(found | {"rows": slow + found["rows"]}))
    line = report_gpu.gpu_speed()
    assert "one made-up GPU encodes 1,000 and decodes 900 images" in line
    assert "50 million parameters in bfloat16; 1.5 % of the time" in line


def test_presets_of_the_readme_are_the_default_network_beside_what_is_not_larger(results):
    def run(preset, backbone, bpp, **rest):
        images = [{"psnr": psnr, "nfe": 25, "height": h, "width": 24 - h} for psnr, h in ((30.0, 8), (20.0, 16))]
        mean = {"bpp": bpp, "psnr": 25.0, "ssim": 0.5, "seconds": 2.0}
        return {"preset": preset, "backbone": backbone, "mean": mean, "images": images, **rest}

    def beside(*files):
        there = [f for f in files if f]
        return {"images": len(there), "mean": {"psnr": sum(there) / len(there) if there else None}, "rows": list(files)}

    some = {"JPEG": beside(27.0, None), "WEBP": beside(None, None)}
    runs = [run("photo", "net", 0.2, beside={kind: beside(21.0, 25.0) for kind in some}), run("photo", "other", 0.1)]
    runs.append(run("photo-low", "net", 0.1, beside=some))
    (results / "kodak.json").write_text(json.dumps(result(about="2 pictures", threads=1, runs=runs, **FACTS)))
    lines = report.presets().splitlines()
    assert lines[0].count("not larger") == 2
    low = "27.00 dB (1 pictures; noisebook on these 30.00 dB) | no file so small"
    assert lines[2] == f"| `photo-low` | 0.100 | 25.00 dB | 0.500 | {low} | 2.0 s |"
    assert lines[3] == "| `photo` | 0.200 | 25.00 dB | 0.500 | 23.00 dB | 23.00 dB | 2.0 s |"
    assert len(lines) == 6
    assert "16 x 8 pixels" in lines[5]


def test_other_ways_stand_beside_the_same_work_on_the_same_number_of_images(results):
    """No ratio divides a batch by one image, or a graph by plain launches without saying so."""
    (results / "gpu_kernels.json").write_text(json.dumps(gpu_results(0.2)))
    text = report_gpu.gpu()
    ours = {"DDCM float16": "0.4 ms (22.5 x) | 0.2 ms", "Turbo-DDCM float16 M=64": "2 ms (5 x) | 1 ms",
            "DiffC": "1.6 ms (2.5 x) | 0.8 ms", "chunked tf32": "0.4 ms (65 x) | 0.2 ms"}  # fmt: skip
    for kind, batch, ms in OTHERS:
        assert f"| {kind} | {batch} | {ms:.3g} ms | {ours[kind]} | {ours[kind]} |\n" in text
    assert (
        "of these ways, DiffC: 10 (`hadamard`) and 10 (`independent`) times faster with plain launches in both; 20 (" in text
    )
    some = gpu_results(0.2)
    some["rows"] = [row for row in some["rows"] if row["kernel"] != "top" and row["batch"] != 1]  # out of time
    (results / "gpu_kernels.json").write_text(json.dumps(some))
    assert "| DiffC | 1 | 4 ms |  |  |  |  |\n" in report_gpu.gpu()
    assert "of these ways" not in report_gpu.gpu()


def test_figures_of_a_dry_run_are_refused(results, capsys):
    (results / "gpu_kernels.json").write_text(json.dumps({**gpu_results(0.2), "dry": True}))
    for show in (report_gpu.gpu, report_gpu.roofline):
        with pytest.raises(SystemExit) as stop:
            show()
        assert stop.value.code == 2
        assert "dry run" in capsys.readouterr().err


def test_an_open_place_is_refused():
    with pytest.raises(SystemExit, match="'gpu' is not closed"):
        page.render("head\n<!-- gpu -->\ntail\n", report.PAGES["docs/performance.md"])


def test_roofline_is_drawn_from_measured_json(results):
    pytest.importorskip("matplotlib")
    (results / "gpu_kernels.json").write_text(json.dumps(gpu_results(0.2)))
    assert report_gpu.roofline()
    assert "<svg" in (results / "roofline.svg").read_text()
    row = json.loads((results / "gpu_kernels.json").read_text())["rows"][0]
    work = 2**28 * 12.5
    assert report_gpu.point(row, "issue", floors.SM * floors.CLOCK * floors.ISSUE) == (
        pytest.approx(work / (4 * 256 * 3072 + 8 * 256)),
        pytest.approx(work / 0.2e-3),
    )
