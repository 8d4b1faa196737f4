"""The loop: encoder and decoder agree bit for bit, the update is the formula, tokens carry what they should."""

import dataclasses
import itertools
import math
import warnings
from functools import partial

import pytest
import torch

from common import Shrink, random_images
from noisebook import CodecMismatchError, CodecSpec, FormatError, ImageError, SpecError, backbones
from noisebook.backbones.wrappers.ranged import Ranged
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.codebook import reference
from noisebook.codec.codec import Codec
from noisebook.codec.walk import walk
from noisebook.format import container
from noisebook.spec import schedule
from noisebook.spec.presets import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


def build(backbone, **changes) -> Codec:
    base = {"steps": 6, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone)


CASES = {
    "plain": {},
    "independent": {"codebook": "independent", "vocab_size": 66},
    "codebook start": {"start_budget": 8, "start_vocab_size": 1024},
    "2-D": {"rows": 2, "columns": 3, "start_budget": 2},
    "p=0": {"p": 0, "sigma_max": 0.5, "solver": "euler", "solver_steps": 4},
    "p=0 rho": {"p": 0, "sigma_max": 0.5, "rho": 0.9},
    "p=.3 heun": {"p": 0.3, "solver": "heun", "solver_steps": 3},
    "p=1": {"p": 1},
    "growing": {"budget": 3, "budget_last": 60, "scale_pixels": 40 * 40},
    "one dimension of noise": {"budget": 1, "vocab_size": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 17, 40)])
def test_decoder_makes_what_the_encoder_predicts_bit_for_bit(case, batch, height, width, shrink, fresh):
    codec = build(shrink, **CASES[case])
    images = random_images(fresh, batch, height, width)
    tokens, predicted = codec.reconstruct(images)
    assert torch.equal(codec.encode(images), tokens)
    decoded = codec.decode(tokens, (height, width))
    assert decoded.shape == images.shape
    assert torch.equal(decoded, predicted)
    layout = codec.layout_for(height, width)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (batch, len(layout))
    assert ((tokens >= 0) & (tokens < layout.vocab_size)).all()


@pytest.mark.parametrize("case", CASES)
def test_packed_tokens_are_the_payload_of_a_file(case, shrink, fresh):
    codec = build(shrink, **CASES[case])
    images = random_images(fresh, 3, 17, 40)
    tokens, payload = codec.encode(images), codec.encode_packed(images)
    runs = codec.stream(17, 40).runs
    assert [row.numpy().tobytes() for row in payload] == [container.pack(row.numpy(), runs) for row in tokens]
    assert torch.equal(codec.decode_packed(payload, (17, 40)), codec.decode(tokens, (17, 40)))


@pytest.mark.parametrize("vocab_size", [66, 128])
def test_bad_payloads_are_refused(vocab_size, shrink, fresh):
    codec = build(shrink, codebook="independent", vocab_size=vocab_size, steps=3, budget=1)  # 3 tokens: 19 or 21 bits
    payload = codec.encode_packed(random_images(fresh, 2, 8, 8))
    padded = payload.clone()
    padded[1, -1] |= 1 << int(fresh.integers(3))
    for bad in (payload[:, 1:], payload[0], payload.int(), padded):
        with pytest.raises(FormatError):
            codec.decode_packed(bad, (8, 8))


def test_update_is_the_formula_of_the_method(shrink, fresh):
    """One hand-written walk in float64 with the reference codebook, against the codec's decode."""
    codec = build(shrink, start_budget=2, start_vocab_size=64)
    images = random_images(fresh, 2, 12, 20)
    tokens = codec.encode(images)
    d = 3 * 12 * 20

    def z(some, vocab_size, step):
        bins = some.shape[1]
        atoms = min(vocab_size // 2, 1024 // bins)
        return reference.unit_rms(reference.hadamard_total(some, d, bins, atoms, vocab_size // 2 // atoms, step, 0)).double()

    y = 3 * z(tokens[:, :2], 64, reference.START_STEP)
    levels = schedule.log_uniform(3, 0.2, 6)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        x0_hat = y * 0.25 / (0.25 + sigma**2)
        sigma_down = sigma_next**2 / sigma  # p = 1/2
        y = x0_hat + sigma_down / sigma * (y - x0_hat)
        y += (sigma_next**2 - sigma_down**2) ** 0.5 * z(tokens[:, 2 + 4 * i : 6 + 4 * i], 256, i)
    y = y * 0.25 / (0.25 + levels[-1] ** 2)
    decoded = codec.decode(tokens, (12, 20)).flatten(1).double()
    assert (decoded - y).abs().max() < 1e-5


def test_tokens_carry_the_image_and_more_tokens_carry_more(shrink, fresh):
    images = random_images(fresh, 4, 32, 32)
    x = images.float() * (2 / 255) - 1
    errors = []
    for bins in (1, 8, 64):
        codec = build(shrink, steps=16, budget=bins)
        errors.append((codec.decode(codec.encode(images), (32, 32)) - x).square().mean().item())
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]
    shuffled = codec.decode(codec.encode(images).flip(0), (32, 32))
    assert (shuffled - x).square().mean() > 2 * errors[2]  # another image's tokens decode to another image


def test_ode_finish_follows_the_exact_flow(shrink):
    """For white Gaussian images the flow is y(0) = y(sigma) * .5 / sqrt(.25 + sigma^2): Heun comes nearer than Euler."""
    tokens = torch.zeros(1, 24, dtype=torch.int64)
    last, zeros = {}, partial(torch.zeros, dtype=torch.int64)
    for finish, steps in (("euler", 12), ("heun", 12), ("mean", 1)):
        codec = build(shrink, solver=finish, solver_steps=steps)
        stream = codec.stream(8, 8)
        y, _ = walk(codec.parts, stream, 1, lambda segment, _: zeros(1, segment.count), len(codec.spec.schedule))
        exact = y * 0.5 / (0.25 + 0.2**2) ** 0.5 if finish != "mean" else y * 0.25 / (0.25 + 0.2**2)
        last[finish] = (codec.decode(tokens, (8, 8)) - exact).abs().max() / exact.abs().max()
    assert last["heun"] < 1e-3 < last["euler"] < 0.05
    assert last["mean"] < 1e-6


def test_layout_is_ordered_by_start_step_unit_bin(shrink):
    layout = build(shrink, rows=2, columns=2, start_budget=2, start_vocab_size=32).layout_for(16, 16)
    keys = torch.stack([layout.step_index, layout.block, layout.bin], 1).tolist()
    assert keys == sorted(keys)
    assert keys[:4] == [[-1, 0, 0], [-1, 0, 1], [-1, 1, 0], [-1, 1, 1]]
    assert len(keys) == 2 * 4 + 6 * 4 * 4
    assert layout.vocab_size.tolist() == [32] * 8 + [256] * 96
    assert layout.bits == 8 * 5 + 96 * 8


def test_views_are_blocks_in_raster_order_and_join_inverts(shrink, fresh):
    plan = build(shrink, rows=2, columns=3).stream(5, 7)
    assert plan.state == (3, 6, 9)
    x = torch.from_numpy(fresh.random((2, 3, 6, 9)))
    views = plan.views(x)
    assert views.shape == (2, 6, 27)
    assert torch.equal(views[:, 4], x[:, :, 3:6, 3:6].flatten(1))
    assert torch.equal(plan.join(views), x)


def test_blocks_have_codebooks_of_their_own(shrink):
    codec = build(shrink, rows=1, columns=2)
    decoded = codec.decode(torch.zeros(1, 48, dtype=torch.int64), (8, 16))
    assert not torch.allclose(decoded[..., :8], decoded[..., 8:], atol=0.1)


def test_other_seeds_and_laws_give_other_noise(shrink):
    outs = [
        build(shrink, **c).decode(torch.zeros(1, 24, dtype=torch.int64), (8, 8))
        for c in ({}, {"seed": 1}, {"codebook": "independent"})
    ]
    for a, b in itertools.combinations(outs, 2):
        assert not torch.allclose(a, b, atol=0.1)


def test_images_in_a_batch_do_not_disturb_each_other(shrink, fresh):
    codec = build(shrink)
    images = random_images(fresh, 5, 16, 24)
    together = codec.encode(images)
    assert torch.equal(together, torch.cat([codec.encode(i[None]) for i in images]))


def test_float_images_equal_uint8(shrink, fresh):
    codec = build(shrink)
    images = random_images(fresh, 2, 16, 16)
    assert torch.equal(codec.encode(images), codec.encode(images.float() * (2 / 255) - 1))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.int64),
        torch.full((1, 3, 8, 8), 2.0),
        torch.full((1, 3, 8, 8), float("nan")),
    ],
)
def test_bad_images_are_refused(images, shrink):
    with pytest.raises(ImageError):
        build(shrink).encode(images)


def test_bad_tokens_are_refused(shrink):
    codec = build(shrink)
    good = torch.zeros(1, 24, dtype=torch.int64)
    codec.decode(good, (8, 8))
    for bad in (good[:, 1:], good[0], good.float(), good - 1, good + 256):
        with pytest.raises(CodecMismatchError):
            codec.decode(bad, (8, 8))
    assert torch.equal(codec.decode(good.int(), (8, 8)), codec.decode(good, (8, 8)))  # any integers will do


@pytest.mark.parametrize(
    ("of", "name", "why"),
    [
        (
            Ranged,
            "wanted",
            "; if it is the same model under a new name, its weights, its configuration or its Ranged differ",
        ),
        (Ranged, "shrink", ": its weights, its configuration or its Ranged differ from"),
        (None, "shrink", ": its weights, its configuration or its Ranged differ from"),
        (Tiled, "photo-2", ": most likely it was loaded under another prompt"),
    ],
)
def test_another_backbone_is_refused_naming_both(of, name, why, shrink):
    """Of the user's own class, or of one in a `Ranged`, nothing is said of a prompt."""
    made = {Ranged: lambda: Ranged(shrink, 0, 1), Tiled: lambda: backbones.load("photo-2"), None: lambda: shrink}[of]()
    spec = dataclasses.replace(build(shrink).spec, fingerprint="0" * 64, backbone=name)
    with pytest.raises(CodecMismatchError, match=rf"'{name}' \(0{{16}}\), not '{made.name}' \(\w{{16}}\){why}"):
        Codec(spec, made)


def test_what_cannot_be_walked_is_refused(shrink):
    with pytest.raises(SpecError, match="bins"):
        build(shrink, budget=1024).stream(8, 8)
    with pytest.raises(SpecError, match="bins"):
        build(shrink, start_budget=1024).stream(8, 8)
    codec = build(shrink)
    shrink.round_sigma = lambda sigma: 0.7
    with pytest.raises(SpecError, match="has no level"):
        Codec(codec.spec, shrink)


def test_a_backbone_that_breaks_is_reported(shrink, fresh):
    codec = build(shrink)
    shrink.denoise = lambda y, sigma, cond=None: y * (float("nan") if sigma < 1 else 0.1)
    with pytest.raises(ImageError, match="not finite"):
        codec.encode(random_images(fresh, 1, 8, 8))


@pytest.mark.filterwarnings("default:quality stalls")
def test_a_stalling_codebook_is_warned_of(shrink, fresh):
    images = random_images(fresh, 1, 32, 32)
    with pytest.warns(RuntimeWarning, match="quality stalls"):
        build(shrink, steps=16, budget=1, vocab_size=2).encode(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(shrink, steps=16, budget=64, vocab_size=2048).encode(images)


def test_network_calls_are_counted(shrink):
    class Counting(type(shrink)):
        count = 0

        def denoise(self, y, sigma, cond=None):
            self.count += 1
            return super().denoise(y, sigma)

    for changes in ({}, {"solver": "euler", "solver_steps": 5}, {"solver": "heun", "solver_steps": 5}):
        backbone = Counting()
        codec = build(backbone, **changes)
        codec.decode(torch.zeros(1, 24, dtype=torch.int64), (8, 8))
        assert backbone.count == codec.nfe


def test_a_last_level_of_zero_needs_no_finish(shrink, fresh):
    steps = schedule.falling([2, 1, 0.5, 0], 0.5, 4)
    codec = Codec(CodecSpec("shrink", shrink.fingerprint, steps, vocab_size=64), shrink)
    tokens, predicted = codec.reconstruct(random_images(fresh, 1, 8, 8))
    assert tokens.shape == (1, 8)
    assert codec.nfe == 3
    assert torch.equal(codec.decode(tokens, (8, 8)), predicted)


def test_a_backbone_of_one_size_pads_small_images_and_is_tiled_for_large_ones(shrink, fresh):
    shrink.size = (16, 24)
    codec = build(shrink)
    assert codec.default_size == (16, 24)
    images = random_images(fresh, 2, 9, 20)
    tokens, predicted = codec.reconstruct(images)
    assert predicted.shape == images.shape
    assert torch.equal(codec.decode(tokens, (9, 20)), predicted)
    with pytest.raises(ImageError, match="Tiled"):
        codec.encode(random_images(fresh, 1, 17, 20))
    tiled = Tiled(shrink)
    large = random_images(fresh, 1, 40, 50)
    tokens, predicted = build(tiled).reconstruct(large)
    assert torch.equal(build(tiled).decode(tokens, (40, 50)), predicted)
    shrink.size = None  # tiles of a pointwise denoiser blend into what it gives on the whole image
    assert (build(shrink).decode(tokens, (40, 50)) - predicted).abs().max() < 1e-5


class PureNoise(Shrink):
    """`Shrink` that also knows sigma = inf, where it can only guess the mean."""

    pure_noise = True

    def denoise(self, y, sigma, cond=None):
        return torch.zeros_like(y) if sigma == math.inf else super().denoise(y, sigma)


@pytest.mark.parametrize("case", [{}, {"p": 1}, {"start_budget": 8}, {"solver": "heun", "solver_steps": 3}])
def test_pure_noise_is_the_limit_of_a_very_large_level(case, fresh):
    backbone = PureNoise()
    images = random_images(fresh, 2, 16, 24)
    start = build(backbone, sigma_max=math.inf, spacing="flow", **case)
    assert start.spec.schedule[0].sigma == math.inf
    steps = list(start.spec.schedule)
    far = 1e5  # y keeps x0 up to float32's rounding of sigma_0: 1e5 * 6e-8
    steps[0] = dataclasses.replace(steps[0], sigma=far, sigma_down=steps[0].sigma_down or 1e-3)
    near = Codec(dataclasses.replace(start.spec, schedule=tuple(steps)), backbone)
    tokens, predicted = start.reconstruct(images)
    assert torch.equal(start.decode(tokens, (16, 24)), predicted)
    torch.testing.assert_close(near.decode(tokens, (16, 24)), predicted, rtol=0, atol=0.02)


def test_pure_noise_is_refused_where_the_model_does_not_know_it(shrink):
    with pytest.raises(SpecError, match="no pure noise"):
        build(shrink, sigma_max=math.inf, spacing="flow")
