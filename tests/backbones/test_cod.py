"""CoD: published layouts, strict files, tokens, sampling, and the backbone in the loop; small random networks on the CPU."""

import hashlib
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch

import noisebook
from common import random_images
from noisebook import backbones
from noisebook.backbones.cod import files as cod_files
from noisebook.backbones.cod.cod import CoD, network
from noisebook.backbones.cod.files import load_published
from noisebook.backbones.cod.nets import CodConfig, CodNet, rope, turned
from noisebook.backbones.wrappers.latent import Latent
from noisebook.cli import main as cli
from noisebook.codebook import start_noise
from noisebook.codec import modes
from noisebook.codec.codec import Codec
from noisebook.codec.solvers import solve_ode
from noisebook.errors import BackboneError, CodecMismatchError, ImageError, SpecError
from noisebook.format import container
from noisebook.images.files import decode_picture, describe, encode_picture, spec_of
from noisebook.images.io import SAMPLES, png_bytes, read_image, sample
from noisebook.spec import curve as calibration
from noisebook.spec.presets import Recipe
from noisebook.spec.schedule import TURBO_TIMES, even_levels
from noisebook.spec.spec import CodecSpec

LATENT = CodConfig(latent=True, blocks=28, cond_blocks=22)
# SHA-256 over the sorted names and shapes of the published code's own listings; before it tensors and millions of weights
PUBLISHED = {
    "pixel .0039, 512": (CodConfig(), 558, 897.06, "cde84effa824bf802e432d615f3ff2c6361ccf42fd29d950abb55239fe5cac01"),
    "pixel .00024, 512": (
        CodConfig(ds=128),
        616,
        1030.68,
        "a9b1fb9a04d2e100305e2a728279201a76f514489a936a14732f26e23c3b54c7",
    ),
    "pixel .0039, 256": (
        CodConfig(up2x=False),
        550,
        873.17,
        "4d5bdcd2c457e1b4f808dda874ff1b796a90c0cac073e61af037315c2c0a78fa",
    ),
    "latent .0039, 512": (LATENT, 569, 853.55, "908a417bf45ba901b52739582b909583ddd7937e8e5707bdd91fce44d799626c"),
    "latent .00024, 512": (
        replace(LATENT, ds=128),
        627,
        987.17,
        "12ef058dee29969f3b5e23c1f338246658306fdd0419f19deed0d42bb8de8f6a",
    ),
}
SMALL = CodConfig(hidden=64, heads=4, blocks=3, cond_blocks=2, hidden_x=8, width=32)
SMALLS = {
    "pixel": SMALL,
    "pixel 256": replace(SMALL, up2x=False),
    "pixel 64 bits": replace(SMALL, ds=128),
    "light": replace(SMALL, light=True),
    "latent": replace(SMALL, latent=True, blocks=8, hidden_x=64),  # a latent model has no such width
}


def small(config=SMALL, seed=0) -> CoD:
    torch.manual_seed(seed)
    net = CodNet(config).eval().requires_grad_(False)
    backbone = CoD(net)
    backbone.name, backbone.fingerprint = "cod", hashlib.sha256(repr((config, seed)).encode()).hexdigest()
    return backbone


# ---- layouts and files --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_has_its_name_and_shape(name):
    config, count, millions, digest = PUBLISHED[name]
    with torch.device("meta"):
        state = CodNet(config).state_dict()
    listing = "\n".join(sorted(f"{k} {tuple(t.shape)}" for k, t in state.items()))
    assert len(state) == count
    assert sum(t.numel() for t in state.values()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert hashlib.sha256(listing.encode()).hexdigest() == digest


def published(path, net, top="state_dict", **changes):
    """A file as the published ones: other weights beside the averaged ones, in one dictionary."""
    tensors = {f"ema_denoiser.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"denoiser.{k}": v + 1 for k, v in net.state_dict().items()}
    tensors |= {"diffusion_trainer.proj.0.0.weight": torch.ones(4, 4), **changes}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    torch.save({top: tensors, "global_step": 3} if top else tensors, path)
    return path


@pytest.mark.parametrize(("case", "top"), [*((case, "state_dict") for case in SMALLS), ("pixel", "module"), ("pixel", None)])
def test_a_published_file_loads_and_converts(case, top, tmp_path, fresh):
    made = small(SMALLS[case])
    path = published(tmp_path / "a.pt", made.net, top)
    config, tensors = cod_files.read_published(path)
    found = CoD(network(config, tensors)) if config.latent else load_published(path)
    assert found.net.config == made.net.config
    assert all(torch.equal(v, found.net.state_dict()[k]) for k, v in made.net.state_dict().items())
    assert cli.main(["convert", str(path), "-o", str(tmp_path / "a.safetensors")]) == 0
    if made.net.config.latent:
        for name in ("a.pt", "a.safetensors"):
            with pytest.raises(BackboneError, match="needs its autoencoder"):
                backbones.load(tmp_path / name)
        return
    again = backbones.load(tmp_path / "a.safetensors")
    assert again.fingerprint == found.fingerprint == backbones.load(path).fingerprint
    assert (
        backbones.load(path, guidance=3.0).fingerprint
        == backbones.load(tmp_path / "a.safetensors", guidance=2.0).fingerprint
    )
    with pytest.raises(BackboneError, match="has no autoencoder"):
        backbones.load(path, autoencoder=str(tmp_path))
    assert again.name == "a"
    images = random_images(fresh, 1, 128, 128)
    assert torch.equal(again.encode_condition(images), made.encode_condition(images))


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    net = small().net
    name = "ema_denoiser.blocks.1.attn.proj.bias"
    with pytest.raises(BackboneError, match=r"lacks blocks\.1\.attn\.proj\.bias$"):
        load_published(published(tmp_path / "a.pt", net, **{name: None}))
    with pytest.raises(BackboneError, match=r"has besides blocks\.1\.attn\.proj\.extra"):
        load_published(published(tmp_path / "a.pt", net, **{"ema_denoiser.blocks.1.attn.proj.extra": torch.ones(2)}))
    with pytest.raises(BackboneError, match="of another shape"):
        load_published(published(tmp_path / "a.pt", net, **{name: torch.ones(5)}))
    torch.save({"state_dict": {f"denoiser.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "b.pt")
    with pytest.raises(BackboneError, match="no averaged weights"):
        load_published(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 nothing")
    for missing in (tmp_path / "c.pt", tmp_path / "d.pt"):
        with pytest.raises(BackboneError):
            load_published(missing)
    assert cli.main(["convert", str(tmp_path / "b.pt"), "-o", str(tmp_path / "b.safetensors")]) == BackboneError.code
    good = str(published(tmp_path / "a.pt", net))
    assert cli.main(["convert", good, "-o", str(tmp_path / "none" / "b.safetensors")]) == BackboneError.code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt", "c.pt"]
    with pytest.raises(BackboneError, match="no CoD of"):
        network(replace(SMALL, bits=5), dict(net.state_dict()))


class Evil:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_no_code_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("a.pt", "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    torch.save({"state_dict": {"ema_denoiser.x": Evil()}}, "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(BackboneError, match="more than tensors"):
            load_published(name)
    assert not (tmp_path / "pwned").exists()


# ---- tokens -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", SMALLS)
def test_tokens_are_the_nearest_code_vectors(case, fresh):
    cod = small(SMALLS[case])
    images = random_images(fresh, 2, 128, 256)
    tokens = cod.encode_condition(images)
    stride = cod.stride
    assert (tokens.dtype, tuple(tokens.shape)) == (torch.int64, (2, 128 // stride, 256 // stride))
    z = cod.net.y_embedder.encoder(images.float() / 255).permute(0, 2, 3, 1)
    codes = cod.net.y_embedder.bottleneck.embedding.weight
    assert torch.equal(tokens, (z[..., None, :] - codes).double().square().sum(-1).argmin(-1))
    assert torch.equal(tokens, cod.encode_condition(images.float() / 127.5 - 1))
    assert cod.condition(tokens.flatten(1), 128, 256).shape == (2, 64, 8, 16)


SIZES = [
    ("pixel", (512, 512), 1024),
    ("pixel 64 bits", (512, 512), 64),
    ("pixel 256", (256, 256), 1024),
    ("pixel", (768, 512), 1536),
]


def tokenizer(cod: CoD, kind: str = "ab2", steps: int = 25, seed: int = 0) -> Codec:
    """The codec of the condition alone; a latent model's latents are the images here."""
    return Codec(Recipe(condition="only", solver=kind, steps=steps, seed=seed).build(cod), cod)


@pytest.mark.parametrize(("case", "size", "bits"), SIZES)
def test_tokens_cost_what_the_paper_says(case, size, bits):
    """16 x 16 tokens of 4 bits for 512 x 512 are .0039 bits a pixel; 4 x 4 are .00024."""
    codec = tokenizer(small(SMALLS[case]))
    assert container.packed_bits(codec.stream(*size).runs) == bits
    assert codec.layout_for(*size).bits == bits
    assert codec.encode_nfe == 0


def test_non_square_images_are_not_transposed(fresh):
    """A fault of the published files: tokens of h x w came back as w x h. Here a tall image's file gives a tall picture."""
    codec = tokenizer(small(), steps=2)
    for height, width in ((64, 160), (160, 64), (50, 97)):
        pixels = random_images(fresh, 1, height, width)[0].permute(1, 2, 0).numpy()
        file = container.Container.from_bytes(encode_picture(codec, pixels))
        grid = (-(-height // 32), -(-width // 32))
        assert (file.height, file.width, len(file.payload)) == (height, width, -(-math.prod(grid) // 2))
        assert decode_picture(codec, file).shape == pixels.shape
        padded = torch.nn.functional.pad(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (0, -width % 32, 0, -height % 32), mode="replicate"
        )
        asked = codec.backbone.encode_condition(padded / 127.5 - 1)
        assert asked.shape == (1, *grid)
        assert torch.equal(codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]), asked.flatten(1))


def test_several_sizes_in_one_run_have_a_condition_for_none_each(fresh):
    """A fault of the published code: the condition for none was kept from the first image's size."""
    cod = small()
    cod.guidance = 3.0
    codec = tokenizer(cod, steps=3)
    for _ in range(2):
        for height, width in ((64, 96), (96, 64), (128, 64)):
            tokens = codec.encode(random_images(fresh, 1, height, width))
            assert codec.decode(tokens, (height, width)).shape == (1, 3, height, width)
            none = cod._none(torch.zeros(1, 3, height, width))
            assert none.shape == (1, 64, height // 16, width // 16)
            empty = cod.net.y_embedder.encoder(torch.full((1, 3, height, width), -1.0))
            nearest = cod.net.y_embedder.bottleneck.tokens(empty)
            assert torch.equal(none, cod.condition(nearest.flatten(1), height, width))


def test_a_latent_model_has_a_condition_for_none(tmp_path, fresh):
    """A fault of the published code: that of a latent model was made of an image of 4 channels, and decoding failed."""
    vae = pytest.importorskip("diffusers").AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    vae.save_pretrained(tmp_path / "vae")
    path = published(tmp_path / "a.pt", small(SMALLS["latent"]).net)
    latent = backbones.load(path, guidance=1.25, autoencoder=str(tmp_path / "vae"))
    assert isinstance(latent, Latent)
    assert latent.scale == pytest.approx(0.03318, abs=1e-5)
    cli.main(["convert", str(path), "-o", str(tmp_path / "a.safetensors")])
    again = backbones.load(tmp_path / "a.safetensors", autoencoder=str(tmp_path / "vae"))
    assert again.fingerprint == latent.fingerprint
    codec, images = tokenizer(latent, steps=4), random_images(fresh, 2, 64, 96)
    tokens = codec.encode(images)
    assert tokens.shape == (2, 6)
    decoded = codec.decode(tokens, (64, 96))
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()
    first = Codec(Recipe(condition="first", steps=3, budget=4, vocab_size=256).build(latent), latent)
    tokens, shown = first.reconstruct(images)
    assert torch.equal(first.decode(tokens, (64, 96)), shown)
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    vae.save_pretrained(tmp_path / "vae")
    assert backbones.load(path, autoencoder=str(tmp_path / "vae")).fingerprint != latent.fingerprint
    vae.save_config(tmp_path / "empty")
    for place, word in ((tmp_path / "none", "config.json"), (tmp_path / "empty", "safetensors")):
        with pytest.raises(BackboneError, match=word):
            backbones.load(path, autoencoder=str(place))


def test_sizes_tokens_and_options_that_do_not_fit_are_refused(fresh, tmp_path):
    cod = small()
    with pytest.raises(ImageError, match="multiples of 32 pixels, not 500 x 512"):
        cod.encode_condition(random_images(fresh, 1, 500, 512))
    for bad in (torch.zeros(2, 2), torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64)):
        with pytest.raises(SpecError):
            cod.condition(bad, 64, 64)
    codec = tokenizer(cod)
    for bad in (-1, 16):
        with pytest.raises(CodecMismatchError, match="outside its vocabulary"):
            codec.decode(torch.full((1, 4), bad), (64, 64))
    for steps in (0, 1001):
        with pytest.raises(SpecError, match="from 1 to 1000"):
            codec.decode(torch.zeros(1, 4, dtype=torch.int64), (64, 64), steps)
    with pytest.raises(BackboneError, match="takes guidance and autoencoder, not label"):
        backbones.load(published(tmp_path / "a.pt", cod.net), label=3)
    with pytest.raises(SpecError, match="none, first or only"):
        Recipe(condition="last").build(cod)
    with pytest.raises(SpecError, match="no condition tokens"):
        Recipe(condition="only").build(backbones.load("gaussian-prior"))
    with pytest.raises(SpecError, match="no condition tokens of"):
        Codec(replace(codec.spec, condition=(16, 16, 32)), cod)
    with pytest.raises(SpecError, match="other condition tokens"):
        Codec(replace(Recipe(condition="first").build(cod), rows=3), cod).stream(64, 64)


# ---- the flow -----------------------------------------------------------------------------------------------------------
class Known(CoD):
    """The exact velocity for white Gaussian images of deviation .5, whose flow is known; counts the rows it is asked for."""

    rows = 0

    def _velocity(self, x, t, cond):
        assert len(cond) in (1, len(x))
        self.rows += len(x)
        s = 1 - t
        return (0.25 * t - s) / (0.25 * t * t + s * s) * x


def known() -> Known:
    torch.manual_seed(0)
    backbone = Known(CodNet(SMALL).eval().requires_grad_(False))
    backbone.name, backbone.fingerprint = "known", "0" * 64
    return backbone


def test_the_backbone_is_the_posterior_mean(fresh):
    y = torch.from_numpy(fresh.standard_normal((2, 3, 32, 32))).float()
    for sigma in (0.01, 0.3, 1.0, 7.0, 900.0):
        assert torch.allclose(known().denoise(y, sigma), y * 0.25 / (0.25 + sigma * sigma), atol=1e-5)
    assert known().denoise(y, math.inf).abs().max() < 1e-6  # of pure noise: the mean image


def test_samplers_converge_to_the_flow_at_their_order():
    """x(1) = .5 eps. Errors fall in half with twice Euler's steps, to a quarter with Adams-Bashforth's."""
    cod, tokens = known(), torch.zeros(1, 1, dtype=torch.int64)

    def error(kind, steps):
        codec = tokenizer(cod, kind, steps, seed=3)
        eps = start_noise(1, 3 * 32 * 32, 3, torch.device("cpu")).view(1, 3, 32, 32)
        return float((codec.decode(tokens, (32, 32)) - 0.5 * eps).abs().max())

    for kind, ratio in (("euler", 2), ("ab2", 4)):
        assert error(kind, 100) / error(kind, 200) == pytest.approx(ratio, rel=0.15)
    assert error("ab2", 25) < error("euler", 25)
    assert tokenizer(cod, "ab2", 1).decode(tokens, (32, 32)).abs().max() < 1e-6  # one step: the mean image, eps + v(eps, 0)
    drawn = tokenizer(cod, "ab2", 25).decode(tokens, (32, 32), steps=7)
    assert torch.equal(drawn, tokenizer(cod, "ab2", 7).decode(tokens, (32, 32)))


def test_ab2_is_the_papers_sampler(fresh):
    """x_{i+1} = x_i + (3/2 v_i - 1/2 v_{i-1}) / N on t_i = i / N, v_0 alone in the first step, and guidance inside its
    interval, written out."""
    cod, steps, g = small(), 12, 3.0
    cod.guidance = g
    codec = tokenizer(cod, "ab2", steps)
    tokens = torch.from_numpy(fresh.integers(0, 16, (2, 4)))
    told, x = cod.condition(tokens, 64, 64), start_noise(1, 3 * 64 * 64, 0, torch.device("cpu")).view(1, 3, 64, 64)
    x, before = x.expand(2, -1, -1, -1), None
    for i in range(steps):
        t = i / steps
        v = cod._velocity(x, t, told)
        if 0.1 < t < 1:
            none = cod._velocity(x, t, cod._none(x).expand_as(told))
            v = none + g * (v - none)
        x = x + (v if before is None else 1.5 * v - 0.5 * before) / steps
        before = v
    assert torch.allclose(codec.decode(tokens, (64, 64)), x, atol=2e-3)


def test_guidance_costs_a_second_pass_inside_its_interval_alone():
    cod, tokens = known(), torch.zeros(2, 1, dtype=torch.int64)
    codec = tokenizer(cod, steps=25)
    assert codec.nfe == 25
    cod.guidance = 3.0
    codec.decode(tokens, (32, 32))
    assert cod.rows == 2 * (25 + 22)  # t = 0, .04 and .08 are outside
    cod.rows, cod.guidance = 0, 1.0
    codec.decode(tokens, (32, 32))
    assert cod.rows == 2 * 25


def test_guidance_leads_away_from_none(fresh):
    """v = v_none + g (v_told - v_none), with a network for which all three differ; one step inside the interval."""
    cod = small()
    x = torch.from_numpy(fresh.standard_normal((1, 3, 64, 64))).float()
    told = torch.from_numpy(fresh.standard_normal((1, 64, 4, 4))).float()
    t, none = 0.5, cod._none(x)
    alone = cod._velocity(x, t, none), cod._velocity(x, t, told)
    pair = cod._velocity(torch.cat([x, x]), t, torch.cat([none, told])).chunk(2)
    assert torch.allclose(alone[0], pair[0], atol=1e-5)
    assert torch.allclose(alone[1], pair[1], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


# ---- the networks -------------------------------------------------------------------------------------------------------
def test_rotations_keep_lengths_and_know_only_differences(fresh):
    """Inner products of turned queries and keys depend on the distance of their places, in x and in y."""
    q, k = (torch.from_numpy(fresh.standard_normal((1, 1, 1, 16))).float().expand(1, 1, 25, 16) for _ in range(2))
    rotations = rope(5, 5, 16, torch.device("cpu"))
    a, b = turned(q, rotations)[0, 0], turned(k, rotations)[0, 0]
    assert torch.allclose(a.norm(dim=-1), q[0, 0].norm(dim=-1), atol=1e-5)
    products = a @ b.T
    for first, second in (((0, 0), (1, 2)), ((2, 1), (0, 0)), ((3, 0), (0, 3))):
        found = [
            products[(y + first[0]) * 5 + x + first[1], (y + second[0]) * 5 + x + second[1]]
            for y in range(5 - max(first[0], second[0]))
            for x in range(5 - max(first[1], second[1]))
        ]
        assert max(found) - min(found) < 1e-4
    assert products.std() > 1e-2


@pytest.mark.parametrize("case", ["pixel", "latent"])
def test_the_head_sees_each_patch_where_it_is(case, fresh):
    """With blocks that pass their input on, the network maps patches one by one: the same patch gives the same answer at
    any place, and no other patch's answer moves with it."""
    cod = small(SMALLS[case])
    config, net = cod.net.config, cod.net
    for block in net.blocks:
        if hasattr(block, "adaLN_modulation"):
            block.adaLN_modulation[0].weight.zero_()
            block.adaLN_modulation[0].bias.zero_()
    side, p = 4 * config.patch, config.patch
    x = torch.from_numpy(fresh.standard_normal((1, config.channels, side, side))).float()
    told = torch.from_numpy(fresh.standard_normal((1, config.hidden, 1, 1))).float().expand(1, -1, 4, 4)
    x[..., :p, :p] = x[..., 2 * p : 3 * p, p : 2 * p]
    t = torch.full((1,), 0.4)
    out = net(x, t, told)
    assert out.shape == x.shape
    assert torch.allclose(out[..., :p, :p], out[..., 2 * p : 3 * p, p : 2 * p], atol=1e-5)
    moved = x.clone()
    moved[..., 3 * p :, 3 * p :] += 1
    other = net(moved, t, told)
    assert torch.allclose(out[..., : 3 * p, :], other[..., : 3 * p, :], atol=1e-5)
    assert not torch.allclose(out, other, atol=1e-3)


RULES = {
    "bins": {},
    "independent": {"codebook": "independent", "vocab_size": 64, "budget": 2},
    "top": {"rule": "top", "budget": 8},
    "pursuit": {"rule": "pursuit", "budget": 3, "coefficient_bits": 2},
    "poisson": {"rule": "poisson", "budget": 40, "vocab_size": 512},
    "blocks": {"rows": 2, "columns": 2},
    "ab2": {"solver": "ab2", "solver_steps": 3},
    "candidates": {},
}


@pytest.mark.parametrize("condition", ["none", "first"])
@pytest.mark.parametrize("case", RULES)
def test_every_rule_walks_on_it_with_a_condition_and_without(case, condition, fresh, tmp_path):
    """Both streams in one file: tokens, decode and file agree, and a decoder told another condition shows another image."""
    cod = small()
    recipe = Recipe(steps=4, sigma_max=3, sigma_min=0.3, budget=4, vocab_size=256, condition=condition)
    spec = replace(recipe, **RULES[case]).build(cod)
    codec, images = Codec(spec, cod, candidates=3 if case == "candidates" else 1), random_images(fresh, 2, 60, 70)
    assert CodecSpec.from_json(spec.to_json()) == spec
    tokens, predicted = codec.reconstruct(images)
    tolerance = 1e-3 if case == "candidates" else 0  # its walk has a batch of 6, which rounds another way
    assert torch.allclose(codec.decode(tokens, (60, 70)), predicted, rtol=0, atol=tolerance)
    assert torch.equal(codec.encode(images), tokens)
    assert predicted.shape == images.shape
    layout = codec.layout_for(60, 70)
    count = 6 if condition == "first" else 0
    assert (layout.step_index == -2).sum() == count
    assert (layout.step_index[:count] == -2).all()
    assert layout.block[:count].tolist() == list(range(count))
    pixels = images[0].permute(1, 2, 0).numpy()
    (tmp_path / "a.nbk").write_bytes(encode_picture(codec, pixels))
    file = container.Container.read(tmp_path / "a.nbk")
    shown = decode_picture(codec, file)
    expected = predicted[0].clamp(-1, 1).add(1).mul(127.5).permute(1, 2, 0).numpy()
    assert abs(shown - expected).max() <= 1.01  # one image alone may round another way than two
    assert describe(tmp_path / "a.nbk")["tokens"] == tokens.shape[1]
    if condition == "first":
        assert torch.equal(tokens[:, :6], cod.encode_condition(pad(images)).flatten(1))
        other = tokens.clone()
        other[:, :6] = (other[:, :6] + 1) % 16
        assert not torch.equal(codec.decode(other, (60, 70)), predicted)
        assert spec.schedule[0].sigma == math.inf


def pad(images):
    return torch.nn.functional.pad(images.float() / 127.5 - 1, (0, 26, 0, 4), mode="replicate")


def test_diffc_walks_at_the_times_of_its_grid(fresh):
    """Two faults of the published code: the network was told 1 - t / 1000 at sigma = (t - 1) / 1000, and in bfloat16, where
    t = 5 and t = 2 are one time."""
    cod = small()
    recipe = Recipe(spacing="diffc", sigma_max=999, sigma_min=0.001, steps=160, rule="poisson", budget=6, vocab_size=512)
    codec, seen = Codec(replace(recipe, condition="first").build(cod), cod), []
    assert codec.spec.schedule[0].sigma == 999
    cod.net.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    tokens = codec.encode(random_images(fresh, 1, 32, 32))
    seen.clear()
    codec.decode(tokens, (32, 32))
    times = [1000, *TURBO_TIMES[1:-1]]  # to t = 2; at t = 1 nothing is left to do
    assert [float(t[0]) for t in seen] == pytest.approx([1 - (t - 1) / 1000 for t in times], abs=1e-7)
    assert len({float(t[0]) for t in seen}) == len(seen)
    assert all(t.dtype == torch.float32 for t in seen)


@pytest.fixture
def work(tmp_path, monkeypatch, fresh):
    """A folder with a published file and three pictures of two sizes, in which the command line runs."""
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "cod.pt", small().net)
    for name, size in (("a", (64, 96)), ("b", (96, 64)), ("c", (50, 70))):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(random_images(fresh, 1, *size)[0].permute(1, 2, 0).numpy()))
    return tmp_path


def test_the_command_line_tokenises_and_draws(work, capsys):
    """Mixed sizes in one run; the steps and the guidance are the decoder's; a bare file needs the options."""
    told = ["--backbone", "cod.pt", "--condition", "only"]
    assert cli.main(["encode", "a.png", "b.png", "c.png", *told, "--no-embed-spec", "-o", "bare"]) == 0
    assert [(work / "bare" / f"{n}.nbk").stat().st_size for n in "abc"] == [23, 23, 23]  # 6 tokens of 4 bits, 20 bytes
    assert cli.main(["encode", "a.png", *told, "-o", "full"]) == 0
    assert cli.main(["decode", "bare", *told, "--guidance", "3", "-o", "one"]) == 0
    assert [read_image(work / "one" / f"{n}.decoded.png").shape for n in "abc"] == [(64, 96, 3), (96, 64, 3), (50, 70, 3)]
    capsys.readouterr()
    for extra, calls in (([], 25), (["--steps", "1"], 1), (["--steps", "4", "--guidance", "2"], 4)):
        assert cli.main(["decode", "full", "--backbone", "cod.pt", *extra, "-o", f"out{calls}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"][0]["nfe"] == calls
    shown = [read_image(work / f"out{calls}" / "a.decoded.png") for calls in (25, 1, 4)]
    assert (shown[0] != shown[1]).any()
    assert cli.main(["verify", "full", "bare"]) == 0
    assert cli.main(["decode", "bare", "--backbone", "cod.pt", "-o", "none"]) == CodecMismatchError.code
    assert "give the options it was made with" in capsys.readouterr().err
    assert not (work / "none").exists()


def test_the_command_line_codes_under_a_condition(work, capsys):
    """A curve under the condition makes files of a rate whose first tokens are the condition's."""
    pictures = ["a.png", "b.png"]
    assert cli.main(["calibrate", "cod.pt", *pictures, "--condition", "-o", "told.json"]) == 0
    assert cli.main(["calibrate", "cod.pt", *pictures, "-o", "untold.json"]) == 0
    told, untold = (calibration.Curve.from_json((work / f"{n}.json").read_text()) for n in ("told", "untold"))
    assert (told.condition, untold.condition) == ((32, 16, 32), ())
    assert told.power != untold.power
    call = ["roundtrip", *pictures, "--backbone", "cod.pt", "--max-nfe", "6", "--bpp", "4", "--json"]
    for name, runs in (("told", 6), ("untold", 0)):
        assert cli.main([*call, "--curve", f"{name}.json", "-o", name]) == 0
        for row in json.loads(capsys.readouterr().out.splitlines()[-1])["images"]:
            assert row["bpp"] == pytest.approx(4, rel=0.02)
            assert row["nfe"] == 5 + 6
        assert cli.main(["decode", name, "--backbone", "cod.pt", "-o", f"{name}-again"]) == 0
        for picture in pictures:
            stem = picture.removesuffix(".png")
            pair = read_image(work / name / f"{stem}.compared.png")
            again = read_image(work / f"{name}-again" / f"{stem}.decoded.png")
            assert (pair[:, again.shape[1] :] == again).all()
            spec = spec_of(container.Container.read(work / name / f"{stem}.nbk"))
            assert sum(r.count for _, r in spec.runs_for(*again.shape[:2])[:1]) == runs or not runs
        capsys.readouterr()
    for options, word in (
        (["--curve", "told.json", "--bpp", "4", "--max-nfe", "2"], "3 at least"),
        (["--curve", "told.json", "--bpp", "4", "--no-embed-spec"], "leave out --no-embed-spec"),
        (["--curve", "told.json", "--bpp", "4", "--condition", "first"], "not with --condition"),
        (["--condition", "first", "--start-budget", "4"], "start_budget must be 0"),
        (["--condition", "only", "--steps", "0"], "at least 1 step"),
        (["--label", "3"], "takes guidance and autoencoder, not label"),
    ):
        assert cli.main(["encode", "a.png", "--backbone", "cod.pt", *options, "-o", "none"]) > 0
        assert word in capsys.readouterr().err
    assert not (work / "none").exists()


def test_the_shipped_tokenizer_shows_what_it_was_given():
    """Photographs of 32 x 32 pixels in 8 bytes: nearer than their mean colours and than the tokens of another; one step errs
    less than 25."""
    pictures = []
    for name in SAMPLES:
        whole = torch.from_numpy(sample(name)[:, :, :3].copy()).permute(2, 0, 1)[None].float()
        pictures.append(torch.nn.functional.interpolate(whole, (32, 32), mode="area").round().to(torch.uint8))
    x = torch.cat(pictures)
    codec, x0 = noisebook.load(backbone="cifar10-cod", condition="only"), x.float() / 127.5 - 1
    tokens = codec.encode(x)
    assert tokens.shape == (3, 16)
    one, many = (codec.decode(tokens, (32, 32), steps) for steps in (1, 25))
    mean = x0.mean((2, 3), keepdim=True)
    error, plain = ((shown - x0).square().mean((1, 2, 3)) for shown in (one, mean))
    assert (error < plain).all()
    assert error.sum() < 0.75 * plain.sum()
    assert (error < (one.roll(1, 0) - x0).square().mean((1, 2, 3))).all()
    assert error.mean() < (many - x0).square().mean()


def test_the_modes_know_a_condition(fresh):
    cod = small()
    codec = Codec(Recipe(steps=3, budget=2, vocab_size=64, condition="first").build(cod), cod)
    tokens, drawn = modes.generate(codec, 2, (64, 64), seed=1)
    assert torch.equal(codec.decode(tokens, (64, 64)), drawn)
    tokens, drawn = modes.guide(codec, cod, 2, (64, 64), seed=1)  # away from the same network, told nothing
    assert torch.equal(codec.decode(tokens, (64, 64)), drawn)
    with pytest.raises(SpecError, match="condition is made of the whole image"):
        modes.restore(codec, torch.zeros(1, 3, 32, 32), modes.downsample(2), (64, 64))


@pytest.mark.slow  # gigabytes and minutes
@pytest.mark.parametrize("config", [CodConfig(), LATENT], ids=["pixel", "latent"])
def test_a_network_of_full_size_codes_an_image(config, tmp_path, fresh):
    """Random weights in bfloat16 in the published layout, a file of 1.8 GB: loads, tokenises and samples 64 x 64 pixels."""
    with torch.device("meta"):
        net = CodNet(config)
    draw = torch.Generator().manual_seed(0)
    tensors = {k: (0.02 * torch.randn(v.shape, generator=draw)).bfloat16() for k, v in net.state_dict().items()}
    torch.save({"state_dict": {f"ema_denoiser.{k}": v for k, v in tensors.items()}}, tmp_path / "cod.pt")
    del tensors
    cod = CoD(network(*cod_files.read_published(tmp_path / "cod.pt")))
    cod.name, cod.fingerprint = "cod", "0" * 64
    assert next(cod.net.parameters()).dtype == torch.bfloat16
    tokens = cod.encode_condition(random_images(fresh, 1, 64, 64))
    assert tokens.shape == (1, 2, 2)
    shape = (1, 4, 8, 8) if config.latent else (1, 3, 64, 64)
    cod.guidance, told = 3.0, cod.condition(tokens.flatten(1), 64, 64)
    for steps in (1, 4):  # of a latent model the latents: its autoencoder is not under test
        eps = torch.from_numpy(fresh.standard_normal(shape)).float()
        x = solve_ode(
            "ab2", lambda y, sigma: cod.denoise(y, sigma, cod.guided(told)), eps, math.inf, even_levels(math.inf, steps)
        )
        assert x.shape == shape
        assert x.isfinite().all()
    y = torch.from_numpy(fresh.standard_normal(shape)).float()
    assert cod.denoise(y, 1.0).shape == shape
