"""`noisebook report` of .nbk files: what the page shows is what the files decode to."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_kit import Page

import noisebook
from common import RECIPES, TINY, Shrink, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.format.container import Container, packed_bits, unpack
from noisebook.images.files import decode_picture, encode_picture, spec_of
from noisebook.images.metrics import psnr
from noisebook.report.build_pictures import build_picture_report
from noisebook.report.counting import spending, total_bits
from noisebook.report.markup import HEAT, HOTTEST, heat, vocabulary
from noisebook.report.pictures import looked_at, walked
from rules_kit import build

pytestmark = pytest.mark.quick

HEIGHT, WIDTH = 16, 24
CARELESS = "<script>alert(1)<_script>"  # what a stranger may call a file


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


@pytest.fixture
def trip(tmp_path, net, fresh):
    """The folder that `roundtrip` has written of two pictures in tmp_path/in."""
    (tmp_path / "in").mkdir()
    for name, x in zip((CARELESS, "b"), random_images(fresh, 2, HEIGHT, WIDTH), strict=True):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(tmp_path / f"in/{name}.png")
    out = tmp_path / "out"
    assert main(["roundtrip", str(tmp_path / "in"), "-o", str(out), "--backbone", net, *TINY]) == 0
    return out


@pytest.fixture
def report(tmp_path, net):
    """A function: the page about these files, and the exit code."""

    def make(*names, options=(), code=0) -> Page:
        out = tmp_path / "report.html"
        call = ["report", *map(str, names), "-o", str(out), "--backbone", net, "--force", *options]
        assert main(call) == code
        return Page(out.read_text())

    return make


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_roundtrip_folder(trip, tmp_path, net, report):
    os.utime(trip / "b.nbk", (0, time.mktime((2024, 5, 6, 12, 0, 0, 0, 0, 0))))
    page = report(trip)
    assert "script" not in page.tags
    assert not [url for url in page.addresses if not url.startswith("data:")]
    first = page.text.split("All pictures")[0]
    for text in ("backbone", "steps\n4\n", "vocabulary\n256 values of a token", "2024-05-06 to "):
        assert text in first
    rates = []
    for name in (CARELESS, "b"):
        file, original = trip / f"{name}.nbk", pixels_of(tmp_path / f"in/{name}.png")
        container = Container.read(file)
        codec = noisebook.load(spec_of(container), backbone=net)
        whole = decode_picture(codec, container)
        assert (page.images[f"original of {name}.nbk"] == original).all()
        assert (page.images[f"decoded of {name}.nbk"] == whole).all()
        assert (page.images[f"error map of {name}.nbk"] == heat(whole, original)).all()
        before = page.images[f"picture before the first step of {name}.nbk"]
        for step in (1, 2, 3, 4):
            word = "decode" if step == 4 else f"picture after {step} of 4 steps"
            pixels = decode_picture(codec, container, step)
            assert (page.images[f"{word} of {name}.nbk"] == pixels).all()
            assert (page.images[f"change of {word} of {name}.nbk"] == heat(pixels, before)).all()
            assert f"{step * 64 / (HEIGHT * WIDTH):.3f} bits per pixel, PSNR {psnr(pixels, original):.2f} dB" in page.text
            before = pixels
        rates.append(8 * file.stat().st_size / (HEIGHT * WIDTH))
        assert f"The original is the left half of {name}.compared.png." in page.text
    assert f"{np.mean(rates):.4f} bits per pixel" in first
    assert page.text.count('\n "law": "hadamard",\n') == 1  # one specification for both, as JSON, in lines
    assert page.text.count("32 tokens, 256 bits, in 4 steps.") == 2


def test_the_vocabularies_of_steps_and_start_are_both_named():
    spec = build(Shrink()).spec
    assert vocabulary(replace(spec, vocab_size=4096, start_budget=0)) == "4,096 values of a token"
    both = replace(spec, vocab_size=4096, start_budget=1, start_vocab_size=1 << 16)
    assert vocabulary(both) == "4,096 values of a token, 65,536 of a token of the start"


def test_one_file_and_where_its_original_is(trip, tmp_path, report):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (trip / "b.nbk").rename(elsewhere / "c.nbk")
    page = report(elsewhere / "c.nbk")
    assert "No original is shown: noisebook report" in " ".join(page.text.split())
    assert not [alt for alt in page.images if alt.startswith(("original", "error"))]
    page = report(elsewhere / "c.nbk", options=("--inputs", str(tmp_path / "in/b.png")))  # one of each: by no name
    assert (page.images["original of c.nbk"] == pixels_of(tmp_path / "in/b.png")).all()
    page = report(elsewhere / "c.nbk", options=("--inputs", str(tmp_path / "in")))
    assert "No original is shown: no picture of its name was given." in page.text
    for name in ("x/c.png", "y/c.png"):
        (elsewhere / name).parent.mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(elsewhere / name)
    both = ("--inputs", str(elsewhere / "x"), "--inputs", str(elsewhere / "y"))
    assert "2 of the pictures that were given have its name" in report(elsewhere / "c.nbk", options=both).text
    assert "the picture has another size now" in report(elsewhere / "c.nbk", options=both[:2]).text


def test_what_lies_beside_a_file_is_read_only_if_it_fits(trip, tmp_path, report):
    beside = trip / "b.compared.png"
    Image.open(beside).crop((0, 0, WIDTH, HEIGHT)).save(beside)
    assert "not the original and the decode of this file" in report(trip / "b.nbk").text
    beside.unlink()
    beside.symlink_to(trip / f"{CARELESS}.compared.png")
    assert not [alt for alt in report(trip / "b.nbk").images if alt.startswith("original")]
    beside.unlink()
    os.mkfifo(beside)  # would be waited for
    assert not [alt for alt in report(trip / "b.nbk").images if alt.startswith("original")]
    os.mkfifo(tmp_path / "b.png")
    page = report(trip / "b.nbk", options=("--inputs", str(tmp_path / "b.png")))
    assert "it is no regular file" in page.text


def test_a_file_that_fails_does_not_stop_the_others(trip, tmp_path, net, report, capsys):
    (trip / "a<b>.nbk").write_bytes(b"no file of ours")
    page = report(trip, options=("--json",), code=4)
    out, err = capsys.readouterr()
    (row,) = json.loads(out)["failed"]
    assert row["name"] == str(trip / "a<b>.nbk")
    assert row["error"].startswith("FormatError: ")
    assert row["error"] in err
    assert "Files that could not be shown" in page.text
    assert row["error"] in page.text
    assert "2 of 3 files" in page.text
    before = (tmp_path / "report.html").read_text()
    for calls in (
        ([str(trip / "a<b>.nbk")], 4),
        ([str(trip / "gone.nbk")], 4),
        ([str(trip), "--images", "0"], 2),
        ([str(trip), "--max-pixels", str(HEIGHT * WIDTH - 1)], 4),
        ([str(trip), "--max-network-calls", "4"], 4),
        ([str(trip / "b.nbk"), "--backbone", tiny_backbone(tmp_path / "other.safetensors", seed=3)], 5),
    ):
        names, code = calls
        assert main(["report", "--backbone", net, *names, "-o", str(tmp_path / "report.html"), "--force"]) == code
    assert (tmp_path / "report.html").read_text() == before
    assert main(["report", str(trip / "b.nbk"), "-o", str(trip / "b.nbk"), "--force", "--backbone", net]) == 1
    assert "it is an input of this run" in capsys.readouterr().err


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3])


def test_metrics_and_fewer_images(trip, tmp_path, report, capsys):
    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    given = ("--lpips", str(tmp_path / "lpips.pt"))
    page = report(trip, options=("--images", "1", *given))
    assert "1 of 2 files" in page.text
    (key,) = (alt.removeprefix("original of ") for alt in page.images if alt.startswith("original"))
    original, decoded = (page.images[f"{word} of {key}"].astype(float) for word in ("original", "decoded"))
    assert f"LPIPS {np.abs(original - decoded).mean() / 127.5:.4f}" in page.text
    for path in trip.glob("*.png"):
        path.unlink()
    assert main(["report", str(trip), "-o", str(tmp_path / "r.html"), "--backbone", str(tmp_path / "none"), *given]) == 2
    assert "metrics compare with originals" in capsys.readouterr().err


def test_realism_is_of_the_last_picture_only(trip, report):
    plain, dialled = report(trip / "b.nbk"), report(trip / "b.nbk", options=("--realism", "1"))
    differ = {alt for alt in plain.images if (plain.images[alt] != dialled.images[alt]).any()}
    assert differ <= {f"{w} of b.nbk" for w in ("decoded", "decode", "error map", "change of decode")}
    assert "decoded of b.nbk" in differ
    assert "realism of the decodes\n1" in dialled.text


@pytest.mark.parametrize("name", RECIPES)
def test_one_walk_shows_what_decodes_of_fewer_steps_show(name, fresh):
    codec = noisebook.load("photo", backbone=Shrink(), **{"steps": 5, "budget": 4, "vocab_size": 256, **RECIPES[name]})
    pixels = random_images(fresh, 1, HEIGHT, WIDTH)[0].permute(1, 2, 0).numpy()
    container = Container.from_bytes(encode_picture(codec, pixels, True))
    stream = codec.stream(HEIGHT, WIDTH)
    tokens = unpack(container.payload, stream.runs)
    spent = spending(codec.spec, stream, tokens)
    assert sum(row.tokens for row in spent) == len(tokens)
    assert total_bits(spent) == packed_bits(stream.runs)
    at = looked_at(spent, len(codec.spec.schedule))
    end, images = walked(codec, tokens, (HEIGHT, WIDTH), at)
    assert (end == decode_picture(codec, container)).all()
    assert sorted(images) == at
    if codec.spec.solver == "mean":
        for step in at[1:]:
            assert (images[step] == decode_picture(codec, container, step)).all()


def test_bits_of_a_code_whose_length_varies(fresh):
    codec = build(Shrink(), budget=6, steps=4, rule="poisson", vocab_size=1 << 12)
    pixels = random_images(fresh, 1, HEIGHT, WIDTH)[0].permute(1, 2, 0).numpy()
    container = Container.from_bytes(encode_picture(codec, pixels, True))
    stream = codec.stream(HEIGHT, WIDTH)
    assert total_bits(spending(codec.spec, stream)) is None
    found = total_bits(spending(codec.spec, stream, unpack(container.payload, stream.runs)))
    assert found is not None
    # What the range coder rounds up. It may fall short: zero bytes at the end are left out, and one picture in 2^k has a
    # code of k bits less than its probability says.
    assert -24 <= 8 * len(container.payload) - found <= 80


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (3, 3), (7, 7), (8, 7), (50, 7), (1000, 7)])
def test_looks_begin_before_all_tokens_and_are_few(steps, count):
    codec = build(Shrink(), steps=steps)
    at = looked_at(spending(codec.spec, codec.stream(HEIGHT, WIDTH)), steps)
    assert at[0] == 0
    assert len(at) == count
    assert at == sorted(set(at))
    assert at[-1] < steps


def test_heat_is_how_far_pictures_differ():
    a = np.zeros((1, 3, 3), np.uint8)
    b = np.array([[[0, 0, 0], [0, HOTTEST, HOTTEST // 2], [255, 255, 255]]], np.uint8)
    assert heat(a, b)[0].tolist() == [list(HEAT[0]), list(HEAT[2]), list(HEAT[-1])]


def test_from_python(trip, net):
    page, failed = build_picture_report(trip / "b.nbk", backbone=net)
    assert not failed
    assert "decoded of b.nbk" in Page(page).images
