"""A newcomer plugs in a model of his own with docs/backbones.md alone: the page's code is what runs here."""

import re
import sys

import pytest
import torch
from torch import Tensor, nn

import noisebook
from common import ROOT
from noisebook import BackboneError, CodecMismatchError, ImageError
from noisebook.cli.main import main
from noisebook.images import io as images

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/backbones.md").read_text(), re.DOTALL)
EXAMPLE, TILED, SHORT, RANGED = (block for block in BLOCKS if "my_network" in block)
(FACTORY,) = (block for block in BLOCKS if "def make()" in block)
(GREY,) = (block for block in BLOCKS if "channels=1" in block)
(AROUND,) = (block for block in BLOCKS if "(Wrapper)" in block)


class Velocity(nn.Module):
    """The newcomer's network: a few convolutions that are told x_t and t, and half the resolution once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.down, self.up = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ConvTranspose2d(32, 16, 2, stride=2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = t.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        h = self.enter(torch.cat([x, level], 1)).relu()
        return self.leave((h + self.up(self.down(h).relu())).relu())


def photographs(top: int, height: int, width: int) -> Tensor:
    """uint8 [2, 3, height, width], crops of two real photographs."""
    crops = [images.sample(name)[top:, 100:][:height, :width] for name in ("astronaut", "coffee")]
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1) for crop in crops])


@pytest.fixture(scope="module")
def network() -> Velocity:
    """Trained for a moment by flow matching, on other parts of the photographs than are coded."""
    net, generator = Velocity(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    crops = nn.functional.unfold(photographs(200, 128, 256).float() / 127.5 - 1, 32, stride=32)
    crops = crops.transpose(1, 2).reshape(-1, 3, 32, 32)
    for _ in range(100):
        x0 = crops[torch.randint(len(crops), (8,), generator=generator)]
        t, eps = torch.rand(len(x0), generator=generator) ** 2, torch.randn(x0.shape, generator=generator)
        x = torch.lerp(x0, eps, t[:, None, None, None])
        loss = (net(x, t) - (eps - x0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


def plugged(code: str, network: nn.Module):
    """The codec that the page's code makes of the network."""
    scope = {"my_network": network}
    exec(code, scope)
    return scope["codec"]


def test_real_images_to_tokens_and_back(network):
    """Some 17 dB at .4 bits a pixel, where the same network untrained gives 9: it is the network that decodes."""
    codec, x = plugged(EXAMPLE, network), photographs(40, 60, 100)
    tokens = codec.encode(x)
    assert tokens.dtype == torch.int64
    decoded, truth = codec.decode(tokens, (60, 100)), x.float() / 127.5 - 1
    assert decoded.shape == x.shape
    untrained = plugged(EXAMPLE, Velocity()).reconstruct(x)[1]
    error, without, other = ((d - truth).square().mean() for d in (decoded, untrained, decoded.flip(0)))
    assert error < 0.3 * without
    assert error < 0.3 * other


def test_the_adapter_that_is_there_gives_the_same(network):
    mine, flow = plugged(EXAMPLE, network), plugged(EXAMPLE + SHORT, network)
    assert mine.spec == flow.spec
    tokens = mine.encode(photographs(40, 32, 32))
    torch.testing.assert_close(mine.decode(tokens, (32, 32)), flow.decode(tokens, (32, 32)), rtol=0, atol=1e-4)


def test_a_wrapper_of_ones_own_is_another_codec_of_the_same_model(network):
    inner, around = plugged(EXAMPLE + SHORT, network), plugged(EXAMPLE + SHORT + AROUND, network)
    x = photographs(40, 60, 100)
    assert (around.backbone.name, around.backbone.multiple) == ("mine", 8)
    assert around.spec.fingerprint not in ("", inner.spec.fingerprint)
    assert inner.backbone.on_pixels
    assert not around.backbone.on_pixels  # its state is the image in another order of colours
    tokens, decoded = around.reconstruct(x)
    assert torch.equal(decoded, around.decode(tokens, (60, 100)))
    assert torch.equal(tokens, inner.encode(x.flip(1)))
    assert torch.equal(decoded, inner.decode(tokens, (60, 100)).flip(1))


class OfUnitRange(nn.Module):
    """The velocity of images in [0, 1] that a network of images in [-1, 1] implies: x0 = 2 u0 - 1, sigma is twice theirs."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        s = 1 - t[:, None, None, None]
        y, sigma = 2 * u / s - 1, 2 * (1 - s) / s
        inner_t = sigma / (1 + sigma)
        x = (1 - inner_t) * y
        x0 = x - inner_t * self.inner(x, inner_t.flatten())
        u0 = (x0 + 1) / 2
        return (u / s - u0) / (sigma / 2) - u0


def test_a_network_of_images_in_0_1_gives_the_same(network):
    scope = {"my_network": OfUnitRange(network)}
    exec(EXAMPLE + SHORT + RANGED, scope)
    y, mine = torch.randn(2, 3, 16, 16), plugged(EXAMPLE, network).backbone
    for sigma in (0.1, 1.0, 9.0):
        torch.testing.assert_close(scope["backbone"].denoise(y, sigma), mine.denoise(y, sigma), rtol=0, atol=1e-3)


class Eps(nn.Module):
    """The noise in grey images of which each pixel is Gaussian, of standard deviation .5."""

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return y * s / (0.25 + s * s)


def test_a_grey_network_of_one_size_is_right_and_takes_larger_images():
    scope = {"my_network": Eps()}
    exec("\n".join([EXAMPLE.split("class")[0], GREY, TILED]), scope)
    y = torch.randn(1, 1, 40, 30)
    for sigma in (0.1, 9.0):
        torch.testing.assert_close(scope["backbone"].denoise(y, sigma), y * 0.25 / (0.25 + sigma * sigma))


def test_the_factory_of_the_page_works_on_the_command_line(tmp_path, monkeypatch):
    package = (
        "from torch import nn\n\n\nclass MyNetwork(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 1)\n"
    )
    (tmp_path / "my_package.py").write_text(f"{package}\n    def forward(self, x, t):\n        return super().forward(x)\n")
    (tmp_path / "mine.py").write_text(FACTORY)
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "cat.png").write_bytes(images.png_bytes(photographs(40, 32, 32)[0].permute(1, 2, 0).numpy()))
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "my_package"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["roundtrip", "cat.png", "--backbone", "mine:make", "--steps", "4", "-o", "out"]) == 0
    assert (tmp_path / "out").is_dir()
    for name in ("mine", "my_package"):
        sys.modules.pop(name)


def test_other_weights_do_not_decode_its_files(network):
    spec = plugged(EXAMPLE, network).spec
    other = plugged(EXAMPLE, Velocity())
    with pytest.raises(CodecMismatchError, match="'mine'"):
        noisebook.load(spec, backbone=other.backbone)


class Wrong(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x, t):
        return self.change(x)


MISTAKES = {
    "returned a tuple: return its tensor": lambda x: (x,),
    "returned .2, 3, 16, 16. for .2, 3, 32, 32.: .*multiple": lambda x: x[..., ::2, ::2],
    "returned .2, 1, 32, 32. for .2, 3, 32, 32.: .*channels": lambda x: x[:, :1],
    "returned .1, 3, 32, 32.": lambda x: x[:1],
    "returned .2, 32, 32.": lambda x: x[:, 0],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_network_that_returns_something_else(message):
    with pytest.raises(BackboneError, match=message) as info:
        plugged(EXAMPLE, Wrong(MISTAKES[message])).encode(photographs(40, 32, 32))
    assert "'mine'" in str(info.value)
    assert "\n" not in str(info.value)


def test_a_network_that_gives_nan():
    with pytest.raises(ImageError, match="the backbone's prediction is not finite"):
        plugged(EXAMPLE, Wrong(lambda x: x / 0)).encode(photographs(40, 32, 32))


def test_a_forgotten_fingerprint():
    code, count = re.subn(r"\n +self\.fingerprint = .*", "", EXAMPLE)
    assert count == 1
    with pytest.raises(BackboneError, match=r"'mine' has no fingerprint.*fingerprint_of"):
        plugged(code, Velocity())


def test_a_wrong_precision(network):
    """bfloat16 comes with `call`; another dtype is refused by name."""
    x, backbone = photographs(40, 32, 32), type(plugged(EXAMPLE, network).backbone)(Velocity())
    fast = noisebook.load("photo", backbone=backbone, steps=20, dtype="bfloat16")
    assert fast.backbone.net.enter.weight.dtype == torch.bfloat16
    assert fast.decode(fast.encode(x), (32, 32)).dtype == torch.float32
    with pytest.raises(BackboneError, match="float16"):
        noisebook.load("photo", backbone=backbone, dtype="float16")
