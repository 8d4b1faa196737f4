"""Every family's adapter around a tiny saved module of diffusers, against the arithmetic of diffusers' own schedulers."""

import pytest
import torch
from torch import Tensor, nn

from noisebook.backbones.families.consistency import Consistency
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.families.score import ScoreVE

diffusers = pytest.importorskip("diffusers")
SHAPE = (2, 3, 16, 16)


class Sample(nn.Module):
    """Of what a model of diffusers returns, the tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t).sample


def saved(folder, **options) -> Sample:
    """A tiny seeded UNet2DModel that was saved and loaded again."""
    torch.manual_seed(7)
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    widths = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 16}
    diffusers.UNet2DModel(**blocks, **widths, **options).save_pretrained(folder)
    return Sample(diffusers.UNet2DModel.from_pretrained(folder).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Sample:
    return saved(tmp_path_factory.mktemp("unet"))


def images(rng) -> tuple[Tensor, Tensor]:
    """x0 and eps, float32 [2, 3, 16, 16]."""
    x0, eps = (torch.from_numpy(rng.normal(size=SHAPE)).float() for _ in range(2))
    return (0.5 * x0).clamp(-1, 1), eps


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm(prediction, unet, fresh):
    x0, eps = images(fresh)
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    backbone = DDPM(unet, (1 - scheduler.betas.double()).cumprod(0).tolist(), prediction)
    for t in (0, 10, 500, 999):
        x = scheduler.add_noise(x0, eps, torch.tensor([t, t]))
        wanted = scheduler.step(unet(x, torch.tensor([t, t])), t, x).pred_original_sample
        assert_same(backbone.denoise(x0 + backbone.levels[t] * eps, backbone.levels[t]), wanted)


def test_ddpm_with_zero_terminal_snr(unet, fresh):
    _, eps = images(fresh)
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    backbone = DDPM(unet, (1 - scheduler.betas.double()).cumprod(0).tolist(), "v_prediction")
    wanted = scheduler.step(unet(eps, torch.tensor([999, 999])), 999, eps).pred_original_sample
    assert backbone.pure_noise
    assert_same(backbone.denoise(eps, float("inf")), wanted)


@pytest.mark.parametrize("unit_range", [False, True])
def test_score_ve(unit_range, tmp_path, fresh):
    """The score is the step's drift over sigma^2 - sigma_next^2, x0_hat the state after the whole sigma^2 of it."""
    net = saved(tmp_path, time_embedding_type="fourier")
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=100, sigma_max=50.0)
    scheduler.set_timesteps(100)
    scheduler.set_sigmas(100)
    backbone = ScoreVE(net, unit_range)
    x0, eps = images(fresh)
    for i in (0, 50, 90):
        t, sigma = scheduler.timesteps[i], scheduler.discrete_sigmas.flip(0)[i]
        x = (0.5 * x0 + 0.5 if unit_range else x0) + sigma * eps
        after = scheduler.step_pred(net(x, sigma.expand(2)), t, x).prev_sample_mean
        adjacent = scheduler.discrete_sigmas.flip(0)[i + 1]
        wanted = x + (after - x) * (sigma**2 / (sigma**2 - adjacent**2))
        sigma = 2 * sigma.item() if unit_range else sigma.item()
        found = backbone.denoise(x0 + sigma * eps, sigma)
        assert (found - (2 * wanted - 1 if unit_range else wanted)).abs().max() < 1e-4 * sigma


def test_edm(unet, fresh):
    x0, eps = images(fresh)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.6)
    backbone = EDM(unet, 0.6)
    for sigma in (0.002, 0.5, 80.0):
        y = x0 + sigma * eps
        sigmas = torch.tensor([sigma, sigma])
        out = unet(scheduler.precondition_inputs(y, sigma), scheduler.precondition_noise(sigmas))
        assert_same(backbone.denoise(y, sigma), scheduler.precondition_outputs(y, out, sigma))


def test_flow(unet, fresh):
    """One Euler step of diffusers' scheduler from t to 0 ends at x0_hat."""
    x0, eps = images(fresh)
    backbone = Flow(unet, time_scale=1000.0)
    for t in (0.01, 0.5, 0.99, 1.0):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[t])
        x = scheduler.scale_noise(x0, scheduler.timesteps[:1], eps)
        wanted = scheduler.step(unet(x, scheduler.timesteps.expand(2)), scheduler.timesteps[0], x).prev_sample
        y, sigma = (x0 + t / (1 - t) * eps, t / (1 - t)) if t < 1 else (eps, float("inf"))
        assert_same(backbone.denoise(y, sigma), wanted)


def test_consistency(unet, fresh):
    """The pipeline's one-step sample from every level it can begin at."""
    x0, eps = images(fresh)
    for sigma in (0.01, 1.0, 80.0):
        scheduler = diffusers.CMStochasticIterativeScheduler(sigma_max=sigma, clip_denoised=False)
        scheduler.set_timesteps(1)
        y, t = x0 + sigma * eps, scheduler.timesteps[0]
        wanted = scheduler.step(unet(scheduler.scale_model_input(y, t), t.expand(2)), t, y).prev_sample
        assert_same(Consistency(unet).denoise(y, sigma), wanted)
