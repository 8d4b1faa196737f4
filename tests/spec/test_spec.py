"""Specifications and schedules: what is refused, what survives JSON, how many tokens an image gets."""

import dataclasses
import json
import math

import pytest
import torch

from noisebook import CodecSpec, SpecError, Step, backbones
from noisebook.spec import schedule
from noisebook.spec.presets import Recipe

pytestmark = pytest.mark.quick

STEPS = schedule.falling(schedule.log_uniform(3, 0.1, 5), 0.5, 4)


def make(**changes) -> CodecSpec:
    return CodecSpec(**{"backbone": "b", "fingerprint": "f" * 64, "schedule": STEPS, **changes})


def test_json_round_trip_keeps_every_bit_and_the_hash(fresh):
    levels = sorted(fresh.uniform(0.01, 5, 7), reverse=True)
    spec = make(schedule=schedule.falling(levels, 0.37, 8), seed=2**64 - 1, solver="heun", solver_levels=(levels[-1] / 3, 0))
    again = CodecSpec.from_json(spec.to_json())
    assert again == spec
    assert again.hash == spec.hash
    assert again.to_json() == spec.to_json()


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CodecSpec)])
def test_every_field_changes_the_hash(field):
    other = {
        "backbone": "c",
        "fingerprint": "e" * 64,
        "schedule": STEPS[:-1],
        "codebook": "independent",
        "vocab_size": 128,
        "seed": 1,
        "start_budget": 1,
        "start_vocab_size": 16,
        "rows": 2,
        "columns": 2,
        "solver": "euler",
        "solver_levels": (0.05, 0.0),
        "scale_pixels": 99,
        "rule": "top",
        "coefficient_bits": 4,
        "condition": (8, 16, 16),
        "resolutions": 2,
    }
    needed = {
        "solver_levels": {"solver": "euler", "solver_levels": (0.0,)},
        "coefficient_bits": {"rule": "pursuit", "coefficient_bits": 3},
    }
    base = make(**needed.get(field, {}))
    changes = {field: other[field]}
    if field == "solver":
        changes["solver_levels"] = (0.0,)
    assert dataclasses.replace(base, **changes).hash != base.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": ()},
        {"codebook": "gauss"},
        {"vocab_size": 3},
        {"vocab_size": 96},
        {"vocab_size": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"rows": 0},
        {"solver": "dpm"},
        {"start_budget": 3},
        {"start_budget": -1},
        {"solver_levels": (0.0,)},
        {"solver": "euler"},
        {"solver": "euler", "solver_levels": (0.2, 0.0)},
        {"solver": "heun", "solver_levels": (0.05,)},
        {"schedule": (STEPS[0], STEPS[2])},
        {"scale_pixels": -1},
        {"schedule": (Step(3, 1, 2, 3),)},
        {"schedule": (), "condition": (8, 16, 16), "solver": "ab2"},
        {"condition": (8, 16)},
        {"condition": (8, 12, 16)},
        {"condition": (8, 1, 16)},
        {"condition": (6, 16, 16)},
        {"condition": (16, 16, 8)},
        {"condition": (0, 16, 16)},
        {"condition": (8, 16, 1 << 17)},
        {"condition": (8, 16, 16), "start_budget": 1},
    ],
)
def test_bad_specifications_are_refused(changes):
    with pytest.raises(SpecError):
        make(**changes)


BAD_STEPS = [
    (1, 1, 1, 1),
    (0, 0, 0, 0),
    (1, 0.5, 2, 1),
    (1, 0.6, 0.5, 1),
    (1, 0.5, 0.5, 1),
    (1, 0.4, 0.5, 0),
    (1, 0, 0.5, 1),
    (math.inf, math.inf, math.inf, 0),
    (math.inf, 0, math.inf, 1),
    (1, -1, 0.5, 1),
    (math.nan, 0, 0, 0),
]


@pytest.mark.parametrize("step", BAD_STEPS)
def test_bad_steps_are_refused(step):
    with pytest.raises(SpecError):
        Step(*step)


def test_json_that_is_not_a_specification_is_refused():
    good = json.loads(make().to_json())
    bad = [
        "",
        "[]",
        "{}",
        "null",
        json.dumps({**good, "extra": 1}),
        json.dumps({**good, "noisebook_spec": 2}),
        json.dumps({**good, "seed": 1.5}),
        json.dumps({**good, "seed": True}),
        json.dumps({**good, "schedule": [[1, 2]]}),
        json.dumps({**good, "schedule": 7}),
        json.dumps({**good, "vocabulary": "many"}),
        json.dumps({**good, "finish_levels": None}),
        make().to_json()[:-1],
    ]
    for text in bad:
        with pytest.raises(SpecError):
            CodecSpec.from_json(text)


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_levels_have_both_ends_and_fall(spacing):
    levels = schedule.SPACINGS[spacing](3.0, 0.1, 20)
    assert len(levels) == 21
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))
    near = 0.04 if spacing == "turbo" else 0.02  # of whole times: one is 5 % of sigma near .1
    assert levels[0] == pytest.approx(3, rel=near)
    assert levels[-1] == pytest.approx(0.1, rel=near)


def test_half_is_the_ddpm_posterior(fresh):
    """p = 1/2 gives the mean and variance of q(x_t | x_s, x0) of Ho et al. 2020, eq. 7, in noise-to-signal coordinates."""
    sigma, sigma_next = sorted(fresh.uniform(0.1, 5, 2), reverse=True)
    (step,) = schedule.falling([sigma, sigma_next], 0.5, 1)
    abar, abar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    alpha = abar / abar_next
    x0_weight = math.sqrt(abar_next) * (1 - alpha) / (1 - abar) / math.sqrt(abar_next)
    x_weight = math.sqrt(alpha) * (1 - abar_next) / (1 - abar) * math.sqrt(abar) / math.sqrt(abar_next)
    variance = (1 - abar_next) / (1 - abar) * (1 - alpha) / abar_next
    assert 1 - step.keep == pytest.approx(x0_weight, rel=1e-9)
    assert step.keep == pytest.approx(x_weight, rel=1e-9)
    assert step.sigma_up**2 == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_p_is_the_kept_share_of_the_log_distance(p):
    for s in schedule.falling([2, 1, 0.3], p, 2):
        assert math.log(s.sigma_next) == pytest.approx((1 - p) * math.log(s.sigma) + p * math.log(s.sigma_down))


def test_ends_of_p():
    for s in schedule.falling([2, 1, 0.5, 0], 1, 3):
        assert (s.budget, s.sigma_up, s.sigma_down) == (0, 0, s.sigma_next)
    last = schedule.falling([2, 1, 0], 0.5, 4)[-1]
    assert (last.sigma_next, last.sigma_down, last.budget) == (0, 0, 0)
    for s in schedule.fixed_level(0.3, 10, 4):
        assert (s.sigma, s.sigma_next, s.budget) == (0.3, 0.3, 4)
        assert s.keep == pytest.approx(0.8)
        assert s.keep**2 * s.sigma**2 + s.sigma_up**2 == pytest.approx(s.sigma**2)
    for call in (
        lambda: schedule.falling([2, 1], 0, 1),
        lambda: schedule.falling([2, 1], 1.5, 1),
        lambda: schedule.falling([2, 1], 0.5, [1, 1]),
        lambda: schedule.fixed_level(1, 5, 1, rho=1),
        lambda: schedule.log_uniform(1, 2, 5),
        lambda: schedule.log_uniform(2, 1, 0),
        lambda: schedule.ddpm(1, 0.9, 500),
    ):
        with pytest.raises(SpecError):
            call()


def test_scaled_bins_follow_the_size_of_the_image(fresh):
    counts = schedule.geometric(3, 700, 24)
    spec = make(schedule=schedule.falling(schedule.log_uniform(3, 0.1, 24), 0.5, counts), scale_pixels=512 * 768)
    for height, width in [(512, 768), (768, 512), (300, 451), *fresh.integers(200, 1500, (5, 2)).tolist()]:
        bins, _ = spec.budgets_for(height, width)
        assert all(b & (b - 1) == 0 and b > 0 for b in bins)
        wanted = sum(counts) * height * width / (512 * 768)
        assert sum(bins) == pytest.approx(wanted, rel=0.12), (height, width)
    assert spec.budgets_for(512, 768) == spec.budgets_for(768, 512)
    assert spec.budgets_for(1, 1) == ([1] * 24, 0)


def test_warnings_name_the_failure_signs(shrink):
    def said(**changes):
        return " | ".join(Recipe(**changes).build(shrink).warnings())

    assert "semantic drift" in said(sigma_max=3, p=0)
    assert "semantic drift" in said(sigma_max=9, sigma_min=2)
    assert "stalls" in said(vocab_size=4)
    assert "fixed random draw" in said()
    assert "p = 0.20" in said(p=0.2)
    assert said(start_budget=4, start_vocab_size=256) == ""


def test_recipes_refuse_bad_numbers(shrink):
    for changes in (
        {"spacing": "cubic"},
        {"budget": 0},
        {"rho": 0.5},
        {"steps": 0},
        {"p": -0.1},
        {"budget": 3},
        {"sigma_min": 9},
    ):
        with pytest.raises(SpecError):
            Recipe(**changes).build(shrink)


def test_recipes_snap_to_the_grid_of_the_model(shrink):
    grid = [0.1 * 1.1**i for i in range(40)]
    shrink.round_sigma = lambda sigma: min(grid, key=lambda g: abs(math.log(g / sigma)))
    spec = Recipe(steps=10, solver="euler", solver_steps=4, sigma_min=0.5).build(shrink)
    assert all(s.sigma in grid and s.sigma_next in grid for s in spec.schedule)
    assert all(v in grid for v in spec.solver_levels[:-1])
    with pytest.raises(SpecError, match="fewer steps"):
        Recipe(steps=100).build(shrink)


def test_the_hash_of_a_specification_is_pinned():
    """The identity in every file: no version of anything may change it silently. Exact levels, no libm."""
    spec = make(fingerprint="f", schedule=(Step(2, 0.5, 1, 4), Step(1, 0.25, 0.5, 8)))
    assert spec.hash.hex() == "bab609182e73d3e6"


def test_pure_noise_is_a_first_level_only_and_null_in_json():
    levels = schedule.flow(math.inf, 0.1, 6)
    spec = make(schedule=schedule.falling(levels, 0.5, 4))
    assert CodecSpec.from_json(spec.to_json()) == spec
    first = json.loads(spec.to_json())["schedule"][0]
    assert first == [None, 0.0, levels[1], 4]
    assert (spec.schedule[0].keep, spec.schedule[0].sigma_up) == (0.0, levels[1])
    assert not [w for w in spec.warnings() if "p =" in w]
    with pytest.raises(SpecError):
        CodecSpec.from_json(spec.to_json().replace(f"[{levels[2]},", "[null,"))
    with pytest.raises(SpecError):
        make(schedule=(*STEPS, Step(math.inf, 0.0, 0.05, 1)))


def test_flow_levels_are_even_in_time(fresh):
    high, low = 10.0 ** fresh.uniform(0, 3), 10.0 ** fresh.uniform(-3, -1)
    for top in (high, math.inf):
        times = [1.0 if v == math.inf else v / (1 + v) for v in schedule.flow(top, low, 9)]
        steps = [a - b for a, b in zip(times, times[1:], strict=False)]
        assert steps == pytest.approx([steps[0]] * 9)
        assert (schedule.flow(top, low, 9)[0], schedule.flow(top, low, 9)[-1]) == (top, low)


def test_turbo_ddcms_grid_is_stable_diffusions_noise(fresh):
    """Against torch's own arithmetic: betas of square roots even from .00085^.5 to .012^.5, alpha-bar their product."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - beta).cumprod(0)
    levels = ((1 - abar) / abar).sqrt()
    assert schedule.scaled_linear() == pytest.approx(levels.tolist(), rel=1e-12)
    times = schedule.TURBO_TIMES
    assert times[0] == 999
    assert times[-1] == 1
    assert all(a > b for a, b in zip(times, times[1:], strict=False))
    whole = schedule.turbo(20, 0.01, len(times) - 1)
    assert whole == pytest.approx([float(levels[t]) for t in times], rel=1e-12)
    for steps in (1, 7, int(fresh.integers(8, 100))):
        some = schedule.turbo(20, 0.01, steps)
        assert len(some) == steps + 1
        assert set(some) <= set(whole)
        assert some[0] == whole[0]
        assert some[-1] == whole[-1]
    assert max(schedule.turbo(3, 0.5, 5)) <= 3
    assert min(schedule.turbo(3, 0.5, 5)) >= 0.5
    with pytest.raises(SpecError, match=f"has {len(times)} levels"):
        schedule.turbo(20, 0.01, len(times))


def test_turbo_ddcms_steps_without_bits():
    """Fewer bits, more of the last steps without any; none from .15 bits a pixel on, and one step always keeps its bits."""
    pixels = 512 * 512
    free = [
        schedule.turbo_free_steps(round(rate * pixels), 50, 512, 512) for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 1)
    ]
    assert free == sorted(free, reverse=True)
    assert free[0] == 49
    assert free[-2:] == [0, 0]
    assert 0 < free[4] < free[3] < 49
    # the 70 nodes of .01 ... .15 bits a pixel: at node n there are 69 - n steps without bits
    node = 0.01 * 15 ** (30.5 / 69)
    assert schedule.turbo_free_steps(round(node * pixels), 200, 512, 512) == 70 - 31 - 1
    assert schedule.turbo_free_steps(round(node * 1024 * 1024), 200, 1024, 1024) == 20 - 9 - 1  # 20 nodes from 768 x 768 on
    assert schedule.turbo_free_steps(round(0.012 * pixels), 3, 512, 512) == 2


def test_recipes_of_the_published_rules():
    """The last `free_steps` carry nothing and inject nothing; rule and coefficients are those asked for."""
    backbone = backbones.load("gaussian-prior")
    recipe = Recipe(
        backbone="gaussian-prior",
        steps=12,
        spacing="turbo",
        sigma_max=20,
        sigma_min=0.01,
        rule="top",
        budget=40,
        vocab_size=32768,
        free_steps=5,
    )
    spec = recipe.build(backbone)
    assert [s.budget for s in spec.schedule] == 7 * [40] + 5 * [0]
    assert all(s.sigma_down == s.sigma_next for s in spec.schedule[7:])
    assert all(s.sigma_down < s.sigma_next for s in spec.schedule[:7])
    assert [s.sigma for s in spec.schedule] == schedule.turbo(20, 0.01, 12)[:-1]
    assert sum(run.count for _, run in spec.runs_for(64, 64)) == 7 * 40
    assert all(run.subset == 40 for _, run in spec.runs_for(64, 64))
    pursuit = dataclasses.replace(recipe, rule="pursuit", coefficient_bits=3, free_steps=0).build(backbone)
    assert pursuit.coefficient_bits == 3
    assert [r.vocab_size for _, r in pursuit.runs_for(64, 64)][:2] == [32768, 8]
    for wrong in (
        {"free_steps": 12},
        {"free_steps": -1},
        {"coefficient_bits": 3},
        {"rule": "best"},
        {"spacing": "even"},
        {"rule": "pursuit", "coefficient_bits": 1},
    ):
        with pytest.raises(SpecError):
            dataclasses.replace(recipe, **wrong).build(backbone)
