"""`noisebook report`: what the page says is what the data set has, and it needs nothing beside it."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from report_kit import Page

import noisebook
from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main

pytest.importorskip("pyarrow")

from noisebook.datasets import TokenDataset
from noisebook.format.container import packed_bits
from noisebook.images.metrics import psnr
from noisebook.report.charts import ticks
from noisebook.report.counting import entropy, miller_madow, statistics, uniform_entropy

pytestmark = pytest.mark.quick

SIDE, COUNT = 16, 10


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


@pytest.fixture
def made(tmp_path, net, fresh):
    """A function: makes a data set of this name from the same pictures, with these options."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["<script>alert(1)</script>.png".replace("/", "_"), 'a"b&c.png', *(f"{i}.png" for i in range(COUNT - 2))]
    for name, x in zip(names, random_images(fresh, COUNT, SIDE, SIDE), strict=True):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")

    def make(name, *options):
        out = tmp_path / name
        command = ["tokenize", str(folder), "-o", str(out), "--backbone", net, *TINY, "--workers", "0", "--shard-size", "4"]
        assert main([*command, *options]) == 3
        return out

    return make


def report(tmp_path, net, *folders, options=()) -> Page:
    out = tmp_path / "report.html"
    assert main(["report", *map(str, folders), "-o", str(out), "--backbone", net, *options]) == 0
    return Page(out.read_text())


def test_what_the_page_says_is_so(tmp_path, net, made):
    out = made("tokens")
    inputs = str(tmp_path / "in")
    page = report(tmp_path, net, out, options=("--images", "4", "--inputs", inputs))
    data = TokenDataset(out, inputs=inputs)
    codec = noisebook.load(data.spec, backbone=net)
    assert f"{COUNT} of {COUNT + 1}" in page.text
    assert "1 not_an_image" in page.text
    assert "Failures of tokens image code what is wrong bad.png not_an_image " in " ".join(page.text.split())
    assert data.spec.backbone in page.text
    assert not [url for url in page.addresses if not url.startswith("data:")]
    assert "script" not in page.tags
    shown = [alt.removeprefix("decoded of ") for alt in page.images if alt.startswith("decoded")]
    assert len(set(shown)) == 4
    index = {row["key"]: i for i, row in enumerate(data)}
    found = []
    for key in shown:
        row = data[index[key]]
        tokens = torch.from_numpy(row["tokens"].astype(np.int64))[None]
        pixels = codec.decode(tokens, (SIDE, SIDE))[0].clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        original = data.original(index[key])
        assert np.abs(page.images[f"decoded of {key}"].astype(int) - pixels).max() == 0
        assert (page.images[f"original of {key}"] == original).all()
        error = np.clip(128 + 4 * (pixels.astype(int) - original), 0, 255)
        assert (page.images[f"error of {key}"] == error).all()
        found.append(psnr(pixels, original))
        assert f"{found[-1]:.2f} dB" in page.text
    assert f"{np.mean(found):.2f} dB" in page.text
    bpp = packed_bits(codec.stream(SIDE, SIDE).runs) / SIDE**2
    assert f"{bpp:.4f}" in page.text
    total = sum(entropy(column) for column in np.stack([row["tokens"] for row in data]).T)
    assert f"{total:,.1f} bits as counted" in page.text
    assert f"at least {estimated(data):,.1f} by the Miller-Madow estimate" in page.text  # 256 values, and 10 images
    assert f"{len(codec.layout_for(SIDE, SIDE))} tokens, {packed_bits(codec.stream(SIDE, SIDE).runs):,} bits" in page.text


def estimated(data: TokenDataset) -> float:
    """The Miller-Madow estimate of all positions, as its formula is in the literature, in nats and then in bits."""
    total = 0.0
    for column in np.stack([row["tokens"] for row in data]).T:
        counts = np.bincount(column)
        share = counts[counts > 0] / len(column)
        nats = -(share * np.log(share)).sum() + (len(share) - 1) / (2 * len(column))
        total += min(nats / np.log(2), 8)
    return total


def test_the_first_table_names_the_codec_and_the_day(tmp_path, net, made):
    out = made("tokens")
    page = report(tmp_path, net, out)
    table, data = page.text.split("Pictures")[0], TokenDataset(out)
    day = data.done[0]["finished"][:10]
    for row in (f"backbone\n{data.spec.backbone}", "steps\n4\n", "vocabulary\n256 values", f"date of the tokens\n{day}"):
        assert row in table
    assert re.search(r"rate\n\d\.\d{4} bits per pixel", table)


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3])


class Features(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


def test_other_metrics_are_named_by_their_networks(tmp_path, net, made, monkeypatch, capsys):
    out, inputs = made("tokens"), str(tmp_path / "in")
    for name, module in (("lpips", Distance()), ("features", Features())):
        torch.jit.script(module).save(str(tmp_path / f"<{name}>.pt"))
    given = ("--lpips", str(tmp_path / "<lpips>.pt"), "--features", str(tmp_path / "<features>.pt"), "--patch", "8")
    page = report(tmp_path, net, out, options=("--images", "4", "--inputs", inputs, *given))
    shown = [alt.removeprefix("decoded of ") for alt in page.images if alt.startswith("decoded")]
    found = []
    for key in shown:
        original, decoded = (page.images[f"{word} of {key}"].astype(float) for word in ("original", "decoded"))
        found.append(np.abs(original - decoded).mean() / 127.5)
        assert f", LPIPS {found[-1]:.4f}" in page.text
    digest = hashlib.sha256((tmp_path / "<lpips>.pt").read_bytes()).hexdigest()
    assert f"tokens: LPIPS {np.mean(found):.4f} (lower is better), mean of 4 of 4 pictures" in page.text
    assert f"<lpips>.pt sha256:{digest}" in page.text
    assert "4 of 4 pictures, 16 patches of 8 pixels, 3 features" in page.text
    assert "script" not in page.tags
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(torch.jit, "load", lambda *args, **how: pytest.fail("loaded for nothing"))
    for without in ((), ("--inputs", inputs, "--images", "0")):
        assert main(["report", str(out), "-o", str(tmp_path / "report.html"), "--backbone", net, *given, *without]) == 2
        assert "metrics compare with originals" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_metrics_without_an_original_say_so(tmp_path, net, made):
    out = made("tokens")
    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    page = report(tmp_path, net, out, options=("--inputs", str(tmp_path / "in"), "--lpips", str(tmp_path / "lpips.pt")))
    assert "LPIPS none (lower is better), mean of 0 of 0 pictures" in page.text
    assert "no picture was compared" in page.text


def test_several_are_compared_on_the_same_pictures(tmp_path, net, made):
    page = report(
        tmp_path,
        net,
        made("low"),
        made("high", "--vocab-size", "4096"),
        options=("--images", "3", "--inputs", str(tmp_path / "in")),
    )
    assert "Rate and distortion" in page.text
    assert "Each has the same images." in page.text
    assert len([alt for alt in page.images if alt.startswith("original")]) == 3
    for name in ("low", "high"):
        assert len([alt for alt in page.images if alt.startswith(f"{name} of ")]) == 3
        assert page.text.count(name) >= 4


def test_originals_that_are_gone(tmp_path, net, made):
    out = made("tokens")
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    page = report(tmp_path, net, out, options=("--inputs", str(tmp_path / "in")))
    assert "the file is gone" in page.text
    assert re.search(r"PSNR\s+unknown", page.text)
    assert {alt.split(" of ")[0] for alt in page.images} == {"decoded"}


def test_a_part_and_codes_of_many_lengths(tmp_path, net, made):
    out = made("poisson", "--rule", "poisson", "--budget", "1", "--budget-last", "1", "--vocab-size", "65536")
    (out / "ledger/000001.json").unlink()
    page = report(tmp_path, net, out)
    assert "Not complete" in page.text
    assert "vary in length" in page.text


def test_errors(tmp_path, net, made, capsys):
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 7
    out = made("tokens")
    assert main(["report", str(out), "-o", str(tmp_path / "x.html"), "--images", "-1"]) == 2
    other = tiny_backbone(tmp_path / "other.safetensors", seed=3)
    assert main(["report", str(out), "-o", str(tmp_path / "x.html"), "--backbone", other]) == 5
    assert not (tmp_path / "x.html").exists()
    said = capsys.readouterr().err
    assert said.count("noisebook: ") == 3
    assert "no data set (plan.json) and no .nbk file" in said
    (tmp_path / "x.html").write_text("the user's")
    call = ["report", str(out), "-o", str(tmp_path / "x.html"), "--backbone", net, "--images", "1", "--json"]
    for wrong in (["--prompt", "a"], ["none.nbk"]):  # options of the others; both kinds at once
        assert main([call[0], *wrong, *call[1:]]) == 2
        assert ".nbk files" in capsys.readouterr().err
    assert main(call) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert (tmp_path / "x.html").read_text() == "the user's"
    assert main([*call, "--force"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "x.html"), "realism": 0.0}
    assert "the user's" not in (tmp_path / "x.html").read_text()


def test_entropy_as_counted():
    assert entropy(np.array([0, 0, 1, 1])) == 1
    assert entropy(np.array([3, 3])) == 0
    assert uniform_entropy(256, 100_000) == pytest.approx(8, abs=0.01)
    assert uniform_entropy(1 << 16, 64) == pytest.approx(6, abs=0.1)  # as many as there are images


def test_the_estimate_is_nearer_to_the_truth_and_says_at_least_of_few(fresh):
    share = fresh.dirichlet(np.full(32, 2.0))
    truth = -(share * np.log2(share)).sum()
    draws = fresh.choice(32, p=share, size=(500, 100))
    counted, corrected = (np.mean([f(row) for row in draws]) for f in (entropy, lambda row: miller_madow(row, 32)))
    assert counted < corrected
    assert abs(corrected - truth) < 0.5 * abs(counted - truth)
    assert miller_madow(np.arange(64), 64) == 6  # never more than there can be
    sizes = np.full(3, 32)
    assert statistics(draws[:, :3].astype(np.int64)[:31], sizes).few
    assert not statistics(draws[:, :3].astype(np.int64)[:32], sizes).few


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.1), (-3, 17), (24.38, 24.45), (0, 5001), (0, 0)])
def test_ticks_span_what_is_shown(low, high):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert np.allclose(np.diff(found), found[1] - found[0])
