"""Tiles: their windows, and what blending must not change."""

import pytest
import torch

from noisebook.backbones.base import Backbone
from noisebook.backbones.wrappers.tiled import Tiled, tile_starts, tile_weights
from noisebook.errors import BackboneError, ImageError

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")


class Fixed(Backbone):
    """A backbone of one size that counts its calls. `kind`: per-pixel shrinkage, or a prediction that needs the tile."""

    def __init__(self, size=(8, 12), kind="pixel", channels=3):
        super().__init__()
        self.size, self.kind, self.channels, self.batches = size, kind, channels, []
        self.name, self.fingerprint = "fixed", "f" * 64

    def denoise(self, y, sigma, cond=None):
        assert self.size is not None
        assert y.shape[1:] == (self.channels, *self.size)
        self.batches.append(len(y))
        if self.kind == "pixel":
            return y / (1 + sigma * sigma)
        return y.mean((2, 3), keepdim=True).expand_as(y) + y.flip(-1) * sigma

    def round_sigma(self, sigma):
        return round(sigma, 1)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("overlap", [None, 0, 1, 7])
@pytest.mark.parametrize("kind", ["pixel", "mean"])
def test_one_tile_is_the_inner_backbone(overlap, kind):
    inner, y = Fixed(kind=kind), noise(3, 3, 8, 12)
    assert torch.equal(Tiled(inner, overlap).denoise(y, 0.7), inner.denoise(y, 0.7))


@pytest.mark.parametrize("overlap", [None, 0, 1, 7])
@pytest.mark.parametrize("size", [(8, 13), (9, 12), (16, 24), (31, 50), (8, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixelwise_backbone_does_not_see_the_tiles(overlap, size, channels):
    y = noise(2, channels, *size)
    got = Tiled(Fixed(channels=channels), overlap).denoise(y, 0.7)
    assert got.dtype == y.dtype
    torch.testing.assert_close(got, y / 1.49, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(8, 8, 2), (9, 8, 0), (9, 8, 7), (64, 8, 2), (65, 8, 3), (5, 1, 0)])
def test_weights_are_positive_and_sum_to_one(length, tile, overlap):
    starts, weights = tile_starts(length, tile, overlap), tile_weights(length, tile, overlap, CPU)
    assert (starts[0], starts[-1] + tile) == (0, length)
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:], strict=False))
    assert weights.shape == (len(starts), tile)
    assert (weights > 0).all()
    total = torch.zeros(length)
    for a, w in zip(starts, weights, strict=True):
        total[a : a + tile] += w
    torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=1e-6)


def test_weights_fall_linearly_across_an_overlap():
    weights = tile_weights(14, 8, 2, CPU)
    torch.testing.assert_close(weights[0], torch.tensor([1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]))
    torch.testing.assert_close(weights[1], torch.tensor([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]))


def test_two_tiles_blend_by_hand():
    """Two tiles side by side, overlap 4: outside of the overlap each alone, inside the ramp's mixture."""
    inner, y = Fixed((8, 12), "mean"), noise(1, 3, 8, 20)
    got = Tiled(inner, 4).denoise(y, 0.7)
    left, right = inner.denoise(y[..., :12], 0.7), inner.denoise(y[..., 8:], 0.7)
    torch.testing.assert_close(got[..., :8], left[..., :8])
    torch.testing.assert_close(got[..., 12:], right[..., 4:])
    share = torch.tensor([4, 3, 2, 1]) / 5
    torch.testing.assert_close(got[..., 8:12], left[..., 8:] * share + right[..., :4] * (1 - share))
    assert not torch.allclose(left[..., 8:], right[..., :4], atol=0.1)  # so the mixture was seen


def test_batches_are_bounded_deterministic_and_equal_single_images():
    inner, y = Fixed(kind="mean"), noise(3, 3, 40, 61)
    tiled = Tiled(inner)
    got = tiled.denoise(y, 0.5)
    assert max(inner.batches) <= 16
    assert sum(inner.batches) == 3 * len(tile_starts(40, 8, 2)) * len(tile_starts(61, 12, 2))
    assert torch.equal(got, tiled.denoise(y, 0.5))
    torch.testing.assert_close(got, torch.cat([tiled.denoise(x[None], 0.5) for x in y]), rtol=0, atol=1e-6)


def test_attributes_and_refusals():
    inner = Fixed()
    tiled = Tiled(inner)
    assert (tiled.name, tiled.channels, tiled.size, tiled.multiple, tiled.min_size) == ("fixed", 3, None, 1, (8, 12))
    assert tiled.overlap == 2
    assert tiled.round_sigma(0.33) == 0.3
    assert tiled.padded(5, 40) == (8, 40)
    assert tiled.padded(9, 3) == (9, 12)
    assert len({inner.fingerprint, tiled.fingerprint, Tiled(inner, 3).fingerprint}) == 3
    assert Tiled(inner, 2).fingerprint == tiled.fingerprint
    for small in ((7, 12), (8, 11)):
        with pytest.raises(ImageError, match="tile"):
            tiled.denoise(torch.zeros(1, 3, *small), 1.0)
    with pytest.raises(BackboneError, match="condition"):
        tiled.denoise(torch.zeros(1, 3, 8, 12), 1.0, cond=torch.zeros(1))
    for overlap in (-1, 8):
        with pytest.raises(BackboneError, match="overlap"):
            Tiled(inner, overlap)
    with pytest.raises(
        ImageError, match=r"pixels only, .* noisebook\.backbones\.wrappers\.tiled\.Tiled, which takes larger"
    ):
        inner.padded(9, 12)
    inner.size = None
    with pytest.raises(BackboneError, match="size"):
        Tiled(inner)
