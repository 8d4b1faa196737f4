"""How often an encoder chooses tokens again: where it does, and that there is one default."""

from argparse import ArgumentParser
from inspect import signature

import pytest
import torch

from common import random_images
from noisebook.cli.options import add_encoder_options
from noisebook.codec.codec import Codec, rule_of
from noisebook.codec.load import load
from noisebook.datasets.recipe import CodecRecipe
from noisebook.images.preset_levels import PresetLevels
from noisebook.images.targets import Aim
from noisebook.rules import EFFORT
from rules_kit import build

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


@pytest.mark.parametrize(("bins", "passes"), [(8, 0), (16, 1)])
def test_a_pass_is_made_where_a_step_has_more_than_a_bit_for_40_dimensions(bins, passes, shrink, fresh):
    """Not at 3072 / 40 = 76.8 bits and below: tokens of 8 bits."""
    images = random_images(fresh, 2, 32, 32)
    codecs = [build(shrink, budget=bins, steps=2, vocab_size=256, effort=effort) for effort in (0, 1)]
    assert [codec.rule.passes(bins, 3072) for codec in codecs] == [0, passes]
    plain, once = (codec.encode(images) for codec in codecs)
    assert torch.equal(plain, once) == (not passes)
    start = build(shrink, budget=1, steps=2, start_budget=64, effort=1).start_rule
    assert start.passes(64, 3072) == 0


def test_an_encoder_makes_one_pass_unless_it_is_told_otherwise(shrink, fresh):
    """`Codec`, `load` and all that the command line goes through agree, and say it in one place."""
    images, spec = random_images(fresh, 2, 32, 48), build(shrink, budget=64).spec
    tokens = Codec(spec, shrink).encode(images)
    assert torch.equal(tokens, load(spec, backbone=shrink).encode(images))
    assert torch.equal(tokens, Codec(spec, shrink, effort=EFFORT).encode(images))
    assert not torch.equal(tokens, Codec(spec, shrink, effort=0).encode(images))
    for makes in (Codec, load, rule_of, Aim, PresetLevels, CodecRecipe):
        assert signature(makes).parameters["effort"].default == EFFORT == 1, makes
    parser = ArgumentParser()
    add_encoder_options(parser)
    assert parser.parse_args([]).effort == EFFORT
