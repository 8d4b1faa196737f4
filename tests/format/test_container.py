"""The .nbk file: every token stream packs exactly, and nothing damaged is ever accepted."""

import hashlib
import json
import math
import struct
import zlib

import numpy as np
import pytest

from common import ROOT
from noisebook import CodecSpec, FormatError, Step
from noisebook.format import container
from noisebook.format.container import OVERHEAD, Container, crc32c, group_size, pack, packed_bits, unpack
from noisebook.format.derived import SCALINGS, UNSCALED
from noisebook.spec import schedule

pytestmark = pytest.mark.quick


def test_crc32c_known_answers():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("vocab_size", [2, 4, 6, 10, 256, 1000, 4094, 65536, 65538, 2**20 + 2, 2**31, 2**33])
def test_pack_is_exact_and_tight(vocab_size, fresh):
    for count in [0, 1, 2, 7, 63, 200]:
        runs = [(count, vocab_size), (3, 2)]
        tokens = np.concatenate([fresh.integers(0, vocab_size, count), fresh.integers(0, 2, 3)])
        if count > 2:
            tokens[:2] = [vocab_size - 1, 0]
        data = pack(tokens, runs)
        assert (unpack(data, runs) == tokens).all()
        entropy = count * math.log2(vocab_size) + 3
        assert packed_bits(runs) < entropy * 1.03 + 2
        assert len(data) == -(-packed_bits(runs) // 8)
        if vocab_size & (vocab_size - 1) == 0:
            assert packed_bits(runs) == round(entropy)


def test_unpack_refuses_what_pack_does_not_write():
    runs = [(5, 6)]
    good = pack(np.array([5, 5, 5, 5, 5]), runs)
    for bad in (good + b"\0", good[:-1], b""):
        with pytest.raises(FormatError, match="payload"):
            unpack(bad, runs)
    with pytest.raises(FormatError, match="padding"):
        unpack(bytes([good[0], good[1] | 1]), runs)
    with pytest.raises(FormatError, match="vocabulary"):
        unpack(b"\xff\xf8", runs)
    assert group_size(6) > 20


def small_file(embed: bool, fresh) -> bytes:
    spec = CodecSpec("b", "f", schedule.falling([2, 1, 0.5], 0.5, 4), vocab_size=512)
    tokens = fresh.integers(0, 512, 8)
    return Container(
        spec.hash, 48, 33, pack(tokens, [(4, 512), (4, 512)]), 0 if embed else 7, spec.to_json().encode() if embed else None
    ).to_bytes()


@pytest.mark.parametrize("embed", [False, True])
def test_every_bit_flip_and_truncation_raises(embed, fresh):
    data = small_file(embed, fresh)
    assert Container.from_bytes(data).to_bytes() == data
    if not embed:
        assert len(data) == OVERHEAD + 9 == 29
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Container.from_bytes(bytes(flipped))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Container.from_bytes(data[:length])
    for extra in (b"\0", b"x" * 9):
        with pytest.raises(FormatError):
            Container.from_bytes(data + extra)


def resealed(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", crc32c(data[:-4]))


def test_a_valid_checksum_does_not_hide_nonsense(fresh):
    data = bytearray(small_file(True, fresh))
    for offset, value in ((2, 0x21), (2, 0x13), (12, 0), (16, 0xFF)):
        bad = bytearray(data)
        bad[offset] = value
        if offset == 12:
            bad[12:14] = b"\0\0"
        with pytest.raises(FormatError):
            Container.from_bytes(resealed(bytes(bad)))
    bomb = zlib.compress(bytes(1 << 24))
    head = bytes(data[:16]) + struct.pack("<I", len(bomb)) + bomb
    with pytest.raises(FormatError, match="larger"):
        Container.from_bytes(resealed(head + b"1234"))
    with pytest.raises(FormatError, match="cannot be unpacked"):
        Container.from_bytes(resealed(bytes(data[:16]) + struct.pack("<I", 3) + b"abc1234"))


def test_random_bytes_are_refused(fresh):
    for _ in range(2000):
        junk = fresh.bytes(int(fresh.integers(0, 80)))
        with pytest.raises(FormatError):
            Container.from_bytes(junk)
        with pytest.raises(FormatError):
            Container.from_bytes(resealed(b"\xb7N\x11" + junk + b"1234"))  # an embedded specification of noise


def test_sizes_that_do_not_fit_and_missing_files(tmp_path):
    for height, width in ((0, 5), (5, 65536)):
        with pytest.raises(FormatError, match="does not fit"):
            Container(bytes(8), height, width, b"").to_bytes()
    with pytest.raises(FormatError, match="cannot be read"):
        Container.read(tmp_path / "none.nbk")
    with pytest.raises(FormatError, match="cannot be read"):
        Container.read(tmp_path)


GOLDEN = ROOT / "tests/golden/format_v1.nbk"
GOLDEN_SPEC = CodecSpec(
    "golden",
    "f" * 64,
    (Step(2, 0.5, 1, 64), Step(1, 0.25, 0.5, 32)),
    codebook="independent",
    vocab_size=10,
    seed=7,
    start_budget=2,
    start_vocab_size=256,
    rows=1,
    columns=2,
)
GOLDEN_TOKENS = [*(50 * i % 256 for i in range(4)), *(i * i % 10 for i in range(192))]


def test_the_golden_file_of_version_1_reads_for_ever():
    """Written by the first release. If this fails, files of users no longer read: never regenerate it."""
    container = Container.read(GOLDEN)
    assert (container.height, container.width, container.preset) == (5, 7, 0)
    assert container.spec_json is not None
    spec = CodecSpec.from_json(container.spec_json)
    assert spec == GOLDEN_SPEC
    assert spec.hash == container.codec_hash
    runs = [run for _, run in spec.runs_for(5, 7)]
    assert unpack(container.payload, runs).tolist() == GOLDEN_TOKENS
    assert container.to_bytes()[:16] == GOLDEN.read_bytes()[:16]  # zlib may compress the rest in another way


def test_a_reader_written_from_the_page_alone():
    """docs/format.md in plain integers, sharing no code with the package, reads the golden file."""
    data = GOLDEN.read_bytes()
    assert data[:2] == b"\xb7N"
    assert data[2] == 0x11
    size = int.from_bytes(data[16:20], "little")
    spec = zlib.decompress(data[20 : 20 + size])
    assert hashlib.sha256(spec).digest()[:8] == data[4:12]
    value = json.loads(spec)
    blocks = value["rows"] * value["columns"]
    runs = [(value["start_bins"] * blocks, value["start_vocabulary"])]
    runs += [(step[3] * blocks, value["vocabulary"]) for step in value["schedule"]]
    payload = data[20 + size : -4]
    bits, at, tokens = int.from_bytes(payload, "big"), 8 * len(payload), []
    for count, v in runs:
        g = 1
        while v & (v - 1) and v ** (g + 1) < 2**63:
            g += 1
        while count:
            r = min(g, count)
            width = (v**r - 1).bit_length()
            at -= width
            number = bits >> at & (1 << width) - 1
            tokens += [number // v ** (r - 1 - i) % v for i in range(r)]
            count -= r
    assert tokens == GOLDEN_TOKENS
    assert 0 <= at < 8
    assert bits & (1 << at) - 1 == 0


# ---- a scaled curve -----------------------------------------------------------------------------------------------------
@pytest.fixture(params=["C++", "Python"])
def either(request, monkeypatch):
    """Both readers: the extension is not asked for files with a flag that it does not know."""
    if request.param == "Python":
        monkeypatch.setattr(container, "native", lambda: None)
    elif container.native() is None:
        pytest.skip("the C++ extension was not built")


def test_a_scaling_takes_a_flag_and_one_byte(either, fresh):
    head, payload = (fresh.bytes(8), 33, 48), fresh.bytes(6)
    plain = Container(*head, payload, 7, None, (12, 1000)).to_bytes()
    assert (plain[2], len(plain)) == (0x12, OVERHEAD + 4 + 6), "no flag, no byte: as it always was"
    for scaling in (k for k in range(SCALINGS) if k != UNSCALED):
        made = Container(*head, payload, 7, None, (12, 1000, scaling))
        data = made.to_bytes()
        assert data[2] == 0x16
        assert data[16:20] == plain[16:20]
        assert (data[20], len(data)) == (scaling, len(plain) + 1)
        assert Container.from_bytes(data) == made
        if (c := container.native()) is not None:
            assert c.nbk_parse(data) == "version", "a reader of before refuses it as newer"


def test_every_damage_to_a_scaled_file_is_refused(either, fresh):
    data = Container(fresh.bytes(8), 33, 48, fresh.bytes(6), 7, None, (12, 1000, 3)).to_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Container.from_bytes(bytes(flipped))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Container.from_bytes(data[:length])
    for scaling in (UNSCALED, SCALINGS, 255):  # the first is written without a byte
        with pytest.raises(FormatError, match=f"no scaling {scaling}"):
            Container.from_bytes(resealed(data[:20] + bytes([scaling]) + data[21:]))
    for flags in (4, 5, 7):  # scaled, but not derived; embedded too
        with pytest.raises(FormatError, match=f"flags {flags} is newer"):
            Container.from_bytes(resealed(data[:2] + bytes([0x10 | flags]) + data[3:]))
    with pytest.raises(FormatError, match="cut off"):
        Container.from_bytes(resealed(data[:20] + bytes(4)))
    for steps_tokens in (bytes(1) + data[17:20], data[16:17] + bytes(3)):
        with pytest.raises(FormatError, match="no steps or no tokens"):
            Container.from_bytes(resealed(data[:16] + steps_tokens + data[20:]))


@pytest.mark.parametrize("derived", [(12, 1000, UNSCALED), (12, 1000, SCALINGS), (12, 1000, -1), (0, 9, 3), (9, 1 << 24, 3)])
def test_what_does_not_fit_is_not_written(derived):
    with pytest.raises(FormatError, match=r"no scaling|do not fit"):
        Container(bytes(8), 33, 48, b"", 7, None, derived).to_bytes()
