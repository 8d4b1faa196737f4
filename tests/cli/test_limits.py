"""The limits of each command hold: one less than what a file asks for refuses it, and names the option."""

from pathlib import Path

import numpy as np
import pytest

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.images.io import png_bytes
from tools import golden_datasets as golden

SIDE = 16
PIXELS = SIDE * SIDE


@pytest.fixture
def net(tmp_path, monkeypatch, fresh):
    path = tiny_backbone(tmp_path / "tiny.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pixels = random_images(fresh, 2, SIDE, SIDE).permute(0, 2, 3, 1).numpy()
    Path("a.png").write_bytes(png_bytes(pixels[0]))
    np.savez("a.npz", images=pixels)
    assert main(["encode", "a.png", "-o", "tokens", "--backbone", path, *TINY]) == 0
    return path


CALLS = [  # command, what --OPTION must be at least, exit code when it is less
    ("encode a.png -o out --backbone NET CODEC", "--max-pixels", PIXELS, 3),
    ("roundtrip a.png -o out --backbone NET CODEC", "--max-pixels", PIXELS, 3),
    ("eval a.png --backbone NET CODEC", "--max-pixels", PIXELS, 3),
    ("encode a.png -o out --roi a.png --backbone NET CODEC", "--max-pixels", PIXELS, 3),
    ("calibrate NET a.png -o out", "--max-pixels", PIXELS, 3),
    ("calibrate NET a.npz -o out", "--max-pixels", PIXELS, 3),
    ("fit-prior dct a.npz -o out", "--max-pixels", PIXELS, 3),
    ("decode tokens -o out --backbone NET", "--max-pixels", PIXELS, 4),
    ("decode tokens -o out --backbone NET", "--max-network-calls", 5, 4),
]


@pytest.mark.parametrize(("call", "option", "least", "code"), CALLS)
def test_a_limit_holds_at_its_edge(call, option, least, code, net, capsys):
    argv = [word for part in call.split() for word in (TINY if part == "CODEC" else [net] if part == "NET" else [part])]
    assert main([*argv, option, str(least - 1)]) == code
    out, err = capsys.readouterr()
    assert f"{least:,}, more than the limit of {least - 1:,}: {option} raises it" in out + err
    assert not Path("out").exists()
    assert main([*argv, option, str(least)]) == 0


@pytest.mark.parametrize("name", ["a.png", "a.npz"])
def test_a_check_reads_no_larger_pictures(name, net, capsys):
    assert main(["check", net, name, "--max-pixels", str(PIXELS - 1)]) == 3
    assert "--max-pixels raises it" in capsys.readouterr().err
    main(["check", net, name, "--max-pixels", str(PIXELS)])  # random weights: some checks fail
    assert "error at 0.05" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["inspect", "verify", "decode --backbone NET -o out"])
def test_work_of_reading_tokens(verb, net, capsys):
    argv = [*verb.replace("NET", net).split(), "tokens"]
    assert main([*argv, "--max-work", "1"]) == 4
    out, err = capsys.readouterr()
    assert "more than the limit of 1: --max-work raises it" in out + err
    assert not Path("out").exists()
    assert main(argv) == 0


def test_training_reads_no_larger_pictures(net, capsys):
    assert main(["train", "edm", "a.npz", "-o", "out", "--max-pixels", str(PIXELS - 1)]) == 3
    assert "--max-pixels raises it" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["verify pictures", "export pictures -o out --format npy"])
@pytest.mark.parametrize("option", ["--max-rows", "--max-pixels"])
def test_rows_and_pixels_of_a_data_set(option, command, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(golden.copied(tmp_path / "dataset-v1"))
    assert main([*command.split(), option, "1"]) in (4, 7)
    out, err = capsys.readouterr()
    assert f"{option} raises it" in out + err
    assert not Path("out").exists()
    assert main(command.split()) == 0
