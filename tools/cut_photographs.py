"""Adds large photographs to an archive of small ones: each is scaled so that its short side is 512 and 768 pixels and cut
in tiles of 256.

    python tools/cut_photographs.py photos256.npz OUT.npz PHOTOGRAPH ...

Photographs of short side 256 show much detail per pixel, those of a camera show less. The tiles come before the images that
are there, so that the last ones are held out by `noisebook train` as before. Tiles are WebP of quality 95; `keys` names the
photograph of each.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDES, TILE = (512, 768), 256


def tiles(path: Path) -> list[bytes]:
    """The WebP files of a photograph's tiles, spread evenly over it; of none that is smaller than a side."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    found = []
    for side in SIDES:
        scale = side / min(image.size)
        if scale > 1:
            continue
        small = image.resize([max(side, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
        lefts, tops = ([round(i * (n - TILE) / (n // TILE - 1)) for i in range(n // TILE)] for n in small.size)
        for top in tops:
            for left in lefts:
                buffer = io.BytesIO()
                small.crop((left, top, left + TILE, top + TILE)).save(buffer, "WEBP", quality=95, method=6)
                found.append(buffer.getvalue())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+")
    args = parser.parse_args()
    files, keys = [], []
    for path in args.photographs:
        made = tiles(path)
        files += made
        keys += [f"{path.stem}/{i}" for i in range(len(made))]
        print(f"{path.name}: {len(made)} tiles")
    with np.load(args.archive) as old:
        blob, offsets, names = old["webp"], old["offsets"], old["keys"]
    lengths = [len(file) for file in files]
    joined = np.concatenate([np.frombuffer(b"".join(files), np.uint8), blob])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1], offsets + sum(lengths)]).astype(np.int64)
    np.savez(args.output, webp=joined, offsets=starts, keys=np.array([*keys, *names]))
    print(f"{args.output}: {len(starts) - 1} images")


if __name__ == "__main__":
    main()
