"""Reading pictures of every kind a folder may hold, and writing files whole or not at all."""

import io

import numpy as np
import pytest
from PIL import Image

from noisebook import ImageError
from noisebook.images import io as images
from noisebook.images import metrics

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


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (35, 60):  # above the warning, above the error
        path = save(tmp_path / f"{side}.png", np.zeros((side, side), np.uint8))
        with pytest.raises(ImageError, match="more pixels"):
            images.read_image(path)


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
