"""Files with the header twice, and what can be read of damaged files."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from noisebook import CodecSpec, FormatError
from noisebook.format.container import Container, crc32c, pack, unpack
from noisebook.format.runs import Run
from noisebook.format.salvage import tokens_left, wreck_of
from noisebook.spec import schedule

pytestmark = pytest.mark.quick

PLAIN = Container(bytes(range(8)), 48, 33, b"some tokens", 7)
DERIVED = replace(PLAIN, derived=(5, 300))


def flipped(data: bytes, *bits: int) -> bytes:
    out = bytearray(data)
    for bit in bits:
        out[bit // 8] ^= 128 >> bit % 8
    return bytes(out)


@pytest.mark.parametrize(("file", "more"), [(PLAIN, 24), (DERIVED, 28)])
def test_a_robust_file_is_the_plain_one_with_its_header_twice(file, more):
    plain, data = file.to_bytes(), replace(file, robust=True).to_bytes()
    assert len(data) == len(plain) + more
    size = more - 8
    assert data[2] == plain[2] | 8
    assert data[: size + 4] == data[-size - 8 : -4]  # both copies, each with a checksum of its own
    assert struct.unpack("<I", data[size : size + 4])[0] == crc32c(data[:size])
    assert data[size + 4 : -size - 8] == file.payload
    assert Container.from_bytes(data) == replace(file, robust=True)
    assert Container.from_bytes(data).to_bytes() == data
    for bit in range(8 * len(data)):
        with pytest.raises(FormatError):
            Container.from_bytes(flipped(data, bit))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Container.from_bytes(data[:length])
    resealed = flipped(data, 8 * 15)[:-4]
    with pytest.raises(FormatError, match="copies"):
        Container.from_bytes(resealed + struct.pack("<I", crc32c(resealed)))


def test_a_reader_that_does_not_know_the_flag_refuses_the_file():
    from noisebook.format.container import _frame_of, frame_of

    data = replace(PLAIN, robust=True).to_bytes()
    for read in (frame_of, _frame_of):  # the extension and its definition: what older versions have
        with pytest.raises(FormatError, match="flags 8 is newer"):
            read(data)


def test_a_file_with_its_specification_is_not_sent_twice():
    with pytest.raises(FormatError, match="no embedded specification"):
        replace(PLAIN, spec_json=b"{}", robust=True).to_bytes()


@pytest.mark.parametrize("file", [PLAIN, DERIVED])
def test_the_copy_that_holds_is_used(file):
    robust = replace(file, robust=True)
    data, head = robust.to_bytes(), replace(robust, payload=b"")
    size = 24 if file.derived else 20
    for bit in range(8 * size):  # the first copy: all of it is in the other one
        wreck = wreck_of(flipped(data, bit))
        assert wreck.head == head
        assert "the header is damaged, its copy at the end is not" in wreck.faults
        assert wreck.body.startswith(file.payload)
        assert len(wreck.body) == len(file.payload) + wreck.tail
    for length in range(size, len(data)):
        wreck = wreck_of(data[:length])
        assert wreck.head == head
        assert wreck.body[: len(file.payload)] == file.payload[: length - size]
    both = wreck_of(flipped(data, 8 * 5, 8 * (len(data) - 5)))
    assert both.exact
    assert any("both copies" in fault for fault in both.faults)
    assert wreck_of(data) == (head, file.payload, 0, [], False)


def test_a_plain_header_is_used_where_it_makes_sense(fresh):
    data = PLAIN.to_bytes()
    wreck = wreck_of(flipped(data, 8 * 20))
    assert (wreck.head, wreck.tail, wreck.faults) == (replace(PLAIN, payload=b""), 4, ["the checksum does not match"])
    assert wreck_of(flipped(data, 3)).faults == ["the checksum does not match", "the magic bytes are damaged"]
    for bits, word in (((0, 1, 2), "magic"), ((16,), "version"), ((21,), "newer")):
        with pytest.raises(FormatError, match=word):
            wreck_of(flipped(data, *bits))
    for bad, word in ((data[:15], "few"), (data[:12] + bytes(2) + data[14:], "size"), (DERIVED.to_bytes()[:18], "cut off")):
        with pytest.raises(FormatError, match=word):
            wreck_of(bad)
    with pytest.raises(FormatError, match="no steps or no tokens"):
        wreck_of(DERIVED.to_bytes()[:16] + bytes(20))
    for _ in range(300):
        with pytest.raises(FormatError):
            wreck_of(fresh.bytes(int(fresh.integers(0, 60))))


def test_an_embedded_specification_says_where_it_ends():
    spec = CodecSpec("b", "f", schedule.falling([2, 1, 0.5], 0.5, 4), vocab_size=512)
    data = replace(PLAIN, codec_hash=spec.hash, spec_json=spec.to_json().encode()).to_bytes()
    wreck = wreck_of(flipped(data, 8 * 17))  # its length
    assert wreck.head.spec_json == spec.to_json().encode()
    assert wreck.body[:-4] == PLAIN.payload
    for bad in (flipped(data, 8 * 60), data[:80]):
        with pytest.raises(FormatError, match="without it nothing can be decoded"):
            wreck_of(bad)


@pytest.mark.parametrize("vocab_size", [2, 6, 512, 1000, 65536, 65538])
def test_tokens_are_read_up_to_the_end(vocab_size, fresh):
    runs = [Run(13, vocab_size), Run(30, vocab_size), Run(5, 4)]
    tokens = np.concatenate([fresh.integers(0, run.vocab_size, run.count) for run in runs])
    payload = pack(tokens, runs)
    for length in range(len(payload) + 1):
        got, lost = tokens_left(payload[:length], runs)
        assert (got[~lost] == tokens[~lost]).all()
        where = int(lost.argmax()) if lost.any() else len(tokens)
        assert lost[where:].all()
        if vocab_size & (vocab_size - 1) == 0 and where < 43:  # no token of whole bits is given up that is there
            assert where == 8 * length // (vocab_size.bit_length() - 1)
    assert not tokens_left(payload, runs)[1].any()


def test_what_no_token_packs_to_is_lost():
    runs = [Run(5, 6), Run(4, 200, 4)]
    plain, sets = (np.array([5, 4, 3, 2, 1]), np.array([2, 31, 40, 199]))
    payload = pack(np.concatenate([plain, sets]), runs)
    with pytest.raises(FormatError):
        unpack(b"\xff" * len(payload), runs)
    tokens, lost = tokens_left(b"\xff" * len(payload), runs)
    assert lost.all()
    assert tokens[:5].tolist() == [0] * 5
    assert (np.diff(tokens[5:] >> 1) > 0).all()
    assert tokens[5:].max() < 200
    again, none = tokens_left(payload, runs)
    assert again.tolist() == [*plain, *sets]
    assert not none.any()
