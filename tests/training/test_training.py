"""Training: each objective is its formula, a run learns, resumes and leaves whole files, and bad requests are refused."""

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import random_images
from noisebook import backbones
from noisebook.backbones.nets.convnet import ConvDenoiser
from noisebook.backbones.nets.gaussian import DCTPrior, fit_dct
from noisebook.cli import main as cli
from noisebook.cli.main import parser
from noisebook.errors import TrainingError
from noisebook.spec.schedule import karras
from noisebook.training import TrainingJob, objectives, run_training
from noisebook.training.data import Crops
from noisebook.training.growing import grown
from noisebook.training.loop import TrainingSettings, _identity, train
from noisebook.training.optimizer import Optimizer
from noisebook.training.reflow import ode, pairs
from noisebook.training.run import settings_of

PLAIN = ["--budget-last", "2", "--scale-pixels", "0", "--start-budget", "0"]
SMALL = ["--widths", "8", "8", "--blocks", "1", "--sizes", "16", "--patch", "2", "--pixels", "2048", "--held-out", "8"]


def pictures(fresh, count=40, size=16) -> np.ndarray:
    return random_images(fresh, count, size, size).permute(0, 2, 3, 1).numpy().copy()


@pytest.fixture
def archive(tmp_path, fresh):
    np.savez(tmp_path / "data.npz", images=pictures(fresh))
    return tmp_path / "data.npz"


def batch(fresh, count: int) -> torch.Tensor:
    return Crops(list(pictures(fresh))).sample(count, 16, fresh).contiguous()


def network(fresh) -> ConvDenoiser:
    torch.manual_seed(0)
    net = ConvDenoiser(DCTPrior(**fit_dct(pictures(fresh))[1]), widths=(8, 8), blocks=1, embedding=8, patch=2)
    for p in net.parameters():  # also the layers that start at zero
        torch.nn.init.normal_(p, std=0.1)
    return net


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """What consecutive calls of torch.randn give after that seed."""
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in shapes]


# ---- objectives ---------------------------------------------------------------------------------------------------------
@pytest.mark.quick
def test_edm_is_the_error_over_the_square_of_its_scale(fresh):
    net, x0 = network(fresh), batch(fresh, 5)
    mean, spread = -0.3, 0.8
    torch.manual_seed(3)
    logs, noise = objectives.spread_out(5, x0.device), torch.randn(x0.shape)
    torch.manual_seed(3)
    loss = objectives.edm(mean, spread)(net, x0, 0.5)
    sigma = (mean + spread * logs).exp()
    error = (net(x0 + sigma[:, None, None, None] * noise, sigma) - x0).square().mean((1, 2, 3))
    assert loss.item() == pytest.approx((error * (sigma**2 + 0.25) / (0.2 * sigma) ** 2).mean().item(), rel=1e-4)
    assert loss.requires_grad


@pytest.mark.quick
def test_levels_of_a_batch_are_normal_and_spread_out():
    torch.manual_seed(6)
    drawn = torch.stack([objectives.spread_out(8, torch.device("cpu")) for _ in range(4000)])
    share = (1 + torch.erf(drawn / math.sqrt(2))) / 2
    assert torch.equal((share * 8).floor(), torch.arange(8.0).expand(4000, 8))
    assert abs(drawn.mean()) < 0.02  # 8,000 effective draws: four deviations
    assert abs(drawn.std() - 1) < 0.02
    assert drawn.mean(1).std() < 0.2  # of independent ones: .35


@pytest.mark.quick
def test_flow_is_the_error_of_the_velocity(fresh):
    net, x0 = network(fresh), batch(fresh, 5)
    noise, logs = drawn(4, tuple(x0.shape), (5,))
    torch.manual_seed(4)
    loss = objectives.flow()(net, x0, 0.0)
    t = torch.sigmoid(logs)[:, None, None, None]
    x_t = (1 - t) * x0 + t * noise
    velocity = (x_t - net(x_t / (1 - t), (t / (1 - t)).flatten())) / t  # as the adapter `Flow` reads it backwards
    assert loss.item() == pytest.approx((velocity - (noise - x0)).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("progress", [0.0, 0.6, 0.99])
def test_consistency_holds_two_levels_of_one_noise_together(progress, fresh):
    net, x0 = network(fresh), batch(fresh, 64)
    logs, noise = drawn(5, (64,), tuple(x0.shape))
    torch.manual_seed(5)
    loss = objectives.consistency(-1.0, 1.5)(net, x0, progress)
    sigma = (-1.0 + 1.5 * logs).exp().clamp(0.02, 80)
    power = {0.0: 2, 0.6: 32, 0.99: 256}[progress]
    lower, total = sigma * (1 - (1 + 8 / (1 + sigma.exp())) / power).clamp_min(0), 0.0
    for x, n, a, b in zip(x0, noise, sigma, lower, strict=True):
        low = x if b == 0 else (x + b * n if b <= 0.02 else net((x + b * n)[None], b[None])[0])
        gap = (net((x + a * n)[None], a[None])[0] - low).square().sum()
        c = 0.06 * math.sqrt(3 * 16 * 16 / 3072)
        total += ((gap + c * c).sqrt() - c) / (a - b)
    assert loss.item() == pytest.approx(total.item() / 64, rel=1e-3)
    assert (progress == 0) == bool((lower == 0).any())  # the first stage is denoising at the low levels


def test_the_consistency_target_is_not_trained(fresh):
    net, calls = network(fresh), []
    inner = net.forward

    def watched(y, sigma):
        out = inner(y, sigma)
        calls.append(out.requires_grad)
        return out

    net.forward = watched
    objectives.consistency()(net, batch(fresh, 8), 0.9).backward()
    assert calls == [False, True]


# ---- pairs of the ODE ---------------------------------------------------------------------------------------------------
def test_the_ode_ends_where_the_closed_form_does(fresh):
    """Gaussian data of variance s around m: y at sigma ends at m + (y - m) sqrt(s / (s + sigma^2)) (method.md,
    section 2)."""
    m, s = 0.2, 0.3

    def exact(y, sigma):
        c = sigma.square()[:, None, None, None]
        return (s * y + c * m) / (s + c)

    noise = torch.from_numpy(fresh.standard_normal((4, 3, 8, 8), np.float32))
    end = m + (80 * noise - m) * math.sqrt(s / (s + 80**2))
    errors = [(ode(exact, noise, steps) - end).abs().max().item() for steps in (12, 48)]  # type: ignore[arg-type]
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 6  # second order


@pytest.mark.quick
def test_the_ode_is_heuns_method_bit_for_bit(fresh):
    """Written out; pairs that were made by one release are those that the next would make."""
    net, noise, calls = network(fresh).eval(), torch.from_numpy(fresh.standard_normal((3, 3, 16, 16), np.float32)), 0

    def model(y, sigma):
        nonlocal calls
        calls += 1
        return net(y, torch.full((len(y),), sigma))

    levels = karras(80.0, 0.02, 7)
    with torch.no_grad():
        y = levels[0] * noise
        for sigma, sigma_next in zip(levels, levels[1:], strict=False):
            slope = (y - model(y, sigma)) / sigma
            end = y + (sigma_next - sigma) * slope
            after = (end - model(end, sigma_next)) / sigma_next
            y = y + (sigma_next - sigma) * 0.5 * (slope + after)
        assert torch.equal(ode(net, noise, 7), model(y, levels[-1]))
    assert calls == 2 * 7 + 1


def test_pairs_are_made_once_and_stay_together(tmp_path, fresh):
    net, path = network(fresh), tmp_path / "run" / "pairs.safetensors"
    draw = pairs(net, (3, 16, 16), 6, 2, path, "cpu", seed=1)
    written = path.read_bytes()
    again = pairs(None, (3, 16, 16), 6, 2, path, "cpu", seed=1)  # type: ignore[arg-type]  # no network is asked
    assert path.read_bytes() == written
    with torch.no_grad():
        for x0, noise in (draw(5), again(5)):
            torch.testing.assert_close(torch.minimum(*_both(net, x0, noise)), torch.zeros(5), rtol=0, atol=0.05)


def _both(net, x0, noise):
    """Greatest distance of x0 from the ODE's end for the noise, and for both of them mirrored."""
    return tuple((ode(net, n, 2) - x).abs().amax((1, 2, 3)) for x, n in ((x0, noise), (x0.flip(3), noise.flip(3))))


# ---- runs ---------------------------------------------------------------------------------------------------------------
def run(*arguments) -> int:
    return cli.main(["train", *map(str, arguments)])


@pytest.mark.parametrize("network", ["conv", "unet"])
def test_every_objective_trains_resumes_and_codes_an_image(network, archive, tmp_path, fresh):
    wide = [*SMALL, "--network", network, *(["--widths", "16", "32"] if network == "unet" else [])]
    base = tmp_path / "edm"
    assert run("edm", archive, "-o", base, "--minutes", 0.02, *wide) == 0
    log = json.loads((base / "log.json").read_text())
    first = backbones.load(base / "model.safetensors")
    longer = log[-1]["minutes"] + 0.01  # on a loaded machine the first part takes more than it was given
    assert run("edm", archive, "-o", base, "--minutes", longer, *wide) == 0
    again = json.loads((base / "log.json").read_text())
    assert again[: len(log)] == log
    assert again[-1]["iteration"] > log[-1]["iteration"] > 0
    assert backbones.load(base / "model.safetensors").fingerprint != first.fingerprint
    picture = tmp_path / "picture.png"
    from PIL import Image

    Image.fromarray(pictures(fresh, 1)[0]).save(picture)
    for objective in ("flow", "consistency", "reflow") if network == "conv" else ("consistency",):
        out = tmp_path / objective
        options = ["--init", base / "model.safetensors", "--sizes", 16, "--pixels", 2048, "--held-out", 8, "--pairs", 4]
        assert run(objective, archive, "-o", out, "--minutes", 0.01, *options) == 0
        code = ["roundtrip", str(picture), "-o", str(out / "coded"), "--backbone", str(out / "model.safetensors")]
        assert cli.main([*code, "--steps", "3", "--sigma-max", "3", "--budget", "2", *PLAIN]) == 0


def test_files_that_are_no_run_are_not_replaced(archive, tmp_path, capsys):
    for name in ("model.safetensors", "log.json"):
        (tmp_path / name).write_bytes(b"the user's")
        assert run("edm", archive, "-o", tmp_path, "--minutes", 0.01, *SMALL) == 1
        assert f"{name}: it is there already" in capsys.readouterr().err
        assert [path.read_bytes() for path in tmp_path.glob("*.*") if path.name == name] == [b"the user's"]
        (tmp_path / name).unlink()


def test_training_learns_what_the_prior_does_not_know(tmp_path):
    """All pictures are one grey that the prior is wrong about: at sigma = 3 it sees (.5 - 0) .25 / (.25 + 9) of it."""
    grey = [np.full((16, 16, 3), 191, np.uint8)] * 40  # .5 in [-1, 1]
    prior = DCTPrior(torch.zeros(3, 16, 16), torch.eye(3), torch.full((3, 16, 16), 0.25))

    def new() -> ConvDenoiser:
        return ConvDenoiser(prior, widths=(8, 8), blocks=1, patch=4)

    settings = TrainingSettings(minutes=0.08, sizes=(16,), pixels=1024, learning_rate=2e-2, decay=0.9, held_out=8)
    log = train(new, objectives.edm(1.0, 0.3), grey, tmp_path, lambda net, path: path.touch(), settings)
    assert log[-1]["iteration"] > 10
    assert log[-1]["mse@3.0"] < 0.7 * 0.25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_is_trained_in_the_type_asked_for_and_measured_in_float32(dtype, archive, tmp_path, monkeypatch):
    seen = {True: set(), False: set()}
    inner = ConvDenoiser.residual

    def watched(net, x, log_sigma):
        types = []
        hook = net.enter.register_forward_hook(lambda layer, args, out: types.append(out.dtype))
        out = inner(net, x, log_sigma)
        hook.remove()
        seen[torch.is_grad_enabled()] |= set(types)
        return out

    monkeypatch.setattr(ConvDenoiser, "residual", watched)
    assert run("edm", archive, "-o", tmp_path / "run", "--minutes", 0.005, *SMALL, "--dtype", dtype) == 0
    assert seen == {True: {getattr(torch, dtype)}, False: {torch.float32}}
    assert all(p.dtype == torch.float32 for p in torch.load(tmp_path / "run" / "state.pt")["average"].values())


@pytest.mark.parametrize("name", ["photo", "cifar10-edm", "cifar10-ddpm", "cifar10-flow"])
def test_shipped_networks_can_be_tuned_whatever_family_they_are_seen_as(name, archive, tmp_path, fresh):
    """A step of no size is made: what is written is the shipped network."""
    options = ["--init", name, "--sizes", 32, "--held-out", 8, "--pixels", 1024]
    np.savez(archive, images=pictures(fresh, 10, 32))
    assert run("edm", archive, "-o", tmp_path / "run", "--minutes", 1e-9, *options, "--learning-rate", 1e-12) == 0
    tuned, start = (backbones.load(n) for n in (tmp_path / "run" / "model.safetensors", name))
    x, sigma = torch.from_numpy(fresh.standard_normal((1, 3, 32, 32), "float32")), start.round_sigma(1.0)
    torch.testing.assert_close(tuned(x, sigma), start(x, sigma), rtol=0, atol=1e-4)


def test_a_run_that_is_killed_goes_on_from_its_last_save(tmp_path, fresh):
    images, steps = list(pictures(fresh)), 0

    def failing(model, x0, progress):
        nonlocal steps
        steps += 1
        if steps == 12:
            raise KeyboardInterrupt
        return objectives.edm()(model, x0, progress)

    def go(objective, minutes):
        return train(
            lambda: network(np.random.default_rng(0)),
            objective,
            images,
            tmp_path,
            lambda net, path: path.touch(),
            TrainingSettings(minutes=minutes, sizes=(16,), pixels=512, held_out=8),
            save_every=1e-4,
        )

    with pytest.raises(KeyboardInterrupt):
        go(failing, 5)
    kept = json.loads((tmp_path / "log.json").read_text())
    assert 0 < kept[-1]["iteration"] < 12
    log = go(objectives.edm(), kept[-1]["minutes"] + 0.01)
    assert log[: len(kept)] == kept
    assert log[-1]["iteration"] > kept[-1]["iteration"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_is_said_and_leaves_the_last_save_whole(tmp_path, fresh):
    images = list(pictures(fresh))

    def write(net, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def go(write, minutes):
        return train(
            lambda: network(np.random.default_rng(0)),
            objectives.edm(),
            images,
            tmp_path,
            write,
            TrainingSettings(minutes=minutes, sizes=(16,), pixels=512, held_out=8),
        )

    spent = go(lambda net, path: path.write_bytes(b"whole"), 0.005)[-1]["minutes"]  # more than asked on a busy machine
    with pytest.raises(TrainingError, match="No space left"):
        go(write, spent + 0.005)
    assert (tmp_path / "model.safetensors").read_bytes() == b"whole"
    assert not list(tmp_path.glob("*.tmp"))


def test_crops_cover_the_image_and_both_mirrorings(fresh):
    image = np.arange(6 * 7, dtype=np.uint8).reshape(6, 7, 1).repeat(3, 2)
    found = {tuple((x[0].flatten() * 127.5 + 127.5).round().int().tolist()) for x in Crops([image]).sample(400, 4, fresh)}
    expected = set()
    for y in range(3):
        for x in range(4):
            crop = image[y : y + 4, x : x + 4, 0]
            expected |= {tuple(crop.flatten().tolist()), tuple(crop[:, ::-1].flatten().tolist())}
    assert found == expected
    same = Crops([image[:4, :4], image[2:, 3:]]).sample(100, 4, fresh)  # the fast way, for images of the crops' size
    assert len({tuple(x.flatten().tolist()) for x in same}) == 4


# ---- what is refused ----------------------------------------------------------------------------------------------------
BAD = {
    "no network to tune": (["consistency"], "--init"),
    "no minutes": (["edm", "--minutes", "0"], "above 0"),
    "crops larger than the images": (["edm", "--sizes", "64"], "smaller than the crops"),
    "crops the network does not take": (["edm", "--sizes", "15"], "multiples of"),
    "too few images": (["edm", "--held-out", "40"], "too few"),
    "a missing checkpoint": (["flow", "--init", "nowhere.safetensors"], "no backbone"),
    "a prior as network": (["flow", "--init", "gaussian-prior"], "no network that noisebook trained"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_one_typed_line(case, archive, tmp_path, capsys):
    options, message = BAD[case]
    assert run(options[0], archive, "-o", tmp_path / "run", *SMALL, *options[1:]) != 0
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_of_other_settings_or_a_damaged_one_is_not_overwritten(archive, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("edm", archive, "-o", out, "--minutes", 0.005, *SMALL) == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run("edm", archive, "-o", out, "--minutes", 0.01, *SMALL, "--seed", 1) == 1
    assert "other settings" in capsys.readouterr().err
    assert run("flow", archive, "-o", out, "--minutes", 0.01, *SMALL) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    with np.load(archive) as data:
        np.savez(tmp_path / "other.npz", images=255 - data["images"])
    assert run("edm", tmp_path / "other.npz", "-o", out, "--minutes", 0.01, *SMALL) == 1
    assert "a run on other images" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    (out / "state.pt").write_bytes(files["state.pt"][:1000])
    assert run("edm", archive, "-o", out, "--minutes", 0.01, *SMALL) == 1
    assert "no state to resume" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, fresh):
    with pytest.raises(TrainingError, match="lower"):
        train(
            lambda: network(fresh),
            lambda model, x0, progress: next(model.parameters()).sum() * math.nan,
            list(pictures(fresh)),
            tmp_path,
            lambda net, path: path.touch(),
            TrainingSettings(sizes=(16,), pixels=1024, held_out=8),
        )
    assert not list(tmp_path.iterdir())


# ---- what moves the weights ---------------------------------------------------------------------------------------------
def test_muon_steps_along_the_orthogonal_factor_of_a_gradient(fresh):
    """From rest, and without weight decay, U S V^T moves a square convolution by rate * .2 sqrt(longer side) * U V^T."""
    torch.manual_seed(int(fresh.integers(2**31)))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    optimizer = Optimizer(net, "muon")
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before, gradient = net[1].weight.detach().clone(), net[1].weight.grad.clone()
    first, bias = net[0].weight.detach().clone(), net[1].bias.detach().clone()
    optimizer.step(1e-3)
    u, _, v = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
    expected = (u @ v).reshape(before.shape) * 1e-3 * 0.2 * math.sqrt(8 * 9)
    moved = (before - net[1].weight.detach()).double()
    assert (moved * expected).sum() > 0.95 * moved.norm() * expected.norm()
    assert moved.norm() == pytest.approx(expected.norm().item(), rel=0.35)  # Newton-Schulz leaves factors of .7 to 1.2
    for p, old in ((net[0].weight, first), (net[1].bias, bias)):  # AdamW's first step has the size of the rate
        assert (p.detach() - old).abs().mean() == pytest.approx(1e-3, rel=0.1)
    assert all(p.grad is None for p in net.parameters())


def test_muon_trains_and_resumes_as_a_run_in_a_piece(tmp_path, fresh):
    """Weights, averages and momenta come back: a resumed optimizer makes the same next step."""
    torch.manual_seed(1)
    nets = [network(np.random.default_rng(3)).to(memory_format=torch.channels_last) for _ in range(2)]
    optimizers = [Optimizer(net, "muon") for net in nets]

    def step(net, optimizer, seed):
        torch.manual_seed(seed)
        objectives.edm()(net, batch(np.random.default_rng(seed), 4), 0.5).backward()
        optimizer.step(1e-2)

    for seed in range(3):
        step(nets[0], optimizers[0], seed)
    torch.save([nets[0].state_dict(), optimizers[0].state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    nets[1].load_state_dict(weights)
    optimizers[1].load_state_dict(state)
    for net, optimizer in zip(nets, optimizers, strict=True):
        step(net, optimizer, 7)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(nets[0].enter.weight, weights["enter.weight"])
    assert not torch.equal(nets[0].down_blocks[0][0].conv1.weight, weights["down_blocks.0.0.conv1.weight"])


# ---- from Python ----------------------------------------------------------------------------------------------------------
JOB = {"sizes": (16,), "pixels": 2048, "held_out": 8, "widths": (8, 8), "blocks": 1, "patch": 2}


def test_a_run_needs_no_command_line_and_is_the_same_run(archive, tmp_path):
    """What a job in Python has begun, the command goes on with: both make the same settings."""
    out = tmp_path / "run"
    job = TrainingJob("edm", archive, out, minutes=0.005, learning_rate=1e-3, **JOB)
    made = run_training(job)
    assert made["output"] == str(out / "model.safetensors")
    assert made["iteration"] > 0
    assert backbones.load(out / "model.safetensors").channels == 3
    assert run("edm", archive, "-o", out, "--minutes", made["minutes"] + 0.005, *SMALL, "--learning-rate", 1e-3) == 0
    log = json.loads((out / "log.json").read_text())
    assert log[-1]["iteration"] > made["iteration"]
    with pytest.raises(TrainingError, match="other settings"):
        run_training(replace(job, seed=1))


@pytest.mark.quick
def test_every_default_of_the_command_is_that_of_a_job():
    args = parser().parse_args(["train", "flow", "data.npz", "-o", "run"])
    job = TrainingJob("flow", "data.npz", Path("run"))
    for field in fields(TrainingJob):
        given, default = getattr(args, field.name), getattr(job, field.name)
        assert (tuple(given) if isinstance(given, list) else given) == default, field.name


def test_the_recipe_in_a_runs_state_keeps_its_spelling():
    """Runs that were begun by an earlier release resume: these are its words."""
    job = TrainingJob("edm", "d", "o", widths=(64, 96), level=(-0.7, 1.3), init=None)
    assert job.recipe == (
        "objective=edm init=None network=conv widths=[64, 96] blocks=None patch=None level=[-0.7, 1.3] pairs=4096"
    )
    assert replace(job, objective="cod", widths=None, level=None, align=Path("x.pt"), autoencoder="a:b").recipe == (
        "objective=cod init=None network=conv widths=None blocks=None patch=None level=None pairs=4096 "
        "stride=8 bits=8 share=0.75 dropped=0.1 align=x.pt autoencoder=a:b latents=4"
    )
    assert json.loads(_identity(settings_of(job))) == {
        "sizes": [64, 128],
        "pixels": 49152,
        "learning_rate": 0.0005,
        "decay": 0.9995,
        "seed": 0,
        "optimizer": "adamw",
        "dtype": "float32",
        "held_out": 64,
        "recipe": job.recipe,
    }


@pytest.mark.parametrize(
    "wrong", [{"objective": "gan"}, {"network": "vit"}, {"optimizer": "sgd"}, {"dtype": "float16"}, {"sizes": ()}]
)
def test_a_job_that_the_command_would_refuse_is_refused(wrong):
    with pytest.raises(TrainingError):
        TrainingJob(**{"objective": "edm", "data": "d", "output": "o", **wrong})


def test_importing_the_job_is_light():
    """`noisebook --help` reads it."""
    code = "import sys; from noisebook.training import TrainingJob; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("widths", "blocks"), [((12, 10), None), (None, 3), ((9, 16), 2), (None, None)])
def test_a_grown_network_computes_the_same_and_all_of_it_learns(fresh, widths, blocks):
    first, y, sigma = network(fresh), batch(fresh, 3), torch.tensor([0.1, 0.7, 5.0])
    expected = first(y, sigma)
    torch.manual_seed(1)
    larger = grown(first, widths, blocks)
    assert larger.config == {"widths": list(widths or (8, 8)), "blocks": blocks or 1, "embedding": 8, "patch": 2}
    assert torch.allclose(larger(y, sigma), expected, atol=1e-5)
    assert torch.equal(first(y, sigma), expected)
    optimizer = Optimizer(larger, "adamw")
    before = {name: p.detach().clone() for name, p in larger.named_parameters()}
    for _ in range(3):  # in the first steps zeros stand between what is new and the output
        larger(y, sigma).square().mean().backward()
        optimizer.step(1e-3)
    assert not [name for name, p in larger.named_parameters() if torch.equal(p, before[name])]


def test_only_larger_networks_are_grown(archive, tmp_path, fresh):
    for widths, blocks in (((4, 8), None), ((8, 8, 8), None), ((8,), 1)):
        with pytest.raises(TrainingError, match="only grows: give --widths from 8 8 and --blocks from 1"):
            grown(network(fresh), widths, blocks)
    job = TrainingJob("edm", archive, tmp_path / "a", minutes=0.01, init="photo", patch=2, sizes=(16,), held_out=8)
    with pytest.raises(TrainingError, match="only --widths and --blocks"):  # it would be ignored
        run_training(job)
    job = TrainingJob("edm", archive, tmp_path / "a", minutes=0.01, init="cifar10-edm", blocks=1, sizes=(32,), held_out=8)
    with pytest.raises(TrainingError):
        run_training(job)
