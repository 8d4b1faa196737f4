"""Ours and other codecs at equal bytes: a file of ours at a rate that is asked for, and the largest of a rival's that is not
larger.

A rival's quality is searched among `steps` settings of rising rate. Of its variants (chroma at half or full size) the one
with more PSNR is kept. A rival that can be tuned to PSNR or to the eye is two rivals, so that each metric meets the one that
was made for it. `classical` says what the encoders are, and what they need.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib import classical
from noisebook import backbones
from noisebook.codec.codec import Codec
from noisebook.codec.solvers import nfe_of
from noisebook.format.container import Container
from noisebook.images import targets
from noisebook.images.files import decode_picture
from noisebook.images.metrics import psnr
from noisebook.spec import presets

OURS = "noisebook"  # what the names of our codecs begin with
PRESET = "photo"  # whose backbone and network calls are ours, unless others are asked for
RATES = (0.05, 0.1, 0.25, 0.5, 1.0)  # bits per pixel of the whole file
PER_STEP = 0.05  # about what a step of a rival's quality adds to the logarithm of its bytes


def name_of(realism: float) -> str:
    """What tables call ours, decoded at a place of the dial."""
    return f"{OURS}, realism {realism:g}"


def in_order(names: Iterable[str]) -> list[str]:
    """Ours by rising realism, then rivals as they come."""
    names = list(names)
    ours = sorted((n for n in names if n.startswith(OURS)), key=lambda n: float(n.split()[-1]))
    return [*ours, *(n for n in names if not n.startswith(OURS))]


class Ours:
    """Files at rates that are asked for, with one backbone and its curve, in `nfe` network calls of a decode."""

    def __init__(self, backbone: str | None = None, curve: Path | None = None, nfe: int | None = None):
        spec = presets.get(PRESET).spec
        self.backbone = backbones.load(backbone or spec.backbone)
        self.curve, self.nfe = targets.curve_of(self.backbone, None if curve is None else str(curve)), nfe or nfe_of(spec)
        self.aims: dict[float, targets.Aim] = {}

    def about(self) -> dict[str, Any]:
        return {"backbone": self.backbone.name, "fingerprint": self.backbone.fingerprint, "nfe": self.nfe}

    def file(self, pixels: np.ndarray, bpp: float) -> tuple[bytes, Codec]:
        """uint8 [H, W, 3] -> the bytes of its `.nbk` file, of about that many bits per pixel, and the codec that made it."""
        if bpp not in self.aims:
            self.aims[bpp] = targets.Aim(targets.Target(bpp=bpp, max_nfe=self.nfe), self.backbone, self.curve)
        return self.aims[bpp].file(pixels)


def shown(data: bytes, codec: Codec, realism: float = 0) -> np.ndarray:
    """What a `.nbk` file decodes to at a place of the dial: uint8 [H, W, 3]. At 0 with the least error, by any backbone."""
    return decode_picture(codec, Container.from_bytes(data), realism=realism)


# ---- rivals -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rival:
    """A codec of `classical` with its settings. `quality`: step 0 ... steps - 1, of rising rate -> its quality, and settings
    that go with it."""

    kind: str
    about: str
    steps: int
    quality: Callable[[int], tuple[int, dict[str, Any]]]
    variants: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """Of its encoder; None where it is not installed."""
        return classical.CODECS[self.kind].version()

    def coded(self, pixels: np.ndarray, step: int, variant: str) -> tuple[bytes, np.ndarray]:
        """(file, what it decodes to) of uint8 [H, W, 3]."""
        quality, settings = self.quality(step)
        return classical.coded(self.kind, pixels, quality, variant, **settings, **self.settings)


def _plain(step: int) -> tuple[int, dict[str, Any]]:
    return step, {}


def _thirds(step: int) -> tuple[int, dict[str, Any]]:
    """QP 63 to 0 in thirds of a QP."""
    return 63 - step // 3, {"weight": (1.0, 0.9, 0.8)[step % 3]}


def rivals(speed: int = 0, preset: str = "slow") -> dict[str, Rival]:
    """Name -> rival. `speed` of libaom, 0 (slowest) to 10; `preset` of VVenC. The quality of libaom ends at 99: at 100,
    without loss, it refuses to be tuned to the eye."""
    both, aom = ("4:2:0", "4:4:4"), f"libaom, speed {speed}, 4:2:0 or 4:4:4"
    iq, own = {"tune": "iq", "speed": speed}, {"tune": "psnr", "speed": speed}
    vvc = f"VVenC, preset {preset}, one intra picture, 10 bits, 4:2:0"
    return {
        "AVIF for PSNR": Rival("AVIF", f"{aom}, tune psnr", 100, _plain, both, own),
        "AVIF for the eye": Rival("AVIF", f"{aom}, tune iq", 100, _plain, both, iq),
        "WebP": Rival("WebP", "method 6", 101, _plain, ("4:2:0",)),
        "VVC for PSNR": Rival("VVC", f"{vvc}, without perceptual QP adaptation", 192, _thirds, (preset,)),
        "VVC for the eye": Rival("VVC", f"{vvc}, perceptual QP adaptation", 192, _thirds, (preset,), {"qpa": 1}),
        "JPEG XL": Rival("JPEG XL", "VarDCT, effort 9", 100, _plain, ("effort 9",)),
    }


MISSING = {  # kind -> what to say where it is not installed
    "AVIF": "no encoder found: a Pillow with AVIF has one",
    "WebP": "no encoder found: a Pillow with WebP has one",
    "VVC": "no encoder found: pip install imageio-ffmpeg has one",
    "JPEG XL": "no encoder found: pip install pillow-jxl-plugin has one",
}


@dataclass
class Tried:
    """Files of one picture that were made in searches, so that the next rate begins with them. `guess`: the step where the
    first search begins, another picture's for instance."""

    files: dict[tuple[str, int], tuple[bytes, np.ndarray]] = field(default_factory=dict)
    guess: int | None = None


@dataclass(frozen=True)
class File:
    """A rival's file with what it decodes to, uint8 [H, W, 3]."""

    data: bytes
    decoded: np.ndarray
    step: int
    variant: str


def largest(rival: Rival, pixels: np.ndarray, limit: int, tried: Tried | None = None) -> tuple[File | None, int]:
    """(the largest file of at most `limit` bytes, of the variant with most PSNR; None where there is none, the smallest file
    that was seen). `tried` is of these pixels and this rival."""
    tried, best = tried or Tried(), []
    for variant in rival.variants:
        step = _search(rival, pixels, limit, variant, tried)
        if step is not None:
            best.append(File(*tried.files[variant, step], step, variant))
    least = min(len(data) for data, _ in tried.files.values())
    return max(best, key=lambda file: psnr(pixels, file.decoded) or math.inf, default=None), least


def _search(rival: Rival, pixels: np.ndarray, limit: int, variant: str, tried: Tried) -> int | None:
    """The last step that fits, between one that fits and the next that does not. Until there is one of either kind, it goes
    from the guess as far as a step changes bytes, then twice as far. Between them it goes by the line through the logarithms
    of their sizes, and every third time to the middle, so that it ends."""

    def size(step: int) -> int:
        if (variant, step) not in tried.files:
            tried.files[variant, step] = rival.coded(pixels, step, variant)
        return len(tried.files[variant, step][0])

    known = {step: len(data) for (of, step), (data, _) in tried.files.items() if of == variant}
    low = max((step for step, n in known.items() if n <= limit), default=-1)
    high = min((step for step, n in known.items() if n > limit and step > low), default=rival.steps)
    turn = 0
    while high - low > 1:
        fits, exceeds = low >= 0, high < rival.steps
        if fits and exceeds and turn % 3 < 2:
            a, b = math.log(size(low)), math.log(size(high))
            middle = round(low + (high - low) * (math.log(limit) - a) / max(b - a, 1e-9))
        elif tried.guess is not None and not fits and not exceeds:
            middle = tried.guess
        elif tried.guess is not None and fits != exceeds:
            known_step = low if fits else high
            far = math.ceil(abs(math.log(limit / size(known_step))) / PER_STEP + 0.5) << turn // 2
            middle = known_step + far if fits else known_step - far
        else:
            middle = (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
        turn += 1
    return low if low >= 0 else None
