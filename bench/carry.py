"""Packs what a machine without network needs for training into carry/ (ignored by git), at most 45 MiB.

    python bench/carry.py                   # needs the data folder ($NOISEBOOK_DATA or ../shared/data)

Takes the first photographs of photos256.npz that fit: the archive's order is random, so they are a random subset.
"""

import numpy as np

from record import DATA, ROOT

LIMIT = 44 << 20


def main() -> None:
    with np.load(DATA / "photos256.npz") as data:
        webp, offsets, keys = data["webp"], data["offsets"], data["keys"]
    count = int(np.searchsorted(offsets, LIMIT, side="right")) - 1
    (ROOT / "carry").mkdir(exist_ok=True)
    target = ROOT / "carry/photos256.npz"
    np.savez(target, webp=webp[: offsets[count]], offsets=offsets[: count + 1], keys=keys[:count])
    print(f"{target.relative_to(ROOT)}: {count} photographs, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
