"""The trainer of the realism dial's network: its data are a codec's decodes, its loss is a formula, and a run resumes."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common import random_images
from noisebook import backbones
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.backbones.nets.realism import RealismNetwork, from_checkpoint
from noisebook.backbones.realism import read_realism
from noisebook.cli import main as cli
from noisebook.errors import TrainingError
from noisebook.spec.curve import shipped_curve
from noisebook.training import TrainingJob
from noisebook.training.decodes import GROUPS, DecodeSet, decode_each, decodes, specs
from noisebook.training.perceptual import build_trunk, distance, read_trunk
from noisebook.training.realism import Realism
from noisebook.training.run import settings_of
from tools import carry

SIZE = 16
SMALL = ["--sizes", SIZE, "--pixels", 2048, "--held-out", 8, "--pairs", 32]


@pytest.fixture
def tiny(tmp_path, fresh):
    """A folder with data.npz, a backbone net.safetensors, its curve and a trunk vgg.pth."""
    images = random_images(fresh, 40, 20, 24).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "data.npz", images=images)
    torch.manual_seed(int(fresh.integers(2**31)))
    prior = backbones.load("gaussian-prior")
    net = ConvDenoiser(prior, widths=(8, 8), blocks=1, embedding=8, patch=2)  # type: ignore[arg-type]
    for name, p in net.named_parameters():
        if not name.startswith("prior."):
            torch.nn.init.normal_(p, std=0.05)
    write_checkpoint(tmp_path / "net.safetensors", "convnet", net.config, checkpoint_tensors(net))
    made, known = backbones.load(tmp_path / "net.safetensors"), shipped_curve(prior)
    assert known is not None
    curve = replace(known, backbone=made.name, fingerprint=made.fingerprint, multiple=made.multiple, number=0)
    (tmp_path / "curve.json").write_text(curve.to_json())
    torch.save(trunk_tensors(), tmp_path / "vgg.pth")
    return tmp_path


def trunk_tensors() -> dict[str, torch.Tensor]:
    """Four blocks of torchvision's layout, the first of two convolutions, and a classifier."""
    places = {0: (3, 4), 2: (4, 4), 5: (4, 6), 8: (6, 6), 11: (6, 8)}
    tensors = {"classifier.0.weight": torch.zeros(2, 2)}
    for place, (channels, out) in places.items():
        tensors[f"features.{place}.weight"] = torch.randn(out, channels, 3, 3) / 4
        tensors[f"features.{place}.bias"] = torch.randn(out) / 4
    return tensors


def run(folder, *options) -> int:
    given = ["--init", folder / "net.safetensors", "--curve", folder / "curve.json", "--features", folder / "vgg.pth"]
    arguments = ["realism", folder / "data.npz", "-o", folder / "run", *SMALL, *given, *options]
    return cli.main(["train", *map(str, arguments)])


def some_decodes(fresh, count: int = 8) -> DecodeSet:
    """The mean is a blurred original, and y says more: y = x0 + sigma eps."""
    x0, sigma = random_images(fresh, count, SIZE, SIZE), 0.25
    images, eps = x0 / 127.5 - 1, torch.from_numpy(fresh.standard_normal((count, 3, SIZE, SIZE), np.float32))
    mean = F.avg_pool2d(images, 3, 1, 1)
    noise = (16 * (images + sigma * eps - mean) / sigma).round().clamp(-127, 127).to(torch.int8)
    return DecodeSet({"x0": x0, "mean": mean.half(), "noise": noise, "sigma": torch.full((count,), sigma)})


# ---- the decodes --------------------------------------------------------------------------------------------------------
def test_decodes_are_what_the_decoder_makes_of_the_codecs_tokens(tiny, fresh):
    """Bit for bit, and the network makes the mean of y at sigma."""
    backbone, curve = backbones.load("gaussian-prior"), shipped_curve(backbones.load("gaussian-prior"))
    assert curve is not None
    images = random_images(fresh, 2, SIZE, SIZE) / 127.5 - 1
    codecs = list(specs(curve, backbone, SIZE, 0))
    for codec in (codecs[4], codecs[-1]):
        made = decode_each(codec, images)
        assert torch.equal(made.mean, codec.decode(codec.encode(images), (SIZE, SIZE)))
        assert torch.equal(made.mean, backbone(made.y, codec.spec.sigma_last))
        assert made.sigma.tolist() == pytest.approx([codec.spec.sigma_last] * 2)
    bits = [codec.stream(128, 128).length * 16 / 128**2 for codec in specs(curve, backbone, 128, 0)]
    assert len(bits) == GROUPS
    assert bits[0] == pytest.approx(0.05, rel=0.1)
    assert bits[-1] == pytest.approx(1, rel=0.1)
    assert all(8 <= len(codec.spec.schedule) <= 16 for codec in codecs[4:])


def test_decodes_are_made_once_and_kept_small(tmp_path, fresh):
    backbone = backbones.load("gaussian-prior")
    curve, path = shipped_curve(backbone), tmp_path / "run" / "decodes.safetensors"
    images = list(random_images(fresh, 4, SIZE, SIZE).permute(0, 2, 3, 1).numpy())
    assert curve is not None
    made = decodes(curve, backbone, images, SIZE, 20, path, "cpu", 3)
    written = path.read_bytes()
    assert len(written) < 20 * 3 * SIZE**2 * 4 + 2000  # one byte for x0 and for y, two for the mean
    again = decodes(curve, backbone, [], SIZE, 20, path, "cpu", 3)  # no image is asked for
    assert path.read_bytes() == written
    rows = torch.arange(20)
    one, other = made.take(rows), again.take(rows)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("x0", "mean", "y", "sigma"))
    found = torch.cat(
        [backbone(y[None], float(s)) for y, s in zip(one.y, one.sigma, strict=True)]
    )  # y is kept in sixteenths of sigma
    torch.testing.assert_close(found, one.mean, rtol=0, atol=0.06)
    assert one.sigma.unique().numel() > GROUPS // 2
    for x0 in one.x0:  # a crop is an image here, or its mirror
        nearest = min((x0 - torch.from_numpy(i).permute(2, 0, 1) / 127.5 + 1).abs().max() for i in _mirrored(images))
        assert nearest < 1e-5
    with pytest.raises(TrainingError, match="another codec or number"):
        decodes(curve, backbone, images, SIZE, 21, path, "cpu", 3)
    path.write_bytes(written[:100])
    with pytest.raises(TrainingError, match="made anew"):
        decodes(curve, backbone, images, SIZE, 20, path, "cpu", 3)


def _mirrored(images: list[np.ndarray]) -> list[np.ndarray]:
    return [*images, *(np.ascontiguousarray(image[:, ::-1]) for image in images)]


def test_a_drawn_decode_is_mirrored_whole(fresh):
    kept = some_decodes(fresh)
    whole, drawn, seen = kept.take(torch.arange(8)), kept.draw(200), set()
    for x0, mean, y in zip(drawn.x0, drawn.mean, drawn.y, strict=True):
        for flip in (False, True):
            a, b, c = (x.flip(2) if flip else x for x in (x0, mean, y))
            for row in range(8):
                if torch.equal(a, whole.x0[row]):
                    assert torch.equal(b, whole.mean[row])
                    assert torch.equal(c, whole.y[row])
                    seen.add((row, flip))
    assert len(seen) == 16


# ---- the loss -----------------------------------------------------------------------------------------------------------
def test_the_distance_of_features_is_its_formula(tmp_path, fresh):
    """Written out with the tensors of the file: three blocks, unit length over channels, the mean over places."""
    tensors = trunk_tensors()
    torch.save(tensors, tmp_path / "vgg.pth")
    save_file({k.removeprefix("features."): v for k, v in tensors.items() if "feat" in k}, tmp_path / "vgg.safetensors")
    a, b = (random_images(fresh, 2, SIZE, SIZE) / 127.5 - 1 for _ in range(2))
    expected = torch.zeros(2)
    x = [
        (y - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for y in (a, b)
    ]
    for block in ((0, 2), (5,), (8,)):
        for place in block:
            x = [
                F.conv2d(y, tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"], padding=1).relu()
                for y in x
            ]
        u, v = (y / (y.square().sum(1, keepdim=True) + 1e-10).sqrt() for y in x)
        expected += (u - v).square().sum(1).mean((1, 2))
        x = [F.max_pool2d(y, 2) for y in x]
    for name in ("vgg.pth", "vgg.safetensors"):
        trunk, digest = read_trunk(tmp_path / name)
        torch.testing.assert_close(distance(trunk(a), trunk(b)), expected)
        assert len(digest) == 64
    assert distance(trunk(a), trunk(a)).tolist() == [0, 0]


def test_what_is_carried_to_a_gpu_are_the_first_blocks(tmp_path, monkeypatch):
    tensors = trunk_tensors()
    torch.save(tensors, tmp_path / "vgg.pth")
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["carry", "vgg16", str(tmp_path / "vgg.pth")])
    carry.main()
    packed = load_file(tmp_path / "carry/vgg16.safetensors")
    assert packed.keys() == {f"features.{place}.{name}" for place in (0, 2, 5, 8) for name in ("weight", "bias")}
    assert all(torch.equal(value, tensors[name].bfloat16()) for name, value in packed.items())
    read_trunk(tmp_path / "carry/vgg16.safetensors")


def test_the_loss_is_the_error_at_the_levels_scale_and_the_features(fresh):
    kept, trunk = some_decodes(fresh), build_trunk(trunk_tensors())
    given = kept.take(torch.arange(8))
    objective = Realism(lambda count, side: given, trunk, "cpu", False, 0.7)
    loss = objective(lambda mean, y, sigma: mean + 0.1 * (y - mean), torch.zeros(8, 3, SIZE, SIZE), 0.5)  # type: ignore[arg-type]
    result = given.mean + 0.1 * (given.y - given.mean)
    scale = 0.2 * 0.25 / (0.0625 + 0.25) ** 0.5
    expected = 0.7 * (result - given.x0).square().mean() / scale**2 + distance(trunk(result), trunk(given.x0)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    rows = objective.measure(lambda given: given.mean, kept, kept.spread(8))
    mse = (given.mean.clamp(-1, 1) - given.x0).square().mean((1, 2, 3))
    assert rows["mse"] == pytest.approx(mse.mean().item(), rel=1e-5)
    assert rows["psnr"] == pytest.approx((10 * (4 / mse).log10()).mean().item(), rel=1e-5)


def test_a_few_steps_lower_the_loss_and_the_discriminator_learns():
    """Of the same pictures every time: how far so few steps lead depends on them (by a tenth to a third)."""
    torch.manual_seed(0)
    kept, net = some_decodes(np.random.default_rng(1)), RealismNetwork(widths=(8, 8), blocks=1, embedding=8, patch=2)
    objective = Realism(lambda count, side: kept.draw(count), build_trunk(trunk_tensors()), "cpu", False, 1.0, 0.1)
    optimizer, x0 = torch.optim.Adam(net.parameters(), 3e-3), torch.zeros(8, 3, SIZE, SIZE)
    before = objective.state_dict()["patches"]["0.weight"].clone()

    def now() -> float:
        return objective.measure(lambda d: net(d.mean, d.y, d.sigma), kept, kept.spread(8))["loss"]

    first = now()
    assert first == pytest.approx(objective.measure(lambda d: d.mean, kept, kept.spread(8))["loss"])
    for _ in range(40):
        optimizer.zero_grad()
        objective(net, x0, 0.5).backward()
        optimizer.step()
    assert now() < 0.9 * first
    assert not torch.equal(before, objective.state_dict()["patches"]["0.weight"])
    real = objective.judge_of_patches(kept.take(torch.arange(8)).x0).mean()
    assert real > objective.judge_of_patches(kept.take(torch.arange(8)).mean).mean()


# ---- a run --------------------------------------------------------------------------------------------------------------
def test_a_run_makes_a_checkpoint_of_the_codecs_backbone_and_resumes(tiny, capsys):
    out = tiny / "run"
    assert run(tiny, "--minutes", 0.005, "--adversarial", 0.01) == 0
    kind, config, tensors = read_checkpoint(out / "model.safetensors")
    fingerprint = config.pop("fingerprint")
    backbone = backbones.load(tiny / "net.safetensors")
    assert (kind, fingerprint) == ("realism", backbone.fingerprint)
    assert config["widths"] == [8, 8]  # those of --init
    assert read_realism(out / "model.safetensors").backbone == fingerprint  # the decoder takes it
    x = torch.zeros(1, 3, 32, 32)
    assert from_checkpoint(config, tensors)(x, x, torch.ones(1)).shape == x.shape
    made = (out / f"decodes-{SIZE}.safetensors").read_bytes()
    first = json.loads((out / "log.json").read_text())[-1]
    for which in ("train", "held_out"):
        for key in ("loss", "mse", "psnr", "features"):
            assert first[f"{which}_{key}"] > 0
            assert first[f"{which}_{key}_mean"] > 0
    state = torch.load(out / "state.pt", weights_only=True)
    assert "patches" in state["objective"]
    assert first["features_file"] in state["settings"]
    assert backbone.fingerprint in state["settings"]
    assert str(tiny) not in state["settings"].replace(str(tiny / "net.safetensors"), "")  # no path of the features
    assert run(tiny, "--minutes", first["minutes"] + 0.005, "--adversarial", 0.01) == 0
    assert json.loads((out / "log.json").read_text())[-1]["iteration"] > first["iteration"]
    assert (out / f"decodes-{SIZE}.safetensors").read_bytes() == made
    torch.save(trunk_tensors(), tiny / "vgg.pth")  # other weights
    assert run(tiny, "--minutes", 9, "--adversarial", 0.01) == 1
    assert "other settings" in capsys.readouterr().err


def test_the_network_begins_with_the_weights_of_init_and_changes_nothing(tiny):
    from noisebook.images.archive import load_npz_images
    from noisebook.training.start import realism_network

    job = TrainingJob(
        *("realism", tiny / "data.npz", tiny / "run"),
        init=str(tiny / "net.safetensors"),
        curve=tiny / "curve.json",
        features=tiny / "vgg.pth",
        sizes=(SIZE,),
        pairs=16,
        held_out=8,
    )
    images = load_npz_images(job.data)
    given = read_checkpoint(tiny / "net.safetensors")[2]
    net = realism_network(job, images).new_model()
    assert torch.equal(net.state_dict()["down_blocks.0.0.conv1.weight"].bfloat16(), given["down_blocks.0.0.conv1.weight"])
    x, y = torch.rand(2, 2, 3, SIZE, SIZE).unbind()
    assert torch.equal(net(x, y, torch.ones(2)), x)  # type: ignore[call-arg]
    wider = realism_network(replace(job, widths=(8, 12)), images).new_model().state_dict()
    assert torch.equal(wider["down_blocks.0.0.conv1.weight"].bfloat16(), given["down_blocks.0.0.conv1.weight"])
    assert wider["down_blocks.1.0.conv1.weight"].shape[0] == 12


def test_the_numbers_of_a_run_are_its_own():
    job = TrainingJob("realism", "d", "o", init="photo", features="vgg.pth")
    settings = settings_of(job, "features=abc")
    assert (job.crops, job.pair_count, settings.decay) == ((128,), 3000, 0.999)
    assert settings.recipe.endswith(" features=abc")
    assert "vgg.pth" not in settings.recipe
    assert settings_of(replace(job, objective="edm")).decay == 0.9995


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_bad_requests_are_one_typed_line(tiny, capsys):
    (tiny / "text.pth").write_text("no weights")
    (tiny / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"features.0.weight": torch.zeros(4, 5, 3, 3), "features.0.bias": torch.zeros(4)}, tiny / "other.pth")
    torch.save([1, 2], tiny / "list.pth")
    (tiny / "text.safetensors").write_text("no weights")
    features = ["text.pth", "evil.pth", "other.pth", "list.pth", "text.safetensors", "nowhere.pth"]
    cases = [(["--features", tiny / name], f"{name}: ") for name in features]
    cases += [
        (["--features", ""], "give --features"),
        (["--init", "cifar10-consistency", "--curve", tiny / "curve.json"], "another backbone"),
        (["--curve", tiny / "nowhere.json"], "cannot be read"),
        (["--sizes", 15], "multiples of"),
        (["--sizes", 32], "smaller than the crops"),
        (["--error", -1], "0 or above"),
        (["--pairs", 15], "16 --pairs"),
    ]
    for options, message in cases:
        assert run(tiny, *options) != 0
        shown = capsys.readouterr()
        assert message in shown.err, shown.err
        assert "\n" not in shown.err.strip()
        assert not shown.out  # of Evil
        assert not (tiny / "run").exists()
    plain = ["train", "realism", tiny / "data.npz", "-o", tiny / "run", *SMALL, "--features", tiny / "vgg.pth"]
    for init, message in ((["--init", "cifar10-consistency"], "no curve"), ([], "--init")):
        assert cli.main([*map(str, plain), *init]) != 0
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="before place"):
        build_trunk({k.replace("features.2.", "features.1."): v for k, v in trunk_tensors().items()})
