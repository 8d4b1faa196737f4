"""The engine's rules beside steps that were written from the papers: python -m bench.quality.peers

bench/lib/peers.py has Turbo-DDCM, DDCM, DiffC and gDDCM as their papers define them and imports nothing of noisebook.
Here both sides code the same pictures with the same backbone, levels, start and bits, and mean PSNR has to agree within
.1 dB. The script exits with the rows where it does not, and with those that could not be measured. Both sides also say
how far the network is off on their own walk, over how far on ideal states (bench/lib/walk_errors.py).

    python -m bench.quality.peers --minutes 3                          # every row that is missing, CIFAR-10 first
    python -m bench.quality.peers --only photo --drawn --device cuda   # photographs with all atoms drawn, not in law
    python -m bench.quality.peers --report                             # only the tables of docs/rates.md

The start is a draw that both ends know and no part of a rule: it is the same on both sides, or its luck, which all pictures
share, would hide .1 dB. Every seed has another start and other atoms. Writes bench/results/peers.json after every row.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.lib import ground, metrics, page, peers, rivals, walk_errors
from bench.lib.comparison import CIFAR, payload_bits
from bench.lib.ground import BACKBONES, PHOTOS
from bench.lib.per_image import packed
from bench.quality.peers_page import NAME, PAGE, TABLES, TOLERANCE, broken, said, verdict
from noisebook.backbones import Backbone
from noisebook.codebook import start_noise
from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import from_uint8, to_uint8
from noisebook.spec.schedule import fixed_level
from noisebook.spec.spec import CodecSpec

RATES = {CIFAR: (1.0, 0.25, 4.0), PHOTOS: (0.25, 0.05, 1.0)}
CALLS, MANY = 25, 50  # network calls; of codecs with one token per step
LEVELS = {32: 0.8, 256: 4.0}  # of gDDCM's fixed point, by the side of the pictures: near the best of a few for its bits


@dataclass(frozen=True)
class Side:
    """What the peer of a row is given: all but `spec` is common ground, and of that it takes K and M or D of each step."""

    denoise: Backbone
    x0: Tensor
    start: Tensor
    spec: CodecSpec
    seed: int
    drawn: bool

    @property
    def levels(self) -> list[float]:
        return [*(step.sigma for step in self.spec.schedule), self.spec.sigma_last]

    @property
    def budgets(self) -> list[int]:
        return [step.budget for step in self.spec.schedule]

    def walk(self, levels: Sequence[float], choose: peers.Chooser) -> tuple[Tensor, np.ndarray]:
        """Down through levels of the peer's own, which have to be the engine's."""
        if not np.allclose(levels, self.levels, rtol=1e-6):
            raise AssertionError(f"the levels differ: {levels} and {self.levels}")
        coded = [budget > 0 for budget in self.budgets]
        return peers.walk(self.denoise, self.x0, self.start, levels, coded, choose)


Walked = tuple[Tensor, float | np.ndarray]  # (last x0_hat, bits of the payload)


def turbo(side: Side, levels: Sequence[float] | None = None) -> Walked:
    codebook = side.spec.vocab_size // 2
    levels = peers.turbo_grid(len(side.budgets)) if levels is None else levels
    shown, _ = side.walk(levels, lambda r, i, _: (peers.turbo(r, codebook, side.budgets[i], (side.seed, i), side.drawn), ()))
    return shown, sum(math.ceil(math.log2(math.comb(codebook, m))) + m for m in side.budgets if m)


def turbo_on_ours(side: Side) -> Walked:
    return turbo(side, side.levels)


def ddcm(side: Side) -> Walked:
    codebook, c = side.spec.vocab_size, side.spec.coefficient_bits

    def choose(residual: Tensor, i: int, _: float) -> tuple[Tensor, Sequence[float]]:
        if side.budgets[i] == 1:
            return peers.ddcm(residual, codebook, (side.seed, i), side.drawn), ()
        return peers.pursuit(residual, codebook, side.budgets[i], c, (side.seed, i)), ()

    shown, _ = side.walk(peers.ddcm_grid(len(side.budgets)), choose)
    return shown, sum(m * math.log2(codebook) + (m - 1) * c for m in side.budgets)


def diffc(side: Side) -> Walked:
    coder = peers.DiffC(side.budgets, side.spec.vocab_size.bit_length() - 2, 2, side.seed, side.drawn)
    return side.walk(side.levels, lambda r, i, gain: coder.step(gain * r, i))


def gddcm(side: Side) -> Walked:
    rhos = [step.sigma_down / step.sigma for step in side.spec.schedule]
    codebook = side.spec.vocab_size
    shown = peers.gddcm(side.denoise, side.x0, side.levels[0], rhos, codebook, side.seed, side.drawn)
    return shown, (len(rhos) + 1) * math.log2(codebook)


def one_atom(place: rivals.Place, bits: float, calls: int) -> CodecSpec:
    return place.spec(rivals.even_times(calls - 1, 1), vocab_size=rivals.ATOMS)


def fixed_point(place: rivals.Place, bits: float, calls: int) -> CodecSpec:
    k = rivals.ATOMS
    return place.spec(
        fixed_level(LEVELS.get(place.height, 0.8), calls - 1, 1), vocab_size=k, start_budget=1, start_vocab_size=k
    )


@dataclass(frozen=True)
class Peer:
    spec: rivals.Maker
    walk: Callable[[Side], Walked] | None  # None: a rule without a paper, for its walk only
    single: bool = False  # one token per step: the calls say the rate


PEERS = {
    "Turbo-DDCM, its grid": Peer(rivals.turbo, turbo),
    "Turbo-DDCM, our levels": Peer(rivals.turbo_from_noise, turbo_on_ours),
    "DiffC, budgets of other pictures": Peer(rivals.diffc, diffc),
    "DDCM, matching pursuit": Peer(rivals.ddcm, ddcm),
    "DDCM, one atom": Peer(one_atom, ddcm, single=True),
    "gDDCM, p = 0": Peer(fixed_point, gddcm, single=True),
    "ours": Peer(rivals.ours, None),
}


@dataclass(frozen=True)
class Row:
    data: str
    backbone: str
    peer: str
    bpp: float  # asked for; 0: as many tokens as calls
    nfe: int

    @property
    def key(self) -> str:
        return f"{self.data}, {self.backbone}, {self.peer}, {self.nfe} calls, {self.bpp:g} bpp"


def plan() -> Iterator[Row]:
    for data, backbone in BACKBONES.items():
        for i, bpp in enumerate(RATES[data]):
            for name, peer in PEERS.items():
                if peer.single and i == 0:
                    yield Row(data, backbone, name, 0, MANY)
                elif not peer.single:
                    yield Row(data, backbone, name, bpp, CALLS)


# ---- one row ------------------------------------------------------------------------------------------------------------
@dataclass
class Found:
    """One side of a row over all seeds."""

    psnr: list[Tensor]  # of each seed, [B]
    bits: list[float]  # means
    ratios: list[list[tuple[float, float]]]
    seconds: float = 0.0

    @property
    def each(self) -> Tensor:
        return torch.stack(self.psnr).mean(0)

    def summary(self) -> dict[str, Any]:
        return {
            "psnr": metrics.interval(self.each),
            "psnr_of_images": packed(self.each),
            "psnr_of_seeds": [round(float(p.mean()), 3) for p in self.psnr],
            "bits": sum(self.bits) / len(self.bits),
            **walk_errors.figures(walk_errors.mean_of(self.ratios)),
            "seconds": round(self.seconds, 1),
        }


def batched(
    run: Callable[[Tensor], tuple[Tensor, Any]], backbone: Backbone, images: Sequence[Tensor], ideal: list[Any], out: Found
) -> None:
    """One seed of one side: `run` makes (pictures in [-1, 1], bits) of batches of uint8 images."""
    psnr, bits, ratios, begin = [], [], [], time.perf_counter()
    for part, known in zip(images, ideal, strict=True):
        with walk_errors.Watched(backbone, from_uint8(part)) as watched:
            shown, spent = run(part)
        psnr.append(metrics.psnr(part, to_uint8(shown)).cpu())
        bits.extend(np.broadcast_to(spent, len(part)).tolist())
        ratios.append(watched.ratios(known))
    out.psnr.append(torch.cat(psnr))
    out.bits.append(sum(bits) / len(bits))
    out.ratios.append(walk_errors.mean_of(ratios))
    out.seconds += time.perf_counter() - begin


def of_part(side: Side, walk: Callable[[Side], Walked], part: Tensor) -> Walked:
    return walk(replace(side, x0=from_uint8(part)))


def measure(row: Row, images: Tensor, place: rivals.Place, seeds: int, drawn: bool, batch: int) -> dict[str, Any]:
    """Both sides of a row. Raises SpecError where its codec cannot be made."""
    peer, size = PEERS[row.peer], (place.height, place.width)
    spec = peer.spec(place, row.bpp * math.prod(size), row.nfe)
    if spec.blocks > 1:
        raise ValueError(f"{row.peer} would be cut in {spec.blocks} blocks, and its paper has none")
    engine, theirs = Found([], [], []), Found([], [], [])
    parts = images.split(batch)
    ideal: list[dict[str, float]] = [{} for _ in parts]  # errors at levels, the same for all walks
    drawn = drawn or spec.rule == "pursuit"  # inner products of atoms with each other have no short law
    for seed in range(seeds):
        codec = Codec(replace(spec, seed=seed), place.backbone, graphs=False, effort=1)
        start = start_noise(1, place.dims, seed, images.device).view(1, *place.backbone.state_shape(*size))

        def ours(part: Tensor, codec: Codec = codec) -> tuple[Tensor, list[int]]:
            tokens, shown = codec.reconstruct(part)
            return shown, payload_bits(codec, tokens, size)

        batched(ours, place.backbone, parts, ideal, engine)
        if peer.walk is not None:
            side = Side(place.backbone, images, start, spec, seed, drawn)
            batched(partial(of_part, side, peer.walk), place.backbone, parts, ideal, theirs)
    found = {**asdict(row), "codebook": spec.vocab_size, "budget": [s.budget for s in spec.schedule], "seeds": seeds}
    found |= {"images": len(images), "engine": engine.summary()}
    if peer.walk is None:
        return found
    difference = metrics.interval(engine.each - theirs.each)
    theirs_ = theirs.summary()
    same = abs(found["engine"]["bits"] - theirs_["bits"]) <= 0.01 * theirs_["bits"] + 24  # whole bytes, the coder's end
    return found | {
        "atoms": "drawn" if drawn else "in law",
        "peer_side": theirs_,
        "difference": difference,
        "verdict": verdict(difference, same),
    }


# ---- all rows -----------------------------------------------------------------------------------------------------------
def measure_all(args: argparse.Namespace) -> None:
    file, begin = ground.RowFile(args, tolerance=TOLERANCE), time.monotonic()
    for row in plan():
        if ground.excluded((args.only, row.backbone), (args.peer, row.peer), (args.bpp, row.bpp)):
            continue
        if file.has(row.key) or time.monotonic() - begin > 60 * args.minutes:
            continue
        images = ground.pictures(row.data, args)
        place = ground.place_of(row.backbone, images)
        drawn = args.drawn or (row.data == CIFAR and not args.in_law)
        batch = args.batch if row.data == CIFAR else 4
        found = ground.attempted(row, partial(measure, row, images, place, args.seeds, drawn, batch))
        file.keep(row.key, found)
        print(f"{row.key}: {said(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ground.add_options(parser, NAME)
    add = parser.add_argument
    add("--bpp", action="append", type=float, help="only this rate, 0 for codecs of one token per step (repeatable)")
    add("--seeds", type=int, default=3)
    add("--batch", type=int, default=64, help="of CIFAR-10")
    add("--peer", action="append", choices=PEERS, help="only this one (repeatable)")
    add("--drawn", action="store_true", help="draw all numbers of the atoms on photographs too: for a GPU")
    add("--in-law", action="store_true", help="draw them on CIFAR-10 neither")
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    measure_all(args)
    result = json.loads(args.out.read_text())
    if faults := broken(result["rows"]):
        raise SystemExit("no parity within .1 dB and equal bits, or no figures:\n" + "\n".join(faults))


if __name__ == "__main__":
    main()
