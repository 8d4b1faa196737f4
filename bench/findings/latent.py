"""Does coding in the latent space of TAEF2 promise more than coding pixels? The same Gaussian knowledge on both sides.

    python -m bench.findings.latent              # needs the data folder; 10 CPU minutes
    python -m bench.findings.latent --report     # only writes docs/findings/latent-photo.md; --check: is it up to date?

`latent-gaussian` is the exact posterior mean of latents as a stationary Gaussian (a rotation of the channels, variances of
their DCT), fitted to the first FITTED photographs; `gaussian-prior` is the shipped one of pixels. Photographs, metrics and
the choice of levels are those of the paper's section `photo`; results go to bench/results/latent.json.
"""

import argparse

import torch
from torch import Tensor

from bench.lib import metrics, page
from bench.lib.per_image import paired, within
from bench.lib.record import DATA, RESULTS, ROOT
from bench.lib.rows import LOG, Row, key, resolved
from bench.lib.trials import Bench, trials
from noisebook.backbones import Backbone, fingerprint_of, load
from noisebook.backbones.nets.autoencoders import TinyAutoencoder, read_taesd
from noisebook.backbones.nets.gaussian import FLOOR, DCTPrior, dct_matrix
from noisebook.backbones.wrappers.latent import Latent
from noisebook.images.archive import load_npz_images
from noisebook.runtime.pixels import from_uint8, to_uint8

OUT, PAGE = RESULTS / "latent.json", ROOT / "docs/findings/latent-photo.md"
FITTED, SIDE = 256, 256
NETWORKS = ("gaussian-prior", "latent-gaussian", "photo")
BPP = (0.0625, 0.125, 0.25, 0.5)
CHOICES = [{"sigma_max": 10.0, "sigma_min": 0.4}, *({"sigma_max": 3.0, "sigma_min": sigma} for sigma in (0.2, 0.4, 0.8))]


def rows() -> list[Row]:
    """16 network calls, each with as many tokens of 2 bytes as the rate allows."""
    out = []
    for bpp in BPP:
        tokens = round(bpp * SIDE**2 / 256)
        recipe = {**LOG, "steps": 15, "budget": tokens, "start_budget": tokens}
        out += [Row("latent", f"{name}, {bpp:g} bpp", name, recipe, CHOICES, data="photos") for name in NETWORKS]
    return out


def taef2() -> TinyAutoencoder:
    return read_taesd(*(DATA / f"weights/taef2_{half}.pth" for half in ("encoder", "decoder")))


def latent_gaussian(autoencoder: TinyAutoencoder) -> Backbone:
    """The Gaussian of the latents of photographs, scaled to the deviation .5 of pixels."""
    squares = []
    for x in load_npz_images(DATA / "photos256.npz", FITTED):
        top, left = (x.shape[0] - SIDE) // 2, (x.shape[1] - SIDE) // 2
        crop = torch.from_numpy(x[top : top + SIDE, left : left + SIDE].copy()).permute(2, 0, 1)
        squares.append(from_uint8(crop[None]))
    with torch.no_grad():
        z = torch.cat([autoencoder.encode(x) for x in squares]).double()
    shift, scale = float(z.mean()), 0.5 / float(z.std())
    state = (z - shift) * scale
    mean = state.mean((0, 2, 3))
    colour = torch.linalg.eigh(torch.cov(state.transpose(0, 1).flatten(1) - mean[:, None]))[1].T.flip(0)
    dct = dct_matrix(state.shape[-1], state.device).double()
    power = dct @ torch.einsum("dc,bchw->bdhw", colour, state - mean[:, None, None]) @ dct.T
    variance = power.square().mean(0).clamp_min(FLOOR)
    flat = mean[:, None, None].expand_as(variance).contiguous()
    prior = DCTPrior(flat.float(), colour.float(), variance.float())
    model = Latent(prior, autoencoder, scale=scale, shift=shift)
    model.name, model.fingerprint = (
        "latent-gaussian",
        fingerprint_of({"scale": scale, "shift": shift}, {"v": variance.float()}),
    )
    return model.eval()


def table() -> str:
    result = page.load("latent")
    tried = trials(result)
    found = {row.label: result["rows"][key(wanted)] for row in rows() if (wanted := resolved(row, tried))}
    lines = []
    for name in NETWORKS:
        cells = [found[f"{name}, {bpp:g} bpp"] for bpp in BPP]
        against = [found[f"{NETWORKS[0]}, {bpp:g} bpp"] for bpp in BPP]
        lines.append([f"`{name}`", *(within(r["psnr"]) for r in cells)])
        if name != NETWORKS[0]:
            differences = (within(paired(a, b), "+") for a, b in zip(cells, against, strict=True))
            lines.append([f"`{name}` minus `{NETWORKS[0]}`", *differences])
    note = f"TAEF2 without any tokens has {within(result['autoencoder_alone'])}. "
    note += f"All rows are means over {result['photos']} photographs."
    head = ["PSNR", *(f"{bpp:g} bpp" for bpp in BPP)]
    return f"{page.table(head, lines)}\n\n{note}\n\n{page.source(result, 'latent')}"


def alone(autoencoder: TinyAutoencoder, images: Tensor) -> tuple[float, float]:
    """PSNR of the autoencoder's own round trip."""
    with torch.no_grad():
        pictures = to_uint8(torch.cat([autoencoder.decode(autoencoder.encode(x)) for x in from_uint8(images).split(1)]))
    return metrics.interval(metrics.psnr(images, pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page.add_options(parser)
    if page.only_page(parser.parse_args(), PAGE, {"latent": table}):
        return
    bench, autoencoder = Bench(OUT, images=0, photos=16), taef2()
    bench.models |= {
        "latent-gaussian": latent_gaussian(autoencoder),
        **{name: load(name) for name in (NETWORKS[0], NETWORKS[2])},
    }
    bench.result["autoencoder_alone"] = alone(autoencoder, bench.sets["photos"][0])
    bench.result["cifar_fd_of_real_images"] = None
    bench.run(rows(), redo=False, minutes=1e9)
    bench.write()


if __name__ == "__main__":
    main()
