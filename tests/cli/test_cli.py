"""The command line as a user meets it: files, pictures, JSON on stdout, logs on stderr, exit codes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.format.container import Container, crc32c
from noisebook.images.metrics import psnr
from noisebook.spec import presets


@pytest.fixture
def codec(tmp_path):
    return ["--backbone", tiny_backbone(tmp_path / "tiny.safetensors"), *TINY]


@pytest.fixture
def pictures(tmp_path, fresh):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (h, w) in {"wide": (24, 40), "tall": (40, 24), "odd": (17, 33)}.items():
        image = random_images(fresh, 1, h, w)[0].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_roundtrip_writes_what_it_reports(capsys, tmp_path, pictures, codec):
    out = tmp_path / "out"
    code, stdout, stderr = run(capsys, "roundtrip", pictures, "-o", out, "--json", *codec)
    assert code == 0
    result = json.loads(stdout)
    assert set(result) == {"images", "codec", "metrics", "output"}
    assert [(m["name"], m["better"], m["pictures"]) for m in result["metrics"].values()] == [
        ("PSNR", "higher", 3),
        ("SSIM", "higher", 3),
    ]
    assert result["output"] == str(out)
    assert [r["name"].split("/")[-1] for r in result["images"]] == ["odd.png", "tall.png", "wide.png"]
    assert stderr.count("dB") == 3
    for row in result["images"]:
        stem = row["name"].split("/")[-1][:-4]
        both = np.asarray(Image.open(out / f"{stem}.compared.png"))
        original = np.asarray(Image.open(row["name"]))
        assert (both[:, : row["width"]] == original).all()
        assert row["psnr"] == pytest.approx(psnr(original, both[:, row["width"] :]), abs=1e-9)
        data = (out / f"{stem}.nbk").read_bytes()
        assert row["bytes"] == len(data)
        assert row["bpp"] == 8 * len(data) / (row["height"] * row["width"])
        assert row["nfe"] == 4 + 5
        assert row["seconds"] > 0
        assert row["error"] is None
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{s}.{e}" for s in ("odd", "tall", "wide") for e in ("nbk", "compared.png")
    )


def test_encode_then_decode_gives_the_roundtrip_picture(capsys, tmp_path, pictures, codec):
    run(capsys, "roundtrip", pictures, "-o", tmp_path / "a", *codec)
    assert run(capsys, "encode", pictures, "-o", tmp_path / "b", *codec)[0] == 0
    files = sorted((tmp_path / "b").glob("*.nbk"))
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in sorted((tmp_path / "a").glob("*.nbk"))]
    code, stdout, _ = run(capsys, "decode", tmp_path / "b", "-o", tmp_path / "c", "--json", "--backbone", codec[1])
    assert code == 0
    assert json.loads(stdout)["images"][0]["nfe"] == 5
    for file in files:
        both = np.asarray(Image.open(tmp_path / "a" / f"{file.stem}.compared.png"))
        decoded = np.asarray(Image.open(tmp_path / "c" / f"{file.stem}.decoded.png"))
        assert (decoded == both[:, both.shape[1] // 2 :]).all()


def test_speed_options_change_no_codec(capsys, tmp_path, pictures, codec):
    """The files of one precision are those of the same codec in another, and decode there."""
    assert run(capsys, "roundtrip", pictures / "odd.png", "-o", tmp_path / "a", *codec)[0] == 0
    fast = ["--dtype", "bfloat16", "--channels-last", "--no-graphs"]
    assert run(capsys, "encode", pictures / "odd.png", "-o", tmp_path / "b", *codec, *fast)[0] == 0
    a, b = ((tmp_path / folder / "odd.nbk").read_bytes() for folder in "ab")
    assert (len(a), Container.from_bytes(a).codec_hash) == (len(b), Container.from_bytes(b).codec_hash)
    decode = ["-o", tmp_path / "c", "--backbone", codec[1], *fast]
    assert run(capsys, "decode", tmp_path / "b" / "odd.nbk", *decode)[0] == 0
    assert run(capsys, "encode", pictures, "-o", tmp_path / "d", "--backbone", "gaussian-prior", *fast)[0] == 6


def test_one_bad_image_does_not_stop_the_others(capsys, tmp_path, pictures, codec):
    (pictures / "bad.png").write_bytes(b"not a picture")
    code, stdout, stderr = run(capsys, "roundtrip", pictures, tmp_path / "none.jpg", "-o", tmp_path / "o", "--json", *codec)
    rows = json.loads(stdout)["images"]
    assert code == 3
    assert [r["error"] is None for r in rows] == [False, True, True, True, False]
    assert rows[0]["psnr"] is None
    assert "ImageError" in rows[0]["error"]
    assert "bad.png: ImageError" in stderr
    assert len(list((tmp_path / "o").iterdir())) == 6
    code, stdout, _ = run(capsys, "eval", pictures, *codec)
    assert code == 3
    assert "mean" in stdout
    assert "failed: " in stdout


def test_inspect_and_verify_need_no_backbone(capsys, tmp_path, pictures, codec):
    run(capsys, "encode", pictures, "-o", tmp_path, *codec)
    files = sorted(tmp_path.glob("*.nbk"))
    (tmp_path / "tiny.safetensors").unlink()
    code, stdout, _ = run(capsys, "inspect", *files, "--json")
    assert code == 0
    row = json.loads(stdout)["files"][0]
    assert (row["height"], row["width"], row["tokens"], row["vocab_size"], row["embedded_spec"]) == (17, 33, 32, 256, True)
    assert all(0 <= t < 256 for t in row["first_tokens"])
    assert run(capsys, "verify", *files)[0] == 0
    data = bytearray(files[1].read_bytes())
    data[-10] ^= 4
    files[1].write_bytes(data)
    for named, whole in ((files, 2), ([tmp_path], 2), ([files[0], tmp_path], 3)):
        code, stdout, _ = run(capsys, "verify", *named)
        assert code == 4
        assert stdout.count(": ok") == whole
        assert stdout.count("FormatError: the checksum") == 1
    (tmp_path / "empty").mkdir()
    code, _, stderr = run(capsys, "inspect", tmp_path / "empty")
    assert code == 1
    assert "no files in this folder (.nbk)" in stderr


def test_every_bit_flip_and_truncation_of_a_file_is_caught_by_verify_and_decode(capsys, tmp_path, pictures, codec):
    preset = presets.get("photo").spec
    count = sum(run.count for _, run in preset.runs_for(2, 3))
    data = Container(preset.hash, 2, 3, bytes(2 * count), presets.get("photo").number).to_bytes()
    path = tmp_path / "x.nbk"
    path.write_bytes(data)
    assert run(capsys, "verify", path)[0] == 0
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert run(capsys, "verify", path)[0] == 4, bit
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert run(capsys, "verify", path)[0] == 4, length
        if length % 7 == 0:
            assert run(capsys, "decode", path, "-o", tmp_path / "d")[0] == 4
    assert not (tmp_path / "d").exists()


def test_files_of_other_codecs_are_refused_naming_both(capsys, tmp_path, pictures, codec):
    run(capsys, "encode", pictures / "odd.png", "-o", tmp_path, *codec)
    file = tmp_path / "odd.nbk"
    other = tiny_backbone(tmp_path / "other.safetensors", seed=1)
    code, _, err = run(capsys, "decode", file, "-o", tmp_path / "d", "--backbone", other)
    assert code == 5
    assert "'tiny'" in err
    assert "'other'" in err
    code, _, err = run(capsys, "decode", file, "-o", tmp_path / "d", *codec, "--seed", "5")
    assert code == 5
    assert err.count("hash") == 2
    stranger = Container(b"stranger", 8, 8, b"abc").to_bytes()
    (tmp_path / "s.nbk").write_bytes(stranger)
    code, _, err = run(capsys, "decode", tmp_path / "s.nbk", "-o", tmp_path / "d")
    assert code == 5
    assert b"stranger".hex() in err
    code, _, err = run(capsys, "decode", file, "-o", tmp_path / "d")  # embedded spec, but where is the backbone?
    assert code == 6
    assert "--backbone" in err or "no backbone" in err
    assert not (tmp_path / "d").exists()


def test_the_spec_alone_is_enough_to_decode(capsys, tmp_path, pictures, codec):
    """A preset file is 20 bytes and its payload; the same codec with --embed-spec is self-contained."""
    run(capsys, "encode", pictures / "odd.png", "-o", tmp_path, *codec)
    data = (tmp_path / "odd.nbk").read_bytes()
    container = Container.from_bytes(data)
    assert container.preset == 0
    assert crc32c(data[:-4]).to_bytes(4, "little") == data[-4:]
    assert len(container.payload) == 4 * 8


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["roundtrip"], 3, "no images"),
        (["encode", "x.png", "--preset", "best"], 2, "photo"),
        (["encode", "x.png", "--budget", "3", "--scale-pixels", "0"], 2, "power of two"),
        (["encode", "x.png", "--vocab-size", "100"], 2, "power of two"),
        (["encode", "x.png", "--p", "2"], 2, "p must be"),
        (["encode", "x.png", "--device", "tpu"], 2, "device"),
        (["encode", "x.png", "--backbone", "nothing"], 6, "no backbone 'nothing'"),
        (["decode", "x.nbk"], 4, "cannot be read"),
    ],
)
def test_bad_calls_say_what_to_do_in_one_line(capsys, tmp_path, monkeypatch, argv, code, word):
    monkeypatch.chdir(tmp_path)
    got, stdout, stderr = run(capsys, *argv)
    assert got == code
    assert word in stderr + stdout
    assert len(stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_names_that_collide_are_kept_apart(capsys, tmp_path, pictures, codec):
    (pictures / "sub").mkdir()
    (pictures / "sub" / "odd.png").write_bytes((pictures / "tall.png").read_bytes())
    assert run(capsys, "encode", pictures, "-o", tmp_path / "o", *codec)[0] == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["odd-2.nbk", "odd.nbk", "tall.nbk", "wide.nbk"]


def test_backbones_lists_what_is_shipped(capsys):
    code, stdout, _ = run(capsys, "backbones", "--json")
    listed = json.loads(stdout)
    assert code == 0
    entries = {b["name"]: b for b in listed["backbones"]}
    sizes = {name: "32 x 32" if name.startswith("cifar10") else "any size" for name in entries}
    assert all(sizes[name] in entry["about"] for name, entry in entries.items())
    assert entries["cifar10-ddpm"]["view_of"] == "cifar10-edm"
    assert [entries[name]["view_of"] for name in ("gaussian-prior", "cifar10-edm", "cifar10-flow")] == [None] * 3
    from noisebook.backbones.registry import REALISM, WEIGHTS

    files = [path.stat().st_size for path in WEIGHTS.glob("*.safetensors") if not path.name.endswith(REALISM)]
    assert sum(b["bytes"] for b in listed["backbones"]) == sum(files) < 48 << 20
    assert "photo" in [p["name"] for p in listed["presets"]]
    assert "photo" in run(capsys, "backbones")[1]


def test_help_is_fast():
    """`noisebook --help` within .5 s of Python's own start: processor time, best of three, so that a busy machine does
    not decide."""

    def best(code: str) -> float:
        times = []
        for _ in range(3):
            before = os.times()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            after = os.times()
            times.append(after.children_user - before.children_user + after.children_system - before.children_system)
        return min(times)

    helped = "import sys; sys.argv = ['noisebook', '--help']\nfrom noisebook.cli.main import main\nmain()"
    assert best(helped) - best("pass") < 0.5


def test_a_diffusers_folder_codes_pictures_of_any_size(capsys, tmp_path, pictures):
    """Its one size is tiled; --embed is automatic; decode finds the same fingerprint again."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    unet.save_pretrained(tmp_path / "net")
    diffusers.DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / "net")
    codec = ["--backbone", tmp_path / "net", *TINY]
    assert run(capsys, "roundtrip", pictures, "-o", tmp_path / "a", *codec)[0] == 0
    files = sorted((tmp_path / "a").glob("*.nbk"))
    code, _, err = run(capsys, "decode", *files, "-o", tmp_path / "b", "--backbone", tmp_path / "net")
    assert code == 0, err
    for file in files:
        both = np.asarray(Image.open(tmp_path / "a" / f"{file.stem}.compared.png"))
        assert (np.asarray(Image.open(tmp_path / "b" / f"{file.stem}.decoded.png")) == both[:, both.shape[1] // 2 :]).all()
