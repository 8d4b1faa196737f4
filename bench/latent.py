"""Does coding in the latent space of TAEF2 promise more than coding pixels? The same Gaussian knowledge on both sides.

    python bench/latent.py              # needs the data folder; about 10 CPU minutes
    python bench/latent.py --report     # fills docs/findings/latent-photo.md; --check: only says if it is up to date

`latent-gaussian` is the exact posterior mean of latents as a stationary Gaussian (a rotation of the channels, variances of
their DCT), fitted to the first FITTED photographs; `gaussian-prior` is the shipped one of pixels. Photographs, metrics and
the choice of levels are those of `paper.py`, section `photo`; results go to bench/results/latent.json.
"""

import argparse

import metrics
import paper_report
import report
import torch
from paper import Bench, trials
from paper_rows import LOG, Row, key, resolved
from torch import Tensor

from noisebook.backbones import Backbone, fingerprint_of, load
from noisebook.backbones.nets.autoencoders import TinyAutoencoder, read_taesd
from noisebook.backbones.nets.gaussian import FLOOR, DCTPrior, dct_matrix
from noisebook.backbones.wrappers.latent import Latent
from noisebook.images.archive import load_npz_images
from record import DATA, RESULTS, ROOT

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
        squares.append(metrics.signed(crop[None]))
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
    result = report.load("latent")
    tried = trials(result)
    found = {row.label: result["rows"][key(wanted)] for row in rows() if (wanted := resolved(row, tried))}
    lines = []
    for name in NETWORKS:
        cells = [found[f"{name}, {bpp:g} bpp"] for bpp in BPP]
        against = [found[f"{NETWORKS[0]}, {bpp:g} bpp"] for bpp in BPP]
        lines.append([f"`{name}`", *(paper_report.within(r["psnr"]) for r in cells)])
        if name != NETWORKS[0]:
            differences = (paper_report.within(paper_report.paired(a, b), "+") for a, b in zip(cells, against, strict=True))
            lines.append([f"`{name}` minus `{NETWORKS[0]}`", *differences])
    alone = f"TAEF2 alone, no tokens at all: {paper_report.within(result['autoencoder_alone'])}."
    head = ["PSNR", *(f"{bpp:g} bpp" for bpp in BPP)]
    return f"{report.table(head, lines)}\n\n{alone} {result['photos']} photographs.\n\n{report.source(result, 'latent')}"


def alone(autoencoder: TinyAutoencoder, images: Tensor) -> tuple[float, float]:
    """PSNR of the autoencoder's own round trip."""
    with torch.no_grad():
        pictures = metrics.to_uint8(
            torch.cat([autoencoder.decode(autoencoder.encode(x)) for x in metrics.signed(images).split(1)])
        )
    return metrics.interval(metrics.psnr(images, pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    args = parser.parse_args()
    if args.report or args.check:
        return report.fill(PAGE, {"latent": table}, args.check)
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
