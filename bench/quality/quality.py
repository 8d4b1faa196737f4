"""PSNR of both codebooks on CIFAR-10 under the exact linear denoiser: the table that every change is held against.

    python -m bench.quality.quality                 # needs the data folder ($NOISEBOOK_DATA or ../shared/data)

The PCA prior is fitted on the first 20,000 training images; the first 32 test images are coded. 50 steps log-uniform
sigma 5 -> .1 at p = 1/2 with one token each, then one more call for the solver `mean`; then 20 steps 3 -> .05 with 64
tokens each. PSNR is the mean over images, of the picture rounded to 8 bits.
"""

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from bench.lib import priors
from bench.lib.record import DATA, write
from noisebook.codec.codec import Codec
from noisebook.spec.presets import Recipe

ROWS = [  # (steps, sigma_max, sigma_min, budget, vocab_size, codebook, PSNR that method.md and the issue name)
    (50, 5.0, 0.1, 1, 256, "hadamard", 21.2),
    (50, 5.0, 0.1, 1, 256, "independent", 21.2),
    (50, 5.0, 0.1, 1, 4096, "hadamard", 23.2),
    (50, 5.0, 0.1, 1, 4096, "independent", 23.2),
    (50, 5.0, 0.1, 1, 65536, "hadamard", 24.6),
    (50, 5.0, 0.1, 1, 1 << 18, "hadamard", 25.3),
    (20, 3.0, 0.05, 64, 128, "hadamard", 37.1),
]


def mean_psnr(images: Tensor, decoded: Tensor) -> float:
    """uint8 and float [-1, 1] images [B, C, H, W] -> mean over images of the PSNR in dB of the rounded picture."""
    rounded = decoded.clamp(-1, 1).add(1).mul(127.5).round()
    error = (rounded - images).double().square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prior = priors.pca_prior(priors.training_images(priors.FITTED))
    with np.load(DATA / "cifar10_test5k.npz") as data:
        images = torch.from_numpy(data["images"][: args.images]).permute(0, 3, 1, 2)
    rows = []
    for steps, sigma_max, sigma_min, budget, vocab_size, codebook, expected in ROWS:
        recipe = Recipe(
            steps=steps,
            sigma_max=sigma_max,
            sigma_min=sigma_min,
            budget=budget,
            vocab_size=vocab_size,
            codebook=codebook,
            seed=args.seed,
        )
        codec = Codec(recipe.build(prior), prior, effort=0)
        begin = time.perf_counter()
        tokens = codec.encode(images)
        seconds = time.perf_counter() - begin
        psnr = mean_psnr(images, codec.decode(tokens))
        rows.append(
            {
                "codebook": codebook,
                "steps": steps,
                "budget": budget,
                "vocab_size": vocab_size,
                "sigma": [sigma_max, sigma_min],
                "bits": codec.layout.bits,
                "psnr": psnr,
                "expected": expected,
                "nfe": codec.nfe,
                "encode_seconds": seconds,
            }
        )
        print(
            f"{codebook:12s} {steps} steps x {budget:3d} tokens, V = {vocab_size:6d}, {codec.layout.bits:6.0f} bits: "
            f"{psnr:.2f} dB (expected {expected})",
            flush=True,
        )
    about = f"first {args.images} images of cifar10_test5k.npz; PCA prior of the first 20,000 training images"
    print("written:", write("quality", {"about": about, "rows": rows}, args.seed).name)


if __name__ == "__main__":
    main()
