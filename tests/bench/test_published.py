"""published.py on tiny random networks: a folder in Stable Diffusion's layout, a pickle of NVIDIA's; what its page says."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from nvidia_kit import as_nvidia, checkpoint, write
from PIL import Image

from bench.quality import published, published_page


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3], keepdim=True)


class Features(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.fixture
def folder(tmp_path, monkeypatch, fresh):
    """A data folder: three pictures in place of Kodak's, two archives of small images, an LPIPS network."""
    monkeypatch.setattr(published, "DATA", tmp_path / "data")
    (tmp_path / "data/kodak").mkdir(parents=True)
    (tmp_path / "data/weights").mkdir()
    for i in range(3):
        pixels = np.kron(fresh.integers(0, 256, (5, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/kodak/{i}.png")
    for name, count in (("cifar10_test5k", 6), ("cifar10_train", 4)):
        images = fresh.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"data/{name}.npz", images=images)
    torch.jit.script(Distance()).save(str(tmp_path / "data" / published.LPIPS))
    torch.jit.script(Features()).save(str(tmp_path / "features.pt"))
    return tmp_path


def save_sd(path):
    """A tiny pipeline whose network predicts about 0 for every picture: no worse than knowing nothing, as a trained one."""
    pytest.importorskip("diffusers")
    from tiny_pipelines import build_sd

    torch.manual_seed(0)
    pipe = build_sd("sample")
    pipe.unet.conv_out.weight.data.mul_(0.1)
    pipe.save_pretrained(path)
    return path


def run(monkeypatch, folder, *options):
    out = folder / "out.json"
    monkeypatch.setattr(sys, "argv", ["published", "--device", "cpu", "--out", str(out), *map(str, options)])
    return published.main(), json.loads(out.read_text())


def test_a_folder_of_stable_diffusion(monkeypatch, folder, capsys):
    monkeypatch.setattr(published.rivals, "CHUNK", 8)  # arrival times of 2^16 candidates a chunk take seconds
    monkeypatch.setattr(published, "measure_curve", partial(published.measure_curve, nodes=9))
    few = ("--model", save_sd(folder / "my-sd"), "--size", 16, "--rates", 2, "--calls", 4)
    code, result = run(monkeypatch, folder, *few)
    found = result["model"]
    assert code == 0
    assert [row["rule"] for row in found["rows"]] == list(published_page.RULES)
    assert (found["model"], found["size"], found["pictures"]) == ("my-sd", 16, ["0", "2", "1"])
    assert found["lpips"].startswith("lpips_alex.torchscript.pt sha256:")
    assert found["curve"] == "of the other half of the pictures"
    for row in found["rows"]:
        assert row["mean_bpp"] == pytest.approx(2, rel=0.25)
        assert row["lpips"][0] > 0
        assert row["decode_calls"] <= 4
    shown = capsys.readouterr().out
    assert "| Turbo-DDCM | 0.0999 |  | 24.91 | .1076 | as published" in shown
    assert "| here: `my-sd` |" in shown
    assert shown.count(published_page.UNMEASURED) == 2 * len(published_page.RATES) * len(published_page.RULES) + 2 * 3
    (folder / "data" / published.LPIPS).unlink()
    monkeypatch.setitem(published.rivals.MAKERS, "Turbo-DDCM", None)
    code, result = run(monkeypatch, folder, *few, "--images", 1)
    assert code == 1
    assert [row.get("error") for row in result["model"]["rows"]] == [
        None,
        "TypeError: 'NoneType' object is not callable",
        None,
    ]
    shown = capsys.readouterr().out
    assert "no LPIPS" in shown
    assert "| not computed |" in shown
    assert "| failed |" in shown


def test_pictures_are_cut_in_the_middle_and_too_small_ones_are_named(folder):
    whole = np.asarray(Image.open(folder / "data/kodak/1.png"))
    cut = published.kodak(16, None)["1"]
    assert torch.equal(cut, torch.from_numpy(whole[2:18, 4:20].copy()).permute(2, 0, 1))
    with pytest.raises(SystemExit, match=r"0\.png is smaller than 21 x 21"):
        published.kodak(21, 1)


def test_each_half_is_coded_under_the_curve_of_the_other(monkeypatch, folder):
    measured, used, plain = [], [], published.measure_curve
    monkeypatch.setattr(
        published,
        "measure_curve",
        lambda backbone, batches: (
            measured.append((torch.cat(batches), plain(backbone, batches, nodes=3))) or measured[-1][1]
        ),
    )
    monkeypatch.setattr(published, "rule_row", lambda pairs, *rest: used.extend(pairs) or {})
    monkeypatch.setattr(published, "tables_of", lambda result: {})
    run(monkeypatch, folder, "--model", save_sd(folder / "sd"), "--size", 16, "--rates", 2)
    assert len(used) == 2 * len(published_page.RULES)
    for images, place in used:
        (other,) = [on for on, curve in measured if curve is place.curve]
        assert not torch.equal(other, images)


def test_a_checkpoint_of_edm(monkeypatch, folder, capsys):
    with monkeypatch.context() as patch:
        content, _ = checkpoint("EDMPrecond", "DDPM++")
        write(folder / "edm.pkl", as_nvidia(patch) and content)
    short = {"steps": 3, "start_budget": 1, "vocab_size": 256, "start_vocab_size": 256}
    log = {**short, "spacing": "log", "sigma_max": 3.0, "p": 0.5}
    fixed = [{**short, "p": 0.0, "sigma_max": sigma, "rho": 0.4} for sigma in (0.4, 1.2)]
    grid = [{**short, "spacing": "ddpm", "sigma_max": 200.0, "sigma_min": 0.005, "p": 0.5}]
    monkeypatch.setattr(
        published, "CHOICES", dict(zip(published.WAYS, (fixed, grid, [{**log, "sigma_min": 0.2}]), strict=True))
    )
    code, result = run(monkeypatch, folder, "--edm", folder / "edm.pkl", "--features", folder / "features.pt")
    assert code == 0
    rows = result["edm"]["rows"]
    assert [row["way"] for row in rows] == list(published.WAYS)
    assert all(row["frechet"] > 0 for row in rows)
    assert result["edm"]["features"].startswith("features.pt sha256:")
    assert "rfid" not in rows[0]
    assert rows[0]["recipe"]["solver"] == "euler"
    assert (result["edm"]["images"], rows[1]["bits"], rows[1]["decode_calls"]) == (6, 32, 4)
    shown = capsys.readouterr().out
    assert "EDMPrecond" in shown
    assert f"| {published.WAYS[0]} | 3.2 | {rows[0]['frechet']:.2f} |" in shown
    code, result = run(monkeypatch, folder, "--edm", folder / "edm.pkl", "--minutes", "-1")
    assert code == 1
    assert [key["way"] for key in result["edm"]["left_out"]] == list(published.WAYS)
    assert "no Frechet distance" in capsys.readouterr().out


def test_the_choices_of_levels_are_those_of_512_bits():
    assert [len(choices) for choices in published.CHOICES.values()] == [12, 1, 4]
    for choices in published.CHOICES.values():
        for recipe in choices:
            assert (recipe["steps"], recipe["vocab_size"], recipe["start_budget"]) == (31, 1 << 16, 1)


def test_a_page_without_results_lists_every_line_as_unmeasured():
    model, edm = (text() for text in published_page.tables_of({}).values())
    assert model.count(published_page.UNMEASURED) == 2 * len(published_page.RATES) * len(published_page.RULES)
    assert edm.count(published_page.UNMEASURED) == 2 * len(published_page.WAYS)
    for figure in ("24.91", ".1076", "25.54", ".0931", "2511.06424"):
        assert figure in model
    for figure in ("3.2", "4.5", "2511.13387"):
        assert figure in edm
