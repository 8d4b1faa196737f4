"""A backbone of one fixed size made to take larger images: overlapping tiles, blended."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.wrappers.base import Wrapper
from noisebook.errors import BackboneError, ImageError
from noisebook.runtime.cuda_graphs import graph_cached

BATCH = 16  # tiles in one call of the inner backbone


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of `tile` pixels begin on an axis of `length` >= tile: every tile - overlap, the last one flush."""
    return [*range(0, length - tile, tile - overlap), length - tile]


@graph_cached(16)
def tile_weights(length: int, tile: int, overlap: int, device: torch.device) -> Tensor:
    """The share of each tile in each of its pixels along one axis, float32 [tiles, tile], > 0, summing to 1 at a pixel.

    A linear ramp over `overlap` pixels at both ends, divided by the sum over the tiles that cover a pixel.
    """
    i = torch.arange(tile, dtype=torch.float64)
    ramp = torch.minimum(i + 1, tile - i).clamp_max(overlap + 1)
    starts, total = tile_starts(length, tile, overlap), torch.zeros(length, dtype=torch.float64)
    for a in starts:
        total[a : a + tile] += ramp
    return torch.stack([ramp / total[a : a + tile] for a in starts]).float().to(device)


def tile_places(
    height: int, width: int, tile: tuple[int, int], overlap: int, device: torch.device
) -> Iterator[tuple[int, int, Tensor]]:
    """(top, left, the share of the tile in each of its pixels) of the tiles (height, width) of a picture: float32 [h, w]."""
    rows, columns = (tile_weights(n, t, overlap, device) for n, t in ((height, tile[0]), (width, tile[1])))
    for i, top in enumerate(tile_starts(height, tile[0], overlap)):
        for j, left in enumerate(tile_starts(width, tile[1], overlap)):
            yield top, left, rows[i, :, None] * columns[j]


def tiled_fingerprint(overlap: int, inner: str) -> str:
    """Of tiles that overlap by that many pixels, whose backbone has the fingerprint `inner`."""
    return fingerprint_of({"tiled": inner, "overlap": overlap}, {})


class Tiled(Wrapper):
    """`inner`, a pixel backbone of one fixed size, on images of that size or larger; sizes are those of the images.

    `overlap` is in pixels, on both axes (None: a quarter of the shorter side of a tile). Raises BackboneError where
    `inner` has no fixed size, works in a latent space or has a condition, which is of a whole image and not of its tiles,
    and where overlap is not in 0 .. shorter side - 1.
    """

    def __init__(self, inner: Backbone, overlap: int | None = None):
        if inner.size is None or inner.state_shape(*inner.size) != (inner.channels, *inner.size):
            raise BackboneError(f"only a pixel backbone of one fixed size can be tiled; {inner.name!r} is not one")
        if inner.condition_grid is not None:
            raise BackboneError(f"{inner.name!r} cannot be tiled: its condition is of a whole image, and a tile has none")
        shorter = min(inner.size)
        pixels = shorter // 4 if overlap is None else overlap
        if not 0 <= pixels < shorter:
            raise BackboneError(f"an overlap of {overlap} pixels does not fit tiles of {inner.size}")
        super().__init__(inner, size=None, multiple=1, fingerprint=partial(tiled_fingerprint, pixels))
        self.min_size, self.overlap = inner.size, pixels

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size (height, width), in pixels, that holds such an image and that `denoise` takes."""
        return max(height, self.min_size[0]), max(width, self.min_size[1])

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[C, H, W]: the state is the image."""
        return (self.channels, height, width)

    def denoise(self, y: Tensor, sigma: float, cond: Any = None) -> Tensor:
        """y [B, C, H, W] float32 at sigma > 0 -> the tiles' x0_hat, blended, same shape and dtype.

        Raises ImageError where y is smaller than a tile (see `padded`), BackboneError where a condition is given.
        """
        if cond is not None:
            raise BackboneError("a tiled backbone takes no condition")
        return self._blend(y, lambda tiles: self.inner.denoise(tiles, sigma))

    def denoise_each(self, y: Tensor, sigma: Tensor) -> Tensor:
        """As `denoise`, with one level per image: sigma [B]."""
        return self._blend(y, lambda tiles: self.inner.denoise_each(tiles, sigma.repeat(len(tiles) // len(y))))

    def _blend(self, y: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """`predict`(tiles [n B, C, h, w], tile by tile) -> as tiles, for all tiles of y, and their blend."""
        (height, width), (h, w) = y.shape[-2:], self.min_size
        if height < h or width < w:
            raise ImageError(f"{height} x {width} pixels are less than one tile of {h} x {w}: pad the image first")
        found = tile_places(height, width, (h, w), self.overlap, y.device)
        places = [(slice(a, a + h), slice(b, b + w), weight) for a, b, weight in found]
        out, per_call = torch.zeros_like(y), max(1, BATCH // max(1, len(y)))
        for first in range(0, len(places), per_call):
            group = places[first : first + per_call]
            tiles = predict(torch.cat([y[..., a, b] for a, b, _ in group]))
            for (a, b, weight), tile in zip(group, tiles.split(len(y)), strict=True):
                out[..., a, b] += weight * tile
        return out
