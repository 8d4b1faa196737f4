"""Pipelines of diffusers, tiny random ones of every kind, against the arithmetic of diffusers' own components."""

import math
import shutil
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from audit_kit import touching, watched
from tiny_pipelines import BUILDERS, OPTIONS, diffusers, edit, noise, pixel_unet, saver

from common import random_images
from noisebook.backbones.diffusers.folder import from_folder
from noisebook.backbones.wrappers.latent import Latent
from noisebook.codec.codec import Codec
from noisebook.errors import BackboneError, ImageError
from noisebook.spec.presets import Recipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (folder, the pipeline that was saved there)."""
    return saver(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def loaded(saved):
    """name -> the backbone of that pipeline without further conditions; each is loaded once."""
    return cache(lambda name: from_folder(saved(name)[0], **OPTIONS.get(name, {})))


@pytest.fixture
def copied(saved, tmp_path):
    """name -> a folder of the pipeline that the test may damage."""
    return lambda name: shutil.copytree(saved(name)[0], tmp_path / "copy")


# ---- one call against diffusers ------------------------------------------------------------------------------------------
def check(backbone, y, sigma, want):
    got = backbone.denoise(y, backbone.round_sigma(sigma))
    assert got.shape == y.shape
    assert got.dtype == torch.float32
    assert (got - want).norm() < 2e-5 * want.norm()


def guided(out, guidance):
    if guidance == 1:
        return out
    away, towards = out.chunk(2)
    return away + guidance * (towards - away)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["sd", "sd v"])
def test_stable_diffusion(saved, name, guidance):
    path, pipe = saved(name)
    options = {"negative_prompt": "bad"} if guidance != 1 else {}
    backbone = from_folder(path, prompt="a cat", guidance=guidance, **options)
    towards, away = pipe.encode_prompt("a cat", "cpu", 1, guidance != 1, **options)
    text = torch.cat([away, towards]) if guidance != 1 else towards
    x, t = noise(2, 4, 8, 12), 321
    rows = len(text)
    out = pipe.unet(torch.cat([x] * rows), t, encoder_hidden_states=text.repeat_interleave(2, 0)).sample
    pipe.scheduler.set_timesteps(1000)
    want = pipe.scheduler.step(guided(out, guidance), t, x).pred_original_sample
    abar = pipe.scheduler.alphas_cumprod[t].item()
    check(backbone, x / math.sqrt(abar), math.sqrt(1 / abar - 1), want)


@torch.no_grad()
def test_sd_turbo(saved):
    """Against the Euler scheduler's own step, which works in y and sigma."""
    path, pipe = saved("sd turbo")
    backbone, t = from_folder(path, prompt="a cat"), 321
    text = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    pipe.scheduler.set_timesteps(timesteps=[t])
    sigma, y = pipe.scheduler.sigmas[0].item(), noise(2, 4, 8, 12)
    x = pipe.scheduler.scale_model_input(y, pipe.scheduler.timesteps[0])
    out = pipe.unet(x, t, encoder_hidden_states=text.repeat(2, 1, 1)).sample
    check(backbone, y, sigma, pipe.scheduler.step(out, pipe.scheduler.timesteps[0], y).pred_original_sample)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 8.5])
@pytest.mark.parametrize("name", ["lcm", "sdxl lcm"])
def test_lcm(saved, monkeypatch, name, guidance):
    """Against one step of the pipeline itself, whose network is given the guidance scale as an embedding."""
    path, pipe = saved(name)
    backbone = from_folder(path, prompt="a cat", guidance=guidance)
    seen, step = [], pipe.scheduler.step

    def watched_step(out, t, x, *rest, **more):
        seen.append((x, t, step(out, t, x, *rest, **more)))
        return seen[-1][2]

    monkeypatch.setattr(pipe.scheduler, "step", watched_step)
    options = {"guidance_scale": guidance, "num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 24}
    pipe("a cat", latents=noise(1, 4, 8, 12), generator=torch.Generator().manual_seed(0), **options)
    assert [t.item() for _, t, _ in seen] == [999, 499]
    for x, t, made in seen:
        abar = pipe.scheduler.alphas_cumprod[t].item()
        check(backbone, x / math.sqrt(abar), math.sqrt(1 / abar - 1), made[1])
    with pytest.raises(BackboneError, match="knows guidance itself takes no negative_prompt"):
        from_folder(path, negative_prompt="bad", guidance=3)


def test_lcms_of_other_guidance_are_other_backbones(saved, copied):
    path = saved("lcm")[0]
    plain, other = from_folder(path), from_folder(path, guidance=8.5)
    assert plain.fingerprint != other.fingerprint
    y = noise(1, 4, 8, 8)
    assert not torch.equal(plain.denoise(y, plain.round_sigma(1.0)), other.denoise(y, plain.round_sigma(1.0)))
    folder = copied("lcm")
    for width in (0, 2, 8, True, 1 << 40):
        edit(folder / "unet" / "config.json", time_cond_proj_dim=width)
        with pytest.raises(BackboneError, match=r"unet: (time_cond_proj_dim is a whole number|config and weights do not)"):
            from_folder(folder)


@torch.no_grad()
@pytest.mark.parametrize(("name", "negative"), [("sdxl", None), ("sdxl", ""), ("sdxl", "bad"), ("sdxl turbo", None)])
def test_sdxl(saved, name, negative):
    path, pipe = saved(name)
    guidance = 3.0
    backbone = from_folder(path, prompt="a cat", negative_prompt=negative, guidance=guidance)
    towards, away, pooled, pooled_away = pipe.encode_prompt("a cat", negative_prompt=negative)
    assert (away == 0).all() == (negative is None)
    y, sigma, height, width = noise(2, 4, 8, 12), 2.0, 16, 24
    sigma = backbone.round_sigma(sigma)
    ids = pipe._get_add_time_ids((height, width), (0, 0), (height, width), torch.float32, 12).repeat(4, 1)
    added = {"text_embeds": torch.cat([pooled_away, pooled]).repeat_interleave(2, 0), "time_ids": ids}
    levels = ((1 - pipe.scheduler.alphas_cumprod) / pipe.scheduler.alphas_cumprod).sqrt()
    t = (levels - sigma).abs().argmin()
    out = pipe.unet(
        torch.cat([y] * 2) / math.hypot(1, sigma),
        t,
        torch.cat([away, towards]).repeat_interleave(2, 0),
        added_cond_kwargs=added,
    ).sample
    pipe.scheduler.set_timesteps(1000)  # Euler works in y and sigma, also the ancestral one
    want = pipe.scheduler.step(guided(out, guidance), pipe.scheduler.timesteps[999 - t], y).pred_original_sample
    check(backbone, y, sigma, want)


@torch.no_grad()
@pytest.mark.parametrize(("label", "guidance"), [(None, 1.0), (2, 1.0), (2, 4.0)])
def test_dit(saved, label, guidance):
    path, pipe = saved("dit")
    backbone = from_folder(path, label=label, guidance=guidance)
    assert backbone.size == (16, 16)
    x, t = noise(2, 4, 8, 8), 500
    labels = [5 if label is None else label] * 2
    if guidance != 1:
        labels = [5, 5, *labels]
    out = pipe.transformer(
        torch.cat([x] * (len(labels) // 2)), timestep=torch.full((len(labels),), t), class_labels=torch.tensor(labels)
    ).sample[:, :4]
    pipe.scheduler.set_timesteps(1000)
    want = pipe.scheduler.step(guided(out, guidance), t, x).pred_original_sample
    abar = pipe.scheduler.alphas_cumprod[t].item()
    check(backbone, x / math.sqrt(abar), math.sqrt(1 / abar - 1), want)


def flow_step(scheduler, sigma, x, predict):
    """x0_hat of a flow scheduler: one step from sigma to 0, as the pipelines take it; also its sigma."""
    scheduler.set_timesteps(sigmas=[sigma])
    t, sigma = scheduler.timesteps[0], scheduler.sigmas[0].item()
    return scheduler.step(predict(t), t, x).prev_sample, sigma / (1 - sigma)


@torch.no_grad()
@pytest.mark.parametrize(("name", "with_t5"), [("sd3", True), ("sd3", False), ("sd3.5", True)])
def test_sd3(saved, copied, name, with_t5):
    _, pipe = saved(name)
    path, guidance = copied(name), 2.0
    if not with_t5:
        edit(path / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
        pipe = diffusers.StableDiffusion3Pipeline(**{**pipe.components, "text_encoder_3": None, "tokenizer_3": None})
    backbone = from_folder(path, prompt="a cat", negative_prompt="bad", guidance=guidance)
    towards, away, pooled, pooled_away = pipe.encode_prompt("a cat", None, None, negative_prompt="bad")
    x = noise(2, 4, 8, 12)

    def predict(t):
        out = pipe.transformer(
            torch.cat([x] * 2),
            torch.cat([away, towards]).repeat_interleave(2, 0),
            torch.cat([pooled_away, pooled]).repeat_interleave(2, 0),
            t.expand(4),
            return_dict=False,
        )[0]
        return guided(out, guidance)

    want, sigma = flow_step(pipe.scheduler, 0.4, x, predict)
    check(backbone, x * (1 + sigma), sigma, want)
    with pytest.raises(ImageError, match="at most 48 x 48"):  # 12 patches of 2 x 2, of 2 x 2 pixels each
        backbone.padded(49, 16)
    assert backbone.padded(45, 16) == (48, 16)


@torch.no_grad()
@pytest.mark.parametrize("distilled", [True, False])
def test_flux(saved, distilled):
    path, pipe = saved("flux" if distilled else "flux schnell")
    guidance = 3.5
    options = {"prompt": "a cat", "guidance": guidance}
    backbone = from_folder(path, **options, **({} if distilled else {"negative_prompt": "bad"}))
    x, (h, w) = noise(2, 4, 8, 12), (8, 12)
    places = pipe._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float32)
    packed = pipe._pack_latents(x, 2, 4, h, w)

    def network(t, prompt):
        text, pooled, ids = pipe.encode_prompt(prompt, None, "cpu")
        return pipe.transformer(
            packed,
            text.repeat(2, 1, 1),
            pooled.repeat(2, 1),
            t.expand(2) / 1000,
            places,
            ids,
            torch.full((2,), guidance) if distilled else None,
            return_dict=False,
        )[0]

    def predict(t):
        out = network(t, "a cat")
        if not distilled:
            away = network(t, "bad")
            out = away + guidance * (out - away)
        return pipe._unpack_latents(out, 2 * h, 2 * w, 2)

    want, sigma = flow_step(pipe.scheduler, 0.7, x, predict)
    check(backbone, x * (1 + sigma), sigma, want)


@torch.no_grad()
def test_consistency(saved):
    path, pipe = saved("consistency")
    backbone = from_folder(path, label=3)
    for index in (4, 30):
        pipe.scheduler.set_timesteps(timesteps=[index])
        t, sigma = pipe.scheduler.timesteps[0], pipe.scheduler.sigmas[0].item()
        y = noise(2, 3, 16, 16) * sigma
        out = pipe.unet(pipe.scheduler.scale_model_input(y, t), t, class_labels=torch.tensor([3, 3])).sample
        check(backbone, y, sigma, pipe.scheduler.step(out, t, y).prev_sample)
    with pytest.raises(BackboneError, match=r"label=0 \.\.\. 9"):
        from_folder(path)
    with pytest.raises(BackboneError, match="no such class"):
        from_folder(path, label=3, guidance=2)


@torch.no_grad()
def test_score_ve(saved):
    path, pipe = saved("ve")
    backbone = from_folder(path)
    x, sigma = noise(2, 3, 16, 16), 0.8  # images in [0, 1]
    pipe.scheduler.set_sigmas(10)
    pipe.scheduler.set_timesteps(10)
    score = pipe.unet(x, torch.full((2,), sigma)).sample
    # a step from the lowest level goes to 0, so that its mean is x0_hat
    want = pipe.scheduler.step_pred(score, torch.tensor(1e-5), x).prev_sample_mean
    check(backbone, 2 * x - 1, 2 * sigma, 2 * want - 1)


def write_bare(path, unet, scheduler):
    unet.save_pretrained(path)
    scheduler.save_pretrained(path)
    return path


@torch.no_grad()
def test_score_vp(tmp_path):
    deprecated = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")
    torch.manual_seed(0)
    unet, scheduler = pixel_unet(), deprecated.ScoreSdeVpScheduler()
    backbone = from_folder(write_bare(tmp_path / "vp", unet, scheduler))
    scheduler.set_timesteps(1000)
    x, t = noise(2, 3, 16, 16), torch.tensor(0.3)
    _, mean = scheduler.step_pred(unet(x, 999 * t).sample, x, t)
    beta = 0.1 + 19.9 * t
    score = ((mean - x) * 1000 - 0.5 * beta * x) / beta  # mean - x = dt (-beta x / 2 - beta score), dt = -1/1000
    variance = -torch.expm1(-(0.1 * t + 0.5 * 19.9 * t * t))
    s = (1 - variance).sqrt()
    got = backbone.denoise(x / s, (variance.sqrt() / s).item())
    want = (x + variance * score) / s
    assert (got - want).norm() < 1e-3 * want.norm()  # what float32 leaves of mean - x


@torch.no_grad()
def test_edm_and_flow_schedulers_of_pixel_models(tmp_path):
    torch.manual_seed(0)
    unet, y = pixel_unet(), noise(2, 3, 16, 16)
    scheduler = diffusers.EDMEulerScheduler()
    backbone = from_folder(write_bare(tmp_path / "edm", unet, scheduler))
    sigma = torch.tensor(1.7)
    out = unet(scheduler.precondition_inputs(y, sigma), scheduler.precondition_noise(sigma)).sample
    check(backbone, y, 1.7, scheduler.precondition_outputs(y, out, sigma))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    backbone = from_folder(write_bare(tmp_path / "flow", unet, scheduler))
    want, sigma = flow_step(scheduler, 0.5, y, lambda t: unet(y, t).sample)
    check(backbone, y * (1 + sigma), sigma, want)


@torch.no_grad()
def test_the_class_that_means_none_and_guidance_of_pixel_models(tmp_path):
    torch.manual_seed(0)
    unet, y = pixel_unet(num_class_embeds=4), noise(1, 3, 16, 16)
    path = write_bare(tmp_path / "classes", unet, diffusers.DDPMScheduler())
    with pytest.raises(BackboneError, match="label=0"):
        from_folder(path)
    edit(path / "config.json", id2label={"0": "a", "1": "b", "2": "c"})  # three classes of four: the last means none
    plain, none, second = from_folder(path), from_folder(path, label=3), from_folder(path, label=1)
    assert plain.fingerprint == none.fingerprint != second.fingerprint
    assert torch.equal(plain.denoise(y, 1.0), none.denoise(y, 1.0))
    both = from_folder(path, label=1, guidance=2.5)
    want = guided(torch.cat([none.denoise(y, 1.0), second.denoise(y, 1.0)]), 2.5)
    torch.testing.assert_close(both.denoise(y, 1.0), want)
    for options in ({"label": 4}, {"label": -1}, {"guidance": 2}, {"prompt": "a cat"}):
        with pytest.raises(BackboneError):
            from_folder(path, **options)


# ---- images through all of them ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(BUILDERS))
def test_images_to_tokens_and_back(loaded, fresh, name):
    backbone = loaded(name)
    assert (backbone.name, len(backbone.fingerprint), backbone.training) == (name, 64, False)
    height, width = (13, 15) if backbone.size else (19, 21)  # no multiples of anything
    spec = Recipe(steps=3, budget=4, vocab_size=256, sigma_max=2.0, sigma_min=0.3, start_budget=4).build(backbone)
    codec = Codec(spec, backbone)
    images = random_images(fresh, 2, height, width)
    tokens, seen = codec.reconstruct(images)
    assert seen.shape == (2, 3, height, width)
    assert torch.isfinite(seen).all()
    assert torch.equal(codec.decode(tokens, (height, width)), seen)
    assert torch.equal(codec.encode(images), tokens)
    with pytest.raises(ImageError):
        codec.encode(torch.zeros(1, 3, 1000, 8, dtype=torch.uint8)) if backbone.size else codec.encode(images.int())


@torch.no_grad()
@pytest.mark.parametrize("name", list(BUILDERS))
def test_in_bfloat16(loaded, name):
    """Networks, their conditions and their times in mixed types; what float32 gives is bfloat16's up to its rounding."""
    backbone = deepcopy(loaded(name))
    y = noise(2, *backbone.state_shape(*(backbone.size or (16, 24))))
    wanted = backbone.denoise(y, backbone.round_sigma(0.5))
    got = backbone.accelerate("bfloat16", channels_last=True).denoise(y, backbone.round_sigma(0.5))
    assert got.dtype == torch.float32
    assert 1e-6 * wanted.norm() < (got - wanted).norm() < 0.05 * wanted.norm()


@torch.no_grad()
def test_the_state_is_the_pipelines_latent(saved, loaded):
    pipe, backbone = saved("sd3")[1], loaded("sd3")
    images = noise(1, 3, 16, 24).clamp(-1, 1)
    want = (pipe.vae.encode(images).latent_dist.mean - 0.0609) * 1.5305
    torch.testing.assert_close(backbone.encode(images), want)
    torch.testing.assert_close(backbone.decode(want), pipe.vae.decode(want / 1.5305 + 0.0609).sample)


@torch.no_grad()
def test_a_tiny_autoencoder(saved, copied):
    path = copied("sd")
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    shutil.rmtree(path / "vae")
    tiny.save_pretrained(path / "vae")
    edit(path / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    backbone, images = from_folder(path), noise(1, 3, 16, 24).clamp(-1, 1)
    assert isinstance(backbone, Latent)
    assert (backbone.factor, backbone.scale, backbone.shift) == (2, 1.0, 0.0)
    torch.testing.assert_close(backbone.encode(images), tiny.encode(images).latents)


def test_stubs_see_one_call_without_guidance_and_one_doubled_with(saved, monkeypatch):
    path, seen = saved("dit")[0], []
    monkeypatch.setattr(
        diffusers.DiTTransformer2DModel, "forward", lambda self, x, **given: seen.append(len(x)) or SimpleNamespace(sample=x)
    )
    for options in ({"label": 1}, {"label": 1, "guidance": 2}):
        from_folder(path, **options).denoise(noise(3, 4, 8, 8), 1.0)
    assert seen == [3, 6]


# ---- what a folder says of other files -----------------------------------------------------------------------------------
def test_configs_name_no_file_that_is_opened(copied, loaded, tmp_path):
    folder, evil = copied("sd"), str(tmp_path / "evil" / "file.json")
    code = {"auto_map": {"AutoTokenizer": ["evil--code.Tokenizer", None], "AutoModel": "evil--code.Model"}}
    names = {"_name_or_path": evil, "name_or_path": evil, "trust_remote_code": True, **code}
    files = {"vocab_file": evil, "merges_file": evil, "tokenizer_file": evil, "special_tokens_map_file": evil}
    edit(folder / "tokenizer" / "tokenizer_config.json", **names, **files)
    for part in ("text_encoder", "unet", "vae"):
        edit(folder / part / "config.json", **names)
    with watched() as events:
        backbone = from_folder(folder)
    assert not touching(events, "evil")
    y = noise(1, *backbone.state_shape(16, 16))
    assert torch.equal(backbone.denoise(y, 1.0), loaded("sd").denoise(y, 1.0))


def test_a_text_encoder_is_not_made_larger_than_its_tensors(copied):
    folder = copied("sd")
    path = folder / "text_encoder" / "config.json"
    whole = path.read_text()
    for changes in (
        {"vocab_size": 1 << 16, "hidden_size": 1 << 16},
        {"num_hidden_layers": 1 << 15},
        {"vocab_size": 1 << 40},
    ):
        path.write_text(whole)
        edit(path, **changes)
        with pytest.raises(BackboneError, match="text_encoder"):
            from_folder(folder)
