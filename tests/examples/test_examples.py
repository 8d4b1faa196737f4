"""Every example runs, with settings that are quick; what cannot run here is named with its reason, and counted."""

import ast
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import noisebook
from common import ROOT, Shrink, random_images, tiny_backbone

FOLDER = ROOT / "examples"
ELSEWHERE = {"autoregressive": "tests/house/test_examples.py", "gradio_page": "tests/examples/test_gradio_page.py"}
TINY = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
NOT_RUN: list[str] = []


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what goes to another process is found by this name
    spec.loader.exec_module(module)
    return module


def needs(package: str) -> None:
    """Skips, and counts, where a package is missing."""
    if importlib.util.find_spec(package) is None:
        NOT_RUN.append(package)
        pytest.skip(f"not run: {package} is not installed")


@pytest.fixture
def picture(tmp_path, fresh) -> str:
    (x,) = random_images(fresh, 1, 32, 48)
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def pictures(tmp_path, fresh) -> Path:
    folder = tmp_path / "pictures"
    for i, x in enumerate(random_images(fresh, 6, 16, 16)):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def tar_of(path: Path, pictures: Path) -> str:
    with tarfile.open(path, "w") as tar:
        for i, file in enumerate(sorted(pictures.rglob("*.png"), key=lambda p: p.name)):
            for name, data in ((f"{i:03d}.png", file.read_bytes()), (f"{i:03d}.cls", str(i).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def tokens_of(pictures: Path, **options) -> dict[str, list[int]]:
    """Name of a picture -> its tokens, by the codec itself."""
    codec, found = noisebook.load("photo-low", **options), {}
    for file in pictures.rglob("*.png"):
        image = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None]
        found[file.stem] = codec.encode(image)[0].tolist()
    return found


def distance(a, b) -> float:
    return float(np.square(np.asarray(Image.open(a), float) - np.asarray(Image.open(b), float)).mean())


def spread(picture) -> float:
    return float(np.asarray(Image.open(picture), float).var((0, 1)).mean())


# ---- that all are here ----------------------------------------------------------------------------------------------------
def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def test_every_example_has_a_test_and_a_line_in_the_readme():
    here = Path(__file__).read_text()
    for name in names():
        if name in ELSEWHERE:
            assert name in (ROOT / ELSEWHERE[name]).read_text()
        else:
            assert f'example("{name}")' in here, f"examples/{name}.py is not run by any test"
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \| (.+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _ in listed] == [*dict(listed)], "twice in the list"
    assert sorted(dict(listed)) == names()


@pytest.mark.parametrize("name", [name for name in names() if name != "autoregressive"])
def test_it_is_short_and_its_commands_fit_its_main(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 90
    commands = re.findall(rf"^    python examples/{name}\.py(.*)$", text, re.MULTILINE)
    assert commands, "its docstring says how to start it"
    (main,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    least = len(main.args.args) - len(main.args.defaults)
    for command in commands:
        assert least <= len(shlex.split(command, comments=True)) <= len(main.args.args), command


# ---- one after the other ----------------------------------------------------------------------------------------------
def test_encode_and_decode(picture, tmp_path):
    out = str(tmp_path / "decoded.png")
    quality = example("encode_and_decode").main(picture, out, "photo-high", backbone="gaussian-prior")
    assert distance(picture, out) == pytest.approx(255**2 / 10 ** (quality / 10), rel=1e-3)
    assert distance(picture, out) < spread(picture) / 2


@pytest.mark.slow
def test_it_starts_from_the_command_line(tmp_path):
    """One of them as a user starts it; the others are called in this process, which has torch already."""
    command = [sys.executable, str(FOLDER / "encode_and_decode.py"), "no-such-picture.png", str(tmp_path / "out.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "no-such-picture.png" in done.stderr
    assert "ImageError" in done.stderr


@pytest.mark.slow  # trains for a moment; tests/house/test_newcomer.py has quick ones of the same adapter
def test_own_network(picture, tmp_path):
    """The network that it trains carries the picture better than one that it did not train."""
    module, out = example("own_network"), tmp_path / "decoded.png"
    module.main(picture, str(tmp_path / "untrained.png"), 0, **TINY)
    module.main(picture, str(out), 150, **TINY)
    assert distance(picture, out) < distance(picture, tmp_path / "untrained.png") / 2


@pytest.mark.slow
def test_diffusers_folder(picture, tmp_path):
    needs("diffusers")
    from diffusers import DDPMPipeline, DDPMScheduler

    from diffusers_kit import tiny_unet

    DDPMPipeline(tiny_unet(sample_size=32), DDPMScheduler()).save_pretrained(tmp_path / "model")
    Image.open(picture).crop((0, 0, 32, 32)).save(picture)
    tokens = example("diffusers_folder").main(str(tmp_path / "model"), picture, str(tmp_path / "decoded.png"), **TINY)
    assert tokens.shape == (1, 32)
    assert Image.open(tmp_path / "decoded.png").size == (32, 32)


def test_generate(tmp_path):
    tokens = example("generate").main(str(tmp_path / "samples.png"), 2, (16, 16), backbone=Shrink(), steps=4)
    assert tokens.shape == (4, 4)
    assert len({tuple(row) for row in tokens.tolist()}) == 4
    assert Image.open(tmp_path / "samples.png").size == (32, 32)


def test_restore(picture, tmp_path):
    """What was observed is explained better than by a picture of tokens that nobody chose."""
    module, out = example("restore"), str(tmp_path / "large.png")
    Image.open(picture).resize((12, 8)).save(picture)
    few = module.main(picture, out, steps=6, vocab_size=2, backbone="gaussian-prior")
    many = module.main(picture, out, steps=30, vocab_size=256, backbone="gaussian-prior")
    assert Image.open(out).size == (24, 16)
    assert many < few * 0.8


@pytest.mark.parametrize(("what", "value"), [("bytes", "300"), ("bpp", "2"), ("psnr", "28")])
def test_target_rate(picture, tmp_path, what, value, capsys):
    data = example("target_rate").main(picture, str(tmp_path / "a.nbk"), what, value, backbone="gaussian-prior", max_nfe=8)
    assert (tmp_path / "a.nbk").read_bytes() == data
    size, _, quality = re.findall(r"[\d.]+(?= bytes| bits| dB)", capsys.readouterr().out)
    assert int(size) == len(data)
    if what == "psnr":
        assert float(quality) == pytest.approx(28, abs=0.5)
    else:
        most = 300 if what == "bytes" else 2 * 32 * 48 / 8
        assert 0.9 * most < len(data) <= most + 2


def test_progressive_gif(picture, tmp_path):
    out = tmp_path / "progress.gif"
    counts = example("progressive_gif").main(picture, str(out), milliseconds=100, backbone="gaussian-prior", **TINY)
    assert counts == [8, 16, 24, 32]
    gif, original, errors = Image.open(out), np.asarray(Image.open(picture), float), []
    assert gif.n_frames == 4
    for i in range(4):
        gif.seek(i)
        errors.append(float(np.square(np.asarray(gif.convert("RGB"), float) - original).mean()))
    assert errors[-1] < errors[0]


def test_loader_of_pictures(pictures, capsys):
    flat = pictures / "a"
    counts = example("loader_of_pictures").main(str(flat), 16, 1, 2, backbone=Shrink, **TINY)
    expected = np.bincount(np.concatenate([*tokens_of(flat, backbone=Shrink(), **TINY).values()]), minlength=256)
    assert counts.tolist() == expected.tolist()
    assert "4 network calls" in capsys.readouterr().out


def test_training_loop(pictures, tmp_path):
    needs("pyarrow")
    from noisebook.datasets import CodecRecipe, tokenize

    net = tiny_backbone(tmp_path / "tiny.safetensors")
    tokenize(pictures, tmp_path / "tokens", codec=CodecRecipe("photo-low", net, changes=TINY))
    losses = example("training_loop").main(str(tmp_path / "tokens"), epochs=20, batch_size=3, backbone=net)
    assert losses[0] == pytest.approx(np.log(257), abs=0.5)
    assert losses[-1] < losses[0] - 1  # six pictures are soon known by heart


@pytest.mark.slow  # imports transformers
def test_input_ids(picture, tmp_path, capsys):
    needs("transformers")
    out, options = str(tmp_path / "drawn.png"), {"backbone": Shrink(), **TINY, "start_budget": 2, "start_vocab_size": 512}
    tokens = example("input_ids").main(picture, "a cat", out, **options)
    values = noisebook.load("photo-low", **options).layout_for(32, 48).vocab_size
    assert tokens.shape == (1, 34)
    assert (tokens[0] < values).all()
    assert Image.open(out).size == (48, 32)
    assert f"{5 + 1 + 34 + 1} ids below {256 + 2 + 512}" in capsys.readouterr().out


@pytest.mark.slow  # tests/datasets has a quick one of the same class
def test_hugging_face_map(pictures, tmp_path, monkeypatch):
    needs("datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    options = {"backbone": Shrink(), **TINY}
    made = example("hugging_face_map").main(str(pictures), str(tmp_path / "out"), **options)
    expected = tokens_of(pictures, **options)
    assert made.column_names == ["label", "tokens"]
    assert sorted(made["tokens"][:]) == sorted(expected.values())
    names = made.features["label"].names
    label = {name: parent.name for parent in pictures.iterdir() for name in (p.stem for p in parent.iterdir())}
    assert sorted((names[row["label"]], row["tokens"]) for row in made) == sorted(
        (label[name], tokens) for name, tokens in expected.items()
    )


def test_webdataset_pipeline(pictures, tmp_path):
    needs("webdataset")
    tar = tar_of(tmp_path / "a.tar", pictures)
    batches = example("webdataset_pipeline").main(tar, 1, 4, backbone=Shrink, **TINY)
    assert [len(labels) for _, labels in batches] == [4, 2]
    expected = tokens_of(pictures, backbone=Shrink(), **TINY)
    for tokens, labels in batches:
        assert tokens.tolist() == [expected[str(int(label))] for label in labels]


def test_datatrove_block(pictures, tmp_path):
    needs("datatrove")
    import base64

    (tmp_path / "in").mkdir()
    files = sorted(pictures.rglob("*.png"))
    images = [file.read_bytes() for file in files] + [b"no picture"]
    lines = []
    for i, data in enumerate(images):
        media = {"id": str(i), "type": 0, "url": "", "media_bytes": base64.b64encode(data).decode()}
        lines.append(json.dumps({"text": "a caption", "id": str(i), "media": [media]}))
    (tmp_path / "in/a.jsonl").write_text("\n".join(lines))
    module = example("datatrove_block")
    module.main(str(tmp_path / "in"), str(tmp_path / "out"), backbone=Shrink, **TINY)
    rows = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").read_text().splitlines()]
    found = {row["id"]: row["media"][0]["metadata"] for row in rows}
    expected = tokens_of(pictures, backbone=Shrink(), **TINY)
    assert [found[str(i)]["tokens"] for i in range(6)] == [expected[file.stem] for file in files]
    assert "error" in found["6"]
    assert {row["text"] for row in rows} == {"a caption"}
    stats = (tmp_path / "out/logs/stats.json").read_text()
    assert '"pictures"' in stats
    assert '"failed"' in stats


@pytest.fixture(scope="module")
def cluster():
    needs("ray")
    probe = "import ray; ray.init('local', num_cpus=1, include_dashboard=False); ray.get(ray.remote(lambda: 7).remote())"
    try:  # some containers forbid what Ray needs, and it waits for ever
        subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, timeout=240)
    except subprocess.SubprocessError as error:
        NOT_RUN.append("ray")
        pytest.skip(f"not run: Ray itself does not run on this machine: {error}")
    from bench.reliability.faults_ray import ray_here

    with ray_here() as ray:
        yield ray


@pytest.mark.slow
def test_webdataset_on_ray(cluster, pictures, tmp_path):
    from noisebook.datasets import CodecRecipe

    net = tiny_backbone(tmp_path / "tiny.safetensors")
    tar, recipe = tar_of(tmp_path / "a.tar", pictures), CodecRecipe("photo-low", net, changes=TINY)
    module = example("webdataset_on_ray")
    data = module.main(tar, str(tmp_path / "out"), 16, recipe, actors=1, shard_size=4)
    assert len(data) == 6
    assert data[0]["tokens"].shape == (32,)
    module.main(tar, str(tmp_path / "out"), 16, recipe, actors=1, shard_size=4)  # goes on with what is there


@pytest.mark.slow
def test_ray_data(cluster, pictures, tmp_path):
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    written = example("ray_data").main(str(pictures / "a"), str(tmp_path / "out"), 16, backbone=net, **TINY)
    expected = tokens_of(pictures / "a", backbone=net, **TINY)
    assert {Path(row["path"]).stem: list(row["tokens"]) for row in written.take_all()} == expected


def test_what_was_not_run_is_counted(capsys):
    with capsys.disabled():
        print(f"\nexamples: {len(names())}, not run for want of a package: {len(NOT_RUN)} {' '.join(sorted(set(NOT_RUN)))}")
