"""The dtype `auto`: on which processors it is bfloat16, of which networks, and that it leaves alone what is the caller's."""

import json

import pytest
import torch

import noisebook
from common import Shrink
from noisebook import backbones
from noisebook.backbones import precision
from noisebook.backbones.checkpoint import write_checkpoint
from noisebook.backbones.nets.convnet import ConvDenoiser, checkpoint_tensors
from noisebook.cli.main import main
from noisebook.images.io import png_bytes

FEW = {"steps": 2, "budget": 2, "budget_last": 2, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
OPTIONS = [word for name, value in FEW.items() for word in (f"--{name.replace('_', '-')}", str(value))]
BOTH = pytest.mark.parametrize("has", [True, False])


def processor(monkeypatch, has: bool) -> None:
    """A CPU with the instructions, or without."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> str:
    """A small network whose corrections are not zero."""
    prior = backbones.load("gaussian-prior")
    torch.manual_seed(0)
    model = ConvDenoiser(prior, widths=(8, 8), blocks=1, embedding=8)
    torch.nn.init.normal_(model.leave.weight, std=0.05)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    write_checkpoint(path, "convnet", model.config, checkpoint_tensors(model))
    return str(path)


@pytest.fixture
def picture(tmp_path, fresh):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(fresh.integers(0, 256, (32, 32, 3), dtype="uint8")))
    return path


@pytest.mark.quick
@pytest.mark.parametrize(
    ("avx512", "amx", "library", "expected"),
    [
        (True, False, True, True),
        (False, True, True, True),
        (False, False, True, False),  # the library would emulate it
        (True, True, False, False),
    ],
)
def test_a_cpu_is_asked_for_instructions_and_not_for_emulation(avx512, amx, library, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
    assert precision.multiplies_bfloat16("cpu") == expected


@pytest.mark.quick
def test_a_gpu_is_asked_for_its_capability_and_other_devices_never_have_it(monkeypatch):
    capability = {0: (9, 0), 1: (7, 5), 2: (8, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.__getitem__)
    assert [precision.multiplies_bfloat16(f"cuda:{n}") for n in range(3)] == [True, False, True]
    assert not precision.multiplies_bfloat16("cuda")  # any of them may be meant
    del capability[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert precision.multiplies_bfloat16("cuda")
    assert not precision.multiplies_bfloat16("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not precision.multiplies_bfloat16("cuda")


@BOTH
def test_a_network_of_noisebooks_own_is_in_bfloat16_where_the_processor_is(has, net, monkeypatch):
    processor(monkeypatch, has)
    codec = noisebook.load(backbone=net, **FEW)
    assert codec.dtype == ("bfloat16" if has else "float32")
    kinds = {p.dtype for name, p in codec.backbone.named_parameters() if ".enter." in name}
    assert kinds == {torch.bfloat16 if has else torch.float32}
    assert noisebook.load(codec.spec, backbone=net).dtype == codec.dtype  # also where a specification is decoded
    assert noisebook.load(backbone="cifar10-flow", **FEW).dtype == codec.dtype  # tiled, and a view
    assert backbones.load(net).computes_in == "float32"  # of itself nobody has asked for anything


def test_asked_for_float32_it_is_as_it_was(net, monkeypatch, fresh):
    """Every bit, on a processor that would be asked for the other."""
    processor(monkeypatch, True)
    x = torch.from_numpy(fresh.integers(0, 256, (1, 3, 32, 32), dtype="uint8"))
    codec, plain = noisebook.load(backbone=net, dtype="float32", **FEW), noisebook.load(backbone=backbones.load(net), **FEW)
    assert (codec.dtype, plain.dtype) == ("float32", "float32")
    for got, wanted in zip(codec.reconstruct(x), plain.reconstruct(x), strict=True):
        assert torch.equal(got, wanted)
    assert not torch.equal(noisebook.load(backbone=net, **FEW).reconstruct(x)[1], plain.reconstruct(x)[1])


def test_what_is_the_callers_own_or_has_no_network_is_left_alone(net, monkeypatch):
    processor(monkeypatch, True)
    shrink, live = Shrink(), backbones.load(net)
    for given in (shrink, live):
        version = given.version
        assert noisebook.load(backbone=given, **FEW).dtype == "float32"
        assert given.version == version  # not even asked
    assert noisebook.load(backbone=live, channels_last=True, **FEW).dtype == "float32"
    fast = backbones.load(net).accelerate("bfloat16")
    assert noisebook.load(backbone=fast, **FEW).dtype == "bfloat16"
    assert noisebook.load(backbone=fast, channels_last=True, **FEW).dtype == "bfloat16"
    assert noisebook.load(backbone="gaussian-prior", **FEW).dtype == "float32"
    cod = noisebook.load(backbone="cifar10-cod", **FEW)  # it has weights in bfloat16, and computes as it is built
    assert (cod.dtype, cod.backbone.accelerated_to) == ("bfloat16", "float32")


@BOTH
def test_a_folder_goes_to_a_gpu_in_bfloat16_and_stays_in_float32_on_a_cpu(has, tmp_path, monkeypatch):
    """What its weights are read as: `meta` stands for a GPU."""
    from noisebook.backbones import registry

    seen = []

    def from_folder(path, *, device, dtype):
        seen.append((device.type, dtype))
        return Shrink()

    processor(monkeypatch, True)
    monkeypatch.setattr(registry, "from_folder", from_folder)
    monkeypatch.setattr(registry, "usable_device", str)
    monkeypatch.setattr(registry, "multiplies_bfloat16", lambda device: has)
    monkeypatch.setattr(Shrink, "to", lambda self, device: self)
    for device in ("cpu", "cuda"):
        backbones.load(tmp_path, device, accelerated={"dtype": "auto"})
    assert seen == [("cpu", torch.float32), ("cuda", torch.bfloat16 if has else torch.float32)]


@BOTH
def test_the_command_says_what_it_chose(has, net, picture, tmp_path, monkeypatch, capsys):
    processor(monkeypatch, has)
    line, codec = "computed in bfloat16 (--dtype float32 for the other)", ["--backbone", net, *OPTIONS]
    for verb in ("encode", "roundtrip"):
        assert main([verb, str(picture), "-o", str(tmp_path / verb), "--json", *codec]) == 0
        out = capsys.readouterr()
        assert json.loads(out.out)["codec"]["dtype"] == ("bfloat16" if has else "float32")
        assert out.err.count(line) == has
    files = [str(tmp_path / "encode/a.nbk"), str(tmp_path / "roundtrip/a.nbk")]
    for more in ([], codec):
        assert main(["decode", *files, "-o", str(tmp_path / f"d{len(more)}"), "--json", "--backbone", net, *more]) == 0
        out = capsys.readouterr()
        assert [c["dtype"] for c in json.loads(out.out)["codec"]] == ["bfloat16" if has else "float32"]
        assert out.err.count(line) == has  # once
    for dtype in ("float32", "bfloat16"):
        assert main(["encode", str(picture), "-o", str(tmp_path / dtype), "--json", *codec, "--dtype", dtype]) == 0
        out = capsys.readouterr()
        assert json.loads(out.out)["codec"]["dtype"] == dtype
        assert line not in out.err  # who has asked knows


def test_accelerate_itself_takes_no_auto(net):
    from noisebook.errors import BackboneError

    with pytest.raises(BackboneError, match="not auto"):
        backbones.load(net).accelerate("auto")
