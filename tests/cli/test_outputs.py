"""Names of what commands write, and that nothing of the user's is replaced without --force."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli import calibrate, outputs
from noisebook.cli.main import main
from noisebook.images.io import png_bytes
from noisebook.spec.curve import Curve


@pytest.fixture
def codec(tmp_path, monkeypatch, fresh):
    """The options of a small codec; the current folder is an empty one with a.png."""
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("a.png").write_bytes(picture(fresh))
    return ["--backbone", net, *TINY]


def picture(fresh) -> bytes:
    return png_bytes(random_images(fresh, 1, 16, 16)[0].permute(1, 2, 0).numpy())


def here() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["x/a.png", "b.png"], ["a", "b"]),
        (["a.png", "a.jpg", "b.png"], ["a.png", "a.jpg", "b"]),
        (["a.png", "A.jpg"], ["a.png", "A.jpg"]),
        (["x/a.png", "y/a.png", "z/A.PNG"], ["a", "a-2", "A-3"]),
        (["x/a.png", "y/a.png", "a.jpg"], ["a.png", "a.png-2", "a.jpg"]),
        (["x/a.png", "y/a.png", "a-2.png", "z/a.png"], ["a", "a-3", "a-2", "a-4"]),
        (["a.png", "a.jpg", "a.png.png"], ["a.png", "a.jpg", "a.png-2"]),
        (["e\u0301.png", "\u00e9.jpg"], ["e\u0301.png", "\u00e9.jpg"]),
        (["\udcff.png", "\udcff.jpg", ".png"], ["\udcff.png", "\udcff.jpg", ".png"]),
    ],
)
def test_names_of_outputs(names, stems):
    assert outputs.stems(names) == stems
    assert len({stem.casefold() for stem in stems}) == len(stems)


@pytest.mark.quick
def test_many_equal_names_take_no_time():
    assert outputs.stems([f"{i}/a.png" for i in range(20000)])[-1] == "a-20000"


def test_a_decode_beside_its_picture_leaves_the_picture(codec, capsys):
    before = Path("a.png").read_bytes()
    assert main(["encode", "a.png", "-o", ".", *codec]) == 0
    assert main(["decode", "a.nbk", "-o", ".", *codec[:2]]) == 0
    assert Path("a.png").read_bytes() == before
    assert sorted(here()) == ["a.decoded.png", "a.nbk", "a.png"]
    assert main(["roundtrip", "a.png", "-o", "out", *codec]) == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.compared.png", "a.nbk"]


def test_pictures_that_share_a_stem_have_files_of_their_own(codec, capsys):
    with Image.open("a.png") as image:
        image.save("a.jpg")
    assert main(["encode", "a.png", "a.jpg", "-o", "out", "--json", *codec]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["output"] for row in result["images"]] == ["out/a.png.nbk", "out/a.jpg.nbk"]
    assert main(["decode", "out", "-o", "back", *codec[:2]]) == 0
    assert sorted(p.name for p in Path("back").iterdir()) == ["a.jpg.decoded.png", "a.png.decoded.png"]


@pytest.mark.parametrize("verb", ["encode", "decode", "roundtrip"])
def test_what_is_there_is_refused_before_anything_is_coded(verb, codec, capsys, fresh):
    inputs = ["a.png", "b.png", "c.png"]
    for name in inputs[1:]:
        Path(name).write_bytes(picture(fresh))
    if verb == "decode":
        assert main(["encode", *inputs, "-o", ".", *codec]) == 0
        inputs, codec = ["a.nbk", "b.nbk", "c.nbk"], codec[:2]
    ending = {"encode": ".nbk", "decode": ".decoded.png", "roundtrip": ".compared.png"}[verb]
    Path("out").mkdir()
    for name in "bc":
        Path(f"out/{name}{ending}").write_bytes(b"the user's")
    before, command = here(), [verb, *inputs, "-o", "out", *codec]
    capsys.readouterr()
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"noisebook: NoisebookError: out/b{ending} and 1 more: they are there already: --force replaces them, another -o "
        "keeps them"
    ]
    assert here() == before
    assert main([*command, "--force"]) == 0
    assert Path(f"out/b{ending}").read_bytes() != b"the user's"


def test_only_regular_files_are_replaced_and_no_input(codec, capsys):
    Path("target").write_bytes(b"the user's")
    Path("a.nbk").symlink_to("target")
    assert main(["encode", "a.png", "-o", ".", "--force", *codec]) == 1
    assert "a link is there, and only regular files are replaced" in capsys.readouterr().err
    Path("a.nbk").unlink()
    os.mkfifo("a.nbk")
    assert main(["encode", "a.png", "-o", ".", "--force", *codec]) == 1
    assert main(["encode", "a.png", "-o", "target", *codec]) == 1
    assert "target: no folder to write to" in capsys.readouterr().err
    Path("a.nbk").unlink()
    Path("a.compared.png").write_bytes(Path("a.png").read_bytes())
    before = here()
    assert main(["roundtrip", ".", "-o", ".", "--force", *codec]) == 1
    assert "a.compared.png: it is an input of this run" in capsys.readouterr().err
    assert here() == before


def test_a_file_that_appears_meanwhile_is_safe_and_a_name_too_long_is_a_row(codec, capsys, monkeypatch, fresh):
    long = "b" * 250 + ".png"  # its .nbk would fit
    for name in (long, "c.png"):
        Path(name).write_bytes(picture(fresh))
    refuse = outputs.refuse_existing

    def late(files, *rest):
        refuse(files, *rest)
        Path("out").mkdir()
        Path("out/a.nbk").write_bytes(b"the user's")

    monkeypatch.setattr(outputs, "refuse_existing", late)
    assert main(["roundtrip", "a.png", long, "c.png", "-o", "out", "--json", *codec]) == 1
    rows = json.loads(capsys.readouterr().out)["images"]
    assert "it is there already" in rows[0]["error"]
    assert "file names have 255 bytes at most" in rows[1]["error"]
    assert rows[2]["error"] is None
    assert Path("out/a.nbk").read_bytes() == b"the user's"
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.nbk", "c.compared.png", "c.nbk"]


def test_without_a_folder_each_run_has_a_fresh_one(codec, capsys):
    Path("noisebook-out").mkdir()
    for folder in ("noisebook-out", "noisebook-out-2", "noisebook-out-3"):
        assert main(["encode", "a.png", "--json", *codec]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["output"] == folder
        assert f"written to {folder}\n" in err
        assert [p.name for p in Path(folder).iterdir()] == ["a.nbk"]


def test_calibrate_goes_on_by_hash(codec, capsys, monkeypatch, fresh):
    command = ["calibrate", codec[1], "a.png", "-o", "c.json"]
    assert main(command) == 0
    text = Path("c.json").read_text()
    assert Curve.from_json(text).about.startswith("1 images from a.png, 0 left out, seed 0, sha256 ")
    with monkeypatch.context() as patched:
        patched.setattr("noisebook.codec.measure.measure", lambda *_, **__: pytest.fail("measured again"))
        assert main(command) == 0
        assert "there already, measured on the same images with the same options: c.json" in capsys.readouterr().out
        for more in (["--seed", "1"], ["--crop", "8"]):
            assert main([*command, *more]) == 1
        Path("a.png").write_bytes(picture(fresh))
        assert main(command) == 1
        assert "--force replaces it" in capsys.readouterr().err
        for other in (b"the user's", b"[" * 100000, b"{}"):
            Path("c.json").write_bytes(other)
            assert main(command) == 1
            assert Path("c.json").read_bytes() == other
    assert main([*command, "--force"]) == 0
    assert Path("c.json").read_text() != text
    assert 100 * len(text) < calibrate.MOST_BYTES


def test_fit_prior_and_convert_replace_nothing(codec, capsys, tmp_path):
    np.savez("a.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    for command in (["fit-prior", "dct", "a.npz"], ["convert", "a.pkl"]):
        Path("a.pkl").touch()
        for name in ("x", command[-1]):
            Path("x").write_bytes(b"the user's")
            before = here()
            assert main([*command, "-o", name]) == 1
            assert "it is there already: --force" in capsys.readouterr().err
            assert here() == before
        assert main([*command, "-o", command[-1], "--force"]) == 1
        assert "it is an input of this run" in capsys.readouterr().err
    assert main(["fit-prior", "dct", "a.npz", "-o", "x", "--force"]) == 0
    assert here()["x"] != b"the user's"
