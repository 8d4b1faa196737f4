"""Networks in bfloat16, channels-last and compiled: the state stays float32, tokens of one precision decode in another."""

import copy
import functools
import math
import os

import pytest
import torch
from torch._inductor.runtime import cache_dir_utils

import noisebook
from diffusers_kit import tiny_unet
from noisebook import backbones
from noisebook.backbones.compiling import PLACE, compile_network, repeated_blocks
from noisebook.backbones.diffusers.nets import UNet2D
from noisebook.backbones.families.ddpm import DDPM, PREDICTIONS
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.errors import BackboneError
from noisebook.images import io as images
from noisebook.runtime import cache


def crop() -> torch.Tensor:
    return torch.from_numpy(images.sample("astronaut")[0:96, 150:278].copy()).permute(2, 0, 1)[None]


def psnr(a, b) -> float:
    """Of images in [-1, 1]."""
    return 10 * math.log10(4 / (a - b).double().square().mean().item())


def test_bfloat16_codes_and_its_tokens_decode_in_float32_with_some_loss(capsys):
    """The embedded network on a real photograph, each precision's tokens decoded by both."""
    x = crop()
    codecs = {name: noisebook.load("photo", dtype=name) for name in ("float32", "bfloat16")}
    assert codecs["bfloat16"].spec == codecs["float32"].spec  # the same files
    truth, found = x.float() / 127.5 - 1, {}
    for made, encoder in codecs.items():
        tokens, predicted = encoder.reconstruct(x)
        for name, decoder in codecs.items():
            decoded = decoder.decode(tokens, (96, 128))
            assert decoded.dtype == torch.float32
            assert torch.equal(decoded, predicted) == (made == name)
            found[made, name] = (psnr(decoded, truth), psnr(decoded, predicted) if made != name else math.inf)
    with capsys.disabled():
        print()
        for (made, name), (quality, apart) in found.items():
            print(f"  encoded in {made}, decoded in {name}: {quality:.2f} dB; {apart:.2f} dB from its own decode")
    same = found["float32", "float32"][0]
    assert found["bfloat16", "bfloat16"][0] > same - 0.5
    for pair in (("float32", "bfloat16"), ("bfloat16", "float32")):
        assert found[pair][1] > 50
        assert found[pair][0] > same - 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "bfloat16"])
def test_convnet_keeps_the_prior_the_level_and_the_result_in_float32(dtype, fresh):
    plain, fast = backbones.load("photo"), backbones.load("photo").accelerate(dtype)
    kind = torch.float32 if dtype == torch.float32 else torch.bfloat16
    for name, tensor in [*fast.named_parameters(), *fast.named_buffers()]:
        inside = not name.startswith(("net.prior", "net.embed", "net.frequencies"))
        assert tensor.dtype == (kind if inside else torch.float32), name
    y = torch.from_numpy(fresh.normal(size=(2, 3, 32, 48))).float()
    wanted, got = plain(y, 0.7), fast(y, 0.7)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted) == (kind == torch.float32)
    assert (got - wanted).abs().max() < 0.02 * (wanted - y).abs().max()
    assert fast.fingerprint == plain.fingerprint


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "options", [{"channels_last": True}, {"dtype": torch.bfloat16}, {"dtype": "bfloat16", "channels_last": True}]
)
def test_diffusers_unet(options, prediction, fresh):
    levels = [math.exp(-0.01 * (t + 1)) for t in range(300)]
    plain, fast = (DDPM(UNet2D(tiny_unet(attention=True), {}), levels, prediction) for _ in range(2))
    fast.accelerate(**options)
    if "channels_last" in options:
        assert fast.net.model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(fresh.normal(size=(2, 3, 16, 16))).float()
    wanted, got = plain(y, 1.0), fast(y, 1.0)
    assert got.dtype == torch.float32
    tolerance = 0.05 if "dtype" in options else 1e-4
    assert (got - wanted).abs().max() < tolerance * wanted.abs().max()
    assert ("dtype" in options) != torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", ["convnet", "diffusers"])
def test_compiled_networks_give_the_same(make, monkeypatch, fresh):
    """Through torch.compile's tracer; its own code generator needs minutes and is tried on a GPU."""
    called = []

    def backend(graph, inputs):
        called.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()

    def build():
        if make == "convnet":
            return backbones.load("photo")
        return DDPM(UNet2D(tiny_unet(), {}), [math.exp(-0.01 * (t + 1)) for t in range(300)], "epsilon")

    plain, fast, graphs = build(), build().accelerate(compile=True), 0
    y = torch.from_numpy(fresh.normal(size=(2, 3, 32, 32))).float()
    with torch.no_grad():
        for sigma in (1.0, 0.5, 0.25):
            assert torch.allclose(fast(y, sigma), plain(y, sigma), atol=1e-4)
            graphs = graphs or len(called)
    assert len(called) == graphs  # for all levels
    assert graphs == 1 or (make == "diffusers" and graphs < 9)  # the network, or blocks of some kinds
    assert set(fast.state_dict()) == set(plain.state_dict())
    torch._dynamo.reset()


def test_a_tiled_network_is_accelerated_inside_and_a_prior_has_none():
    backbone = DDPM(UNet2D(tiny_unet(), {}), [math.exp(-0.01 * (t + 1)) for t in range(300)], "epsilon")
    backbone.size = (16, 16)
    tiled = Tiled(backbone)
    version = tiled.version
    assert tiled.accelerate(torch.bfloat16) is tiled
    assert tiled.version > version
    assert backbone.net.model.conv_in.weight.dtype == torch.bfloat16
    for call in (
        lambda: backbones.load("gaussian-prior").accelerate(torch.bfloat16),
        lambda: noisebook.load("photo", backbone="gaussian-prior", compile=True),
        lambda: backbones.load("photo").accelerate(torch.float16),
        lambda: noisebook.load("photo", dtype="half precision"),
    ):
        with pytest.raises(BackboneError):
            call()


class Counted:
    """A backend of torch.compile that runs what was traced, and counts it."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counted():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield Counted()
    torch._dynamo.reset()


def test_blocks_are_compiled_once_for_all_their_copies_and_twice_for_all_sizes(counted, fresh):
    """Of a UNet, at many sizes and batches: the second size is compiled for any, the rest wait for nothing."""
    net = tiny_unet(layers_per_block=3, sample_size=None)
    plain = copy.deepcopy(net)
    compile_network(net, backend=counted)
    made = []
    with torch.no_grad():
        for batch, height, width in ((2, 16, 16), (3, 24, 20), (4, 32, 48), (5, 20, 12)):
            x = torch.from_numpy(fresh.normal(size=(batch, 3, height, width))).float()
            assert torch.allclose(net(x, 3).sample, plain(x, 3).sample, atol=1e-4)
            made.append(counted.graphs)
    assert len(repeated_blocks(net)) == 16
    assert made[0] <= 8
    assert made[1] <= 2 * made[0]
    assert made[1:] == [made[1]] * 3


@pytest.mark.slow
def test_a_network_of_more_kinds_of_blocks_than_torch_compiles_by_itself(counted, fresh):
    """Beyond torch's own limit it would go on without compiling, in silence."""
    net = tiny_unet(
        block_out_channels=(4, 8, 12, 16), down_block_types=["DownBlock2D"] * 4, up_block_types=["UpBlock2D"] * 4
    )
    compile_network(net, backend=counted)
    with torch.no_grad():
        net(torch.from_numpy(fresh.normal(size=(1, 3, 16, 16))).float(), 3)
    assert counted.graphs > 8
    assert torch._dynamo.config.recompile_limit >= 64


@pytest.mark.parametrize("said", ["", "elsewhere", "by torch"])
def test_what_is_compiled_is_kept_in_the_users_own_folder(said, tmp_path, monkeypatch, counted):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(PLACE, str(tmp_path / said))
    if said != "elsewhere":
        monkeypatch.delenv(PLACE)
    if said == "by torch":
        cache_dir_utils.cache_dir()
        assert os.environ[PLACE]
    compile_network(torch.nn.Conv2d(3, 3, 1))
    assert os.environ[PLACE] == str(tmp_path / ("elsewhere" if said == "elsewhere" else "cache/compiled"))


def test_a_network_without_such_blocks_is_compiled_whole(counted):
    class Net(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    net = Net(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1))
    assert not repeated_blocks(net)
    compile_network(net, backend=counted)
    with torch.no_grad():
        net(torch.zeros(1, 3, 4, 4))
    assert counted.graphs == 1
