"""`decode --salvage`: pictures of damaged files, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common import ROOT, random_images
from noisebook import CodecSpec, FormatError, NoisebookError, backbones
from noisebook.cli.main import main
from noisebook.codec.codec import Codec
from noisebook.errors import SALVAGED
from noisebook.format.container import Container, crc32c, packed_bits
from noisebook.images.files import decode_picture, encode_picture, spec_of
from noisebook.images.salvage import opened, salvage_picture
from noisebook.images.targets import Aim, Target, curve_of
from noisebook.runtime.limits import Limits
from noisebook.spec import presets, schedule

SIZE = (64, 80)


@pytest.fixture(scope="module")
def prior():
    return backbones.load("gaussian-prior")


@pytest.fixture
def pixels(fresh):
    return random_images(fresh, 1, *SIZE)[0].permute(1, 2, 0).numpy().copy()


@pytest.fixture
def made(prior, pixels):
    """(codec, file with a derived specification)."""
    data, codec = Aim(Target(bpp=2.0, max_nfe=7), prior, curve_of(prior)).file(pixels)
    return codec, data


def flipped(data: bytes, *bits: int) -> bytes:
    out = bytearray(data)
    for bit in bits:
        out[bit // 8] ^= 128 >> bit % 8
    return bytes(out)


def test_a_wrong_bit_costs_one_token(made, pixels):
    codec, data = made
    whole, faults, steps = salvage_picture(codec, opened(data))
    assert (faults, steps) == ([], None)
    assert (whole == decode_picture(codec, Container.from_bytes(data))).all()
    late = flipped(data, 8 * (len(data) - 10))
    decoded, faults, steps = salvage_picture(codec, opened(late))
    assert (faults, steps) == (["the checksum does not match"], None)
    resealed = late[:-4] + crc32c(late[:-4]).to_bytes(4, "little")
    assert (decoded == decode_picture(codec, Container.from_bytes(resealed))).all()
    errors = [np.square(pixels.astype(float) - x).mean() for x in (decoded, whole)]
    assert errors[0] < 2 * errors[1]
    hurt, faults, _ = salvage_picture(codec, opened(flipped(data, 8 * 5 + 1)))
    assert faults == ["the checksum does not match", "the codec hash is damaged"]
    assert (hurt == whole).all()


def test_what_is_there_of_a_file_that_is_cut_off_is_decoded(made):
    codec, data = made
    container, stream = Container.from_bytes(data), codec.stream(*SIZE)
    start = len(data) - 4 - len(container.payload)
    for step in (1, 3):  # cut where the tokens of that step begin
        segment = next(s for s in stream.segments if s.step_index == step)
        cut = start + packed_bits([r for s in stream.segments if s.step_index < step for r in s.runs]) // 8
        decoded, faults, steps = salvage_picture(codec, opened(data[:cut]))
        assert steps == step
        assert (decoded == decode_picture(codec, container, step)).all()
        assert f"the last {len(data) - cut:,} bytes are missing" in faults
        assert any(f"the first {step} of 6 steps" in fault for fault in faults)
        part, faults, steps = salvage_picture(codec, opened(data[: cut + packed_bits(segment.runs) // 16]))
        assert steps == step + 1
        assert f"{segment.count // 2:,} of the {segment.offset + segment.count:,} tokens" in faults[-1]
        assert (part != decoded).any()
        few, _, steps = salvage_picture(codec, opened(data[: cut + packed_bits(segment.runs) // 8 // 17]))
        assert steps == step
        assert (few == decoded).all()
        assert salvage_picture(codec, opened(data[: len(data) - 30]), 2)[2] == 2  # as --steps says
    ended, faults, steps = salvage_picture(codec, opened(data[:-2]))
    assert steps is None
    assert (ended == decode_picture(codec, container)).all()
    assert faults == ["the checksum does not match", "the last 2 bytes are missing"]
    with pytest.raises(FormatError, match="not even the first step"):
        salvage_picture(codec, opened(data[: start + 2]))


def test_padding_is_no_fault(prior, pixels):
    spec = CodecSpec(prior.name, prior.fingerprint, schedule.falling([3, 1, 0.5], 0.5, 4), vocab_size=512)
    codec = Codec(spec, prior)
    data = encode_picture(codec, pixels[:7])
    bits = packed_bits(codec.stream(7, 80).runs)
    assert bits == 72
    codec = Codec(replace(spec, schedule=schedule.falling([3, 1], 0.5, 4)), prior)
    data = encode_picture(codec, pixels[:7])
    bad = flipped(data[:-4], 8 * len(data) - 33)
    bad += crc32c(bad).to_bytes(4, "little")
    with pytest.raises(FormatError, match="padding"):
        decode_picture(codec, Container.from_bytes(bad))
    decoded, faults, _ = salvage_picture(codec, opened(bad))
    assert faults == []
    assert (decoded == decode_picture(codec, Container.from_bytes(data))).all()


def test_other_rules_are_salvaged_where_that_makes_sense(prior, pixels, fresh):
    base = CodecSpec(prior.name, prior.fingerprint, schedule.falling([3, 1, 0.5, 0.3], 0.5, 8), vocab_size=512)
    for changes in (
        {"rule": "top"},
        {"rule": "pursuit", "coefficient_bits": 3},
        {"codebook": "independent", "vocab_size": 6},
    ):
        codec = Codec(replace(base, **changes), prior)
        data = encode_picture(codec, pixels)
        for _ in range(20):  # whatever is wrong, a picture comes out of it
            bits = fresh.integers(8 * (len(data) - len(Container.from_bytes(data).payload) - 4), 8 * len(data), 5)
            decoded, faults, _ = salvage_picture(codec, opened(flipped(data, *bits.tolist())))
            assert decoded.shape == pixels.shape
            assert faults[0] == "the checksum does not match"
        whole = len(data) - 4 - len(Container.from_bytes(data).payload)
        cut = whole + packed_bits(codec.stream(*SIZE).segments[0].runs) // 8 + 1
        decoded, _, steps = salvage_picture(codec, opened(data[: cut + (changes.get("rule") == "top")]))
        assert steps == 1 if "rule" in changes else steps in (1, 2)
    codec = Codec(replace(base, rule="poisson"), prior)
    data = encode_picture(codec, pixels)
    assert salvage_picture(codec, opened(data))[1] == []
    with pytest.raises(FormatError, match="rule poisson are lost from the first wrong bit on"):
        salvage_picture(codec, opened(flipped(data, 8 * len(data) - 60)))


def test_a_header_that_makes_no_sense_is_refused(made, prior):
    codec, data = made
    for bits, match in (
        ((8 * 3,), "curve"),
        ((8 * 12 + 2,), "not those of its codec hash"),  # the height
        ((8 * 18,), "makes no sense"),  # the tokens
        (range(8 * 4, 8 * 6), "not those of its codec hash"),
    ):
        with pytest.raises(FormatError, match=match):
            opened(flipped(data, *bits))
    with pytest.raises(FormatError, match="its size is damaged"):
        salvage_picture(codec, opened(data + bytes(30)))
    with pytest.raises(FormatError, match="--max-pixels"):
        salvage_picture(codec, opened(data[:-1]), limits=Limits(pixels=100))
    robust = replace(Container.from_bytes(data), robust=True).to_bytes()
    both = flipped(robust, 8 * 5, 8 * (len(robust) - 5))
    assert salvage_picture(codec, opened(both))[0].shape == (*SIZE, 3)
    with pytest.raises(FormatError, match="its size is damaged"):
        salvage_picture(codec, opened(both[:-1]))


def test_whatever_is_wrong_is_a_picture_or_an_error_in_words(made, fresh):
    codec, derived = made
    goldens = [path.read_bytes() for path in sorted((ROOT / "tests/golden").glob("*.nbk"))]
    kinds = set()
    for data in [*goldens * 4, *[derived] * 40]:
        bad = bytearray(flipped(data, *fresh.integers(0, 8 * min(len(data), 40), fresh.integers(0, 4)).tolist()))
        del bad[int(fresh.integers(len(bad) // 2, 2 * len(bad))) :]
        bad += fresh.bytes(int(fresh.integers(0, 30))) if fresh.random() < 0.3 else b""
        try:
            wreck = opened(bytes(bad))
            if wreck.head.codec_hash == codec.spec.hash:
                assert salvage_picture(codec, wreck, limits=Limits(pixels=1 << 16))[0].ndim == 3
            kinds.add("opened")
        except NoisebookError as error:
            kinds.add("refused" if "\n" not in str(error) else f"not one line: {error}")
    assert kinds == {"opened", "refused"}


def test_a_preset_is_known_by_its_hash():
    spec = presets.get("photo-low").spec
    data = Container(spec.hash, 64, 80, bytes(30), 2).to_bytes()
    wreck = opened(flipped(data, *range(40, 48)))
    assert wreck.head.codec_hash == spec.hash
    assert "the codec hash is damaged" in wreck.faults
    assert opened(flipped(data, *range(40, 50))).head.codec_hash not in (spec.hash, wreck.head.codec_hash)


def test_the_command_says_loudly_what_it_did(capsys, tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rate = ["--bytes", "700", "--backbone", "gaussian-prior", "--max-nfe", "6", "--robust"]
    assert main(["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "n"), *rate]) == 0
    data = (tmp_path / "n/a.nbk").read_bytes()
    assert len(data) <= 700
    container = Container.from_bytes(data)
    assert container.robust
    spec = spec_of(container)
    assert spec is not None
    (tmp_path / "bad").mkdir()
    for name, bad in {"cut": data[:-500], "good": data, "head": flipped(data, 15), "no": data[:30]}.items():
        (tmp_path / f"bad/{name}.nbk").write_bytes(bad)
    names = [str(tmp_path / f"bad/{name}.nbk") for name in ("cut", "good", "head")]
    capsys.readouterr()
    assert main(["decode", *names, "-o", str(tmp_path / "d"), "--json"]) == FormatError.code
    rows = json.loads(capsys.readouterr().out)["images"]
    assert "--salvage" in rows[0]["error"]
    assert ["salvaged" in row for row in rows] == [False] * 3
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["good.decoded.png"]
    assert main(["decode", *names, "-o", str(tmp_path / "e"), "--json", "--salvage"]) == SALVAGED == 8
    out, err = capsys.readouterr()
    rows = json.loads(out)["images"]
    assert [row["error"] for row in rows] == [None] * 3
    assert rows[1]["salvaged"] is None
    assert "the last 500 bytes are missing" in rows[0]["salvaged"]
    assert "the header is damaged, its copy at the end is not" in rows[2]["salvaged"]
    assert err.count("SALVAGED, the picture is not what was encoded") == 2
    good = np.asarray(Image.open(tmp_path / "e/good.decoded.png"))
    assert (good == np.asarray(Image.open(tmp_path / "d/good.decoded.png"))).all()
    assert (good == np.asarray(Image.open(tmp_path / "e/head.decoded.png"))).all()
    assert rows[0]["bytes"] == len(data) - 500
    assert rows[0]["nfe"] < rows[1]["nfe"]
    code = main(["decode", str(tmp_path / "bad"), "-o", str(tmp_path / "f"), "--json", "--salvage"])
    assert code == FormatError.code  # one of them has nothing to decode
    rows = {row["name"].split("/")[-1]: row for row in json.loads(capsys.readouterr().out)["images"]}
    assert "not even the first step" in rows["no.nbk"]["error"]
    assert rows["no.nbk"]["salvaged"] is None
    assert main(["inspect", names[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["robust"] is True


def test_robust_is_refused_where_the_specification_is_embedded(capsys, tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for more in (["--steps", "3", "--budget", "4"], ["--bpp", "0.5", "--embed-spec"]):
        command = ["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "n"), "--backbone", "gaussian-prior", "--robust"]
        assert main([*command, *more]) == 2
        assert "--no-embed-spec" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()
    assert main([*command, "--steps", "3", "--budget", "4", "--no-embed-spec"]) == 0
    assert Container.from_bytes((tmp_path / "n/a.nbk").read_bytes()).robust
