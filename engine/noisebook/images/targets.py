"""Asked for a rate or a quality: which codec, and one file that has it.

A rate is met in one pass: a calibrated curve makes the schedule that spends just that many tokens. A quality is predicted by
the curve, tried, and corrected by what came out. All of it at the levels of the curve, or at those that suit the picture
(levels.py).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noisebook.backbones.realism import LazyRealism
from noisebook.codec.codec import Codec
from noisebook.codec.stream import spec_for
from noisebook.errors import BackboneError, FormatError, SpecError
from noisebook.format.container import OVERHEAD, read_file
from noisebook.format.derived import UNSCALED, Derived, derived_of
from noisebook.images.files import contain, encode_and_show, encode_picture
from noisebook.images.levels import Chosen, best_levels, check_tries, nfe_to_see
from noisebook.images.metrics import psnr
from noisebook.rules import EFFORT
from noisebook.spec import curve as curves
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import Step

if TYPE_CHECKING:
    from noisebook.backbones import Backbone
    from noisebook.spec.curve import Curve

NFE = 25  # network calls of a decode, if no other number is asked for
MAX_NFE = 256
CLOSE, TRIES = 0.09, 16  # dB that end the search for a quality, and how often it tries
FAR = 0.5  # dB off that are no answer


@dataclass(frozen=True)
class Target:
    """What a file is to be: of one rate or one quality, in at most `max_nfe` network calls of the decoder.

    bpp    bits per pixel, of the whole file      bytes  size of the file, not exceeded
    psnr   dB, of the 8-bit picture
    """

    bpp: float | None = None
    bytes: int | None = None
    psnr: float | None = None
    max_nfe: int = NFE
    vocab_size: int = 65536
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("bpp", "bytes", "psnr") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(f"ask for one of bpp, bytes and psnr, not {' and '.join(given) or 'none'}")
        if not 0 < getattr(self, given[0]) < math.inf:
            raise SpecError(f"{given[0]} must be above 0, not {getattr(self, given[0])}")
        if not 2 <= self.max_nfe <= MAX_NFE:
            raise SpecError(f"max_nfe must be from 2 to {MAX_NFE}, those of the solver included, not {self.max_nfe}")


class Aim:
    """Makes files of a target with one backbone and its curve; keeps the codecs that it made. `tell` is called with a
    line about each try. `realism_network` is as of `Codec`; a target in dB is one of decodes with realism 0.

    level_tries   0: all pictures of a size have the curve's levels; 1 ... 16: each picture has levels of its own, found with
                  that many whole encodes (`levels.best_levels`). On CUDA each scaling that is tried records a graph
    robust   whether the sizes that are aimed at are those of files with the header twice (format/robust.py)"""

    def __init__(
        self,
        target: Target,
        backbone: "Backbone",
        curve: "Curve",
        graphs: bool = True,
        effort: int = EFFORT,
        candidates: int = 1,
        tell: Callable[[str], None] | None = None,
        realism_network: str | Path | None = None,
        level_tries: int = 0,
        robust: bool = False,
    ):
        if not backbone.answers_to(curve.fingerprint):
            raise BackboneError(
                f"the curve was measured of {curve.backbone!r} ({curve.fingerprint[:16]}), not of "
                f"{backbone.name!r} ({backbone.fingerprint[:16]}): run `noisebook calibrate`"
            )
        if curve.condition and target.max_nfe < 3:
            raise SpecError("under a condition max_nfe is 3 at least: the first tokens take a network call too")
        if level_tries:
            check_tries(level_tries)
        self.target, self.backbone, self.curve, self.level_tries = target, backbone, curve, level_tries
        self.robust, self.realism = robust, LazyRealism(realism_network)  # one for all codecs
        self.how, self.tell = (graphs, effort, candidates, self.realism), tell
        self._codecs: dict[tuple[int, ...], Codec] = {}

    def dims(self, height: int, width: int) -> int:
        """Dimensions of the state of an image of that size."""
        return math.prod(self.backbone.state_shape(*self.backbone.padded(height, width)))

    def _blocks(self, height: int, width: int) -> int:
        """Blocks of such an image: 1, unless it is large."""
        any_spec = CodecSpec(self.backbone.name, self.backbone.fingerprint, (Step(1.0, 0.5, 0.5, 0),))
        return spec_for(any_spec, self.backbone, height, width).blocks

    def codec(self, height: int, width: int, tokens: int, scaling: int = UNSCALED) -> Codec:
        """The codec that spends about `tokens` tokens on such images, of a large one an equal share in each block, at the
        levels of the curve with that `scaling` (`Curve.scaled`)."""
        dims, steps, blocks = self.dims(height, width), self._steps, self._blocks(height, width)
        dims, tokens = dims // blocks, max(2, tokens // blocks)
        key, curve = (dims, tokens, steps, scaling), self.curve.scaled(scaling)
        if key not in self._codecs:
            spec = curves.spec_for(curve, dims, tokens, steps, self.target.vocab_size, self.target.seed)
            self._codecs[key] = Codec(curves.with_known_levels(spec, self.backbone, dims), self.backbone, *self.how)
            if len(self._codecs) > 64:
                del self._codecs[next(iter(self._codecs))]
        return self._codecs[key]

    @property
    def _steps(self) -> int:
        """Steps of the curve's path: the calls but the solver's, and under a condition but that of the first tokens."""
        return self.target.max_nfe - 1 - bool(self.curve.condition)

    def derived(self, tokens: int, scaling: int = UNSCALED) -> Derived | None:
        """What a file has in place of the specification, where a decoder can derive it."""
        ours = curves.shipped_curves().get(self.curve.backbone) == self.curve and self.curve.number
        plain = self.target.vocab_size == 65536 and self.target.seed == 0
        return derived_of(self._steps, tokens, scaling) if ours and plain else None

    def _made(self, height: int, width: int, tokens: int, scaling: int) -> tuple[Codec, Derived | None]:
        return self.codec(height, width, tokens, scaling), self.derived(tokens, scaling)

    def _size(self, height: int, width: int, tokens: int, scaling: int = UNSCALED) -> int:
        """Bytes of the file that spends `tokens` tokens."""
        spec = self.codec(height, width, tokens, scaling).spec_for(height, width)
        derived = None if spec.resolutions else self.derived(tokens, scaling)
        bits = sum(run.count * (run.vocab_size.bit_length() - 1) for _, run in spec.runs_for(height, width))
        file = contain(spec, height, width, bytes(-(-bits // 8)), derived=derived)
        return len(replace(file, robust=self.robust).to_bytes())

    def tokens_for_bytes(self, height: int, width: int, size: float, scaling: int = UNSCALED) -> int:
        """The tokens whose file is nearest to `size` bytes, not above it where the target is in bytes.

        Raises SpecError where even the smallest file is larger, or that many tokens cannot be spent in max_nfe calls."""
        each = (self.target.vocab_size.bit_length() - 1) / 8
        tokens, best = max(2, int((size - OVERHEAD - 4) / each)), None
        for _ in range(12):
            have = self._size(height, width, tokens, scaling)
            fits = have <= size or self.target.bytes is None
            if fits and (best is None or abs(have - size) < abs(best[1] - size)):
                best = (tokens, have)
            change = int((size - have) / each)
            if change == 0:
                if fits:
                    break
                change = -1
            if tokens + change < 2:
                break
            tokens += change
        if best is None or abs(best[1] - size) > max(0.02 * size, 2 * each):
            best = self._halved(height, width, size, scaling, tokens)
        if abs(best[1] - size) > max(0.1 * size, 2 * each) or (self.target.bytes is not None and best[1] > size):
            raise SpecError(
                f"no file of {size:.0f} bytes for an image of {height} x {width} in {self.target.max_nfe} network calls; "
                f"the nearest is {best[1]}: {self._why_not(height, width, size, best, scaling)}"
            )
        return best[0]

    def _halved(self, height: int, width: int, size: float, scaling: int, high: int) -> tuple[int, int]:
        """(tokens, bytes) of the file nearest to `size` bytes, by halving. A specification in the file grows by some 25
        bytes with each step, and a small picture's token brings a step, so that bytes do not follow tokens as
        `tokens_for_bytes` assumes. Of a target in bytes: the largest that is not above it, or the smallest of all."""

        def at(tokens: int) -> float:
            try:
                return self._size(height, width, tokens, scaling)
            except SpecError:  # more than the calls can spend
                return math.inf

        low, least = 2, at(2)
        while least <= size and at(high) <= size and high < 1 << 23:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if at(middle) <= size else (low, middle)
        sizes = [(tokens, int(have)) for tokens in (low, high) if (have := at(tokens)) < math.inf]
        under = [found for found in sizes if found[1] <= size]
        return min(under if under and self.target.bytes is not None else sizes, key=lambda found: abs(found[1] - size))

    def _why_not(self, height: int, width: int, size: float, best: tuple[int, int], scaling: int) -> str:
        """What to do where `best`, the (tokens, bytes) nearest to `size` bytes, is not near."""
        tokens, have = best
        if have < size:
            return "ask for a smaller file, or allow more calls with max_nfe"
        if self.derived(tokens, scaling) is not None:
            return "ask for a larger file"
        written = len(self.codec(height, width, tokens, scaling).spec.to_json())
        return f"ask for a larger file (the specification in it, of no shipped curve, is {written} bytes before compression)"

    def tokens_for_psnr(self, height: int, width: int, decibels: float, scaling: int = UNSCALED) -> int:
        """The tokens that the curve predicts to need for that PSNR, on an image as those it was measured on, or, scaled, on
        one easier or harder."""
        dims, low, high = self.dims(height, width), 2, 2
        while high < 1 << 23 and self._predicted(dims, high, scaling) < decibels:
            low, high = high, 2 * high
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if self._predicted(dims, middle, scaling) >= decibels else (middle, high)
        return high

    def _predicted(self, dims: int, tokens: int, scaling: int) -> float:
        curve = self.curve.scaled(scaling)
        spec = curves.spec_for(curve, dims, tokens, self._steps, self.target.vocab_size)
        return 10 * math.log10(4 / curve.at(spec.sigma_last))

    def file(self, pixels: np.ndarray, weights: np.ndarray | None = None, embed: bool | None = None) -> tuple[bytes, Codec]:
        """uint8 [H, W, C] -> (the bytes of its `.nbk` file, the codec that made it). Raises SpecError as above, or where no
        number of tokens gives the quality."""
        return self.chosen(pixels, weights, embed)[:2]

    def chosen(self, pixels: np.ndarray, weights: np.ndarray | None = None, embed: bool | None = None) -> Chosen:
        """`file`, and beside it which levels it has and what it took to make it."""
        height, width = pixels.shape[:2]
        if self.target.psnr is not None:
            return self._search(pixels, self.target.psnr, weights, embed)
        size = self.target.bytes or (self.target.bpp or 0) * height * width / 8

        def make(scaling: int) -> tuple[Codec, Derived | None]:
            return self._made(height, width, self.tokens_for_bytes(height, width, size, scaling), scaling)

        if self.level_tries:
            return best_levels(pixels, self.curve, make, self.level_tries, weights, embed, self.tell)
        codec, derived = make(UNSCALED)
        return Chosen(encode_picture(codec, pixels, embed, weights, derived), codec, nfe=codec.encode_nfe)

    def _levels_for(
        self, pixels: np.ndarray, wanted: float, weights: np.ndarray | None, embed: bool | None
    ) -> Chosen | None:
        """Where each picture has its own levels, a file with them that is about as good as `wanted`."""
        height, width = pixels.shape[:2]
        tokens = self.tokens_for_psnr(height, width, wanted)

        def make(scaling: int) -> tuple[Codec, Derived | None]:
            return self._made(height, width, tokens, scaling)

        while self.level_tries and tokens > 3:
            try:
                return best_levels(pixels, self.curve, make, self.level_tries, weights, embed, self.tell)
            except SpecError:  # more than the calls can spend
                tokens //= 2
        return None

    def _search(self, pixels: np.ndarray, wanted: float, weights: np.ndarray | None, embed: bool | None) -> Chosen:
        """Tries numbers of tokens until the decoded picture has the PSNR: first where the curve says, then along the line
        through the two tries on either side of what is wanted, in the logarithm of the tokens, then beside that place, for
        from one schedule to the next PSNR does not quite rise smoothly. Where it stays more than .1 dB off, as of flat
        pictures, the answer is the smallest file that was seen to reach it, with a warning."""
        height, width = pixels.shape[:2]
        levels = self._levels_for(pixels, wanted, weights, embed)
        scaling, encodes, nfe = levels[2:] if levels else (UNSCALED, 0, 0)
        tokens, tried, made = self.tokens_for_psnr(height, width, wanted, scaling), {}, {}
        while len(tried) < TRIES:
            try:
                codec = self.codec(height, width, tokens, scaling)
                key = codec.spec.hash  # of a small picture, whatever is beyond what its calls can spend is the same codec
                if key not in made:
                    data, shown = encode_and_show(codec, pixels, embed, weights, self.derived(tokens, scaling))
                    encodes, nfe = encodes + 1, nfe + nfe_to_see(codec)
                    got = psnr(pixels, shown)
                    made[key] = (99.0 if got is None else got, data, codec)
                    if self.tell:
                        rate = 8 * len(data) / (height * width)
                        self.tell(f"  try {len(made)}: {rate:.4f} bpp, {made[key][0]:.2f} dB")
            except SpecError:  # more than the calls can spend
                if tried or tokens < 4:
                    break
                tokens //= 2
                continue
            tried[tokens] = got = made[key][0]
            smallest = tokens == 2 and got > wanted
            if abs(got - wanted) <= CLOSE or smallest or _coarse(tried, wanted):
                break
            tokens = _next(tried, wanted)
            if not 2 <= tokens < 1 << 24:
                break
        calls = f"{wanted:g} dB in {self.target.max_nfe} network calls"
        if not made:
            raise SpecError(f"no number of tokens gives {calls}: not even two can be spent: allow more calls")
        near = min(made.values(), key=lambda file: abs(file[0] - wanted))
        reach = min((file for file in made.values() if file[0] >= wanted), key=lambda file: len(file[1]), default=None)
        if abs(near[0] - wanted) <= 0.1:
            return Chosen(near[1], near[2], scaling, encodes, nfe)
        if reach is None and near[0] < wanted - FAR:
            raise SpecError(
                f"no number of tokens gives {calls}; the nearest was {near[0]:.2f} dB: ask for no more than that, or allow "
                "more calls"
            )
        got, data, codec = reach or near
        what = "what the smallest file has that reaches" if reach else "the nearest to"
        warnings.warn(f"{got:.2f} dB is {what} {wanted:g} dB, of {len(made)} tries", RuntimeWarning, stacklevel=4)
        return Chosen(data, codec, scaling, encodes, nfe)


def _coarse(tried: dict[int, float], wanted: float) -> bool:
    """Whether the wanted PSNR lies in the middle of what one token more brings."""
    return any(p < wanted and tried.get(t + 1, 0.0) >= wanted and tried[t + 1] - p > FAR for t, p in tried.items())


def _next(tried: dict[int, float], wanted: float) -> int:
    """Tokens to try next, none that were. A bit a dimension is worth about 6 dB, so that with a single try decibels go by
    the rate."""
    below = max((t for t, p in tried.items() if p < wanted), default=None)
    above = min((t for t, p in tried.items() if p >= wanted), default=None)
    if below is not None and above is not None:
        share = (wanted - tried[below]) / max(tried[above] - tried[below], 1e-9)
        guess = round(below * (above / below) ** min(max(share, 0.05), 0.95))
    else:
        nearest, *more = sorted(tried, key=lambda t: abs(tried[t] - wanted))
        slope = 5.0  # dB for twice the tokens, about what photographs have
        if more:
            far = max(more, key=lambda t: abs(math.log(t / nearest)))
            slope = min(max((tried[far] - tried[nearest]) / math.log2(far / nearest), 0.5), 10.0)
        guess = max(2, round(nearest * 2 ** min(max((wanted - tried[nearest]) / slope, -2.0), 2.0)))
    grain = max(1, guess // 150)
    beside = (guess + sign * grain * n for n in range(TRIES + 1) for sign in (1, -1))
    return next(t for t in beside if t >= 2 and all(abs(t - other) >= grain for other in tried))


def curve_of(backbone: "Backbone", path: "str | None" = None) -> "Curve":
    """The curve in a file, or the one that came with a shipped backbone. Raises SpecError where there is none."""
    if path is not None:
        try:
            return curves.Curve.from_json(read_file(path))
        except FormatError as error:
            raise SpecError(f"{path}: {error}") from error
    curve = curves.shipped_curve(backbone)
    if curve is None:
        raise SpecError(f"{curves.no_curve(backbone)}, then give --curve FILE")
    return curve


__all__ = ["Aim", "Target", "curve_of"]
