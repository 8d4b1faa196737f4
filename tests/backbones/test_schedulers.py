"""What the configs of diffusers' schedulers say of levels and times: x0_hat is diffusers' own, or the field is refused."""

import json

import pytest
import torch
from tiny_pipelines import autoencoder, diffusers, edit, noise, pixel_unet

from noisebook.backbones.diffusers.folder import from_folder
from noisebook.backbones.diffusers.levels import adapter
from noisebook.backbones.wrappers.latent import Latent
from noisebook.errors import BackboneError, SpecError
from noisebook.spec.presets import Recipe

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = pixel_unet()
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return net


@pytest.fixture(scope="module")
def written(unet, tmp_path_factory):
    """A folder with the network in it, whose scheduler the tests replace."""
    path = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(path)
    return path


def loaded(path, scheduler):
    scheduler.save_pretrained(path)
    backbone = from_folder(path)
    return getattr(backbone, "inner", backbone)


SIGMAS = {  # schedulers that work in y and sigma
    "continuous": ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    "discrete v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "ancestral": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "zero snr": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", list(SIGMAS))
def test_schedulers_of_sigma(name, unet, written):
    kind, fields = SIGMAS[name]
    more = {"sigma_min": 0.002, "sigma_max": 120.0} if name == "continuous" else {}
    scheduler = getattr(diffusers, kind)(**SCALED, **fields, **more)
    backbone = loaded(written, scheduler)
    scheduler.set_timesteps(10)
    for i in (2, 5, 8):
        scheduler._step_index, scheduler._begin_index = None, i
        t, sigma = scheduler.timesteps[i], float(scheduler.sigmas[i])
        y = noise(1, 3, 16, 16) * (1 + sigma * sigma) ** 0.5
        out = unet(scheduler.scale_model_input(y, t), t).sample
        want = scheduler.step(out, t, y).pred_original_sample
        got = backbone.denoise(y, backbone.round_sigma(sigma))
        assert (got - want).abs().max() < 1e-4 * max(1, want.abs().max()), sigma
    assert name != "continuous" or backbone.round_sigma(0.123) == 0.123


BETAS = {  # schedulers that work in x_t
    "shifted": ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0}),
    "shifted to zero snr": ("CogVideoXDDIMScheduler", {"snr_shift_scale": 2.0, "rescale_betas_zero_snr": True}),
    "zero snr": ("DDIMScheduler", {"rescale_betas_zero_snr": True, **SCALED}),
    "trained": ("DDIMScheduler", {"trained_betas": torch.linspace(0.001, 0.05, 100).tolist(), "num_train_timesteps": 100}),
    "cosine": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "few": ("DDIMScheduler", {"num_train_timesteps": 50}),
}


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", list(BETAS))
def test_schedulers_of_betas(name, prediction, unet, written):
    kind, fields = BETAS[name]
    if (prediction, "zero snr" in name) == ("epsilon", True):
        pytest.skip("an eps-prediction says nothing of pure noise")
    scheduler = getattr(diffusers, kind)(**fields, prediction_type=prediction, clip_sample=False)
    backbone = loaded(written, scheduler)
    times = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(times)
    for t in (0, times // 3, times - 2):
        abar = float(scheduler.alphas_cumprod[t].double())
        x = noise(1, 3, 16, 16)
        want = scheduler.step(unet(x, t).sample, t, x).pred_original_sample
        sigma = (1 / abar - 1) ** 0.5
        assert backbone.round_sigma(sigma) == pytest.approx(sigma, rel=1e-3)  # theirs is float32
        got = backbone.denoise(x / abar**0.5, sigma)
        assert (got - want).abs().max() < 1e-4 * max(1, want.abs().max()), t


TIMESTEPS = {  # how a sampler takes its timesteps, as its config or else its class says
    "leading": ("DDIMScheduler", {}, "leading", 0),
    "leading with an offset": ("DDIMScheduler", {"steps_offset": 1}, "leading", 1),
    "trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}, "trailing", 0),
    "linspace": ("DDIMScheduler", {"timestep_spacing": "linspace"}, "linspace", 0),
    "as the class": ("DEISMultistepScheduler", {}, "linspace", 0),
    "Stable Diffusion": ("PNDMScheduler", {"steps_offset": 1, "skip_prk_steps": True}, "leading", 1),
    "not said": ("UnCLIPScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "linspace", 0),
    "unheard of": ("DDPMScheduler", {"timestep_spacing": "uphill"}, "uphill", 0),
}


@pytest.mark.parametrize("name", list(TIMESTEPS))
def test_spacing_own_takes_the_timesteps_of_the_models_sampler(name):
    """Those of `set_timesteps`, of the sampler whose timesteps are those words' (DDIM): exactly, for any number of calls."""
    kind, fields, spacing, offset = TIMESTEPS[name]
    backbone = adapter(torch.nn.Identity(), {"_class_name": kind, "beta_schedule": "linear", **fields}, "here")
    backbone.name, backbone.fingerprint = "discrete", "d" * 64
    found = backbone.own_grid()
    assert (found.spacing, found.offset) == (spacing, offset)
    assert list(found.levels) == backbone.levels
    if spacing == "uphill":  # such a model is read, as it was before
        with pytest.raises(SpecError, match="timestep_spacing uphill is not known: take spacing log, "):
            Recipe(spacing="own").build(backbone)
        return
    sampler = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    for calls in (2, 7, 25, 64):
        sampler.set_timesteps(calls)
        recipe = Recipe(spacing="own", sigma_max=float("inf"), sigma_min=1e-9, steps=calls - 1)
        spec = recipe.build(backbone)
        levels = [step.sigma for step in spec.schedule] + [spec.sigma_last]
        assert levels == [backbone.levels[t] for t in sampler.timesteps.tolist()]


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm(kind, prediction, unet, written):
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, sigma_data=0.6)
    backbone = loaded(written, scheduler)
    for sigma in (0.01, 0.7, 60.0):
        y = noise(1, 3, 16, 16) * (0.36 + sigma * sigma) ** 0.5
        out = unet(scheduler.precondition_inputs(y, sigma), scheduler.precondition_noise(torch.tensor(sigma))).sample
        want = scheduler.precondition_outputs(y, out, sigma)
        assert (backbone.denoise(y, sigma) - want).abs().max() < 1e-4 * max(1, want.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [{"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}, {"invert_sigmas": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_flow(fields, unet, written):
    """Shifts only say where samplers stop; inverted levels are another time."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**fields)
    backbone = loaded(written, scheduler)
    more = {"mu": 0.8} if "use_dynamic_shifting" in fields else {}
    scheduler.set_timesteps(5, **more)
    x = noise(1, 3, 16, 16)
    for i in (1, 3):
        t, place = scheduler.timesteps[i], float(scheduler.sigmas[i])
        v = unet(x, t).sample
        if "invert_sigmas" in fields:  # place is the share of the image: v leads there, to 1
            want, sigma = x + (1 - place) * v, (1 - place) / place
        else:
            want, sigma = x - place * v, place / (1 - place)
        got = backbone.denoise(x * (1 + sigma), sigma)
        assert (got - want).abs().max() < 1e-4 * max(1, want.abs().max())


DDIM = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}
REFUSED = {
    "snr_shift_scale 3.0 is no field of a DDIMScheduler": {**DDIM, "snr_shift_scale": 3.0},
    "timestep_type continuous is no field": {**DDIM, "timestep_type": "continuous"},
    "does not know the field gamma_schedule": {**DDIM, "gamma_schedule": "cosine"},
    "thresholding": {**DDIM, "thresholding": True},
    "prediction type 'noise_level'": {**DDIM, "prediction_type": "noise_level"},
    "a whole number up to 1,000,000, not 1000.5": {**DDIM, "num_train_timesteps": 1000.5},
    "makes no betas": {**DDIM, "beta_schedule": "unheard_of"},
    "predict_epsilon false is an old name": {**DDIM, "predict_epsilon": False},
    "MyOwnScheduler is not read": {**DDIM, "_class_name": "MyOwnScheduler"},
    "sigma_data is a number above 0": {"_class_name": "EDMEulerScheduler", "sigma_data": -1},
    "prediction_type 'sample' is not read": {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
    "use_flow_sigmas goes with": {**DDIM, "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_fields_that_are_not_understood_are_named(message, written):
    (written / "scheduler_config.json").write_text(json.dumps(REFUSED[message]))
    with pytest.raises(BackboneError, match=message) as info:
        from_folder(written)
    assert "\n" not in str(info.value)


# ---- networks of codes ---------------------------------------------------------------------------------------------------
def vq():
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(**kinds, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, num_vq_embeddings=32)


def ldm(path, coder):
    torch.manual_seed(1)
    channels = coder.config.latent_channels
    net = pixel_unet(in_channels=channels, out_channels=channels)
    pipe = diffusers.LDMPipeline(vqvae=coder.eval(), unet=net, scheduler=diffusers.DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(path)
    return pipe


@torch.no_grad()
@pytest.mark.parametrize("name", ["vqvae", "vae"])
@pytest.mark.parametrize("coder", [vq, lambda: autoencoder(4)], ids=["VQModel", "AutoencoderKL"])
def test_a_network_of_codes_is_latent(coder, name, tmp_path):
    pipe = ldm(tmp_path, coder())
    if name == "vae":
        (tmp_path / "vqvae").rename(tmp_path / "vae")
        entry = json.loads((tmp_path / "model_index.json").read_text())["vqvae"]
        edit(tmp_path / "model_index.json", vqvae=[None, None], vae=entry)
    backbone, c = from_folder(tmp_path), pipe.unet.config.in_channels
    assert isinstance(backbone, Latent)
    assert backbone.state_shape(64, 48) == (c, 32, 24)
    scale, images = pipe.vqvae.config.scaling_factor, noise(1, 3, 32, 32).clamp(-1, 1)
    out = pipe.vqvae.encode(images)
    z = out.latents if hasattr(out, "latents") else out.latent_dist.mean
    torch.testing.assert_close(backbone.encode(images), z * scale)
    torch.testing.assert_close(backbone.decode(z * scale), pipe.vqvae.decode(z).sample)
    pipe.scheduler.set_timesteps(1000)
    x = noise(1, c, 16, 16)
    want = pipe.scheduler.step(pipe.unet(x, 300).sample, 300, x).pred_original_sample
    abar = pipe.scheduler.alphas_cumprod[300].item()
    sigma = backbone.round_sigma((1 / abar - 1) ** 0.5)
    assert (backbone.denoise(x / abar**0.5, sigma) - want).abs().max() < 1e-4


def part(path, **entries):
    edit(path / "model_index.json", **entries)


INDICES = {
    "a vqvae and a vae": lambda path: part(path, vae=["diffusers", "AutoencoderKL"]),
    r"a UNet2DModel with bert \(LDMBertModel\)": lambda path: part(path, bert=["latent_diffusion", "LDMBertModel"]),
    r"vqvae is \[library, class\] or \[null, null\]": lambda path: part(path, vqvae="VQModel"),
    "vqvae: no config.json": lambda path: (path / "vqvae").rename(path / "other"),
    "holds a MagvitModel": lambda path: edit(path / "vqvae/config.json", _class_name="MagvitModel"),
    "lookup_from_codebook": lambda path: edit(path / "vqvae/config.json", lookup_from_codebook=True),
    "scaling_factor and shift_factor are numbers": lambda path: edit(path / "vqvae/config.json", scaling_factor=0),
    "lies beside the model": lambda path: (
        (path / "model_index.json").unlink(),
        [(path / "unet" / f.name).rename(path / f.name) for f in list((path / "unet").iterdir())],
    ),
}


@pytest.mark.parametrize("message", list(INDICES))
def test_an_index_that_is_not_understood_is_refused(message, tmp_path):
    ldm(tmp_path, vq())
    INDICES[message](tmp_path)
    with pytest.raises(BackboneError, match=message) as info:
        from_folder(tmp_path)
    assert "\n" not in str(info.value)
