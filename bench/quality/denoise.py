"""Mean squared error of x0_hat of the shipped backbones for photographs on the Kodak pictures, over noise levels.

    python -m bench.quality.denoise         # needs the data folder ($NOISEBOOK_DATA or ../shared/data)

Values are in [-1, 1] squared, at native size with one seeded noise. `white` shrinks each pixel to its picture's own mean
colour with the best factor: what a denoiser that knows no structure does.
"""

import argparse
import time

import torch

from bench.lib.record import DATA, write
from noisebook import backbones
from noisebook.images import io as images

LEVELS = (0.1, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0)


def white(y: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    return mean + (y - mean) * (variance / (variance + sigma * sigma))


@torch.no_grad()
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    models = {name: backbones.load(name) for name in ("gaussian-prior", "photo", "photo-2")}
    errors = {name: [0.0] * len(LEVELS) for name in ("white", *models)}
    seconds = dict.fromkeys(models, 0.0)
    files = images.find_files([DATA / "kodak"])
    noise_of = torch.Generator().manual_seed(0)
    for path in files:
        x = torch.from_numpy(images.read_image(path).copy()).permute(2, 0, 1)[None].float() * (2 / 255) - 1
        noise = torch.randn(x.shape, generator=noise_of)
        for i, sigma in enumerate(LEVELS):
            y = x + sigma * noise
            errors["white"][i] += float((white(y, x, sigma) - x).square().mean()) / len(files)
            for name, model in models.items():
                begin = time.perf_counter()
                x0_hat = model(y, sigma)
                seconds[name] += (time.perf_counter() - begin) / (len(files) * len(LEVELS))
                errors[name][i] += float((x0_hat - x).square().mean()) / len(files)
    rows = [{"backbone": name, "mse": values, "seconds_a_call": seconds.get(name)} for name, values in errors.items()]
    for row in rows:
        print(
            f"{row['backbone']:16s} " + " ".join(f"{v:.5f}" for v in row["mse"]),
            f"{row['seconds_a_call'] or 0:.2f} s a call",
        )
    fingerprints = {name: model.fingerprint for name, model in models.items()}
    about = f"{len(files)} Kodak pictures at native size"
    print(
        "written:", write("denoise", {"about": about, "levels": LEVELS, "fingerprints": fingerprints, "rows": rows}, 0).name
    )


if __name__ == "__main__":
    main()
