"""CoD: published layouts, strict files, tokens, sampling, and the backbone in the loop; small random networks on the CPU."""

import hashlib
import math
import os
import pickle
from dataclasses import replace

import pytest
import torch

from common import random_images
from noisebook import backbones, container
from noisebook.backbones import cod_files
from noisebook.backbones.cod import CoD, network
from noisebook.backbones.cod_files import load_published
from noisebook.backbones.cod_nets import CodConfig, CodNet, rope, turned
from noisebook.codec import Codec
from noisebook.errors import BackboneError, ImageError, SpecError
from noisebook.presets import Recipe
from noisebook.runs import Run

LATENT = CodConfig(latent=True, blocks=28, cond_blocks=22)
# SHA-256 over the sorted names and shapes of the published code's own listings; before it tensors and millions of weights
PUBLISHED = {
    "pixel .0039, 512": (CodConfig(), 558, 897.06,
        "cde84effa824bf802e432d615f3ff2c6361ccf42fd29d950abb55239fe5cac01"),
    "pixel .00024, 512": (CodConfig(ds=128), 616, 1030.68,
        "a9b1fb9a04d2e100305e2a728279201a76f514489a936a14732f26e23c3b54c7"),
    "pixel .0039, 256": (CodConfig(up2x=False), 550, 873.17,
        "4d5bdcd2c457e1b4f808dda874ff1b796a90c0cac073e61af037315c2c0a78fa"),
    "latent .0039, 512": (LATENT, 569, 853.55,
        "908a417bf45ba901b52739582b909583ddd7937e8e5707bdd91fce44d799626c"),
    "latent .00024, 512": (replace(LATENT, ds=128), 627, 987.17,
        "12ef058dee29969f3b5e23c1f338246658306fdd0419f19deed0d42bb8de8f6a"),
}  # fmt: skip
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


@pytest.mark.parametrize("case", SMALLS)
@pytest.mark.parametrize("top", ["state_dict", "module", None])
def test_a_published_file_loads_and_converts(case, top, tmp_path, fresh):
    made = small(SMALLS[case])
    path = published(tmp_path / "a.pt", made.net, top)
    found = load_published(path)
    assert found.net.config == made.net.config
    assert all(torch.equal(v, found.net.state_dict()[k]) for k, v in made.net.state_dict().items())
    assert cod_files.main([str(path), "-o", str(tmp_path / "a.safetensors")]) == 0
    again = backbones.load(tmp_path / "a.safetensors")
    assert again.fingerprint == found.fingerprint == backbones.load(path).fingerprint
    assert again.name == "a"
    images = random_images(fresh, 1, 128, 128)
    assert torch.equal(again.tokens(images), made.tokens(images))


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
    assert cod_files.main([str(tmp_path / "b.pt"), "-o", str(tmp_path / "b.safetensors")]) == BackboneError.code
    good = str(published(tmp_path / "a.pt", net))
    assert cod_files.main([good, "-o", str(tmp_path / "none" / "b.safetensors")]) == BackboneError.code
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
    tokens = cod.tokens(images)
    stride = cod.stride
    assert (tokens.dtype, tuple(tokens.shape)) == (torch.int64, (2, 128 // stride, 256 // stride))
    z = cod.net.y_embedder.encoder(images.float() / 255).permute(0, 2, 3, 1)
    codes = cod.net.y_embedder.bottleneck.embedding.weight
    assert torch.equal(tokens, (z[..., None, :] - codes).double().square().sum(-1).argmin(-1))
    assert torch.equal(tokens, cod.tokens(images.float() / 127.5 - 1))
    assert cod.condition(tokens).shape == (2, 64, 8, 16)


SIZES = [("pixel", (512, 512), 1024), ("pixel 64 bits", (512, 512), 64), ("pixel 256", (256, 256), 1024),
         ("pixel", (768, 512), 1536)]  # fmt: skip


@pytest.mark.parametrize(("case", "size", "bits"), SIZES)
def test_tokens_cost_what_the_paper_says(case, size, bits):
    """16 x 16 tokens of 4 bits for 512 x 512 are .0039 bits a pixel; 4 x 4 are .00024."""
    cod = small(SMALLS[case])
    h, w = cod.grid(*size)
    packed = container.pack(torch.arange(h * w).numpy() % 16, [Run(h * w, cod.vocabulary)])
    assert 8 * len(packed) == bits


def test_non_square_images_are_not_transposed(fresh):
    """A fault of the published files: tokens of h x w came back as w x h. Here a flipped image has flipped tokens' shape."""
    cod, images = small(), random_images(fresh, 1, 64, 160)
    tokens = cod.tokens(images)
    assert tokens.shape == (1, 2, 5)
    assert cod.sample(tokens, steps=1, guidance=1).shape == images.shape
    turned_round = cod.tokens(images.transpose(2, 3).contiguous())
    assert turned_round.shape == (1, 5, 2)


def test_several_sizes_in_one_run_have_a_condition_for_none_each(fresh):
    """A fault of the published code: the condition for none was kept from the first image's size."""
    cod = small()
    for _ in range(2):
        for height, width in ((64, 96), (96, 64), (128, 64)):
            tokens = cod.tokens(random_images(fresh, 1, height, width))
            assert cod.sample(tokens, steps=3).shape == (1, 3, height, width)
            none = cod._none(torch.zeros(1, 3, height, width))
            assert none.shape == (1, 64, height // 16, width // 16)
            empty = cod.net.y_embedder.encoder(torch.full((1, 3, height, width), -1.0))
            nearest = cod.net.y_embedder.bottleneck.tokens(empty)
            assert torch.equal(none, cod.net.y_embedder.condition(nearest))


def test_sizes_and_tokens_that_do_not_fit_are_refused(fresh):
    cod = small()
    with pytest.raises(ImageError, match="multiples of 32 pixels, not 500 x 512"):
        cod.tokens(random_images(fresh, 1, 500, 512))
    for bad in (
        torch.full((1, 2, 2), 16),
        torch.full((1, 2, 2), -1),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.ones(1, 2, 2),
    ):
        with pytest.raises(SpecError):
            cod.condition(bad)
    for options in ({"steps": 0}, {"method": "heun"}):
        with pytest.raises(SpecError):
            cod.sample(torch.zeros(1, 2, 2, dtype=torch.int64), **options)


# ---- the flow -----------------------------------------------------------------------------------------------------------
class Known(CoD):
    """The exact velocity for white Gaussian images of deviation .5, whose flow is known; counts the rows it is asked for."""

    rows = 0

    def _velocity(self, x, t, told):
        assert len(told) in (1, len(x))
        self.rows += len(x)
        s = 1 - t
        return (0.25 * t - s) / (0.25 * t * t + s * s) * x


def known() -> Known:
    torch.manual_seed(0)
    return Known(CodNet(SMALL).eval().requires_grad_(False))


def test_the_backbone_is_the_posterior_mean(fresh):
    y = torch.from_numpy(fresh.standard_normal((2, 3, 32, 32))).float()
    for lam in (0.01, 0.3, 1.0, 7.0, 900.0):
        assert torch.allclose(known().denoise(y, lam), y * 0.25 / (0.25 + lam * lam), atol=1e-5)
    assert known().denoise(y, math.inf).abs().max() < 1e-6  # of pure noise: the mean image


def test_samplers_converge_to_the_flow_at_their_order():
    """x(1) = .5 eps. Errors fall in half with twice Euler's steps, to a quarter with Adams-Bashforth's."""
    cod, tokens = known(), torch.zeros(1, 1, 1, dtype=torch.int64)
    eps = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def error(method, steps):
        return float((cod.sample(tokens, steps, method, 1.0, seed=3) - 0.5 * eps).abs().max())

    for method, ratio in (("euler", 2), ("ab2", 4)):
        assert error(method, 100) / error(method, 200) == pytest.approx(ratio, rel=0.15)
    assert error("ab2", 25) < error("euler", 25)
    assert torch.allclose(cod.sample(tokens, 1, seed=3), eps - eps)  # one step: the mean image, eps + v(eps, 0)


def test_guidance_costs_a_second_pass_inside_its_interval_alone():
    cod, tokens = known(), torch.zeros(2, 1, 1, dtype=torch.int64)
    cod.sample(tokens, steps=25, guidance=3.0)
    assert cod.rows == 2 * (25 + 22)  # t = 0, .04 and .08 are outside
    cod.rows = 0
    cod.sample(tokens, steps=25, guidance=1.0)
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
        found = [products[(y + first[0]) * 5 + x + first[1], (y + second[0]) * 5 + x + second[1]]
                 for y in range(5 - max(first[0], second[0])) for x in range(5 - max(first[1], second[1]))]  # fmt: skip
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


def test_a_codec_walks_on_it(fresh):
    cod = small()
    recipe = Recipe(steps=4, lam_max=3, lam_min=0.3, bins=4, vocabulary=256)
    codec, images = Codec(recipe.build(cod), cod), random_images(fresh, 2, 60, 70)
    tokens, predicted = codec.reconstruct(images)
    assert torch.equal(codec.decode(tokens, (60, 70)), predicted)
    assert predicted.shape == images.shape


@pytest.mark.skipif(not os.environ.get("NOISEBOOK_SLOW"), reason="gigabytes and minutes: set NOISEBOOK_SLOW=1")
@pytest.mark.parametrize("config", [CodConfig(), LATENT], ids=["pixel", "latent"])
def test_a_network_of_full_size_codes_an_image(config, tmp_path, fresh):
    """Random weights in bfloat16 in the published layout, a file of 1.8 GB: loads, tokenises and samples 64 x 64 pixels."""
    with torch.device("meta"):
        net = CodNet(config)
    draw = torch.Generator().manual_seed(0)
    tensors = {k: (0.02 * torch.randn(v.shape, generator=draw)).bfloat16() for k, v in net.state_dict().items()}
    torch.save({"state_dict": {f"ema_denoiser.{k}": v for k, v in tensors.items()}}, tmp_path / "cod.pt")
    del tensors
    cod = load_published(tmp_path / "cod.pt")
    assert next(cod.net.parameters()).dtype == torch.bfloat16
    tokens = cod.tokens(random_images(fresh, 1, 64, 64))
    assert tokens.shape == (1, 2, 2)
    shape = (1, 4, 8, 8) if config.latent else (1, 3, 64, 64)
    for steps in (1, 4):
        x = cod.sample(tokens, steps=steps)
        assert x.shape == shape
        assert x.isfinite().all()
    y = torch.from_numpy(fresh.standard_normal(shape)).float()
    assert cod.denoise(y, 1.0).shape == shape
