"""The examples: what can be learned is learned, what cannot is not, and the commands run."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import ROOT, TINY, random_images, tiny_backbone
from noisebook.cli.main import main

pytest.importorskip("pyarrow")
SCRIPT = ROOT / "examples/autoregressive.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("autoregressive", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["autoregressive"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["autoregressive"]


def planted(random: torch.Generator, count: int) -> torch.Tensor:
    """Six tokens of 16 values; every other one is the one before, shifted by its place."""
    free = torch.randint(16, (count, 3), generator=random)
    return torch.stack([free, (free + torch.arange(3)) % 16], 2).flatten(1)


@pytest.mark.slow
def test_a_dependence_is_learned_and_a_shuffled_one_is_not(example, fresh):
    random = torch.Generator().manual_seed(int(fresh.integers(1 << 30)))
    train, held_out = planted(random, 1500), planted(random, 200)
    frequency = float(example.frequency_bits(train, held_out, [16] * 6).mean())
    found = example.learn(train, held_out, [16] * 6, None, 12, batch=20)
    assert frequency == pytest.approx(4, abs=0.1)
    assert found.bits[1::2].max() < 1  # of 4, where the rest are as free as they were
    assert found.bits[::2].min() > 3.9
    mixed = [torch.stack([c[torch.randperm(len(c), generator=random)] for c in some.T], 1) for some in (train, held_out)]
    assert example.learn(mixed[0], mixed[1], [16] * 6, None, 3).bits.mean() > 3.9
    drawn = example.draw(found.model, 100)
    assert ((drawn[:, 1] - drawn[:, 0]) % 16 == 0).float().mean() > 0.7


def test_a_table_of_frequencies(example):
    train = torch.tensor([[0, 1]] * 6 + [[1, 1]] * 2)
    bits = example.frequency_bits(train, torch.tensor([[0, 1], [1, 0]]), [2, 4])
    assert bits[0] == pytest.approx(-(math.log2(7 / 10) + math.log2(3 / 10)) / 2)
    assert bits[1] == pytest.approx(-(math.log2(9 / 12) + math.log2(1 / 12)) / 2)


def test_positions_have_vocabularies_of_their_own(example):
    torch.manual_seed(0)
    values = [9, 2, 4]
    model = example.Transformer(values, None)
    drawn = example.draw(model, 200)
    assert [len(logits.T) for logits in model(drawn)] == values
    assert [len(column.unique()) for column in drawn.T] == values
    assert example.bits_of(model, drawn) == pytest.approx(np.log2(values))  # before training: uniform


def test_codewords_are_the_noise_that_tokens_add(example, shrink, fresh):
    """Two tokens of one position differ in the state after their step by what the table has, up to each axis' scale."""
    from noisebook.codec.codec import Codec
    from noisebook.spec.presets import Recipe

    recipe = Recipe(
        steps=2, sigma_max=3.0, sigma_min=0.5, vocab_size=64, budget=2, scale_pixels=0, start_budget=0, rows=2, columns=1
    )
    codec, images = Codec(recipe.build(shrink), shrink, graphs=False), random_images(fresh, 100, 8, 8)
    table = example.codewords(codec, (8, 8), images).view(-1, 64, 2 * example.AXES)
    layout = codec.layout_for(8, 8)
    assert len(table) == len(layout)
    plan = codec.stream(8, 8)
    some = plan.segments[0]
    tokens = torch.zeros(64, some.count, dtype=torch.int64)
    tokens[:, 0] = torch.arange(64)
    noise = plan.join(codec.rule.noise(tokens, (plan.blocks, plan.dims), some.budget, some.step_index)).flatten(1)
    axes = table[0, :, : example.AXES]
    turned = torch.cdist(axes, -axes, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(turned.argmin(1), torch.arange(64) ^ 1)  # the same codeword, turned round
    assert np.corrcoef(torch.cdist(noise, noise).flatten(), torch.cdist(axes, axes).flatten())[0, 1] > 0.5


@pytest.mark.parametrize("embedding", ["index", "codeword"])
def test_the_example_runs_on_data_sets(tmp_path, fresh, embedding):
    """Of a codec whose start has more values than its steps."""
    from PIL import Image

    net = tiny_backbone(tmp_path / "tiny.safetensors")
    for split, count in (("train", 60), ("held-out", 20)):
        (tmp_path / split).mkdir()
        for i, x in enumerate(random_images(fresh, count, 16, 16)):
            Image.fromarray(x.permute(1, 2, 0).numpy()).save(tmp_path / split / f"{i:03d}.png")
        command = ["tokenize", str(tmp_path / split), "-o", str(tmp_path / f"{split}-tokens"), "--backbone", net, *TINY]
        command += ["--start-budget", "2", "--start-vocab-size", "1024"]
        assert main([*command, "--workers", "0"]) == 0
    command = [
        sys.executable,
        SCRIPT,
        tmp_path / "train-tokens",
        tmp_path / "held-out-tokens",
        "-o",
        tmp_path / "out",
        "--inputs",
        tmp_path / "train",
        "--embedding",
        embedding,
        "--epochs",
        "2",
        "--samples",
        "8",
        "--backbone",
        net,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bits a token on 20 images" in done.stdout
    assert f"of {(2 * 10 + 32 * 8) / 34:.3f}, a table" in done.stdout
    assert Image.open(tmp_path / "out/samples.png").size == (8 * 16, 16)
