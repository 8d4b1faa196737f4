"""An autoencoder at work on batches and pictures of any size: a bounded number of pixels in one call.

Batches are cut in slices of whole images, which changes nothing but the order of sums. A picture of more than WHOLE pixels
is cut in overlapping tiles, whose results are blended by linear ramps. There the autoencoder's means over a whole picture
(group norms, attention) are those of a tile, on both ends alike: where tiles lie follows from the picture's size only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from noisebook.backbones.wrappers.tiled import tile_starts, tile_weights

MOST = 1 << 22  # pixels of several images in one call: 16 of 512 x 512
WHOLE = 1 << 24  # pixels of one image in one call: 4096 x 4096; below it files from before there were tiles decode as ever
TILE, OVERLAP = 1024, 128  # pixels: the longest side of a tile, and what two of them share at least


def in_pieces(call: Callable[[Tensor], Tensor], x: Tensor, factor: int, enlarges: bool) -> Tensor:
    """call(x), piece by piece: `call` makes factor x factor pixels of each place where it `enlarges`, else the reverse.

    x [B, C, h, w] -> [B, c, factor h, factor w] or [B, c, h / factor, w / factor], of x's dtype where it is tiled.
    """
    before, after = (1, factor) if enlarges else (factor, 1)
    rows, columns = x.shape[2] // before, x.shape[3] // before  # places of the state
    area = factor * factor
    if rows * columns * area <= WHOLE:
        return in_slices(call, x, max(1, MOST // max(1, rows * columns * area)))
    most, overlap = max(1, TILE // factor), min(-(-OVERLAP // factor), max(1, TILE // factor) - 1)
    tall, wide = tile_side(rows, most, overlap), tile_side(columns, most, overlap)
    weights = [
        tile_weights(n * after, side * after, overlap * after, x.device) for n, side in ((rows, tall), (columns, wide))
    ]
    out: Tensor | None = None
    for i, top in enumerate(tile_starts(rows, tall, overlap)):
        for j, left in enumerate(tile_starts(columns, wide, overlap)):
            tile = x[:, :, top * before : (top + tall) * before, left * before : (left + wide) * before]
            found = in_slices(call, tile.contiguous(), max(1, MOST // (tall * wide * area)))
            if out is None:
                out = torch.zeros(len(x), found.shape[1], rows * after, columns * after, dtype=x.dtype, device=x.device)
            place = out[:, :, top * after : (top + tall) * after, left * after : (left + wide) * after]
            place += found * (weights[0][i, :, None] * weights[1][j])
    assert out is not None
    return out


def in_slices(call: Callable[[Tensor], Tensor], x: Tensor, most: int) -> Tensor:
    """call(x [B, ...]), at most `most` images at a time, in slices as equal as can be."""
    if len(x) <= most:
        return call(x)
    size = -(-len(x) // -(-len(x) // most))
    return torch.cat([call(part) for part in x.split(size)])


def tile_side(length: int, most: int, overlap: int) -> int:
    """The side of the fewest equal tiles of at most `most` > `overlap` that cover `length`, each `overlap` over the next."""
    count = max(1, -(-(length - overlap) // (most - overlap)))
    return -(-(length + (count - 1) * overlap) // count)
