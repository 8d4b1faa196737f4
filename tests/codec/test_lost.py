"""Tokens that are known to be lost: their atoms are skipped, and the levels of the walk follow."""

import math
from dataclasses import replace

import pytest
import torch

from common import random_images
from noisebook import CodecMismatchError, SpecError
from noisebook.codebook import reference
from noisebook.codec.lost import Known, levels_of, without
from noisebook.spec.step import Step
from rules_kit import build

pytestmark = pytest.mark.quick


def test_levels_follow_what_is_lost():
    steps = (Step(math.inf, 3, 5, 4), Step(5, 2, 3, 4), Step(3, 1, 2, 4), Step(2, 1, 1, 0))
    assert levels_of(steps, {}) == [math.inf, 5, 3, 2, 1]
    first, second, third, fourth, last = levels_of(steps, {0: 0.75, 2: 0.0})
    assert first == math.inf
    assert second == pytest.approx(math.sqrt(9 + 0.75 * 16))  # pure noise: 3 of it is kept
    assert third == pytest.approx(math.hypot(2 / 5 * second, math.sqrt(5)))
    assert fourth == pytest.approx(third / 3)
    assert last == pytest.approx(fourth / 2)
    assert levels_of((Step(5, 0, 5, 4),), {0: 0.0})[1] > 0  # nothing is left, and the network still has a level


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_a_step_is_the_sum_of_the_atoms_that_are_known(kind, shrink, fresh):
    codec = build(shrink, budget=8, codebook=kind, vocab_size=256)  # one basis: atoms are orthogonal
    y, x0_hat = (torch.from_numpy(fresh.standard_normal((1, 2, 1024))).float() for _ in range(2))
    tokens = torch.from_numpy(fresh.integers(0, 256, (1, 16)))
    lost = torch.from_numpy(fresh.random((1, 16)) < 0.4)
    lost[0, :2] = torch.tensor([True, False])
    known = Known(codec.rule.book, rule=codec.rule, lost={3: lost})
    got = known.backtrace(y, x0_hat, tokens, 8, 3, 0.5, 0.7)
    shape = codec.rule.book.shape(8, 1024)
    total = getattr(reference, f"{kind}_total")
    sizes = (1024, *(shape if kind == "hadamard" else shape[:2]), 3, 0)
    for block in range(2):
        view, part = slice(8 * block, 8 * block + 8), torch.zeros(1, 1024)
        whole = total(tokens[:, view], *sizes, block)
        for m in range(8 * block, 8 * block + 8):
            if not lost[0, m]:
                turned = tokens.clone()
                turned[0, m] ^= 1
                part += (whole - total(turned[:, view], *sizes, block)) / 2  # one atom
        z = part / whole.float().square().mean().sqrt()
        want = x0_hat[:, block] + 0.5 * (y - x0_hat)[:, block] + 0.7 * z
        near = 1e-5 if kind == "hadamard" else 0.2  # codewords that are drawn one by one are not quite orthogonal
        assert (got[:, block] - want).abs().max() < near
        alone = known.at(block).backtrace(y[:, [block]], x0_hat[:, [block]], tokens[:, view], 8, 3, 0.5, 0.7)
        assert torch.equal(alone, got[:, [block]])
    assert torch.equal(
        known.backtrace(y, x0_hat, tokens, 8, 2, 0.5, 0.7), codec.rule.backtrace(y, x0_hat, tokens, 8, 2, 0.5, 0.7)
    )


@pytest.mark.parametrize("solver", [{}, {"solver": "heun", "solver_levels": (0.15, 0.1, 0.0)}])
def test_what_stands_at_a_lost_place_does_not_matter(solver, shrink, fresh):
    codec = build(shrink, rows=2, start_budget=4, **solver)
    tokens, plain = codec.reconstruct(random_images(fresh, 2, 32, 32))
    none = torch.zeros(tokens.shape, dtype=torch.bool)
    assert torch.equal(codec.decode(tokens, (32, 32), lost=none), plain)
    lost = torch.from_numpy(fresh.random(tokens.shape) < 0.1)
    lost[:, :3], lost[1] = True, lost[1].flip(0)
    garbage = torch.where(lost, torch.from_numpy(fresh.integers(0, 1 << 40, tokens.shape)), tokens)
    decoded = codec.decode(tokens, (32, 32), lost=lost)
    assert torch.equal(codec.decode(garbage, (32, 32), lost=lost), decoded)
    for row in range(2):
        assert torch.equal(codec.decode(tokens[[row]], (32, 32), lost=lost[[row]]), decoded[[row]])
    error = [(x - plain).square().mean().item() for x in (decoded, codec.decode(tokens.where(~lost, 9), (32, 32)))]
    assert 0 < error[0] < error[1]  # skipping is nearer to what was sent than any other atoms
    short = codec.decode(tokens, (32, 32), steps=3, lost=lost)
    assert torch.equal(short, codec.decode(tokens[:, : 4 * 2 + 3 * 8], (32, 32), steps=3, lost=lost[:, : 4 * 2 + 3 * 8]))


def test_the_network_is_asked_at_the_levels_that_follow(shrink, fresh, monkeypatch):
    codec, asked = build(shrink), []
    tokens = codec.encode(random_images(fresh, 1, 16, 16))
    lost = torch.zeros(tokens.shape, dtype=torch.bool)
    lost[0, :2] = True  # half of the first step
    monkeypatch.setattr(type(shrink), "round_sigma", lambda self, sigma: round(sigma, 3))
    parts, given = without(codec.parts, codec.stream(16, 16), tokens, lost)
    assert parts.sigmas == tuple(round(sigma, 3) for sigma in levels_of(codec.spec.schedule, {0: 0.5}))
    assert given[0, :2].tolist() == [0, 0]
    plain = shrink.denoise
    monkeypatch.setattr(shrink, "denoise", lambda y, sigma, cond=None: (asked.append(sigma), plain(y, sigma, cond))[1])
    codec.decode(tokens, (16, 16), lost=lost)
    assert tuple(asked) == parts.sigmas


def test_what_cannot_be_lost_is_refused(shrink, fresh):
    codec = build(shrink)
    tokens = codec.encode(random_images(fresh, 1, 16, 16))
    for bad in (tokens, torch.zeros(1, 3, dtype=torch.bool), torch.zeros(2, tokens.shape[1], dtype=torch.bool)):
        with pytest.raises(CodecMismatchError, match=r"lost must be bool \[1, 24\]"):
            codec.decode(tokens, (16, 16), lost=bad)
    with pytest.raises(CodecMismatchError, match="torch tensor"):
        codec.decode(tokens, (16, 16), lost=[True])  # pyright: ignore[reportArgumentType]
    for rule, changes in (("top", {}), ("poisson", {}), ("pursuit", {"coefficient_bits": 3})):
        other = build(shrink, rule=rule, **changes)
        tokens = other.encode(random_images(fresh, 1, 16, 16))
        with pytest.raises(SpecError, match=f"rule {rule} do not stand alone"):
            other.decode(tokens, (16, 16), lost=torch.zeros(tokens.shape, dtype=torch.bool))
    stream = codec.stream(16, 16)
    before = replace(stream, segments=(replace(stream.segments[0], step_index=-2), *stream.segments[1:]))
    with pytest.raises(SpecError, match="none of them can be lost"):
        without(codec.parts, before, tokens[:, :24], torch.ones(1, 24, dtype=torch.bool))
