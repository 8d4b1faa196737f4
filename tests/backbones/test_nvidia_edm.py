"""NVIDIA's EDM checkpoints: pickles of their structure, made here, are converted without running them; their networks."""

import collections
import hashlib
import io
import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from nvidia_kit import DDPMPP, NCSNPP, NETWORKS, TINY, Persistent, as_nvidia, checkpoint, tiny_network, write
from torch import nn

from common import random_images
from noisebook.backbones import checkpoint as checkpoints
from noisebook.backbones import fingerprint_of
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.nets import nvidia_edm, nvidia_pickle
from noisebook.backbones.wrappers import tiled
from noisebook.cli import main as cli
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError
from noisebook.spec.presets import Recipe

PUBLISHED = [
    ("EDMPrecond", "DDPM++", 0),
    ("EDMPrecond", "NCSN++", 4),
    ("EDMPrecond", "ADM", 4),
    ("VPPrecond", "DDPM++", 4),
    ("VEPrecond", "NCSN++", 0),
    ("iDDPMPrecond", "ADM", 4),
]


@pytest.fixture
def nvidia(monkeypatch):
    return as_nvidia(monkeypatch)


# ---- the converter ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("precond", "kind", "classes"), PUBLISHED)
def test_the_command_converts_without_running_the_file(precond, kind, classes, tmp_path, nvidia, capsys, fresh):
    mark = tmp_path / "executed"
    nvidia.setattr(Persistent, "source", f"open({str(mark)!r}, 'w').close()")
    exec(Persistent.source)
    mark.unlink()  # a file that only the source code makes
    content, net = checkpoint(precond, kind, classes)
    write(tmp_path / "a.pkl", content)
    nvidia.undo()
    assert cli.main(["convert", str(tmp_path / "a.pkl"), "-o", str(tmp_path / "a.safetensors")]) == 0
    assert f"{classes or 'no'} classes" in capsys.readouterr().out
    assert not mark.exists()
    assert "torch_utils.persistence" not in sys.modules
    found, config, tensors = read_checkpoint(tmp_path / "a.safetensors")
    assert found == "nvidia-edm"
    assert (config["precond"], config["network"]) == (precond, TINY[kind][0])
    want = {f"model.{name}": t for name, t in net.state_dict().items()}
    assert tensors.keys() - {"u"} == want.keys()
    assert all(torch.equal(tensors[name], t) for name, t in want.items())
    label = int(fresh.integers(classes)) if classes else None
    backbone = nvidia_edm.from_checkpoint(config, tensors, label=label).requires_grad_(False)
    net.label, levels = label, torch.tensor([80.0, 20, 6, 2, 0.7, 0.2, 0.05, 0.01])
    y, sigma = torch.from_numpy(fresh.standard_normal((2, 3, 8, 8), np.float32)), float(levels[int(fresh.integers(1, 7))])
    with torch.no_grad():
        assert torch.allclose(
            backbone(y, backbone.round_sigma(sigma)), table_1(precond, net, y, sigma, levels), atol=1e-4 * sigma
        )
    check_round_trip(backbone, config, tensors, fresh)


def table_1(precond, net, y, sigma, levels):
    """D(y; sigma) as table 1 of Karras et al. 2022 has it."""
    sigma = torch.full((2, 1, 1, 1), sigma)
    if precond == "VPPrecond":
        skip, out, scale = 1, -sigma, 1 / (sigma**2 + 1).sqrt()
        noise = 999 * ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
    elif precond == "VEPrecond":
        skip, out, scale, noise = 1, sigma, 1, (sigma / 2).log()
    elif precond == "EDMPrecond":
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        scale, noise = 1 / (sigma**2 + 0.25).sqrt(), sigma.log() / 4
    else:
        skip, out, scale = 1, -sigma, 1 / (sigma**2 + 1).sqrt()
        noise = 7.0 - (levels - sigma.flatten()[0]).abs().argmin().expand(2, 1, 1, 1)
    return skip * y + out * net(scale * y, noise.flatten())[:, :3]


def check_round_trip(backbone, config, tensors, fresh):
    """Images of 13 x 10 pixels through a codec: a decode gives what the encoder reconstructed, in tiles of 8 x 8."""
    backbone.name, backbone.fingerprint = "tiny", fingerprint_of(config, tensors)
    whole = tiled.Tiled(backbone)
    codec = Codec(Recipe(backbone="tiny", steps=3, sigma_max=2.0, budget=2, vocab_size=64).build(whole), whole)
    tokens, images = codec.reconstruct(random_images(fresh, 2, 13, 10))
    assert torch.equal(codec.decode(tokens, (13, 10)), images)
    assert images.isfinite().all()


def test_numbers_of_numpy_and_tensors_that_are_views_are_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    content = [np.float64(0.3), np.float32(2), np.int64(-7), base.t(), base[1:, ::2], nn.Parameter(base[2])]
    for protocol in (3, 4, 5):  # the defaults of Python 3
        got = nvidia_pickle.read_pickle(write(tmp_path / "a.pkl", content, protocol))
        assert got[:3] == [np.float64(0.3), 2, -7]
        assert all(torch.equal(a, b) for a, b in zip(got[3:], content[3:], strict=True))


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(mark):
    """Contents that would make the file `mark` if their functions ran, and what the refusal names."""
    inner = pickle.dumps(Call(os.system, f"touch {mark}"), 2)
    return {
        "system": Call(os.system, f"touch {mark}"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Call(getattr, "", "upper"),
        "load": Call(torch.load, str(mark)),
        "Weights only load failed": Call(torch.storage._load_from_bytes, inner),
        "Sequential": nn.Sequential(),
        "deque": collections.deque(),
    }


@pytest.mark.parametrize("name", hostile(""))
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_what_no_checkpoint_needs_is_refused(name, where, tmp_path, nvidia, capsys):
    mark = tmp_path / "executed"
    content, _ = checkpoint("EDMPrecond", "DDPM++")
    content["ema"].__dict__["sigma_data"] = hostile(mark)[name]
    write(tmp_path / "a.pkl", content if where == "inside" else hostile(mark)[name])
    nvidia.undo()
    with pytest.raises(BackboneError, match=name) as refusal:
        nvidia_edm.convert(tmp_path / "a.pkl")
    assert "\n" not in str(refusal.value)
    assert not mark.exists()
    assert cli.main(["convert", str(tmp_path / "a.pkl"), "-o", str(tmp_path / "a.safetensors")]) == BackboneError.code
    assert "a.pkl: no EDM checkpoint, or a damaged one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"], "nothing is left of a file that was refused"


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path, nvidia, fresh):
    content, _ = checkpoint("EDMPrecond", "NCSN++")
    whole, path = pickle.dumps(content), tmp_path / "a.pkl"
    nvidia.undo()
    cuts = [0, 1, len(whole) - 1, *fresh.integers(2, len(whole), 8).tolist()]
    zip_file = io.BytesIO()
    torch.save({"ema": torch.zeros(3)}, zip_file)
    huge = [b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.", b"\x80\x04Nr\xff\xff\xff\xff.", b"\x80\x04" + b"(" * 99]
    for data in [*(whole[:cut] for cut in cuts), *huge, zip_file.getvalue(), b"\x89PNG\r\n", b"()" * 5000 + b"."]:
        path.write_bytes(data)
        with pytest.raises(BackboneError, match=r"a\.pkl: no"):
            nvidia_edm.convert(path)
    with pytest.raises(BackboneError, match="No such file"):
        nvidia_edm.convert(tmp_path / "none.pkl")


def test_a_write_that_fails_leaves_things_as_they_were(tmp_path, nvidia, capsys):
    path, output = write(tmp_path / "a.pkl", checkpoint("EDMPrecond", "DDPM++")[0]), tmp_path / "a.safetensors"
    output.write_bytes(b"of yesterday")

    def full(_, part, *__):
        part.write_bytes(b"half")
        raise OSError("no space left")

    nvidia.setattr(checkpoints, "save_file", full)
    call = ["convert", str(path), "-o", str(output)]
    assert cli.main(call) == 1
    assert capsys.readouterr().err.endswith("it is there already: --force replaces it, another -o keeps it\n")
    assert cli.main([*call, "--force"]) == BackboneError.code
    assert capsys.readouterr().err == f"noisebook: BackboneError: {output}: cannot be written: no space left\n"
    assert output.read_bytes() == b"of yesterday"
    assert sorted(tmp_path.iterdir()) == [path, output]
    nvidia.undo()
    assert cli.main(["convert", str(path), "-o", str(tmp_path / "none/a.safetensors")]) == BackboneError.code
    assert cli.main([*call, "--force"]) == 0
    assert read_checkpoint(output)[0] == "nvidia-edm"


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A few bytes must not become gigabytes, nor memory that is not the file's."""
    base = torch.zeros(4)
    for fake, said in ((base.expand(2**40, 4), "larger"), (Fake(base, 3, (2,), (1,)), "out of bounds")):
        with pytest.raises(BackboneError, match=said):
            nvidia_pickle.read_pickle(write(tmp_path / "a.pkl", fake))


class Fake:
    def __init__(self, tensor, *place):
        arguments = tensor.__reduce_ex__(4)[1]
        self.arguments = (arguments[0], *place, *arguments[4:])

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("list indices", lambda content: [content]),
        ("'ema'", lambda content: {"net": content["ema"]}),
        ("EDM2Precond", lambda content: content["ema"].__dict__.update(_class_name="EDM2Precond")),
        ("'sigma_data'", lambda content: content["ema"].__dict__.pop("sigma_data")),
        ("neither DDPM", lambda content: settings(content, decoder_type="skip")),
        ("size mismatch", lambda content: settings(content, model_channels=32)),
        ("Missing key", lambda content: settings(content, num_blocks=2)),
        ("a setting is a dict", lambda content: settings(content, channel_mult={})),
        ("unexpected keyword", lambda content: settings(content, depth=3)),
        ("somewhere else, too", lambda content: content["ema"].model._modules.update(twin=content["ema"].model.dec)),
    ],
)
def test_content_that_is_no_network_is_refused(said, change, tmp_path, nvidia):
    content, _ = checkpoint("EDMPrecond", "DDPM++")
    changed = change(content)
    path = write(tmp_path / "a.pkl", changed if said in ("list indices", "'ema'") else content)
    with pytest.raises(BackboneError, match=said):
        nvidia_edm.convert(path)


def settings(content, **changes):
    content["ema"].model.__dict__["_init_kwargs"].update(changes)


def test_the_label_is_asked_for_and_checked():
    for classes, right, wrong in ((4, 3, (None, 4, -1, "3", 1.5)), (0, None, (0, 3))):
        name, options, net = tiny_network("ADM", classes)
        config = {"precond": "EDMPrecond", "constants": {"sigma_data": 0.5}, "network": name, "options": options}
        tensors = {f"model.{k}": v for k, v in net.state_dict().items()}
        for label in wrong:
            with pytest.raises(BackboneError, match="4 classes: give label=0 to 3" if classes else "leave the label out"):
                nvidia_edm.from_checkpoint(config, tensors, label=label)
        nvidia_edm.from_checkpoint(config, tensors, label=right)


def test_config_and_tensors_that_do_not_fit_are_refused(tmp_path):
    name, options, net = tiny_network("DDPM++")
    config = {"precond": "VPPrecond", "constants": {"beta_min": 0.1}, "network": name, "options": options}
    tensors = {f"model.{k}": v for k, v in net.state_dict().items()}
    write_checkpoint(tmp_path / "a.safetensors", "nvidia-edm", config, tensors)
    _, stored, read = read_checkpoint(tmp_path / "a.safetensors")
    assert nvidia_edm.from_checkpoint(stored, read).size == (8, 8)
    one = next(iter(tensors))
    for change in (
        {"network": "UNet"},
        {"precond": "XPrecond"},
        {"precond": "iDDPMPrecond"},
        {"constants": {"gamma": 1}},
        {"options": {**options, "width": 3}},
        {"options": {**options, "model_channels": 2}},
    ):
        with pytest.raises(BackboneError, match="do not make"):
            nvidia_edm.from_checkpoint(config | change, tensors)
    for content in (
        {k: v for k, v in tensors.items() if k != one},
        {**tensors, "model.z": tensors[one]},
        {**tensors, one: tensors[one][:1]},
    ):
        with pytest.raises(BackboneError, match="do not make"):
            nvidia_edm.from_checkpoint(config, content)


# ---- the networks -------------------------------------------------------------------------------------------------------
# Outputs of an independent implementation, nvidia-physicsnemo 1.0.1 (in training mode without dropout: its evaluation mode
# has a group normalisation of its own), whose state dict loaded as it is: pixels (2, 5) and (0, 7) of the three channels
KNOWN = {
    "DDPM++": ([-0.13299, 0.1419, 0.00682, -0.1015, 0.19232, 0.07317], 149),
    "NCSN++": ([-0.06249, 0.16052, -0.06257, -0.12254, 0.10187, -0.11635], 218),
    "ADM": ([0.23184, 0.69105, 0.49051, -0.26539, -0.37855, -0.20935], 147),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_answers(kind):
    pixels, count = KNOWN[kind]
    _, _, net = tiny_network(kind, label_dim=5)
    state = net.state_dict()
    assert len(state) == count
    for i, name in enumerate(sorted(state)):
        if not name.endswith("resample_filter"):
            state[name] = 0.2 * torch.sin(1.7 * torch.arange(state[name].numel()) + i).reshape(state[name].shape)
    net.load_state_dict(state)
    net.label = 3
    with torch.no_grad():
        out = net(torch.sin(torch.arange(192.0)).reshape(1, 3, 8, 8), torch.tensor([-0.7]))[0]
    assert [*out[:, 2, 5].tolist(), *out[:, 0, 7].tolist()] == pytest.approx(pixels, abs=2e-5)


FULL_DDPMPP = {**DDPMPP, "model_channels": 128, "num_blocks": 4, "attn_resolutions": [16], "channel_mult": [2, 2, 2]}
FULL_NCSNPP = {**NCSNPP, "model_channels": 128, "num_blocks": 4, "attn_resolutions": [16], "channel_mult": [2, 2, 2]}
LARGER = {"channel_mult": [1, 2, 2, 2]}
FULL = {  # resolution, output channels, classes, settings; parameters, SHA-256 of names and shapes as in physicsnemo 1.0.1
    "cifar10-32x32-cond-vp": (32, 3, 10, FULL_DDPMPP, 55735299, "140c43aec6cad6fb"),
    "cifar10-32x32-uncond-vp": (32, 3, 0, FULL_DDPMPP, 55733891, "8546ee30251b9899"),
    "cifar10-32x32-cond-ve": (32, 3, 10, FULL_NCSNPP, 56400643, "d83f9336e09268f3"),
    "ffhq-64x64-uncond-vp": (64, 3, 0, {**FULL_DDPMPP, **LARGER}, 61805571, "e1ac23f20c6f1a5b"),
    "ffhq-64x64-uncond-ve": (64, 3, 0, {**FULL_NCSNPP, **LARGER}, 62761091, "115c63e75fa1b3ac"),
    "imagenet-64x64-cond-adm": (
        64,
        3,
        1000,
        {"model_channels": 192, "channel_mult": [1, 2, 3, 4]},
        295899267,
        "a678ef235436739c",
    ),
    "baseline-imagenet-64x64-cond-adm": (64, 6, 1000, {}, 295904454, "22774147a2568d87"),
}


@pytest.mark.parametrize("name", FULL)
def test_names_and_shapes_of_the_published_networks(name):
    resolution, out, classes, options, parameters, digest = FULL[name]
    with torch.device("meta"):
        net = NETWORKS["DhariwalUNet" if "adm" in name else "SongUNet"](resolution, 3, out, label_dim=classes, **options)
    assert sum(p.numel() for p in net.parameters()) == parameters
    text = "\n".join(f"{k} {list(v.shape)}" for k, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", TINY)
def test_bfloat16_is_near_float32(kind, fresh):
    """And the noise level is embedded in float32 still: NCSN++'s frequencies, rounded, would be of another level."""
    name, options, net = tiny_network(kind)
    config = {"precond": "EDMPrecond", "constants": {"sigma_data": 0.5}, "network": name, "options": options}
    tensors = {f"model.{k}": v for k, v in net.state_dict().items()}
    exact, fast = (nvidia_edm.from_checkpoint(config, tensors).requires_grad_(False) for _ in range(2))
    fast.accelerate("bfloat16", channels_last=True)
    y = torch.from_numpy(fresh.standard_normal((2, 3, 8, 8), np.float32))
    for sigma in (20.0, 1.0, 0.02):
        scale = sigma * 0.5 / math.hypot(sigma, 0.5)  # of what the network adds
        x, rough = exact(sigma * y, sigma), fast(sigma * y, sigma)
        assert rough.dtype == torch.float32
        assert 1e-5 < (x - rough).abs().max() / scale < 0.1
        noise = torch.tensor([math.log(sigma)])
        assert torch.equal(*(backbone.net.map_noise(noise) for backbone in (exact, fast)))
