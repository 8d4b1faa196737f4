"""Tokens as the ids of a sequence model, and back."""

import numpy as np
import pytest
import torch

import noisebook
from common import RECIPES, Shrink, random_images
from noisebook import CodecMismatchError, SpecError
from noisebook.codec.codec import Codec

pytestmark = pytest.mark.quick

SIZE = (16, 16)
TINY = {"steps": 4, "budget": 4, "budget_last": 4, "vocab_size": 64, "scale_pixels": 0, "start_budget": 0}
MIXED = TINY | {"start_budget": 2, "start_vocab_size": 1024}  # positions differ in their number of values


def codec_of(**changes) -> Codec:
    return noisebook.load("photo", backbone=Shrink(), graphs=False, **changes)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("ends", [{}, {"bos": 0}, {"eos": 3}, {"bos": 1, "eos": 2}, {"bos": 7, "eos": 7}])
@pytest.mark.parametrize(
    "changes", [TINY, MIXED, TINY | RECIPES["2-D"], TINY | RECIPES["no tokens"], TINY | {"rule": "top"}]
)
def test_there_and_back(changes, ends, per_position, fresh):
    codec, how = codec_of(**changes), {"offset": 100, "per_position": per_position, **ends}
    tokens = codec.encode(random_images(fresh, 2, *SIZE))
    ids = codec.to_sequence(tokens, SIZE, **how)
    assert ids.dtype == torch.int64
    assert ids.shape == (2, tokens.shape[1] + len(ends))
    vocabulary = codec.vocabulary(SIZE, **how)
    assert vocabulary.length == ids.shape[1]
    assert ids.numel() == 0 or int(ids.max()) < vocabulary.size
    assert torch.equal(codec.from_sequence(ids, SIZE, **how), tokens)
    assert torch.equal(codec.from_sequence(ids.to(torch.int32), SIZE, **how), tokens)


def test_ids_by_hand():
    """The 2 tokens of the start have 1024 values, the 16 others 64."""
    codec = codec_of(**MIXED)
    values = [1024] * 2 + [64] * 16
    assert codec.layout_for(*SIZE).vocab_size.tolist() == values
    tokens = torch.arange(18)[None]
    assert codec.to_sequence(tokens, SIZE, offset=5, bos=1, eos=2).tolist() == [[1, *range(5, 23), 2]]
    assert codec.vocabulary(SIZE, offset=5, bos=1, eos=2).size == 5 + 1024
    assert codec.vocabulary(SIZE, offset=5, bos=1, eos=2000).size == 2001
    starts = np.concatenate([[0], np.cumsum(values)[:-1]])
    own = codec.to_sequence(tokens, SIZE, offset=5, per_position=True)
    assert own.tolist() == [(5 + starts + np.arange(18)).tolist()]
    assert codec.vocabulary(SIZE, offset=5, per_position=True).size == 5 + sum(values)


def test_own_ids_never_meet():
    codec = codec_of(**MIXED)
    values = codec.layout_for(*SIZE).vocab_size
    low = codec.to_sequence(torch.zeros(1, 18, dtype=torch.uint8), SIZE, per_position=True)[0]
    high = codec.to_sequence(values[None] - 1, SIZE, per_position=True)[0]
    assert low[0] == 0
    assert torch.equal(low[1:], high[:-1] + 1)


def test_the_default_size_is_the_codecs():
    codec = codec_of(**TINY)
    codec.default_size = SIZE
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    assert torch.equal(codec.from_sequence(codec.to_sequence(tokens)), tokens)


BAD_SEQUENCES = {
    "too short": (lambda ids: ids[:, :-1], r"integers \[B, 20\] \(bos, 18 tokens, eos\), not torch.int64 \[2, 19\]"),
    "one sequence, not a batch": (lambda ids: ids[0], "integers"),
    "floats": (lambda ids: ids.float(), "integers"),
    "another begin": (lambda ids: ids.index_fill(1, torch.tensor([0]), 3), "sequence 0 begins with 3, not with bos = 1"),
    "another end": (lambda ids: ids.index_fill(1, torch.tensor([19]), 4), "sequence 0 ends with 4, not with eos = 2"),
    "bos among tokens": (lambda ids: ids.index_fill(1, torch.tensor([9]), 1), r"the id 1 at place 9, where .* 5 \.\.\. 68"),
    "a value of the start's": (lambda ids: ids.index_fill(1, torch.tensor([4]), 69), r"the id 69 at place 4"),
    "above int64": (lambda ids: torch.full_like(ids, -1).to(torch.uint64), "sequence 0 begins with -1"),
}


@pytest.mark.parametrize("kind", BAD_SEQUENCES)
def test_what_is_no_sequence_of_the_codec(kind):
    change, message = BAD_SEQUENCES[kind]
    codec, how = codec_of(**MIXED), {"offset": 5, "bos": 1, "eos": 2}
    ids = codec.to_sequence(torch.zeros(2, 18, dtype=torch.int64), SIZE, **how)
    with pytest.raises(CodecMismatchError, match=message) as info:
        codec.from_sequence(change(ids), SIZE, **how)
    assert "\n" not in str(info.value)


def test_the_second_sequence_is_named():
    codec = codec_of(**TINY)
    ids = codec.to_sequence(torch.zeros(2, 16, dtype=torch.int64), SIZE, offset=5)
    ids[1, 3] = 4
    with pytest.raises(CodecMismatchError, match="sequence 1 has the id 4 at place 3"):
        codec.from_sequence(ids, SIZE, offset=5)


@pytest.mark.parametrize("tokens", [torch.full((1, 16), 64), torch.full((1, 16), -1), torch.zeros(1, 15), torch.zeros(16)])
def test_what_are_no_tokens(tokens):
    with pytest.raises(CodecMismatchError):
        codec_of(**TINY).to_sequence(tokens.to(torch.int64), SIZE)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"offset": -1}, "offset must be a whole number"),
        ({"bos": True}, "bos must be a whole number"),
        ({"eos": 2.0}, "eos must be a whole number"),
        ({"bos": 63}, r"bos = 63 is the id of a token: tokens are 0 \.\.\. 63"),
        ({"eos": 64, "offset": 64}, r"eos = 64 is the id of a token: tokens are 64 \.\.\. 127"),
        ({"eos": 64, "per_position": True}, "eos = 64 is the id of a token"),
        ({"offset": 1 << 63}, "no int64"),
    ],
)
def test_options_that_cannot_be(how, message):
    with pytest.raises(SpecError, match=message):
        codec_of(**TINY).vocabulary(SIZE, **how)
