"""Devices on which codebooks are not searched: the network runs there, all else on the host, one copy each way per call."""

import hashlib
import json
import math

import pytest
import torch
from other_device import DEVICE, There, other_device
from torch import Tensor
from torch.nn import functional as F

import noisebook
from common import RECIPES, random_images, realism_file
from noisebook import backbones
from noisebook.backbones import Backbone
from noisebook.backbones.cod.cod import CoD
from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.cli.main import main
from noisebook.codec import modes, stream, tiles
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.runtime.devices import refuse_unreachable, usable_device, working_device
from noisebook.spec.presets import Recipe

HOST = torch.device("cpu")
BASE = {"steps": 4, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
RULES = {
    **RECIPES,
    "top": {"rule": "top", "budget": 21},
    "pursuit": {"rule": "pursuit", "budget": 2, "coefficient_bits": 2, "vocab_size": 32, "steps": 3},
    "poisson": {"rule": "poisson", "budget": 5, "start_budget": 2},
    "look-ahead": {"candidates": 3, "start_budget": 2},
}


@pytest.fixture(autouse=True)
def forget():
    refuse_unreachable.cache_clear()
    yield
    refuse_unreachable.cache_clear()


class Latent(Backbone):
    """States of half the size, twice: its encode, decode and network say where they run."""

    name, fingerprint, multiple = "latent", "0" * 64, 2

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))
        self.ran: list[tuple[str, torch.device]] = []

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 3, height // 2, width // 2

    def encode(self, images: Tensor) -> Tensor:
        self.ran.append(("encode", images.device))
        return F.avg_pool2d(images, 2)

    def decode(self, x0: Tensor) -> Tensor:
        self.ran.append(("decode", x0.device))
        return F.interpolate(x0, scale_factor=2)

    def denoise(self, y: Tensor, sigma: float, cond=None) -> Tensor:
        self.ran.append(("denoise", y.device))
        return y * (self.scale / (self.scale + sigma**2))


def pair(make, candidates=1, **changes):
    """The same codec on the CPU, and with its network on the device; inside `other_device`."""
    made = [Codec(Recipe(**{**BASE, **changes}).build(n), n, candidates=candidates) for n in (make(), make())]
    made[1].backbone.to("mps")
    return made


def gaussian():
    return backbones.load("gaussian-prior")


def both_ways(numbers: int, calls: int) -> list[tuple[str, int]]:
    return [("to the device", numbers), ("to the host", numbers)] * calls


def test_the_stand_in_is_as_hard_as_a_device():
    with other_device() as copies:
        there = torch.ones(3).to("mps")
        assert isinstance(there, There)
        assert there.device == DEVICE
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        assert (there + 1).cpu().tolist() == [2, 2, 2]
    assert copies == both_ways(3, 1)


@pytest.mark.parametrize("case", RULES)
def test_tokens_and_images_are_those_of_the_cpu(case, fresh):
    """Bit for bit, as the arithmetic is the same here; and one state is copied each way for each call of the network."""
    x = random_images(fresh, 2, 16, 16)
    with other_device() as copies:
        here, there = pair(gaussian, **RULES[case])
        assert (there.backbone.device, there.device) == (DEVICE, HOST)
        tokens = there.encode(x)  # fills caches
        state = 2 * math.prod(there.stream(16, 16).state)
        copies.clear()
        assert torch.equal(there.encode(x), tokens)
        assert copies == both_ways(state * there.candidates, there.encode_nfe // there.candidates)
        assert torch.equal(tokens, here.encode(x))
        copies.clear()
        images = there.decode(tokens, (16, 16))
        assert copies == both_ways(state, there.nfe)
        assert torch.equal(images, here.decode(tokens, (16, 16)))
        assert torch.equal(there.reconstruct(x)[1], images)
        if there.rule.fixed_length:
            assert torch.equal(there.decode_packed(there.encode_packed(x), (16, 16)), images)


def test_the_realism_network_runs_where_the_backbone_does(fresh, tmp_path):
    x, path = random_images(fresh, 2, 16, 16), realism_file(tmp_path / "a.safetensors")
    with other_device() as copies:
        here, there = (Codec(codec.spec, codec.backbone, realism_network=path) for codec in pair(gaussian))
        tokens = there.encode(x)
        images, before = there.decode(tokens, (16, 16), realism=0.5), len(copies)
        assert there.dial(1.0).network.net.enter.weight.device == DEVICE
        assert torch.equal(images, here.decode(tokens, (16, 16), realism=0.5))
        there.decode(tokens, (16, 16), realism=0.5)
        assert len(copies) - before == 2 * there.nfe + 3  # the mean and the state there, the picture back


def test_an_autoencoder_runs_where_the_network_does(fresh):
    x = random_images(fresh, 2, 16, 16)
    with other_device() as copies:
        here, there = pair(Latent)
        tokens = there.encode(x)
        state = x.numel() // 4
        assert copies[-10:] == [("to the device", x.numel()), ("to the host", state), *both_ways(state, 4)]
        assert torch.equal(tokens, here.encode(x))
        assert torch.equal(there.decode(tokens, (16, 16)), here.decode(tokens, (16, 16)))
        assert {device for _, device in there.backbone.ran} == {DEVICE}
        assert {name for name, _ in there.backbone.ran} == {"encode", "denoise", "decode"}


def test_a_condition_of_tokens_stays_there(fresh):
    """Of CoD: its encoder, its codebook and its decoder."""
    x = random_images(fresh, 1, 64, 64)

    def make():
        torch.manual_seed(0)
        config = CodConfig(hidden=64, heads=4, blocks=3, cond_blocks=2, hidden_x=8, width=32)
        backbone = CoD(CodNet(config).eval().requires_grad_(False))
        backbone.name, backbone.fingerprint = "cod", hashlib.sha256(b"cod").hexdigest()
        return backbone

    with other_device():
        here, there = pair(make, steps=2, budget=1)
        tokens = there.encode(x)
        assert torch.equal(tokens, here.encode(x))
        assert torch.equal(there.decode(tokens, (64, 64)), here.decode(tokens, (64, 64)))


def test_a_large_picture_is_worked_on_block_by_block(fresh, monkeypatch):
    monkeypatch.setattr(stream, "MOST", 1 << 11)
    monkeypatch.setattr(tiles, "TILE", 32)
    monkeypatch.setattr(tiles, "OVERLAP", 8)
    x = random_images(fresh, 1, 32, 48)
    with other_device():
        here, there = pair(gaussian)
        assert there.stream(32, 48).tiled
        tokens = there.encode(x)
        assert tokens.shape == here.encode(x).shape
        decoded = there.decode(tokens, (32, 48))
        assert torch.equal(there.decode(tokens, (32, 48)), decoded)
        assert torch.equal(there.reconstruct(x)[1], decoded)


def test_modes_run(fresh):
    with other_device():
        here, there = pair(gaussian, budget=1, vocab_size=64)
        other, moved = gaussian(), gaussian().to("mps")
        for mode in (modes.generate, lambda codec, *args: modes.guide(codec, other if codec is here else moved, *args)):
            (tokens, images), (wanted, wanted_images) = (mode(codec, 2, (16, 16)) for codec in (there, here))
            assert torch.equal(tokens, wanted)
            assert torch.equal(images, wanted_images)
        x, halve = random_images(fresh, 2, 16, 16), modes.downsample(2)
        assert torch.equal(*(modes.restore(codec, halve(x / 127.5 - 1), halve, (16, 16))[0] for codec in (there, here)))
        assert torch.equal(*(modes.edit(codec, codec, x) for codec in (there, here)))


def test_a_data_set_says_where_its_network_ran(fresh, tmp_path):
    pytest.importorskip("pyarrow")
    from noisebook.datasets import TokenDataset, tokenize
    from noisebook.images.io import png_bytes

    (tmp_path / "in").mkdir()
    for i, x in enumerate(random_images(fresh, 3, 16, 16)):
        (tmp_path / f"in/{i}.png").write_bytes(png_bytes(x.permute(1, 2, 0).numpy()))
    with other_device():
        here, there = pair(gaussian)
        tokenize(tmp_path / "in", tmp_path / "here", codec=here)
        tokenize(tmp_path / "in", tmp_path / "there", codec=there)
        with pytest.raises(SpecError, match="the codec is on mps:0, not on cpu"):
            tokenize(tmp_path / "in", tmp_path / "none", codec=there, device="cpu")
    found, wanted = (TokenDataset(tmp_path / name) for name in ("there", "here"))
    assert [row["tokens"].tolist() for row in found] == [row["tokens"].tolist() for row in wanted]
    assert found.plan.settings.network == {"device": "mps"}
    assert next(iter(found.ledgers))["device"].startswith("mps:0")


def test_a_device_that_can_do_neither_is_refused_in_words(fresh, tmp_path, capsys):
    """`meta` holds no values, so nothing comes to the host."""
    with pytest.raises(SpecError, match="'meta' cannot be used: codebooks are searched on cpu and cuda only, and") as e:
        usable_device("meta")
    assert "\n" not in str(e.value)
    with pytest.raises(SpecError, match="searched on cpu and cuda only"):
        noisebook.load("photo", device="meta")
    codec = noisebook.load(backbone="gaussian-prior", **BASE)
    codec.backbone.to("meta")
    for call in (lambda: codec.encode(random_images(fresh, 1, 16, 16)), lambda: modes.generate(codec, 1, (16, 16))):
        with pytest.raises(SpecError, match="searched on cpu and cuda only"):
            call()
    assert main(["roundtrip", "--samples", "--device", "meta", "-o", str(tmp_path), "--json"]) == 2
    assert "searched on cpu and cuda only" in json.loads(capsys.readouterr().out)["error"]


def test_where_a_codec_works():
    found = [str(working_device(torch.device(name))) for name in ("cpu", "cuda:1", "mps", "xpu:0")]
    assert found == ["cpu", "cuda:1", "cpu", "cpu"]


def test_a_checkup_finds_there_what_it_finds_on_the_cpu(fresh):
    """States come from the host, as a codec's do: the device need not know float64, in which errors are summed."""
    x = random_images(fresh, 2, 16, 16)
    with other_device():
        here, there = (noisebook.check("gaussian-prior", x, device=device) for device in ("cpu", "mps"))
        assert there.levels == here.levels
        assert [(row.name, row.ok) for row in there.rows] == [(row.name, row.ok) for row in here.rows]
        assert (there.device, there.seconds is None) == ("mps:0", False)
        assert "on mps:0" in next(row.found for row in there.rows if row.name == "time")
