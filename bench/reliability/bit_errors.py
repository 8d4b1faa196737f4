"""What wrong bits, lost tokens and a missing half cost: files of the preset `photo` on Kodak pictures, beside others.

    python -m bench.reliability.bit_errors --lpips FILE

Each bit of the payload is flipped with the given probability, independently of the others. Headers are left whole (of
JPEG all up to the first scan, of AVIF all but `mdat`), so that every codec has the same kind of damage. Beside ours stand
Turbo-DDCM's rule with our levels and as many bits, its sets written as one number each (as published) and its indices one
by one (Robust Turbo-DDCM, arXiv 2604.05743), and JPEG and AVIF of at most as many bytes, as far as Pillow opens them.
`lost` are tokens that a decoder knows to be lost; `half` is a file whose second half is missing, beside `--steps` of the
steps that are whole.

Writes bench/results/bit_errors.json after every picture; a call that was stopped goes on where it was. `--report` writes the
tables of docs/reliability.md, once they are measured.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile

import noisebook
from bench.lib import equal_bytes, page, rivals
from bench.lib.equal_bytes import Rival
from bench.lib.images import add_crop, kodak, refuse_dry_result
from bench.lib.record import ROOT, provenance, save
from noisebook.cli import judging
from noisebook.codec.codec import Codec
from noisebook.format.container import HEADER, Container, pack, packed_bits
from noisebook.format.runs import Run
from noisebook.format.salvage import tokens_left
from noisebook.images.files import decode_picture, encode_picture, pixels_of
from noisebook.images.judges.judge import Judge
from noisebook.images.salvage import opened, salvage_picture
from noisebook.images.targets import curve_of

NAME, PAGE, PRESET = "bit_errors", ROOT / "docs/reliability.md", "photo"
METRICS = "psnr"  # and those whose network is given
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LOST = (0.01, 0.02, 0.05, 0.1)
OURS, SETS, SINGLE = "noisebook", "Turbo-DDCM's sets", "Turbo-DDCM's indices one by one"


@dataclass(frozen=True)
class Sent:
    """A picture as it is sent: `data`, of which the bytes from `begin` to `end` may be damaged, and what makes a picture of
    what arrives, None where nothing does."""

    data: bytes
    begin: int
    end: int
    shown: Callable[[bytes], np.ndarray | None]

    def damaged(self, rate: float, rng: np.random.Generator) -> bytes:
        """With each bit of the payload wrong with that probability."""
        wrong = np.packbits(rng.random(8 * (self.end - self.begin)) < rate)
        payload = np.frombuffer(self.data[self.begin : self.end], np.uint8) ^ wrong
        return self.data[: self.begin] + payload.tobytes() + self.data[self.end :]


def salvaged(codec: Codec, data: bytes) -> np.ndarray:
    return salvage_picture(codec, opened(data))[0]


def ours(codec: Codec, pixels: np.ndarray) -> Sent:
    data = encode_picture(codec, pixels, embed=False)
    return Sent(data, HEADER.size, len(data) - 4, lambda data: salvaged(codec, data))


def turbo(codec: Codec, pixels: np.ndarray, bits: int) -> dict[str, Sent]:
    """Turbo-DDCM's rule on our levels in both of its codes, of about that many bits: one by one, indices take more of them,
    so that there are fewer."""
    size = (pixels.shape[0], pixels.shape[1])
    place = rivals.Place(codec.backbone, curve_of(codec.backbone), *size)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]

    def made(bits: float) -> tuple[Codec, list[Run], list[Run]]:
        other = Codec(rivals.turbo_on_ours(place, bits, codec.nfe), codec.backbone)
        runs = list(other.stream(*size).runs)
        return other, runs, [run._replace(subset=0) for run in runs]

    sets, runs, single = made(bits)
    file = Container(sets.spec.hash, *size, pack(sets.encode(images)[0].numpy(), runs)).to_bytes()
    asked, fewer = float(bits), sets
    for _ in range(4):  # the fewer atoms, the less a set saves
        asked *= bits / packed_bits(single)
        fewer, _, single = made(asked)
    packed = pack(fewer.encode(images)[0].numpy(), single)

    def one_by_one(data: bytes) -> np.ndarray:
        arrived = torch.from_numpy(tokens_left(data, single)[0])[None]
        return pixels_of(fewer.decode(arrived, size)[0])

    return {
        SETS: Sent(file, HEADER.size, len(file) - 4, lambda data: salvaged(sets, data)),
        SINGLE: Sent(packed, 0, len(packed), one_by_one),
    }


def classical(pixels: np.ndarray, limit: int, speed: int) -> dict[str, Sent]:
    """JPEG and AVIF of at most `limit` bytes, where they are installed."""
    jpeg = Rival("JPEG", "progressive, 4:2:0", 96, lambda step: (step, {}), ("4:2:0",))
    sent = {}
    for name, rival, mark in (("JPEG", jpeg, b"\xff\xda"), ("AVIF", equal_bytes.rivals(speed)["AVIF for PSNR"], b"mdat")):
        file = equal_bytes.largest(rival, pixels, limit)[0] if rival.version else None
        if file is None:
            print(f"{name}: not installed, or no file of {limit} bytes", flush=True)
            continue
        begin = file.data.index(mark) + len(mark)
        sent[name] = Sent(file.data, begin, len(file.data), lambda data: pillow(data, pixels.shape))
    return sent


def pillow(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """What Pillow makes of a file, also where its end is damaged; None where that is no picture of this shape."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception:  # whatever a decoder raises, it has not opened the file: that is what is counted
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    return decoded if decoded.shape == shape else None


# ---- one picture --------------------------------------------------------------------------------------------------------
Row = dict[str, Any]


def rows_of(codec: Codec, pixels: np.ndarray, judge: Judge, seed: int, args: argparse.Namespace) -> Iterator[Row]:
    """All rows of a picture: codec, what was done to it ("whole", "bits", "lost", "half"), how much, which trial, whether a
    picture was made, and its metrics."""
    size, our = (pixels.shape[0], pixels.shape[1]), ours(codec, pixels)
    sent = {OURS: our, **turbo(codec, pixels, 8 * (our.end - our.begin)), **classical(pixels, len(our.data), args.speed)}

    def row(name: str, what: str, value: float, trial: int, decoded: np.ndarray | None) -> Row:
        figures = {} if decoded is None else judge(pixels, decoded).values
        facts = {"codec": name, "what": what, "value": value, "trial": trial, "opened": decoded is not None}
        return {**facts, "bytes": len(sent[name].data), **figures}

    for name, file in sent.items():
        yield row(name, "whole", 0, 0, file.shown(file.data))
        for i, rate in enumerate(args.rates):
            for trial in range(args.trials):
                yield row(name, "bits", rate, trial, file.shown(file.damaged(rate, np.random.default_rng([seed, i, trial]))))
    container, stream = Container.from_bytes(our.data), codec.stream(*size)
    tokens = torch.from_numpy(tokens_left(container.payload, stream.runs)[0])[None]
    for i, share in enumerate(args.lost):
        for trial in range(args.trials):
            lost = torch.from_numpy(np.random.default_rng([seed, 100 + i, trial]).random(tokens.shape) < share)
            decoded = codec.decode(tokens, size, lost=lost)[0]
            yield row(OURS, "lost", share, trial, pixels_of(decoded))
    half = our.data[: HEADER.size + len(container.payload) // 2]
    yield row(OURS, "half", 0.5, 0, salvaged(codec, half))
    bits = 8 * (len(half) - HEADER.size)
    done = min(s.step_index for s in stream.segments if packed_bits(runs_to(stream, s.step_index)) > bits)
    yield row(OURS, "steps", done, 0, decode_picture(codec, container, max(1, done)))


def runs_to(stream: Any, step: int) -> list[Any]:
    """The runs of all tokens up to those of a step."""
    return [run for segment in stream.segments if segment.step_index <= step for run in segment.runs]


# ---- report -------------------------------------------------------------------------------------------------------------
def rows_for(result: page.Result, codec: str, what: str) -> list[Row]:
    return [row for row in result["rows"] if (row["codec"], row["what"]) == (codec, what)]


def losses(result: page.Result, codec: str, what: str, value: float) -> tuple[list[float], list[float], int, int]:
    """(dB lost, LPIPS added, pictures opened, pictures tried) of a codec's rows of that damage."""
    whole = {row["image"]: row for row in rows_for(result, codec, "whole")}
    tried = [row for row in rows_for(result, codec, what) if what in ("half", "steps") or row["value"] == value]
    good = [row for row in tried if row["opened"]]
    decibels = [whole[row["image"]]["psnr"] - row["psnr"] for row in good]
    lpips = [row["lpips"] - whole[row["image"]]["lpips"] for row in good if row.get("lpips") is not None]
    return decibels, lpips, len(good), len(tried)


def cell(found: tuple[list[float], list[float], int, int]) -> str:
    decibels, lpips, good, tried = found
    if not decibels:
        return "-" if not tried else f"0 of {tried} opened"
    words = f"{np.mean(decibels):.2f} ({max(decibels):.2f})"
    words += f", {np.mean(lpips):+.3f}" if lpips else ""
    return words if good == tried else f"{words}; {good} of {tried} opened"


def bits_table() -> str:
    result = page.load(NAME)
    rates, codecs = sorted(result["rates"]), list(dict.fromkeys(row["codec"] for row in result["rows"]))
    size = {codec: round(np.mean([row["bytes"] for row in rows_for(result, codec, "whole")])) for codec in codecs}
    rows = [[c, f"{size[c]:,}", *(cell(losses(result, c, "bits", rate)) for rate in rates)] for c in codecs]
    head = ["codec", "bytes", *(f"{rate:g}" for rate in rates)]
    return f"{page.table(head, rows)}\n\n{result['about']}. {page.source(result, NAME)}"


def lost_table() -> str:
    result = page.load(NAME)
    shares = sorted(result["lost"])
    rows = [[f"{share:.0%} of the tokens lost", cell(losses(result, OURS, "lost", share))] for share in shares]
    rows += [["the second half missing", cell(losses(result, OURS, "half", 0))]]
    rows += [["`--steps` of the steps in the first half", cell(losses(result, OURS, "steps", 0))]]
    return f"{page.table(['damage', 'PSNR lost in dB, mean (worst), LPIPS added'], rows)}\n\n{page.source(result, NAME)}"


TABLES: page.Tables = {"bit_errors": bits_table, "lost_tokens": lost_table} if page.measured(NAME) else {}


# ---- all pictures -------------------------------------------------------------------------------------------------------
def measure(codec: Codec, judge: Judge, pictures: dict[str, np.ndarray], args: argparse.Namespace) -> None:
    """Adds the rows of the pictures that are missing in the result file, picture by picture."""
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    settings = {"preset": PRESET, "codec_hash": codec.spec.hash.hex(), "rates": args.rates, "lost": args.lost}
    settings |= {"trials": args.trials, "metrics": judge.summary([]), "crop": args.crop}
    for name, value in settings.items():
        if json.loads(json.dumps(value)) != old.get(name, value):
            raise SystemExit(f"{args.out.name} was measured with other {name}: move it away")
    rows = old.get("rows", [])
    for seed, (name, pixels) in enumerate(pictures.items()):
        if any(row["image"] == name for row in rows):
            continue
        begin = time.perf_counter()
        rows += [{"image": name, **row} for row in rows_of(codec, pixels, judge, seed, args)]
        about = f"{len({row['image'] for row in rows})} Kodak pictures, {args.trials} trials of each"
        save(args.out, {**provenance(0), "about": about, **settings, "dry": bool(args.crop), "rows": rows})
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="of wrong bits")
    parser.add_argument("--lost", type=float, nargs="+", default=list(LOST), help="shares of tokens known to be lost")
    parser.add_argument("--trials", type=int, default=3, help="of each rate and share")
    parser.add_argument("--images", type=int, default=12, help="the first so many of the Kodak pictures")
    parser.add_argument("--speed", type=int, default=6, help="of libaom, 0 (slowest) to 10")
    add_crop(parser, NAME)
    judging.add_metric_options(parser)
    page.add_options(parser)
    args = parser.parse_args()
    if page.only_page(args, PAGE, TABLES):
        return
    refuse_dry_result(args)
    args.device, args.metrics = "cpu", args.metrics or METRICS
    pictures = kodak(count=args.images, crop=args.crop)
    measure(noisebook.load(PRESET, dtype="float32"), judging.judge_of(args), pictures, args)


if __name__ == "__main__":
    main()
