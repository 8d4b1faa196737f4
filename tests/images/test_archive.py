"""Archives of images: what was there reads as ever, what claims too much is refused before it is spent."""

import io
import struct
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from noisebook.errors import ImageError
from noisebook.images import archive
from noisebook.images.archive import load_npz_images
from noisebook.runtime.limits import Limits

pytestmark = pytest.mark.quick


def webp(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def of_files(path, files, offsets=None):
    ends = np.cumsum([0, *map(len, files)]) if offsets is None else np.array(offsets)
    np.savez(path, webp=np.frombuffer(b"".join(files), np.uint8), offsets=ends)
    return path


def header(shape, descr="|u1", data=b"", **more):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape, **more}).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return path


def test_images_of_one_size(tmp_path, fresh):
    images = fresh.integers(0, 256, (7, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    np.savez_compressed(tmp_path / "b.npz", other=1, images=np.asfortranarray(images))
    for name in "ab":
        for count, expected in ((None, images), (3, images[:3]), (99, images), (0, images[:0])):
            found = load_npz_images(tmp_path / f"{name}.npz", count)
            assert len(found) == len(expected)
            assert all((a == b).all() and a.flags.writeable for a, b in zip(found, expected, strict=True))


def test_files_end_to_end(tmp_path, fresh):
    images = [fresh.integers(0, 256, (h, 9, 3), np.uint8) for h in (4, 8, 6)]
    path = of_files(tmp_path / "a.npz", [webp(x) for x in images])
    for count in (None, 2):
        found = load_npz_images(path, count)
        assert len(found) == (count or 3)
        assert all((a == b).all() for a, b in zip(found, images, strict=False))
    with pytest.raises(ImageError, match=r"72 pixels|8 x 9 pixels are 72, more than the limit of 60"):
        load_npz_images(path, None, Limits(pixels=60))


def test_only_the_first_images_are_read(tmp_path, fresh, monkeypatch):
    images = fresh.integers(0, 256, (500, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    read = []
    whole = archive._filled
    monkeypatch.setattr(archive, "_filled", lambda f, shape: read.append(shape) or whole(f, shape))
    load_npz_images(tmp_path / "a.npz", 2)
    assert read == [(8, 8, 3)] * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images": header((1 << 40, 32, 32, 3))}, "claims 3,377,699,720,527,872 bytes"),
        ({"images": header((1 << 40, 0, 0, 3))}, "hold no pixels"),
        ({"images": header((1, -5, 32, 3))}, "must be an array of numbers"),
        ({"images": header((1, 1 << 15, 1 << 15, 3))}, "more than the limit of|claims"),
        ({"images": header((1, 2, 2, 3), "|O")}, "must be an array of numbers"),
        ({"images": header((1, 2, 2, 3), "<f4", bytes(48))}, "uint8"),
        ({"images": header((2, 2, 2, 3), "|u1", bytes(12))}, "claims 24 bytes"),
        ({"images": b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + bytes(9)}, "no array of numbers"),
        ({"images": b"nonsense"}, "no archive of images"),
        ({"images": header("(" * 9000)}, "no archive of images|Header"),
        ({"webp": header((4,), data=b"RIFF"), "offsets": header((3,), "<i8", struct.pack("<3q", 0, 3, 1))}, "not in order"),
        ({"webp": header((4,), data=b"RIFF"), "offsets": header((2,), "<i8", struct.pack("<2q", -1, 3))}, "not in order"),
        ({"webp": header((4,), data=b"RIFF"), "offsets": header((2,), "<i8", struct.pack("<2q", 0, 1 << 60))}, "lead out"),
        ({"webp": header((4,), data=b"RIFF"), "offsets": header((2,), "<f8", struct.pack("<2d", 0, 4))}, "integers"),
        ({"webp": header((4,), data=b"RIFF"), "offsets": header((2,), "<i8", struct.pack("<2q", 0, 4))}, "not a picture"),
        ({"offsets": header((1 << 50,), "<i8")}, "the files in|claims"),
        ({"other": header((1,))}, "no archive of images"),
    ],
)
def test_what_claims_too_much_is_refused_in_one_line(tmp_path, members, message):
    path, begin = zipped(tmp_path / "a.npz", **members), time.perf_counter()
    with pytest.raises(ImageError, match=message) as raised:
        load_npz_images(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert time.perf_counter() - begin < 1


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    np.save(tmp_path / "b.npy", np.zeros((1, 2, 2, 3), np.uint8))
    for name in ("a.npz", "b.npy", "missing.npz", "."):
        with pytest.raises(ImageError, match="no archive of images"):
            load_npz_images(tmp_path / name)


def test_only_webp_is_read_as_such(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(ImageError, match=r"not a picture of a format that noisebook reads \(WEBP\)"):
        load_npz_images(of_files(tmp_path / "a.npz", [buffer.getvalue()]))


def test_what_unpacks_to_more_than_the_machine_has_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 32, 32, 3), np.uint8))
    files = of_files(tmp_path / "b.npz", [webp(np.zeros((64, 64, 3), np.uint8))] * 9)
    monkeypatch.setattr(archive, "machine_memory", lambda: 100_000)
    for path in (tmp_path / "a.npz", files):
        with pytest.raises(ImageError, match="more than this machine has"):
            load_npz_images(path)
        assert load_npz_images(path, 2)
