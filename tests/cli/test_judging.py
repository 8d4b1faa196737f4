"""Metrics on the command line: named values in --json, a line each in text, words where there is none, nothing in vain."""

import hashlib
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main


class Distance(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3])


class Features(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.fixture
def codec(tmp_path):
    return ["--backbone", tiny_backbone(tmp_path / "tiny.safetensors"), *TINY]


@pytest.fixture
def pictures(tmp_path, fresh):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (h, w) in {"a": (24, 40), "b": (40, 24), "c": (17, 33)}.items():
        Image.fromarray(random_images(fresh, 1, h, w)[0].permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def files(tmp_path):
    """TorchScript files: a distance and features."""
    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    torch.jit.script(Features()).save(str(tmp_path / "features.pt"))
    return tmp_path / "lpips.pt", tmp_path / "features.pt"


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_roundtrip_names_every_value_by_the_file_of_its_network(capsys, tmp_path, pictures, codec, files):
    lpips, features = files
    given = ["--metrics", "psnr", "--lpips", lpips, "--features", features]
    code, stdout, stderr = run(capsys, "roundtrip", pictures, "-o", tmp_path / "out", "--json", *given, *codec)
    assert code == 0
    result = json.loads(stdout)
    assert list(result["metrics"]) == ["psnr", "lpips", "frechet"]
    for row in result["images"]:
        both = np.asarray(Image.open(tmp_path / "out" / f"{row['name'].split('/')[-1][:-4]}.compared.png")).astype(float)
        expected = np.abs(both[:, : row["width"]] - both[:, row["width"] :]).mean() / 127.5
        assert row["lpips"] == pytest.approx(expected, rel=1e-5)
        assert row["ssim"] is None, "it was not asked for"
        assert row["remarks"] == {}
    assert stderr.count(" LPIPS, ") == 3
    found = result["metrics"]["lpips"]
    assert found["networks"] == [{"file": "lpips.pt", "sha256": sha256(lpips)}]
    assert found["value"] == pytest.approx(np.mean([row["lpips"] for row in result["images"]]))
    assert (found["better"], result["metrics"]["psnr"]["better"], found["pictures"]) == ("lower", "higher", 3)
    distance = result["metrics"]["frechet"]
    assert distance["networks"] == [{"file": "features.pt", "sha256": sha256(features)}]
    assert (distance["samples"], distance["features"], distance["patch"]) == (3, 3, 0)
    assert distance["value"] > 0


def test_text_has_a_line_for_each_metric_that_was_asked_for(capsys, pictures, codec, files):
    plain = run(capsys, "eval", pictures, *codec)[1]
    assert "is better" not in plain
    code, stdout, _ = run(capsys, "eval", pictures, "--lpips", files[0], "--features", files[1], "--patch", 16, *codec)
    assert code == 0
    head, *lines = stdout.splitlines()
    titles = ["image", "bytes", "bpp", "payload", "PSNR", "SSIM", "LPIPS", "NFE of both", "seconds"]
    assert re.split(" {2,}", head) == titles
    assert lines[4].startswith("PSNR ")
    assert "dB (higher is better), mean of 3 of 3 pictures" in lines[4]
    assert lines[6].startswith("LPIPS ")
    assert lines[6].endswith(f"lpips.pt sha256:{sha256(files[0])}")
    assert "(lower is better)" in lines[6]
    assert "3 of 3 pictures, 6 patches of 16 pixels, 3 features" in lines[7]
    assert lines[7].endswith(f"features.pt sha256:{sha256(files[1])}")
    assert len(lines) == 8


def test_what_a_picture_is_too_small_for_is_said_in_words(capsys, monkeypatch, pictures, codec):
    module = types.ModuleType("piq")
    module.__dict__["multi_scale_ssim"] = lambda a, b, **how: torch.full((1,), 0.5)
    monkeypatch.setitem(sys.modules, "piq", module)
    Image.new("RGB", (161, 170)).save(pictures / "large.png")
    code, stdout, stderr = run(capsys, "eval", pictures, "--metrics", "psnr,ms-ssim", "--json", *codec)
    assert code == 3, "a metric that was asked for is not there"
    assert "NaN" not in stdout
    rows = json.loads(stdout)["images"]
    assert [row["ms_ssim"] for row in rows] == [None, None, None, 0.5]
    assert [row["error"] for row in rows] == [None] * 4
    assert rows[0]["remarks"] == {"ms_ssim": "it needs 161 pixels a side"}
    assert stderr.count("no MS-SSIM: it needs 161 pixels a side") == 3
    found = json.loads(stdout)["metrics"]["ms_ssim"]
    assert (found["value"], found["pictures"], found["of"]) == (0.5, 1, 4)
    code, stdout, _ = run(capsys, "eval", pictures / "a.png", "--metrics", "ms-ssim", *codec)
    assert code == 3
    assert "MS-SSIM none (higher is better), mean of 0 of 1 pictures" in stdout


def test_small_pictures_have_no_ssim_and_are_no_error_where_nobody_asked(capsys, tmp_path, codec):
    Image.new("RGB", (5, 9), (9, 80, 200)).save(tmp_path / "small.png")
    code, stdout, stderr = run(capsys, "eval", tmp_path / "small.png", "--json", *codec)
    assert code == 0
    assert json.loads(stdout)["images"][0]["remarks"]["ssim"] == "it needs 7 pixels a side"
    assert "small.png: no SSIM: it needs 7 pixels a side" in stderr
    assert run(capsys, "eval", tmp_path / "small.png", "--metrics", "ssim", *codec)[0] == 3


def test_a_picture_that_fails_has_every_metric_and_no_value(capsys, pictures, codec, files):
    (pictures / "bad.png").write_bytes(b"not a picture")
    code, stdout, _ = run(capsys, "eval", pictures, "--lpips", files[0], "--json", *codec)
    result = json.loads(stdout)
    bad = next(row for row in result["images"] if row["error"])
    assert code == 3
    assert (bad["lpips"], bad["psnr"], bad["remarks"]) == (None, None, {})
    assert result["metrics"]["lpips"]["pictures"] == 3


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--metrics", "lpips"], 2, "--metrics lpips needs its network: --lpips FILE"),
        (["--metrics", "dists"], 2, "--dists FILE"),
        (["--metrics", "vmaf"], 2, "'vmaf' is no metric"),
        (["--patch", "64"], 2, "--patch is for the Frechet distance"),
        (["--lpips", "none.pt"], 6, "none.pt: cannot be read"),
        (["--metrics", "butteraugli"], 1, "on the PATH"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_before_any_picture(
    capsys, monkeypatch, tmp_path, pictures, codec, options, code, words
):
    monkeypatch.setenv("PATH", str(tmp_path))
    found, stdout, stderr = run(capsys, "roundtrip", pictures, "-o", tmp_path / "out", *options, *codec)
    assert (found, stdout) == (code, "")
    assert words in stderr
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    result = json.loads(run(capsys, "eval", pictures, "--json", *options, *codec)[1])
    assert (result["metrics"], result["images"], result["code"]) == ({}, [], code)


def test_a_distance_of_one_picture_is_no_value(capsys, pictures, codec, files):
    code, stdout, _ = run(capsys, "eval", pictures / "a.png", "--features", files[1], *codec)
    assert code == 3
    assert "Frechet distance none" in stdout
    assert "it needs two pictures or more: there are 1" in stdout


def test_no_program_is_loaded_that_was_not_named(capsys, monkeypatch, pictures, codec, files):
    torch.jit.script(Distance()).save(str(pictures / "lpips.pt"))
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **how: pytest.fail("a program was loaded"))
    assert run(capsys, "eval", pictures, *codec)[0] == 0
    assert run(capsys, "eval", pictures, "--metrics", "lpips", *codec)[0] == 2
