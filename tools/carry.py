"""Packs what a machine without network needs for training into carry/ (ignored by git), at most 45 MiB.

    python -m tools.carry photos            # needs the data folder ($NOISEBOOK_DATA or ../shared/data)
    python -m tools.carry cifar10
    python -m tools.carry vgg16 FILE        # torchvision's VGG16

photos: the first photographs of photos256.npz that fit; the archive's order is random, so they are a random subset.
cifar10: the first training images that fit, without loss, as WebP.
vgg16: the first blocks, which `noisebook train realism --features` reads, in bfloat16.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.lib.record import DATA, ROOT
from noisebook.training.perceptual import read_trunk

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


def vgg16(path: Path) -> dict[str, Tensor]:
    """The convolutions of the first blocks, under torchvision's names."""
    layers = [layer for block in read_trunk(path)[0].blocks for layer in block.children()]
    tensors = {}
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            tensors |= {f"features.{place}.{name}": p.data.bfloat16() for name, p in layer.named_parameters()}
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("photos", "cifar10", "vgg16"))
    parser.add_argument("file", type=Path, nargs="?", help="vgg16: the state dict")
    args = parser.parse_args()
    what = args.what
    if (what == "vgg16") != (args.file is not None):
        parser.error("vgg16 takes a file, and nothing else does")
    if what == "vgg16":
        target = ROOT / "carry/vgg16.safetensors"
        target.parent.mkdir(exist_ok=True)
        save_file(vgg16(args.file), target)
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 2**20:.1f} MiB")
        return
    webp, offsets = photos() if what == "photos" else cifar10()
    target = ROOT / f"carry/{'photos256' if what == 'photos' else what}.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez(target, webp=webp, offsets=offsets)
    print(f"{target.relative_to(ROOT)}: {len(offsets) - 1} images, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
