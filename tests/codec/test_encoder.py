"""Look-ahead: encoders that try several sets of tokens at each step make files that decode as ever, and better ones."""

import json

import numpy as np
import pytest
import torch

from common import RECIPES, Shrink, random_images
from noisebook import SpecError, backbones
from noisebook.cli.main import main
from noisebook.codebook import start_noise
from noisebook.codec.codec import Codec
from noisebook.codec.encoder import SHAKE, STRIDE
from noisebook.images import io as images
from noisebook.spec.presets import Recipe
from noisebook.spec.step import StepIndex


def build(candidates: int, backbone=None, **changes) -> Codec:
    base = {"steps": 6, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    backbone = backbone or Shrink()
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone, candidates=candidates)


class Crooked(Shrink):
    """A denoiser that errs, and whose errors depend on the state: there is something to choose by."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def denoise(self, y, sigma, cond=None):
        self.rows += len(y)
        return super().denoise(y, sigma) + 0.1 * torch.sin(3 * y)


@pytest.mark.parametrize("case", RECIPES)
def test_the_decoder_makes_what_the_encoder_predicts(case, fresh):
    codec = build(3, **RECIPES[case])
    x = random_images(fresh, 2, 36, 42)
    tokens, predicted = codec.reconstruct(x)
    assert torch.equal(codec.encode(x), tokens)
    assert torch.equal(codec.decode(tokens, (36, 42)), predicted)
    assert torch.equal(codec.decode_packed(codec.encode_packed(x), (36, 42)), predicted)
    assert torch.equal(build(1, **RECIPES[case]).decode(tokens, (36, 42)), predicted)


def test_an_image_gets_the_same_tokens_in_every_batch(fresh):
    codec, x = build(4, Crooked(), start_budget=2), random_images(fresh, 3, 24, 24)
    weights = torch.from_numpy(fresh.random((3, 1, 24, 24), np.float32)) + 0.1
    whole = codec.encode(x, weights)
    assert torch.equal(whole, torch.cat([codec.encode(x[i : i + 1], weights[i : i + 1]) for i in range(3)]))
    assert not torch.equal(whole, codec.encode(x))


@pytest.mark.parametrize("weighted", [False, True])
def test_every_step_goes_on_from_the_candidate_of_least_error(weighted, fresh):
    """A walk of one image written here, candidate by candidate."""
    candidates, backbone = 12, Crooked()
    codec, x = build(candidates, backbone, steps=12, start_budget=2, seed=5), random_images(fresh, 1, 20, 28)
    weights = torch.from_numpy(fresh.random((1, 1, 20, 28), np.float32)) + 0.1 if weighted else None
    tokens = codec.encode(x, weights)
    plan, schedule = codec.stream(20, 28), codec.spec.schedule
    x0 = plan.views(x.float() * (2 / 255) - 1)
    counts = torch.ones_like(x0) if weights is None else plan.views(weights.expand(-1, 3, -1, -1))
    found, y, x0_hat, others = [], None, torch.zeros_like(x0), 0
    for which in plan.segments:
        start = which.step_index == StepIndex.START
        step = schedule[0 if start else which.step_index]
        rule = codec.start_rule if start else codec.rule
        residual, tries = (x0 - x0_hat) * counts, []
        for n in range(candidates):
            turn = (which.step_index & 0xFFFFFFFF) * STRIDE % plan.dims
            noise = start_noise(1, plan.dims, 5 + n, torch.device("cpu")).roll(turn, -1)
            size = SHAKE * residual.square().mean().sqrt()
            chosen = rule.select(
                residual + size * noise if n else residual, which.budget, which.step_index, step.kept, step.sigma_up
            )
            if start:
                then = step.sigma * rule.noise(chosen, (1, plan.dims), which.budget, StepIndex.START)
            else:
                then = rule.backtrace(y, x0_hat, chosen, which.budget, which.step_index, step.keep, step.sigma_up)
            sigma = step.sigma if start else step.sigma_next
            predicted = plan.views(backbone(plan.join(then), sigma))
            tries.append((float(((x0 - predicted).square() * counts).mean()), n, chosen, then, predicted))
        _, n, chosen, y, x0_hat = min(tries, key=lambda t: t[:2])
        others += n > 0
        found.append(chosen)
    assert torch.equal(tokens, torch.cat(found, 1))
    assert others, "no step took another candidate than the first: this test shows nothing"


def test_calls_are_counted_as_they_are_made(fresh):
    backbone = Crooked()
    for candidates, expected in ((1, 6), (4, 28)):
        codec = build(candidates, backbone)
        backbone.rows = 0
        codec.encode(random_images(fresh, 2, 16, 16))
        assert codec.encode_nfe == expected == backbone.rows / 2
        assert codec.nfe == 7


def test_more_candidates_decode_nearer_to_the_picture():
    """Photographs, the embedded network, equal bits and calls of the decoder."""
    x = torch.from_numpy(images.sample("cat")[:96, :160].copy()).permute(2, 0, 1).unfold(1, 96, 96).unfold(2, 80, 80)
    x = x.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()
    backbone, errors = backbones.load("photo"), []
    for candidates in (1, 8):
        codec = build(candidates, backbone, steps=5, budget=16, vocab_size=4096, sigma_max=8)
        _, decoded = codec.reconstruct(x)
        errors.append(float((decoded - (x.float() / 127.5 - 1)).square().mean()))
    assert errors[1] < 0.97 * errors[0]


def test_the_command_line_tries_them(capsys, tmp_path):
    size = ["--samples", "--json", "-o", str(tmp_path), "--backbone", "gaussian-prior", "--steps", "2"]
    assert main(["roundtrip", *size, "--candidates", "2"]) == 0
    assert {row["nfe"] for row in json.loads(capsys.readouterr().out)["images"]} == {2 * 3 + 3}
    assert main(["encode", *size, "--force", "--candidates", "0"]) == 2
    assert "candidates must be from 1 to 64" in capsys.readouterr().err
    with pytest.raises(SpecError):
        build(65)
