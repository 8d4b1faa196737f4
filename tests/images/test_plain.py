"""Plain pictures are read without detours: never another pixel, remark or error than the long way gives."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from noisebook.errors import ImageError
from noisebook.images import reading
from noisebook.images.plain import read_plain
from noisebook.runtime.limits import Limits
from zoo import colours, jpegs, others, pngs, strangers, tiffs

MOST = 1 << 24


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def outcome(data, **how):
    """What reading gives, whichever way it goes."""
    try:
        pixels, remarks = reading.read_picture(io.BytesIO(data), 3, **how)
    except ImageError as error:
        return type(error), str(error)
    return pixels.shape, pixels.tobytes(), remarks


@pytest.fixture
def long_way(monkeypatch):
    def outcome_of(data, **how):
        with monkeypatch.context() as patch:
            patch.setattr(reading, "read_plain", lambda *_: None)
            return outcome(data, **how)

    return outcome_of


@pytest.fixture
def picture(fresh):
    small = Image.fromarray(fresh.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize((203, 117), Image.Resampling.BICUBIC)


def plain_ones(picture):
    yield "a PNG", saved(picture, "PNG")
    yield "small", saved(picture.resize((13, 40)), "PNG")
    yield "with its size in metres", saved(picture, "PNG", dpi=(300, 300))
    yield "a JPEG", saved(picture, "JPEG")
    for options in ({"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}, {"comment": b"a comment"}):
        yield str(options), saved(picture, "JPEG", **options)


def test_plain_pictures_take_the_short_way(picture, long_way):
    for name, data in plain_ones(picture):
        assert read_plain(data, MOST) is not None, name
        for how in ({}, {"by_planes": True}, {"name": "a.webp"}):
            assert outcome(data, **how) == long_way(data, **how), name
    pixels = read_plain(saved(picture, "PNG"), MOST)[0]
    assert pixels.flags.writeable
    assert (pixels == np.asarray(picture)).all()


def test_what_a_file_adds_leads_to_the_long_way(picture, long_way):
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("Title", "a title")
    exif[0x0112] = 6
    profile = saved(picture, "JPEG", icc_profile=colours.rgb_profile(colours.ADOBE, 2.2))
    other = [
        saved(picture, "PNG", pnginfo=text),
        saved(picture, "PNG", exif=exif),
        saved(picture, "JPEG", exif=exif),
        saved(picture, "PNG", transparency=(1, 2, 3)),
        saved(picture.convert("L"), "PNG"),
        saved(picture.convert("L"), "JPEG"),
        saved(picture.convert("CMYK"), "JPEG"),
        saved(picture, "WEBP"),
        saved(picture, "PNG")[:-9],
        profile,
        b"",
    ]
    for data in other:
        assert read_plain(data, MOST) is None
        assert outcome(data) == long_way(data)


def test_limits_hold(picture):
    for form in ("PNG", "JPEG"):
        data, count = saved(picture, form), picture.width * picture.height
        assert read_plain(data, count) is not None
        assert read_plain(data, count - 1) is None
        with pytest.raises(ImageError, match="more than the limit"):
            reading.read_picture(io.BytesIO(data), 3, Limits(pixels=count - 1))
        with pytest.raises(reading.Postponed):
            reading.read_picture(io.BytesIO(data), 3, now=count - 1)


def test_every_kind_of_file_reads_the_same_both_ways(long_way):
    """The whole zoo but its formats that have one way only."""
    animals = [a for kind in (pngs, jpegs, others, strangers, tiffs) for a in kind.animals()]
    short = [a for a in animals if a.data[:3] in (b"\x89PN", b"\xff\xd8\xff")]
    assert len(short) > 100
    for animal in short:
        name = animal.name
        assert outcome(animal.data, name=name) == long_way(animal.data, name=name), name


def test_a_file_that_is_cut_off_reads_the_same_both_ways(picture, long_way):
    """At any byte of its headers."""
    small = picture.resize((24, 16))
    for whole in (saved(small, "PNG"), saved(small, "JPEG"), saved(small, "JPEG", progressive=True)):
        for end in range(2, min(len(whole), 900)):
            assert outcome(whole[:end]) == long_way(whole[:end]), end


def test_damage_reads_the_same_both_ways(fresh, picture, long_way):
    """A flipped bit, a cut, a doubled piece: what decodes, decodes to the same, and what does not has the same words."""
    small = picture.resize((40, 24))
    for whole in (saved(small, "PNG"), saved(small, "JPEG"), saved(small, "JPEG", progressive=True)):
        for _ in range(60):
            data, at = bytearray(whole), int(fresh.integers(len(whole)))
            kind = fresh.integers(3)
            if kind == 0:
                data[at] ^= 1 << int(fresh.integers(8))
            elif kind == 1:
                del data[at:]
            else:
                data[at:at] = data[at : at + int(fresh.integers(1, 40))]
            assert outcome(bytes(data)) == long_way(bytes(data))
