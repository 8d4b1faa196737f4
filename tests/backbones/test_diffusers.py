"""The diffusers adapter against diffusers' own scheduler, on tiny random models in both folder layouts."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_kit import diffusers, tiny_unet
from noisebook import backbones
from noisebook.backbones.diffusers.files import WEIGHTS_FILE
from noisebook.backbones.diffusers.folder import from_folder
from noisebook.backbones.diffusers.nets import UNet2D
from noisebook.backbones.families.ddpm import DDPM, PREDICTIONS
from noisebook.errors import BackboneError

SCHEDULES = {"linear": {}, "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}, "squaredcos_cap_v2": {}}


def scheduler_of(beta_schedule="linear", prediction_type="epsilon", **options):
    return diffusers.DDPMScheduler(
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        clip_sample=False,
        **{**SCHEDULES[beta_schedule], **options},
    )


def write_folder(path, unet=None, scheduler=None, pipeline=True):
    unet, scheduler = unet or tiny_unet(), scheduler or scheduler_of()
    if pipeline:
        diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(path)
    else:
        unet.save_pretrained(path)
        scheduler.save_pretrained(path)
    return path


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_x0_hat_is_the_schedulers(tmp_path, schedule, prediction):
    unet, scheduler = tiny_unet(), scheduler_of(schedule, prediction)
    backbone = backbones.load(write_folder(tmp_path / "tiny", unet, scheduler))
    assert (backbone.name, backbone.native_size, backbone.channels) == ("tiny", (16, 16), 3)
    for t in (1, 50, 500, 900):
        abar = scheduler.alphas_cumprod[t].item()
        sigma = math.sqrt((1 - abar) / abar)
        x = noise(2, 3, 16, 16) * (1 if t > 1 else 0.5)
        want = scheduler.step(unet(x, t).sample, t, x).pred_original_sample
        got = backbone.denoise(x / math.sqrt(abar), sigma)
        assert got.dtype == torch.float32
        assert (got - want).norm() < 1e-4 * want.norm()


@torch.no_grad()
def test_learned_variance_channels_are_dropped(tmp_path):
    unet, scheduler = tiny_unet(out_channels=6), scheduler_of(variance_type="learned_range")
    backbone = backbones.load(write_folder(tmp_path / "m", unet, scheduler))
    x, t = noise(1, 3, 16, 16), 300
    abar = scheduler.alphas_cumprod[t].item()
    want = scheduler.step(unet(x, t).sample, t, x).pred_original_sample
    got = backbone.denoise(x / math.sqrt(abar), math.sqrt((1 - abar) / abar))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_consistent_predictions_give_back_x0(prediction):
    """A stub that knows x0 and returns the eps, v or x0 of its input: every adapter then returns x0."""
    x0, eps = noise(2, 3, 8, 8).clamp(-1, 1), noise(2, 3, 8, 8).flip(0)
    abars = scheduler_of().alphas_cumprod.double().tolist()
    seen = []

    class Stub(torch.nn.Module):
        def forward(self, x, timesteps):
            assert timesteps.dtype == torch.long
            t = seen.append(timesteps.tolist()) or seen[-1][0]
            s, sigma = math.sqrt(abars[t]), math.sqrt(1 - abars[t])
            torch.testing.assert_close(x, s * x0 + sigma * eps, rtol=1e-5, atol=1e-5)
            return SimpleNamespace(sample={"epsilon": eps, "v_prediction": s * eps - sigma * x0, "sample": x0}[prediction])

    backbone = DDPM(UNet2D(Stub(), {}), abars, prediction)
    for t in (0, 10, 400, 800):
        sigma = backbone.round_sigma(math.sqrt(1 / abars[t] - 1) * 1.0001)  # a little off the grid: the nearest level serves
        torch.testing.assert_close(backbone.denoise(x0 + sigma * eps, sigma * 0.9999), x0, rtol=0, atol=2e-5)
        assert seen[-1] == [t, t]


def test_snap_is_the_nearest_level_in_log_distance():
    abars = [0.9, 0.5, 0.1]
    backbone = DDPM(torch.nn.Identity(), abars, "epsilon")
    levels = [math.sqrt(1 / a - 1) for a in abars]
    assert backbone.levels == pytest.approx(levels, rel=1e-12)
    for sigma in [1e-9, 1e9, *(math.exp(i / 50) for i in range(-100, 100))]:
        nearest = min(backbone.levels, key=lambda level: abs(math.log(level / sigma)))
        assert backbone.round_sigma(sigma) == nearest
        assert backbone.round_sigma(nearest) == nearest


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_zero_terminal_snr(tmp_path, prediction):
    scheduler = scheduler_of("scaled_linear", prediction, rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    backbone = from_folder(write_folder(tmp_path / "m", scheduler=scheduler))
    assert isinstance(backbone, DDPM)
    assert len(backbone.levels) == (999 if prediction == "epsilon" else 1000)  # eps says nothing where all is noise
    assert math.isfinite(backbone.round_sigma(1e30))
    assert math.isfinite(backbone.round_sigma(math.inf)) == (prediction == "epsilon")


@torch.no_grad()
def test_layouts_names_and_fingerprint(tmp_path):
    write_folder(tmp_path / "pipeline", tiny_unet(attention=True))
    write_folder(tmp_path / "bare", tiny_unet(attention=True), pipeline=False)
    nested = tmp_path / "nested"
    shutil.copytree(tmp_path / "bare", nested)
    (nested / "scheduler").mkdir()
    (nested / "scheduler_config.json").rename(nested / "scheduler/scheduler_config.json")
    shutil.copytree(tmp_path / "bare", tmp_path / "early")  # a pipeline's index beside the model, as in early repositories
    shutil.copy(tmp_path / "pipeline/model_index.json", tmp_path / "early")
    first, bare, third, early = (from_folder(tmp_path / name) for name in ("pipeline", "bare", "nested", "early"))
    assert first.fingerprint == bare.fingerprint == third.fingerprint == early.fingerprint
    assert len(first.fingerprint) == 64
    y = noise(1, 3, 16, 16)
    assert torch.equal(first.denoise(y, 1.0), bare.denoise(y, 1.0))
    # attention layers under their old names
    tensors = load_file(nested / WEIGHTS_FILE)
    old = {}
    for name, tensor in tensors.items():
        for a, b in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
            name = name.replace(a, b)
        old[name] = tensor
    assert old.keys() != tensors.keys()
    save_file(old, nested / WEIGHTS_FILE)
    assert torch.equal(from_folder(nested).denoise(y, 1.0), bare.denoise(y, 1.0))
    # one bit of one weight, one entry of the schedule
    tensors["conv_in.bias"].view(torch.int32)[0] ^= 1
    save_file(tensors, tmp_path / "bare" / WEIGHTS_FILE)
    assert from_folder(tmp_path / "bare").fingerprint != first.fingerprint
    edit(tmp_path / "pipeline/scheduler/scheduler_config.json", beta_end=0.03)
    assert from_folder(tmp_path / "pipeline").fingerprint != first.fingerprint


def test_half_precision_weights_grey_images_and_sizes(tmp_path):
    grey = tiny_unet(in_channels=1, out_channels=1, sample_size=(16, 24)).half()
    backbone = backbones.load(write_folder(tmp_path / "grey", grey))
    assert (backbone.channels, backbone.native_size) == (1, (16, 24))
    assert backbone.denoise(noise(1, 1, 16, 24), 1.0).dtype == torch.float32
    free = backbones.load(write_folder(tmp_path / "free", tiny_unet(sample_size=None)))
    assert (free.size, free.multiple) == (None, 2)
    assert free.denoise(noise(1, 3, 18, 14), 1.0).shape == (1, 3, 18, 14)


def pickles_only(path):
    (path / "unet" / WEIGHTS_FILE).rename(path / "unet/diffusion_pytorch_model.bin")


def truncated(path):
    data = (path / "unet" / WEIGHTS_FILE).read_bytes()
    (path / "unet" / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def a_tensor_missing(path):
    tensors = load_file(path / "unet" / WEIGHTS_FILE)
    tensors.pop("conv_in.bias")
    save_file(tensors, path / "unet" / WEIGHTS_FILE)


DAMAGES = {
    "pickle": pickles_only,
    "no diffusion_pytorch_model.safetensors": lambda path: (path / "unet" / WEIGHTS_FILE).unlink(),
    "damaged": truncated,
    "conv_in.bias": a_tensor_missing,
    "no config.json": lambda path: (path / "unet/config.json").unlink(),
    "cannot be read as JSON": lambda path: (path / "unet/config.json").write_text("{"),
    "not a JSON object": lambda path: (path / "unet/config.json").write_text("[1]"),
    "no scheduler/scheduler_config.json": lambda path: shutil.rmtree(path / "scheduler"),
    "holds a UNet1DModel": lambda path: edit(path / "unet/config.json", _class_name="UNet1DModel"),
    "class-conditional": lambda path: edit(path / "unet/config.json", num_class_embeds=10),
    "class_embed_type 'timestep'": lambda path: edit(path / "unet/config.json", class_embed_type="timestep"),
    "fourier time embedding": lambda path: edit(path / "unet/config.json", time_embedding_type="fourier"),
    "positional time embedding": lambda path: (path / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "ScoreSdeVeScheduler"}'
    ),
    "4 channels in": lambda path: edit(path / "unet/config.json", in_channels=4),
    "6 out": lambda path: edit(path / "unet/config.json", out_channels=6),
    "do not make a UNet2DModel": lambda path: edit(path / "unet/config.json", block_out_channels=[8, 16]),
    "flow_prediction": lambda path: edit(path / "scheduler/scheduler_config.json", prediction_type="flow_prediction"),
    "cubic": lambda path: edit(path / "scheduler/scheduler_config.json", beta_schedule="cubic"),
    "do not fall": lambda path: edit(path / "scheduler/scheduler_config.json", trained_betas=[0.1, 0.0, 0.1]),
    "no beta_schedule": lambda path: (path / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "KarrasVeScheduler"}'
    ),
}


@pytest.mark.parametrize("message", list(DAMAGES))
def test_what_is_refused(tmp_path, message):
    path = write_folder(tmp_path / "m")
    assert from_folder(path).size == (16, 16)
    DAMAGES[message](path)
    with pytest.raises(BackboneError, match=message) as info:
        from_folder(path)
    assert "\n" not in str(info.value)


def test_without_diffusers_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(BackboneError, match="pip install"):
        from_folder(tmp_path)
