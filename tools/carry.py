"""Packs what a machine without network needs for training into carry/ (ignored by git), at most 45 MiB.

    python -m tools.carry photos            # needs the data folder ($NOISEBOOK_DATA or ../shared/data)
    python -m tools.carry cifar10

photos: the first photographs of photos256.npz that fit; the archive's order is random, so they are a random subset.
cifar10: the first training images that fit, without loss, as WebP.
"""

import argparse
import io

import numpy as np
from PIL import Image

from bench.lib.record import DATA, ROOT

LIMIT = 44 << 20


def photos() -> tuple[np.ndarray, np.ndarray]:
    """(bytes, offsets) of the first photographs, as they are."""
    with np.load(DATA / "photos256.npz") as data:
        webp, offsets = data["webp"], data["offsets"]
    count = int(np.searchsorted(offsets, LIMIT, side="right")) - 1
    return webp[: offsets[count]], offsets[: count + 1]


def cifar10() -> tuple[np.ndarray, np.ndarray]:
    """(bytes, offsets) of the first training images, lossless."""
    with np.load(DATA / "cifar10_train.npz") as data:
        images = data["images"]
    files, offsets = [], [0]
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=6)
        if offsets[-1] + buffer.tell() > LIMIT:
            break
        files.append(buffer.getvalue())
        offsets.append(offsets[-1] + len(files[-1]))
    return np.frombuffer(b"".join(files), np.uint8), np.array(offsets)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("photos", "cifar10"))
    what = parser.parse_args().what
    webp, offsets = photos() if what == "photos" else cifar10()
    target = ROOT / f"carry/{'photos256' if what == 'photos' else what}.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez(target, webp=webp, offsets=offsets)
    print(f"{target.relative_to(ROOT)}: {len(offsets) - 1} images, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
