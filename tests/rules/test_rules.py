"""Selection rules against the papers' formulas, their files, and one test for every fault of DiffC's published code."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import ROOT, Shrink, random_images
from noisebook import CodecMismatchError, CodecSpec, FormatError, SpecError, Step, codebook
from noisebook.backbones import fingerprint_of
from noisebook.codebook import Codebook, reference
from noisebook.codec.codec import Codec
from noisebook.format import container
from noisebook.format.container import OVERHEAD, Container
from noisebook.format.entropy import encode_symbols, ideal_bits, zipf_table
from noisebook.format.runs import Run
from noisebook.images.files import decode_picture, encode_picture, spec_of, token_runs
from noisebook.images.io import read_image
from noisebook.spec import presets
from noisebook.spec.schedule import falling
from rules_kit import build, rule_for

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")
LAWS = ("hadamard", "independent")
KNOWN = json.loads((ROOT / "tests/golden/codebook_known_answers.json").read_text())

# Changes to the specification of `build` that lead through every rule; poisson: steps of 1, 2 and several chunks
CASES = {
    "bins": {"budget": 16, "start_budget": 2},
    "bins 2-D": {"budget": 8, "rows": 2, "columns": 3},
    "top": {"rule": "top", "budget": 21},
    "top 2-D": {"rule": "top", "budget": 5, "rows": 2, "columns": 3, "start_budget": 2},
    "pursuit": {"rule": "pursuit", "budget": 2, "coefficient_bits": 3, "vocab_size": 128},
    "pursuit 2-D": {"rule": "pursuit", "budget": 3, "coefficient_bits": 2, "vocab_size": 64, "rows": 2, "columns": 3},
    "pursuit of one atom": {"rule": "pursuit", "budget": 1},
    "poisson": {"rule": "poisson", "budget": [1, 7, 9, 20, 33, 50], "start_budget": 2},
    "top independent": {"rule": "top", "budget": 7, "codebook": "independent", "vocab_size": 130},
    "poisson independent": {"rule": "poisson", "budget": [1, 7, 9, 20, 33, 50], "codebook": "independent"},
}


def pixels_of(images: torch.Tensor) -> np.ndarray:
    return images[0].permute(1, 2, 0).numpy()


# ---- the papers' formulas in float64, on codewords that are all written out ------------------------------------------
def codewords(law: str, count: int, d: int, step: int, seed: int, unit: int) -> np.ndarray:
    """[count, d], the unsigned atoms of the one bin that is all, with entries of mean square 1 (docs/codebook.md)."""
    p = reference.next_pow2(d)
    h = np.ones((1, 1))
    while len(h) < p:
        h = np.kron(np.array([[1, 1], [1, -1]]), h)
    rotation = reference.signs(p, 0, step, reference.STREAM_ROTATION, seed, unit).numpy()
    if law == "independent":
        u = reference.signs(p, torch.arange(count), step, reference.STREAM_INDEPENDENT, seed, unit).numpy()
        return (rotation * (u @ h) / math.sqrt(p))[:, :d]
    atoms = min(count, p)
    bases = reference.signs(p, torch.arange(count // atoms), step, reference.STREAM_BASIS, seed, unit).numpy()
    return np.concatenate([rotation * (h[:atoms] * b @ h) / math.sqrt(p) for b in bases])[:, :d]


def unit_rms(z: np.ndarray) -> np.ndarray:
    return z / np.sqrt(np.square(z).mean(-1, keepdims=True))


def signed(words: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return words[tokens >> 1] * (1 - 2 * (tokens & 1))[:, None]


@pytest.mark.parametrize("extension", [True, False], ids=["_C", "definition"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("d", [64, 100])
@pytest.mark.quick
def test_top_is_turbo_ddcm(d, law, extension, fresh, monkeypatch):
    """z = the sum of the M codewords of largest |<z_i, r>|, with their signs, divided by its root mean square."""
    if not extension:
        monkeypatch.setattr(codebook, "backend", lambda device: reference)
    number, seed, m = int(fresh.integers(2**31)), int(fresh.integers(2**63)), int(fresh.integers(1, 40))
    step = Step(1, 0.25, 0.5, m)
    rule = rule_for("top", step, law, 512, seed, rows=1, columns=2)
    residual = torch.from_numpy(fresh.standard_normal((3, 2, d), "float32"))
    tokens = rule.select(residual, m, number, step.kept, step.sigma_up)
    z = rule.noise(tokens, (2, d), m, number).numpy()
    for unit in range(2):
        words = codewords(law, 256, d, number, seed, unit)
        for image in range(3):
            r = residual[image, unit].double().numpy()
            mine = tokens[image].view(2, m)[unit].numpy()
            assert (np.diff(mine >> 1) > 0).all()
            scores = words @ r
            size = np.sort(np.abs(scores))[::-1][:m]
            chosen = scores[mine >> 1] * (1 - 2 * (mine & 1))
            # the extension takes `independent` scores in int8, whose error is 1 % of |r| r.m.s.
            tolerance = 0.08 if extension and law == "independent" else 1e-5
            assert (size - np.sort(chosen)[::-1]).max() <= tolerance * np.linalg.norm(r)
            assert np.abs(z[image, unit] - unit_rms(signed(words, mine).sum(0))).max() < 1e-5


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("m", "c"), [(1, 3), (2, 2), (4, 3), (5, 4)])
def test_pursuit_is_ddcms_matching_pursuit(m, c, law, fresh, monkeypatch):
    """Each round tries every coefficient and signed atom; the engine's choice is the best of them, or an equal one."""
    monkeypatch.setattr(codebook, "backend", lambda device: reference)  # the extension's first atom may be a near tie
    number, seed, d = int(fresh.integers(2**31)), int(fresh.integers(2**63)), 64
    step, largest = Step(1, 0.25, 0.5, m), 2**c - 1
    rule = rule_for("pursuit", step, law, 256, seed, rows=1, columns=2, coefficient_bits=c)
    residual = torch.from_numpy(fresh.standard_normal((3, 2, d), "float32"))
    tokens = rule.select(residual, m, number, step.kept, step.sigma_up)
    z = rule.noise(tokens, (2, d), m, number).numpy()
    assert tokens.shape == (3, 2 * (2 * m - 1))
    for unit in range(2):
        words = codewords(law, 128, d, number, seed, unit)
        every = unit_rms(np.concatenate([words, -words]))
        for image in range(3):
            r = residual[image, unit].double().numpy()
            atoms = tokens[image, : 2 * m].view(2, m)[unit].tolist()
            marks = tokens[image, 2 * m :].view(2, m - 1)[unit].tolist()
            now = unit_rms(signed(words, np.array(atoms[:1]))[0])
            assert now @ r == pytest.approx((every @ r).max(), rel=1e-5)
            ended = False
            for atom, mark in zip(atoms[1:], marks, strict=True):
                shares = np.arange(1, largest + 1)[:, None, None] / largest
                best = (unit_rms(np.sqrt(shares) * now + np.sqrt(1 - shares) * every) @ r).max()
                if mark == 0:
                    assert atom == 0
                    assert ended or best <= now @ r * (1 + 1e-5)
                    ended = True
                    continue
                assert not ended
                other = unit_rms(signed(words, np.array([atom]))[0])
                mixed = unit_rms(math.sqrt(mark / largest) * now + math.sqrt(1 - mark / largest) * other)
                assert mixed @ r > now @ r
                assert mixed @ r == pytest.approx(best, rel=1e-5)
                now = mixed
            assert np.abs(z[image, unit] - now).max() < 1e-5


@pytest.mark.parametrize("law", LAWS)
def test_pursuit_of_padded_views_is_nearly_as_good(law, fresh):
    """Views of other sizes: their atoms are cut, and scores rank them only nearly; no round makes z much worse."""
    d, number, c = 90, int(fresh.integers(2**31)), 3
    step = Step(1, 0.25, 0.5, 5)
    rule = rule_for("pursuit", step, law, 256, 0, coefficient_bits=c)
    residual = torch.from_numpy(fresh.standard_normal((20, 1, d), "float32"))
    tokens = rule.select(residual, 5, number, step.kept, step.sigma_up)
    every = codewords(law, 128, d, number, 0, 0)
    every = unit_rms(np.concatenate([every, -every]))
    found, naive = [], []
    for row, r in zip(tokens, residual[:, 0].double().numpy(), strict=True):
        now = every[(every @ r).argmax()]
        for _ in range(4):
            shares = np.arange(1, 8)[:, None, None] / 7
            tried = unit_rms(np.sqrt(shares) * now + np.sqrt(1 - shares) * every).reshape(-1, d)
            now = tried[(tried @ r).argmax()]
        naive.append(now @ r)
        values = []
        for m in range(1, 6):
            cut = torch.cat([row[: 4 + m], torch.zeros(5 - m, dtype=torch.int64)])  # the first m atoms alone
            values.append(float(rule.noise(cut[None], (1, d), 5, number)[0, 0].double().numpy() @ r))
        assert (np.diff(values) > -0.05 * values[0]).all()
        found.append(values[-1])
    assert np.mean(found) > 0.97 * np.mean(naive)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bits", [1, 9, 40])
@pytest.mark.parametrize("sigma", [0.8, math.inf])
def test_poisson_is_diffcs_reverse_channel_coding(sigma, bits, law, fresh):
    """argmin log T_k - <z_k, mu> in each chunk, mu = sqrt(SNR_next - SNR) (x0 - x0_hat) at p = 1/2."""
    number, seed, d = int(fresh.integers(2**31)), int(fresh.integers(2**63)), 150
    step = falling([sigma, 0.5], 0.5, bits)[0]
    rule = rule_for("poisson", step, law, 512, seed)  # chunks of up to 8 index bits
    residual = torch.from_numpy(fresh.standard_normal((4, 1, d), "float32")) * 0.5
    tokens = rule.select(residual, bits, number, step.kept, step.sigma_up)
    z = rule.noise(tokens, (1, d), bits, number)
    mu = math.sqrt(1 / 0.5**2 - (0 if sigma == math.inf else 1 / sigma**2)) * residual[:, 0].double().numpy()
    chunks = math.ceil(bits / 6)
    sizes = [(bits + 2 * chunks) // chunks + (i < (bits + 2 * chunks) % chunks) for i in range(chunks)]
    width = -(-d // chunks)
    word = reference.words(d, 0, number, reference.STREAM_CHUNK, seed).tolist()
    order = sorted(range(d), key=lambda i: (word[i], i))
    assert tokens.shape == (4, chunks)
    for unit, c in enumerate(sizes):
        full = d - chunks * (width - 1)  # chunks of the larger width come first
        begin = unit * width - max(0, unit - full)
        dims = order[begin : begin + width - (unit >= full)]
        words = codewords(law, 2**c, width, number, seed, unit)
        if law == "hadamard":  # all chunks of a step share the codebook of the largest
            words = codewords(law, 2 ** sizes[0], width, number, seed, unit)[: 2**c]
        gaps = reference.words(2**c, 0, number, reference.STREAM_ARRIVAL, seed, unit).double().numpy()
        arrival = np.cumsum(-np.log((gaps + 0.5) / 2**32))
        keys = np.log(arrival) - mu[:, dims] @ words[:, : len(dims)].T
        mine = tokens[:, unit].numpy()
        assert (mine < 2**c).all()
        assert np.abs(keys[np.arange(4), mine] - keys.min(1)).max() < 1e-3 * np.linalg.norm(mu, axis=1).max()
        right = unit_rms(words[mine])[:, : len(dims)]
        assert np.abs(z[:, 0, dims].numpy() - right).max() < 1e-5
    places, back = reference.chunk_places(d, chunks, number, seed, torch.device("cpu"))
    assert sorted(places[places >= 0].tolist()) == list(range(d))  # every dimension in one chunk, once
    assert (places.flatten()[back] == torch.arange(d)).all()


def test_poisson_has_the_statistics_of_a_truncated_poisson_functional_representation(fresh):
    """Against a simulation in the one direction that matters, where the scores of a unit mu are N(0, 1): mean and
    variance of the chosen z along mu, and the length of the index under the Zipf model."""
    bits, c, chunks, width, steps, simulations = 6, 10, 16, 512, 30, 3000
    size = math.sqrt(2 * math.log(2) * bits)
    scores = fresh.standard_normal((simulations, 1 << c))
    k = (np.log(fresh.standard_exponential((simulations, 1 << c)).cumsum(1)) - size * scores).argmin(1)
    simulated = scores[np.arange(simulations), k]
    step = Step(1, 0.25, 0.5, 8 * chunks)
    for law in LAWS:
        rule = rule_for("poisson", step, law, 2 << c, int(fresh.integers(2**63)))
        (run,) = (Run(*run) for run in rule.runs(step.budget, 1, rule.book.vocab_size, 0))
        assert (run.count, run.vocab_size) == (chunks, 1 << c)
        along, indices = [], []
        for number in range(steps):
            places, _ = reference.chunk_places(chunks * width, chunks, number, rule.book.seed, torch.device("cpu"))
            mu = torch.from_numpy(fresh.standard_normal((chunks, width), "float32"))
            mu *= size / mu.norm(dim=1, keepdim=True)
            residual = torch.empty(chunks * width)
            residual[places] = mu * (step.sigma_up / (1 - step.keep))
            tokens = rule.select(residual[None, None], step.budget, number, step.kept, step.sigma_up)
            z = rule.noise(tokens, (1, chunks * width), step.budget, number)[0, 0]
            along += ((z[places] * mu).sum(1) / size).tolist()
            indices += tokens[0].tolist()
        count, model = len(along), (run.vocab_size, run.zipf)
        error = np.sqrt(np.var(along) / count + simulated.var() / simulations)
        assert abs(np.mean(along) - simulated.mean()) < 5 * error, law
        assert abs(np.var(along) / simulated.var() - 1) < 5 * math.sqrt(2 / count + 2 / simulations), law
        lengths = [ideal_bits(some, [model] * len(some)) / len(some) for some in (indices, k.tolist())]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.1), law


# ---- through files ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 23), (33, 12)])
@pytest.mark.quick
def test_round_trips_through_files_are_exact(height, width, case, shrink, fresh):
    codec = build(shrink, **CASES[case])
    images = random_images(fresh, 1, height, width)
    tokens, predicted = codec.reconstruct(images)
    assert torch.equal(codec.decode(tokens, (height, width)), predicted)
    data = encode_picture(codec, pixels_of(images))
    file = Container.from_bytes(data)
    assert spec_of(file) == codec.spec
    runs = token_runs(codec.spec, height, width)
    assert tuple(runs) == codec.stream(height, width).runs
    assert container.unpack(file.payload, runs).tolist() == tokens[0].tolist()
    right = np.clip(np.rint((pixels_of(predicted).astype(np.float32) + 1) * np.float32(127.5)), 0, 255)
    assert (decode_picture(codec, file) == right).all()
    # the file's size, to the bit
    units, v, plain, coded = codec.spec.blocks, codec.spec.vocab_size, codec.spec.start_budget * codec.spec.blocks * 8, b""
    for step in codec.spec.schedule:
        m = step.budget
        if codec.spec.rule == "bins":
            plain += units * m * int(math.log2(v))
        elif codec.spec.rule == "top":
            plain += units * (math.ceil(math.log2(math.comb(v // 2, m))) + m)
        elif codec.spec.rule == "pursuit":
            plain += units * (m * int(math.log2(v)) + (m - 1) * codec.spec.coefficient_bits)
    if codec.spec.rule == "poisson":
        models = [(run.vocab_size, run.zipf) for run in runs if run.zipf for _ in range(run.count)]
        symbols = tokens[0, codec.spec.start_budget :].tolist()
        coded = encode_symbols(symbols, models)
        assert 8 * len(coded) <= ideal_bits(symbols, models) + 16
    assert container.packed_bits(runs) == plain
    assert len(file.payload) == -(-plain // 8) + len(coded)
    embedded = 4 + int.from_bytes(data[16:20], "little")
    assert len(data) == OVERHEAD + embedded + len(file.payload)


@pytest.mark.parametrize("case", CASES)
def test_batches_and_payloads(case, shrink, fresh):
    codec = build(shrink, **CASES[case])
    images = random_images(fresh, 3, 12, 18)
    tokens = codec.encode(images)
    assert torch.equal(tokens, torch.cat([codec.encode(i[None]) for i in images]))
    if codec.spec.rule == "poisson":
        with pytest.raises(SpecError, match="differ in length"):
            codec.encode_packed(images)
        images, tokens = images[:1], tokens[:1]
    payload, runs = codec.encode_packed(images), codec.stream(12, 18).runs
    assert [row.numpy().tobytes() for row in payload] == [container.pack(row.numpy(), runs) for row in tokens]
    assert torch.equal(codec.decode_packed(payload, (12, 18)), codec.decode(tokens, (12, 18)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.quick
def test_layouts_say_what_every_position_is(case, shrink):
    codec = build(shrink, **CASES[case])
    layout, units = codec.layout_for(12, 18), codec.spec.blocks
    right = [(-1, u, b, 256) for u in range(units) for b in range(codec.spec.start_budget)]
    for i, step in enumerate(codec.spec.schedule):
        if codec.spec.rule == "poisson":
            sizes = [run.vocab_size for run in codec.spec.step_runs(step.budget) for _ in range(run.count)]
            right += [(i, chunk, 0, size) for chunk, size in enumerate(sizes)]
            continue
        right += [(i, u, b, codec.spec.vocab_size) for u in range(units) for b in range(step.budget)]
        if codec.spec.rule == "pursuit":
            later = range(step.budget, 2 * step.budget - 1)
            right += [(i, u, b, 1 << codec.spec.coefficient_bits) for u in range(units) for b in later]
    found = torch.stack([layout.step_index, layout.block, layout.bin, layout.vocab_size], 1)
    assert [tuple(row) for row in found.tolist()] == right
    assert len(layout) == codec.stream(12, 18).length == sum(run.count for run in token_runs(codec.spec, 12, 18))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.quick
def test_any_tokens_decode(case, shrink, fresh):
    codec = build(shrink, **CASES[case])
    layout = codec.layout_for(12, 18)
    largest = layout.vocab_size.numpy() - 1
    for tokens in (fresh.integers(0, largest + 1), fresh.integers(0, largest + 1), 0 * largest, largest):
        decoded = codec.decode(torch.from_numpy(tokens)[None], (12, 18))
        assert torch.isfinite(decoded).all()
        assert decoded.abs().max() < 10
    for bad in (largest + 1, -1 - 0 * largest):
        with pytest.raises(CodecMismatchError, match="vocabulary"):
            codec.decode(torch.from_numpy(bad)[None], (12, 18))


@pytest.mark.parametrize("case", ["top", "pursuit", "poisson"])
def test_damaged_payloads_raise_format_errors_or_decode(case, shrink, fresh):
    """Behind a valid checksum."""
    codec = build(shrink, **CASES[case])
    file = Container.from_bytes(encode_picture(codec, pixels_of(random_images(fresh, 1, 8, 8))))
    payloads = [file.payload[:-1], file.payload[: len(file.payload) // 2], b"", file.payload + b"\1"]
    for _ in range(12):
        flipped = bytearray(file.payload)
        flipped[fresh.integers(len(flipped))] ^= 1 << int(fresh.integers(8))
        payloads.append(bytes(flipped))
    refused = 0
    for payload in payloads:
        try:
            assert decode_picture(codec, dataclasses.replace(file, payload=payload)).shape == (8, 8, 3)
        except FormatError:
            refused += 1
    assert refused >= 2


# ---- the specification -----------------------------------------------------------------------------------------------
def spec(**changes) -> CodecSpec:
    budget = changes.pop("budget", 4)
    return CodecSpec("b", "f" * 64, falling([2, 1, 0.5], 0.5, budget), **changes)


def test_specifications_without_a_rule_are_what_they_were():
    """Hash and JSON of every preset and of the golden file: files of users name them."""
    for preset in json.loads(presets.PRESETS_FILE.read_text()).values():
        text = json.dumps(preset["spec"], sort_keys=True, separators=(",", ":"))
        found = CodecSpec.from_json(text)
        assert (found.rule, found.coefficient_bits) == ("bins", 0)
        assert found.to_json() == text
        assert found.hash == hashlib.sha256(text.encode()).digest()[:8]
    golden = Container.read(ROOT / "tests/golden/format_v1.nbk")
    assert golden.spec_json is not None
    assert CodecSpec.from_json(golden.spec_json).to_json().encode() == golden.spec_json
    assert CodecSpec.from_json(golden.spec_json).hash == golden.codec_hash
    assert not {"rule", "coefficient_bits"} & set(json.loads(spec().to_json()))


def test_rules_go_through_json_and_change_the_hash():
    some = [
        spec(),
        spec(rule="top"),
        spec(rule="poisson"),
        spec(rule="top", budget=45),
        spec(rule="pursuit", budget=1),
        spec(rule="pursuit", coefficient_bits=2),
        spec(rule="pursuit", coefficient_bits=3),
    ]
    for one in some:
        assert CodecSpec.from_json(one.to_json()) == one
        assert json.loads(one.to_json()).get("rule", "bins") == one.rule
        assert json.loads(one.to_json()).get("coefficient_bits", 0) == one.coefficient_bits
    assert len({one.hash for one in some}) == len(some)
    for name, value in (("rule", "best"), ("rule", 3), ("coefficient_bits", "2"), ("coefficient_bits", 2.0)):
        with pytest.raises(SpecError):
            CodecSpec.from_json(json.dumps({**json.loads(some[5].to_json()), name: value}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rule": "best"}, "rule must be one of"),
        ({"rule": "pursuit", "coefficient_bits": 1}, "1 bit know the single value 1"),
        ({"rule": "pursuit", "coefficient_bits": 0}, "2 to 16"),
        ({"rule": "pursuit", "coefficient_bits": 17}, "2 to 16"),
        # one atom in the schedule, but more in larger images: their coefficients would have no bits
        ({"rule": "pursuit", "budget": 1, "scale_pixels": 64}, "2 to 16"),
        ({"coefficient_bits": 2}, "for rule pursuit"),
        ({"rule": "top", "coefficient_bits": 2}, "for rule pursuit"),
        ({"rule": "top", "vocab_size": 64, "budget": 33}, "33 of 32 atoms"),
        ({"rule": "poisson", "rows": 2}, "rows and columns must be 1"),
        ({"rule": "poisson", "columns": 2}, "rows and columns must be 1"),
        ({"rule": "poisson", "vocab_size": 8}, "power of two from 16 to 2.25"),
        ({"rule": "poisson", "vocab_size": 1 << 26}, "power of two from 16 to 2.25"),
        ({"rule": "poisson", "vocab_size": 100, "codebook": "independent"}, "power of two from 16 to 2.25"),
        ({"budget": 3}, "power of two"),
        ({"rule": "top", "budget": 3, "start_budget": 3}, "power of two"),
        ({"rule": "top", "budget": 300, "start_budget": 300}, "power of two"),
    ],
    ids=str,
)
@pytest.mark.quick
def test_what_cannot_be_is_refused_with_the_reason(changes, reason):
    with pytest.raises(SpecError, match=reason):
        spec(**changes)


def test_what_does_not_fit_the_image_is_refused(shrink):
    """Also the second of DiffC's faults of 2026: chunks without dimensions (diffc_cod.md 1.3)."""
    build(shrink, rule="poisson", budget=6 * 47, vocab_size=512).stream(4, 4)  # 48 dimensions: one chunk of 2, 46 of 1
    for bits, fits in ((6 * 48, True), (6 * 49, False), (1000, False)):
        codec = build(shrink, rule="poisson", budget=bits, vocab_size=512)
        if fits:
            codec.stream(4, 4)
        else:
            with pytest.raises(SpecError, match="some of them empty"):
                codec.stream(4, 4)
    codec = build(shrink, rule="top", budget=30, vocab_size=64, scale_pixels=64)
    codec.stream(8, 8)
    with pytest.raises(SpecError, match="of 32 atoms"):
        codec.stream(16, 8)


def test_budgets_of_other_rules_scale_in_whole_numbers(fresh):
    bins = [int(b) for b in fresh.integers(1, 40, 2)]
    for rule in ("top", "poisson"):
        some = spec(rule=rule, budget=bins, scale_pixels=1000)
        for height, width in ((10, 100), (31, 47), (5, 11), (90, 80)):
            found, _ = some.budgets_for(height, width)
            target = np.cumsum(bins) * height * width / 1000
            if np.diff(target, prepend=0).min() >= 1:  # else a step gets its one token or bit before it is due
                assert (np.abs(np.cumsum(found) - target) <= 0.5).all()
            assert min(found) >= 1


# ---- effort ----------------------------------------------------------------------------------------------------------
def cosines(book: Codebook, residual, tokens, number: int) -> torch.Tensor:
    z = book.noise(tokens, residual.shape[-1], number)
    return (z * residual).mean(-1) / residual.square().mean(-1).sqrt()


def test_refined_tokens_point_nearer_to_the_residual(fresh):
    book = Codebook("hadamard", 1024, int(fresh.integers(2**63)))
    residual = torch.from_numpy(fresh.standard_normal((16, 1, 3072), "float32"))
    tokens = book.select(residual, 64, 3)
    found = [cosines(book, residual, tokens, 3)]
    for _ in range(3):
        tokens = book.refined(residual, tokens, 3)
        assert ((tokens >= 0) & (tokens < 1024)).all()
        found.append(cosines(book, residual, tokens, 3))
    squared = [float(c.square().mean()) for c in found]
    assert squared[1] > 1.05 * squared[0]
    assert min(squared[2:]) > 0.99 * squared[1]
    means = [float(c.mean()) for c in found]
    assert means[0] < means[1]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bins", [1, 2, 4, 32])
def test_refining_never_hurts_on_average(bins, law, fresh):
    """Any number of bins, both laws, padded views of two units; the residual and the tokens given are left alone."""
    book, number = Codebook(law, 256, int(fresh.integers(2**63))), int(fresh.integers(2**31))
    residual = torch.from_numpy(fresh.standard_normal((24, 2, 300), "float32")) * 0.01
    tokens = book.select(residual, bins, number)
    kept = tokens.clone(), residual.clone()
    better = book.refined(residual, tokens, number)
    assert torch.equal(tokens, kept[0])
    assert torch.equal(residual, kept[1])
    before, after = (cosines(book, residual, t, number) for t in (tokens, better))
    assert float(after.mean()) >= float(before.mean()) * (1 if bins > 1 else 1 - 1e-6)
    assert bins > 1 or torch.equal(tokens, better)
    zero = book.refined(residual * 0, tokens, number)
    assert ((zero >= 0) & (zero < 256)).all()


def test_effort_is_the_encoders_alone(shrink, fresh):
    images = random_images(fresh, 2, 32, 48)
    plain, careful = build(shrink, budget=64), build(shrink, budget=64, effort=2)
    assert plain.spec == careful.spec
    tokens, predicted = careful.reconstruct(images)
    assert not torch.equal(tokens, plain.encode(images))
    assert torch.equal(plain.decode(tokens, (32, 48)), predicted)
    assert torch.equal(careful.decode(tokens, (32, 48)), predicted)
    data = encode_picture(careful, pixels_of(images[:1]))
    assert len(data) == len(encode_picture(plain, pixels_of(images[:1])))
    decoded = [decode_picture(codec, Container.from_bytes(data)) for codec in (plain, careful)]
    assert (decoded[0] == decoded[1]).all()


# ---- the faults of DiffC's published code, numbered as in diffc_cod.md 1.8 -------------------------------------------
OTHER_PROCESS = """
import sys
import numpy, torch
torch.manual_seed(int(sys.argv[1])); numpy.random.seed(5)
if sys.argv[1] == "1":  # before anything is in a cache
    torch.set_default_dtype(torch.bfloat16)
from common import Shrink
from noisebook import CodecSpec
from noisebook.codec.codec import Codec
images, codecs = torch.from_numpy(numpy.load(sys.argv[2])), sys.argv[3:]
for text in codecs:
    codec = Codec(CodecSpec.from_json(text), Shrink(), effort=0)
    tokens, predicted = codec.reconstruct(images)
    print(bytes(codec.encode_packed(images)[0].tolist()).hex(), predicted.numpy().tobytes().hex())
"""


def test_fault_1_2_3_streams_are_the_same_in_another_process(shrink, fresh, tmp_path):
    """Unseeded arrival times, Python's hash(), numpy's shuffle, the device's generator: none of them is in a stream."""
    images = random_images(fresh, 1, 9, 14)
    np.save(tmp_path / "images.npy", images.numpy())
    codecs = [build(shrink, **CASES[case]) for case in ("bins", "top", "pursuit", "poisson", "poisson independent")]
    here = []
    for codec in codecs:
        payload, (tokens, predicted) = codec.encode_packed(images), codec.reconstruct(images)
        assert torch.equal(codec.encode_packed(images), payload)
        assert torch.equal(codec.encode(images), tokens)
        here.append(f"{bytes(payload[0].tolist()).hex()} {predicted.numpy().tobytes().hex()}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])}
    running = []
    for seed in ("0", "1"):
        command = [sys.executable, "-c", OTHER_PROCESS, seed, str(tmp_path / "images.npy")]
        command += [codec.spec.to_json() for codec in codecs]
        env = {**environment, "PYTHONHASHSEED": seed}
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env))
    for process in running:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert out.splitlines() == here


def test_fault_1_arrival_times_are_seeded_and_in_float64():
    """The known answers of the specification."""
    times = reference.arrival_times(4, 2, 77)
    assert times.dtype == torch.float64
    assert times.tolist() == pytest.approx([float.fromhex(v) for v in KNOWN["arrival_head_hex"]], rel=1e-13)
    others = [reference.arrival_times(4, *where) for where in ((3, 77, 0), (2, 78, 0), (2, 77, 1))]
    assert all(not torch.equal(times, other) for other in others)


def test_fault_2_the_order_of_chunks_is_written_down(fresh):
    assert reference.chunk_order(16, 2, 77).tolist() == KNOWN["chunk_order_16"]
    d, step, seed = int(fresh.integers(1, 3000)), int(fresh.integers(2**32)), int(fresh.integers(2**63))
    word = reference.words(d, 0, step, reference.STREAM_CHUNK, seed).tolist()
    assert reference.chunk_order(d, step, seed).tolist() == sorted(range(d), key=lambda i: (word[i], i))


@pytest.mark.parametrize("case", CASES)
def test_fault_3_decoding_knows_no_generator_and_no_default_dtype(case, shrink, fresh):
    codec = build(shrink, **CASES[case])
    tokens = torch.from_numpy(fresh.integers(0, codec.layout_for(12, 18).vocab_size.numpy()))[None]
    right = codec.decode(tokens, (12, 18))
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.manual_seed(int(fresh.integers(2**31)))
            torch.set_default_dtype(dtype)
            assert torch.equal(build(shrink, **CASES[case]).decode(tokens, (12, 18)), right)
    finally:
        torch.set_default_dtype(torch.float32)


def test_fault_3_arrival_times_know_no_default_dtype():
    """They are the encoder's alone, but two encoders should choose alike."""
    right = reference.arrival_times(100, 1, 2)
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            assert torch.equal(reference.arrival_times(100, 1, 2), right)
    finally:
        torch.set_default_dtype(torch.float32)


class Guided(Shrink):
    """A denoiser with a condition and guidance: both ends must use the same."""

    name = "guided"

    def __init__(self, guidance: float):
        super().__init__()
        self.guidance = guidance
        self.fingerprint = fingerprint_of({"kind": "guided", "guidance": guidance}, {})

    def denoise(self, y, sigma, cond=None):
        return super().denoise(y, sigma) * self.guidance


def test_fault_4_guidance_is_part_of_the_fingerprint(fresh):
    codec = build(Guided(1.0), **CASES["poisson"])
    file = Container.from_bytes(encode_picture(codec, pixels_of(random_images(fresh, 1, 8, 8))))
    named = spec_of(file)
    assert named is not None
    with pytest.raises(CodecMismatchError, match="guided"):
        Codec(named, Guided(1.05))
    assert (decode_picture(Codec(named, Guided(1.0)), file) == decode_picture(codec, file)).all()


def test_fault_5_6_a_file_is_counted_whole_and_holds_its_divergences(shrink, fresh, tmp_path):
    """All that a decoder needs is in the file whose bytes are counted, the divergence of every step included."""
    codec = build(shrink, **CASES["poisson"])
    pixels = pixels_of(random_images(fresh, 1, 10, 21))
    (tmp_path / "x.nbk").write_bytes(encode_picture(codec, pixels))
    file = Container.read(tmp_path / "x.nbk")
    assert file.spec_json is not None
    assert [step[3] for step in json.loads(file.spec_json)["schedule"]] == CASES["poisson"]["budget"]
    assert (tmp_path / "x.nbk").stat().st_size == len(file.to_bytes())
    decoded = decode_picture(Codec(CodecSpec.from_json(file.spec_json), Shrink()), file)
    assert (decoded == decode_picture(codec, file)).all()


def test_fault_7_pictures_are_rounded_not_cut(shrink, fresh):
    codec = build(shrink, **CASES["poisson"])
    images = random_images(fresh, 1, 24, 24)
    file = Container.from_bytes(encode_picture(codec, pixels_of(images)))
    exact = (pixels_of(codec.reconstruct(images)[1]).astype(np.float64).clip(-1, 1) + 1) * 127.5
    error = decode_picture(codec, file) - exact
    assert np.abs(error).max() <= 0.5 + 1e-4
    assert abs(error.mean()) < 0.1  # of 1728 values: 14 standard errors; truncation gives -0.5


def test_fault_8_chunks_of_20_index_bits(shrink, fresh):
    """A denominator of 2^24 leaves symbols without a code there; every one of ours has one, the last included."""
    codec = build(shrink, rule="poisson", steps=1, budget=18, vocab_size=1 << 21)
    images = random_images(fresh, 1, 8, 8)
    _, predicted = codec.reconstruct(images)
    (run,) = codec.stream(8, 8).runs
    assert run.vocab_size == 1 << 20
    assert int(np.diff(zipf_table(run.vocab_size, run.zipf).astype(np.int64)).min()) >= 1
    assert torch.equal(codec.decode_packed(codec.encode_packed(images), (8, 8)), predicted)
    last = torch.tensor([[(1 << 20) - 1]])
    data = torch.from_numpy(np.frombuffer(container.pack(last[0].numpy(), [run]), np.uint8).copy())
    assert torch.equal(codec.decode_packed(data[None], (8, 8)), codec.decode(last, (8, 8)))


def test_fault_9_steps_of_one_bit_and_of_none(shrink, fresh):
    steps = (Step(3, 0.75, 1.5, 1), Step(1.5, 1, 1, 0), Step(1, 0.25, 0.5, 1), Step(0.5, 0, 0, 0))
    codec = Codec(CodecSpec("shrink", shrink.fingerprint, steps, rule="poisson", vocab_size=512), shrink)
    images = random_images(fresh, 1, 5, 5)
    tokens, predicted = codec.reconstruct(images)
    layout = codec.layout_for(5, 5)
    assert (layout.step_index.tolist(), layout.vocab_size.tolist()) == ([0, 2], [8, 8])  # 1 bit and 2 of padding
    data = encode_picture(codec, pixels_of(images))
    assert torch.equal(codec.decode(tokens, (5, 5)), predicted)
    assert decode_picture(codec, Container.from_bytes(data)).shape == (5, 5, 3)
    with pytest.raises(SpecError, match="exactly when it injects noise"):
        Step(3, 0.75, 1.5, 0)


def test_fault_10_grey_transparent_and_odd_pictures(shrink, fresh, tmp_path):
    codec = build(shrink, **CASES["poisson"])
    sizes = {"L": (13, 7), "RGBA": (7, 13), "LA": (5, 9), "P": (31, 6), "1": (11, 11), "I;16": (6, 5)}
    for mode, size in sizes.items():
        array = fresh.integers(0, 256, (*size[::-1], 3), np.uint8)
        picture = Image.fromarray(array)
        if mode == "I;16":
            picture = Image.fromarray(array[:, :, 0].astype(np.uint16) * 257)
        else:
            picture = picture.convert("L").convert(mode) if mode in ("LA", "L") else picture.convert(mode)
        picture.save(tmp_path / "x.png")
        pixels = read_image(tmp_path / "x.png")
        decoded = decode_picture(codec, Container.from_bytes(encode_picture(codec, pixels)))
        assert decoded.shape == pixels.shape == (*size[::-1], 3)
    grey = Shrink()
    grey.channels = 1
    pixels = read_image(tmp_path / "x.png", 1)
    codec = build(grey, **CASES["poisson"] | {"budget": 3})
    assert decode_picture(codec, Container.from_bytes(encode_picture(codec, pixels))).shape == (5, 6, 1)


@pytest.mark.parametrize("law", LAWS)
def test_int32_fault_the_atom_that_is_scored_is_the_one_that_is_made(law, fresh):
    """K dims >= 2^31, where DiffC's index wrapped: the last atoms, as a residual, find themselves."""
    d, number, seed = 1 << 15, int(fresh.integers(2**31)), int(fresh.integers(2**63))
    book = Codebook(law, 2 << 16 if law == "hadamard" else (2 << 16) + 6, seed)
    for k in (book.vocab_size // 2 - 1, book.vocab_size // 2 - 1 - int(fresh.integers(1, 1000))):
        z = book.noise(torch.tensor([[[2 * k]]]), d, number, pooled=True)
        bias = torch.zeros(1, book.vocab_size // 2)
        assert book.biased(z, bias, number).item() == 2 * k
        assert book.top(z, 1, number).item() == 2 * k


def test_constants_of_a_step_are_made_once(shrink, fresh, monkeypatch):
    """On a CPU a second walk draws nothing anew. On CUDA each replay does, see tests/runtime/test_cuda_graphs.py."""
    codec = build(shrink, rule="poisson", steps=24, budget=20)
    images = random_images(fresh, 1, 16, 16)
    codec.decode(codec.encode(images), (16, 16))
    made = []
    for name in ("chunk_order", "arrival_times"):
        real = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *a, real=real, name=name: made.append(name) or real(*a))
    codec.decode(codec.encode(images), (16, 16))
    assert made == []
