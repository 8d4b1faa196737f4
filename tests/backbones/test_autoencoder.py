"""Autoencoders of latent models in bfloat16, channels-last and compiled, and by piece: images and states stay float32."""

import functools
import math
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import noisebook
from common import Shrink
from noisebook.backbones.base import DTYPES, NETWORK_ONLY, fingerprint_of
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder, TinyAutoencoder, read_taesd
from noisebook.backbones.wrappers import pieces
from noisebook.backbones.wrappers.latent import Latent
from noisebook.cli.main import main
from noisebook.codec.codec import Codec
from noisebook.datasets.recipe import CodecRecipe
from noisebook.errors import BackboneError
from noisebook.spec.presets import Recipe

BFLOAT16 = ("bfloat16", torch.bfloat16)


class Net(nn.Module):
    """Predicts what makes `EDM` the posterior mean of white Gaussian images; a weight says in which precision."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, channels, 1, 1) / channels)

    def forward(self, x, level):
        return 0 * nn.functional.conv2d(x, self.weight)


def latent(autoencoder: nn.Module, channels: int, factor: int = 8, **options) -> Latent:
    model = Latent(EDM(Net(channels), channels=channels), autoencoder, factor=factor, **options)
    model.name, model.fingerprint = "test", fingerprint_of({"kind": "test"}, {})
    return model.eval().requires_grad_(False)  # type: ignore[return-value]


def tiny(pooled: bool = False) -> TinyAutoencoder:
    torch.manual_seed(2)
    return TinyAutoencoder(4, pooled).eval().requires_grad_(False)


def diffusers_one(kind: str = "AutoencoderKL", **options) -> DiffusersAutoencoder:
    """A tiny seeded autoencoder of diffusers, 2 x 2 pixels to 4 channels."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(5)
    shape: dict = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    shape |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    if kind == "AutoencoderTiny":
        shape = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        shape |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return DiffusersAutoencoder(getattr(diffusers, kind)(**shape, **options).eval().requires_grad_(False))


MAKERS = {
    "taesd": lambda: latent(tiny(pooled=True), 4),
    "AutoencoderKL": lambda: latent(diffusers_one(), 4, 2, scale=0.5, shift=0.1),
    "AutoencoderTiny": lambda: latent(diffusers_one("AutoencoderTiny"), 4, 2),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def pictures(fresh, batch: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(fresh.uniform(-1, 1, (batch, 3, height, width))).float()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of images in [-1, 1], as pixels of a picture."""
    return 10 * math.log10(4 / (a.clamp(-1, 1) - b.clamp(-1, 1)).double().square().mean().item())


# ---- what accelerate changes -----------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("dtype", BFLOAT16)
def test_weights_are_cast_and_images_and_states_are_not(make, dtype, fresh):
    plain, fast = make(), make()
    version, images = fast.version, pictures(fresh, 2, 32, 48)
    assert fast.accelerate(dtype) is fast
    assert fast.version > version
    assert (fast.fingerprint, fast.unfingerprinted_options) == (plain.fingerprint, plain.unfingerprinted_options)
    assert {p.dtype for p in fast.inner.parameters()} == {torch.bfloat16}
    kept = {name.rpartition(".")[0] for name, p in fast.autoencoder.named_parameters() if p.dtype != torch.bfloat16}
    ends = [fast.autoencoder.get_submodule(name) for name in sorted(kept)]  # the convolutions that read and write pictures
    assert sorted(conv.in_channels == 3 for conv in ends) == [False, True]
    assert sorted(conv.out_channels == 3 for conv in ends) == [False, True]
    for name, conv in zip(sorted(kept), ends, strict=True):
        assert torch.equal(conv.weight, plain.autoencoder.get_submodule(name).weight)  # never rounded
    for got, wanted in (
        (fast.encode(images), plain.encode(images)),
        (fast.decode(plain.encode(images)), plain.decode(plain.encode(images))),
    ):
        assert got.dtype == wanted.dtype == torch.float32
        assert got.is_contiguous()
        assert 0 < (got - wanted).norm() < 0.05 * wanted.norm()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_convolution_works_channels_last(make, dtype, fresh):
    plain, fast, seen = make(), make().accelerate(dtype, channels_last=True), []
    weights = [p for p in fast.autoencoder.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    for module in fast.autoencoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = pictures(fresh, 2, 32, 48)
    z = fast.encode(images)
    found = fast.decode(z)
    inside = [x for x in seen if x.shape[1] != 3][:-1]  # all but the convolutions that read and write pictures
    assert {x.dtype for x in inside} == {DTYPES[dtype]}
    assert sum(not x.is_contiguous(memory_format=torch.channels_last) for x in seen) <= 1  # an attention's own layout
    assert z.is_contiguous()
    assert found.is_contiguous()
    if dtype == "float32":
        torch.testing.assert_close(z, plain.encode(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, plain.decode(z), rtol=1e-4, atol=1e-4)


@pytest.fixture
def compiled(monkeypatch) -> list:
    """What torch.compile was given, each time it is called; it runs as it is."""
    calls: list = []

    def stand_in(function, **options):
        def run(*args, **kwargs):
            calls.append(function)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


@torch.no_grad()
def test_encoder_and_decoder_are_compiled(make, compiled, fresh):
    plain, fast, images = make(), make(), pictures(fresh, 1, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fast.accelerate(compile=True)
    for verb, x in (("encode", images), ("decode", plain.encode(images))):
        compiled.clear()
        assert torch.equal(getattr(fast, verb)(x), getattr(plain, verb)(x))
        assert len(compiled) >= 1
    assert set(fast.state_dict()) == set(plain.state_dict())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_can_trace_encoder_and_decoder(make, dtype, monkeypatch, fresh):
    """Through torch.compile's tracer, without a break; its own code generator is tried on a GPU."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    plain, fast = (make().accelerate(dtype, compile=compile) for compile in (False, True))
    images = pictures(fresh, 1, 16, 16)
    z = plain.encode(images)
    torch.testing.assert_close(fast.encode(images), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.decode(z), plain.decode(z), rtol=1e-4, atol=1e-4)
    assert len(graphs) >= 2
    torch._dynamo.reset()


class Own(nn.Module):
    """An autoencoder of a user's: two methods, nothing called encoder."""

    def __init__(self, constant: bool = False):
        super().__init__()
        self.mix, self.constant = nn.Conv2d(3, 3, 1), constant

    def encode(self, images):
        return nn.functional.conv2d(images, torch.ones(3, 3, 1, 1)) if self.constant else self.mix(images)

    def decode(self, z):
        return z


def test_an_autoencoder_without_the_names_is_not_compiled_in_silence(compiled):
    model = latent(Own(), 3, 1)
    with pytest.warns(RuntimeWarning, match=r"'test' is not compiled.*encoder"):
        model.accelerate(compile=True)


@torch.no_grad()
def test_accelerated_again_it_is_as_if_once(make, fresh):
    """Also a copy of it, as the codec makes one for large pictures."""
    images, once = pictures(fresh, 1, 32, 32), make().accelerate("bfloat16", channels_last=True)
    twice = deepcopy(make().accelerate("bfloat16"))
    twice.accelerate("bfloat16", channels_last=True)
    z = once.encode(images)
    assert torch.equal(twice.encode(images), z)
    assert torch.equal(twice.decode(z), once.decode(z))
    back = twice.accelerate("float32")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    torch.testing.assert_close(back.encode(images), z, rtol=0.05, atol=0.05)
    seen = []
    for module in back.autoencoder.modules():
        module.register_forward_hook(lambda m, args, out: seen.append(out.dtype) if isinstance(m, nn.Conv2d) else None)
    back.decode(back.encode(images))
    assert set(seen) == {torch.float32}


def test_where_the_network_refuses_nothing_changes():
    model = Latent(Shrink(), tiny())
    with pytest.raises(BackboneError, match="no network"):
        model.accelerate("bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.version == 0


# ---- which stay float32 ----------------------------------------------------------------------------------------------
@torch.no_grad()
def test_the_switch_leaves_the_autoencoder_in_float32(make, fresh):
    plain, fast = make(), make().accelerate(NETWORK_ONLY)
    assert {p.dtype for p in fast.autoencoder.parameters()} == {torch.float32}
    assert {p.dtype for p in fast.inner.parameters()} == {torch.bfloat16}
    images = pictures(fresh, 1, 32, 32)
    assert torch.equal(fast.encode(images), plain.encode(images))
    assert torch.equal(fast.decode(plain.encode(images)), plain.decode(plain.encode(images)))


def test_the_switch_is_an_option_everywhere():
    codec = noisebook.load("photo", dtype=NETWORK_ONLY)
    assert torch.bfloat16 in {p.dtype for p in codec.backbone.parameters()}  # a model of pixels: as under bfloat16
    recipe = CodecRecipe(dtype=NETWORK_ONLY)
    assert recipe.network()["dtype"] == NETWORK_ONLY  # a plan says it, so that a reader computes alike
    with pytest.raises(BackboneError, match="float32, bfloat16, bfloat16-network, not float64"):
        noisebook.load("photo", dtype="float64")


def test_the_command_line_takes_the_same_names(capsys):
    with pytest.raises(SystemExit):
        main(["encode", "--dtype", "nothing"])
    said = capsys.readouterr().err
    assert all(repr(name) in said or name in said for name in DTYPES)


@torch.no_grad()
def test_a_vq_model_stays_float32(fresh):
    """Its decoder takes the nearest code: rounded, other ones."""
    make = functools.partial(diffusers_one, "VQModel", num_vq_embeddings=512)
    plain, fast = (latent(make(), 4, 2) for _ in range(2))
    fast.accelerate("bfloat16")
    assert {p.dtype for p in fast.autoencoder.parameters()} == {torch.float32}
    images, z = pictures(fresh, 1, 32, 32), torch.from_numpy(fresh.normal(size=(1, 4, 32, 32))).float()
    for model in (plain, fast):
        model.autoencoder.vae.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(6))
    assert torch.equal(fast.encode(images), plain.encode(images))
    assert torch.equal(fast.decode(z), plain.decode(z))
    quantize = plain.autoencoder.vae.quantize
    assert not torch.equal(quantize(z)[2][2], quantize(z.bfloat16().float())[2][2])


@torch.no_grad()
def test_force_upcast_is_about_float16_only(fresh):
    """Activations beyond the range of float16, as SDXL's: bfloat16 holds them, so such an autoencoder is cast as well."""
    images, found = pictures(fresh, 1, 16, 16), {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        autoencoder = diffusers_one(force_upcast=True)
        autoencoder.vae.encoder.conv_in.weight.mul_(3e6)
        if dtype == torch.float16:
            found[dtype] = autoencoder.half().encode(images.half()).float()
            continue
        model = latent(autoencoder, 4, 2).accelerate(dtype)
        assert dtype in {p.dtype for p in model.autoencoder.parameters()}
        found[dtype] = model.encode(images)
    wanted = found[torch.float32]
    assert wanted.isfinite().all()
    assert (found[torch.bfloat16] - wanted).norm() < 0.05 * wanted.norm()
    assert not found[torch.float16].isfinite().all()


@torch.no_grad()
def test_one_that_fails_in_bfloat16_is_told_the_switch(fresh):
    model, images = latent(Own(constant=True), 3, 1), pictures(fresh, 1, 8, 8)
    model.encode(images)
    model.accelerate("bfloat16")
    with pytest.raises(BackboneError, match=r"fails in bfloat16.*'bfloat16-network'") as info:
        model.encode(images)
    assert "\n" not in str(info.value)
    latent(Own(constant=True), 3, 1).accelerate(NETWORK_ONLY).encode(images)


# ---- quality ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def taef2(data):
    """TAEF2 in float32, and where photographs are that it was not trained on."""
    files = [data / f"weights/taef2_{half}.pth" for half in ("encoder", "decoder")]
    if not files[0].is_file():
        pytest.skip("no weights of TAEF2")
    return read_taesd(*files).requires_grad_(False), data / "kodak"


def photographs(folder, numbers, rows: slice, columns: slice) -> torch.Tensor:
    """The same part of several of them, uint8 [B, 3, H, W]."""
    crops = [np.array(Image.open(folder / f"kodim{i:02}.png"))[rows, columns] for i in numbers]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def losses(found: torch.Tensor, wanted: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """By how many dB the PSNR of each of `found` against the truth is above that of `wanted`."""
    return np.array([psnr(a, x) - psnr(b, x) for a, b, x in zip(found, wanted, truth, strict=True)])


@torch.no_grad()
def test_bfloat16_costs_no_quality_on_photographs(taef2, capsys):
    """At most .05 dB of PSNR against the photographs: of the autoencoder alone for each, and of a whole codec in the mean,
    since other tokens are worse here and better there. Tokens of one precision decode in the other."""
    images = photographs(taef2[1], (1, 3, 9, 11), slice(192, 288), slice(320, 416))
    truth, made = images / 127.5 - 1, {}
    recipe = Recipe(steps=20, budget=1024, vocab_size=256, sigma_max=3, sigma_min=0.005, start_budget=64)
    for name in ("float32", "bfloat16"):
        backbone = latent(deepcopy(taef2[0]), 32, scale=0.4).accelerate(name, channels_last=True)
        codec = Codec(recipe.build(backbone), backbone)
        made[name] = (backbone.decode(backbone.encode(truth)), *codec.reconstruct(images), codec)
    (alone, tokens, whole, _), (fast_alone, _, fast_whole, fast) = made["float32"], made["bfloat16"]
    other = fast.decode(tokens, (96, 96))
    lost = [losses(*pair, truth) for pair in ((fast_alone, alone), (fast_whole, whole), (other, whole))]
    with capsys.disabled():
        print(f"\n  TAEF2 {psnr(alone, truth):.2f} dB, a codec on it {psnr(whole, truth):.2f} dB; in bfloat16, the same and")
        print(f"  decoding float32's tokens: {', '.join(f'{dB.mean():+.3f} (worst {dB.min():+.3f})' for dB in lost)}")
    assert psnr(whole, truth) > psnr(alone, truth) - 0.5  # tokens enough that the autoencoder counts
    for dB in (lost[0], lost[2]):
        assert dB.min() > -0.05
    for dB in lost:
        assert abs(dB.mean()) < 0.05
    assert psnr(fast_alone, alone) > 48
    assert psnr(other, whole) > 48


@torch.no_grad()
def test_bfloat16_of_a_random_autoencoder(fresh):
    """Of random weights nothing is like the picture; that of both precisions is alike, at its own scale."""
    found = []
    images = pictures(fresh, 2, 32, 48)
    for dtype in ("float32", "bfloat16"):
        model = MAKERS["AutoencoderKL"]().accelerate(dtype)
        found.append(model.decode(model.encode(images)))
    assert abs(psnr(found[0], images) - psnr(found[1], images)) < 0.05
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


# ---- a bounded number of pixels --------------------------------------------------------------------------------------
class Calls(nn.Module):
    """Passes pixels through, folded into channels, and keeps the inputs of its calls."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor, self.seen = factor, []

    def encode(self, images):
        self.seen.append(images)
        return nn.functional.pixel_unshuffle(images, self.factor)

    def decode(self, z):
        self.seen.append(z)
        return nn.functional.pixel_shuffle(z, self.factor)


class Many(Shrink):
    channels = 3 * 64


@pytest.mark.parametrize(
    ("height", "width"), [(1024, 1024), (1536, 640), (64, 65536), (2304, 1536), (3000, 4000), (4096, 4096)]
)
def test_up_to_sixteen_megapixels_there_is_one_call(height, width):
    """So tokens are what they were before there were tiles, bit for bit. Tensors without values."""
    autoencoder = Calls(8)
    images = torch.empty(1, 3, height, width, device="meta")
    model = Latent(Many(), autoencoder)
    z = model.encode(images)
    assert model.decode(z).shape == images.shape
    assert autoencoder.seen[0] is images
    assert len(autoencoder.seen) == 2


@pytest.mark.parametrize(
    ("batch", "height", "width", "calls"),
    [
        *[(1, 3000, 4000, 1), (3, 3000, 4000, 3), (1, 6000, 4000, 35), (7, 2056, 2056, 7), (32, 512, 512, 2)],
        *[(17, 512, 512, 2), (2, 64, 320_000, 357), (5, 8, 8, 1)],
    ],
)
def test_no_call_has_more_pixels_than_the_bound(batch, height, width, calls):
    autoencoder = Calls(8)
    model = Latent(Many(), autoencoder)
    z = model.encode(torch.empty(batch, 3, height, width, device="meta"))
    assert z.shape == (batch, 192, height // 8, width // 8)
    sizes = [(len(x), x.shape[2], x.shape[3]) for x in autoencoder.seen]
    assert all(b * h * w <= (pieces.MOST if b > 1 else pieces.WHOLE) for b, h, w in sizes)
    assert len(sizes) == calls
    assert len({size[1:] for size in sizes}) == 1  # equal tiles
    autoencoder.seen.clear()
    assert model.decode(z).shape == (batch, 3, height, width)
    assert [(len(x), 8 * x.shape[2], 8 * x.shape[3]) for x in autoencoder.seen] == sizes  # both ends cut alike


@pytest.fixture
def small(monkeypatch):
    """Tiles of 128 pixels, so that small pictures have some."""
    monkeypatch.setattr(pieces, "MOST", 1 << 14)
    monkeypatch.setattr(pieces, "WHOLE", 1 << 14)
    monkeypatch.setattr(pieces, "TILE", 128)
    monkeypatch.setattr(pieces, "OVERLAP", 32)


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 256])
def test_tiles_of_what_looks_at_no_neighbour_are_the_whole(factor, small, fresh):
    height, width = (-(-n // factor) * factor for n in (200, 312))
    images, autoencoder = pictures(fresh, 2, height, width), Calls(factor)
    inner = Shrink()
    inner.channels = 3 * factor**2
    model = Latent(inner, autoencoder, factor=factor)
    z = model.encode(images)
    assert len(autoencoder.seen) > 2
    torch.testing.assert_close(z, nn.functional.pixel_unshuffle(images, factor), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(z), images, rtol=0, atol=1e-6)


@torch.no_grad()
def test_tiles_and_slices_bound_the_largest_tensor(make, monkeypatch, fresh):
    for constant, value in (("MOST", 1 << 12), ("WHOLE", 1 << 12), ("TILE", 64), ("OVERLAP", 16)):
        monkeypatch.setattr(pieces, constant, value)
    model, largest = make(), [0]

    def look(_, args, out):
        largest[0] = max([largest[0], *(t.numel() for t in (*args, out) if isinstance(t, torch.Tensor))])

    for module in model.autoencoder.modules():
        module.register_forward_hook(look)
    found = []
    for batch, height, width in ((1, 64, 64), (3, 64, 64), (1, 112, 72), (2, 72, 64)):
        images, largest[0] = pictures(fresh, batch, height, width), 0
        decoded = model.decode(model.encode(images))
        assert decoded.shape == images.shape
        found.append(largest[0])
    assert max(found) == found[0] >= 8 * pieces.MOST  # as many as the channels of the first convolution
    one = model.decode(model.encode(images[1:]))
    torch.testing.assert_close(one, decoded[1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_seams_do_not_show(taef2, monkeypatch, capsys):
    """The error of tiles against the photograph, as a share of the error of one whole call: where tiles meet at most 1.1
    times what it is elsewhere. So are the steps from each pixel to the next, which an edge would show in."""
    for constant, value in (("MOST", 1 << 15), ("WHOLE", 1 << 15), ("TILE", 256), ("OVERLAP", 64)):
        monkeypatch.setattr(pieces, constant, value)
    picture = photographs(taef2[1], [5], slice(100, 228), slice(100, 612)) / 127.5 - 1
    model = latent(taef2[0], 32)
    tiled = model.decode(model.encode(picture)) - picture
    whole = taef2[0].decode(taef2[0].encode(picture)) - picture
    side = 8 * pieces.tile_side(512 // 8, 32, 8)
    edges = {n for a in pieces.tile_starts(512, side, 64) for n in (a, a + side)} - {0, 512}
    assert len(edges) == 4  # columns at which three tiles begin or end
    found = []
    for errors in ((tiled, whole), (tiled.diff(dim=3), whole.diff(dim=3))):
        share = [e.square().mean((0, 1, 2)) for e in errors]
        near = torch.zeros(share[0].shape, dtype=torch.bool)
        for edge in edges:
            near[edge - 4 : edge + 4] = True
        at, elsewhere = (float(share[0][m].sum() / share[1][m].sum()) for m in (near, ~near))
        found.append(at / elsewhere)
    lost = psnr(tiled + picture, picture) - psnr(whole + picture, picture)
    with capsys.disabled():
        print(
            f"\n  tiles of {side} pixels: {lost:+.3f} dB; error at seams {found[0]:.3f} x, steps {found[1]:.3f} x elsewhere"
        )
    assert abs(lost) < 0.15
    assert max(found) < 1.1


def test_an_autoencoder_of_another_factor_is_said_tiled_or_not(small, fresh):
    for side in (64, 256):
        inner = Shrink()
        inner.channels = 12
        model = Latent(inner, Calls(4), factor=2)
        with pytest.raises(BackboneError, match="factor and channels"):
            model.encode(pictures(fresh, 1, side, side))
        with pytest.raises(BackboneError, match="factor and channels"):
            model.decode(torch.zeros(1, 48, side // 2, side // 2))
