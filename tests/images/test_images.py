"""Reading pictures of every kind a folder may hold, and writing files whole or not at all."""

import io
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from noisebook import ImageError
from noisebook.datasets.decoding import decode
from noisebook.images import io as images
from noisebook.images import metrics, pixels
from noisebook.runtime.limits import Limits

pytestmark = pytest.mark.quick


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_kinds_of_pictures(tmp_path, fresh):
    rgb = fresh.integers(0, 256, (9, 7, 3), np.uint8)
    assert (images.read_image(save(tmp_path / "a.png", rgb)) == rgb).all()
    grey = images.read_image(save(tmp_path / "g.png", rgb[:, :, 0]))
    assert (grey == rgb[:, :, :1]).all()
    assert grey.shape == (9, 7, 3)
    assert images.read_image(tmp_path / "a.png", 1).shape == (9, 7, 1)
    alpha = np.concatenate([rgb, np.zeros((9, 7, 1), np.uint8)], 2)
    assert (images.read_image(save(tmp_path / "t.png", alpha)) == 255).all()  # transparent: white
    deep = rgb[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert (images.read_image(tmp_path / "d.png")[:, :, 0] == rgb[:, :, 0]).all()
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "c.jpg")
    assert images.read_image(tmp_path / "c.jpg").shape == (9, 7, 3)
    palette = Image.fromarray(rgb).quantize(8)
    palette.save(tmp_path / "p.gif", save_all=True, append_images=[palette.rotate(180)])
    assert images.read_image(tmp_path / "p.gif").shape == (9, 7, 3)
    (tmp_path / "wrong.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    assert (images.read_image(tmp_path / "wrong.jpg") == rgb).all()


def test_exif_turns_the_picture_and_broken_exif_does_not_matter(tmp_path, fresh):
    rgb = fresh.integers(0, 256, (9, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(rgb).save(tmp_path / "e.png", exif=exif.tobytes())
    assert (images.read_image(tmp_path / "e.png") == np.rot90(rgb, -1)).all()
    Image.fromarray(rgb).save(tmp_path / "b.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12")
    assert (images.read_image(tmp_path / "b.png") == rgb).all()


def test_unreadable_pictures_are_image_errors(tmp_path, fresh):
    rgb = fresh.integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("jpg", "png", "webp"):
        whole = save(tmp_path / f"x.{suffix}", rgb).read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError):
            images.read_image(tmp_path / f"cut.{suffix}")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    for name in ("empty.png", "text.png", "missing.png", "."):
        with pytest.raises(ImageError):
            images.read_image(tmp_path / name)


def saved(array, form, **options):
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, form, **options)
    return buffer.getvalue()


FEW = Limits(pixels=1000)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA", "AVIF"])
def test_a_picture_beyond_the_limit_of_pixels_is_refused(form):
    try:
        small, large = (saved(np.zeros((h, 20, 3), np.uint8), form) for h in (50, 51))
        assert images.read_image(io.BytesIO(small), 3, FEW).shape == (50, 20, 3)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow has no {form}")
    with pytest.raises(
        ImageError, match=r"^51 x 20 pixels are 1,020, more than the limit of 1,000: --max-pixels raises it$"
    ):
        images.read_image(io.BytesIO(large), 3, FEW)


def test_pictures_inside_of_others_do_not_get_around_the_limit():
    """An icon's directory has a byte for each side, the picture in it says for itself; a GIF's frame may be larger than its
    header, and a TIFF's tile than the picture."""
    inner = saved(np.zeros((60, 60, 3), np.uint8), "PNG")
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(ImageError, match="60 x 60 pixels are 3,600"):
        images.read_image(io.BytesIO(icon), 3, FEW)
    assert images.read_image(io.BytesIO(icon)).shape == (60, 60, 3)
    gif = bytearray(saved(np.zeros((60, 60), np.uint8), "GIF"))
    gif[6:10] = struct.pack("<2H", 8, 8)
    with pytest.raises(ImageError, match="60 x 60 pixels are 3,600"):
        images.read_image(io.BytesIO(gif), 3, FEW)


def test_the_limit_is_ours_only_while_we_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = saved(np.zeros((20, 20), np.uint8), "PNG")
    assert images.read_image(io.BytesIO(data)).shape == (20, 20, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with images.opened(io.BytesIO(data)), ThreadPoolExecutor(1) as other, pytest.raises(Image.DecompressionBombError):
        other.submit(Image.open, io.BytesIO(data)).result()
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


OTHER = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.4\n",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "PSD": b"8BPS\0\1" + bytes(40),
    "FITS": b"SIMPLE  =                    T" + bytes(60),
}


@pytest.mark.parametrize("form", OTHER)
def test_other_formats_are_refused_whatever_a_file_is_called(form):
    with pytest.raises(ImageError, match=r"not a picture of a format that noisebook reads \(PNG, JPEG, WEBP,"):
        images.read_image(io.BytesIO(OTHER[form]))
    assert decode(OTHER[form], "photo.png", 3).code == "not_an_image"


@pytest.mark.skipif(os.name != "posix", reason="a program of POSIX")
def test_no_picture_starts_a_program(tmp_path):
    """Pillow gives an EPS to Ghostscript, and looks for it on the PATH once: so this is a process of its own."""
    (tmp_path / "photo.png").write_bytes(OTHER["EPS"])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\necho run > {tmp_path}/it-ran\n")
    (tmp_path / "bin/gs").chmod(0o755)
    code = (
        "import sys\nfrom noisebook.images.io import read_image\nfrom noisebook.errors import ImageError\n"
        "from noisebook.datasets.decoding import decode\n"
        "try:\n    read_image(sys.argv[1])\nexcept ImageError as e:\n    print(e)\n"
        "print(decode(open(sys.argv[1], 'rb').read(), 'photo.png', 3))\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    path = str(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert not (tmp_path / "it-ran").exists()


def test_sixteen_bits_are_scaled_as_ever_in_integers():
    """v / 257, rounded to nearest, of all values, also of those that only 32 bits hold."""
    values = np.arange(65536).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for array, form in ((values.astype(np.uint16), "PNG"), (values.astype(np.int32), "TIFF")):
        assert (images.read_image(io.BytesIO(saved(array, form)), 1)[:, :, 0] == expected).all()
    wide = np.array([[0, 65535, 65536, 2**30, 2**31 - 1]], np.int32)  # all bits used: the largest of the type is white
    assert images.read_image(io.BytesIO(saved(wide, "TIFF")), 1)[0, :, 0].tolist() == [0, 0, 0, 128, 255]
    for low, high in ((-1, 255), (0, 65536)):
        with pytest.raises(ImageError, match=f"{high:,}.*not known"):
            images.read_image(io.BytesIO(saved(np.array([[low, high]], np.int32), "TIFF")), 1)


def test_strips_are_the_picture(fresh, monkeypatch):
    rgba = fresh.integers(0, 256, (23, 7, 4), np.uint8)
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = 6
    files = [saved(rgba, "PNG"), saved(rgba[:, :, :3], "PNG", exif=exif.tobytes()), saved(rgba[:, :, 0], "GIF")]
    whole = [images.read_image(io.BytesIO(data)) for data in files]
    monkeypatch.setattr(pixels, "STRIP", 20)
    assert all((images.read_image(io.BytesIO(data)) == x).all() for data, x in zip(files, whole, strict=True))


def test_psnr_and_ssim(fresh):
    from skimage.metrics import peak_signal_noise_ratio

    a, b = fresh.integers(0, 256, (2, 20, 30, 3), np.uint8)
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert metrics.psnr(a, a) is None
    assert metrics.ssim(a, a) == 1
    assert metrics.ssim(a, b) < 0.2
    assert metrics.ssim(a[:6], b[:6]) is None


def test_png_bytes_and_folders(tmp_path, fresh):
    rgb = fresh.integers(0, 256, (5, 6, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(images.png_bytes(rgb)))) == rgb).all()
    assert np.asarray(Image.open(io.BytesIO(images.png_bytes(rgb[:, :, :1])))).shape == (5, 6)
    (tmp_path / "in").mkdir()
    with pytest.raises(ImageError, match="no pictures"):
        images.find_files([tmp_path])
    save(tmp_path / "in" / "b.PNG", rgb)
    save(tmp_path / "a.jpg", rgb)
    (tmp_path / "notes.txt").write_text("x")
    assert [p.name for p in images.find_files([tmp_path, "z.png"])] == ["a.jpg", "b.PNG", "z.png"]


def test_samples_are_real_photographs():
    for name in images.SAMPLES:
        picture = images.sample(name)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert min(picture.shape[:2]) >= 300
        assert 20 < picture.std() < 120
