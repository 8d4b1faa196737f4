"""A code for tokens that are not equally likely: a range coder under Zipf's law.

Integers alone decide what a payload means, so that it reads the same on every machine. numpy arrays, Python integers, bytes.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from noisebook.errors import FormatError, SpecError
from noisebook.runtime.native import native

EXPONENT = 4096  # Zipf exponents are whole multiples of 1 / 4096
FRACTION = 24  # bits after the point of logarithms and weights
HIGH = 16  # of them, whose powers are in a table
FIRST = 1 << 16  # symbols whose frequencies are worked out one by one
CHUNK = 1 << 14
DAMAGED = "the range-coded tokens are damaged, or of another codec"


# ---- Zipf's law ---------------------------------------------------------------------------------------------------------
def _log2(x: np.ndarray) -> np.ndarray:
    """floor(2^FRACTION log2 x) of uint64 [N] in [1, 2^31], to a few units, by repeated squaring."""
    whole = np.zeros_like(x)
    for shift in (16, 8, 4, 2, 1):
        large = x >> whole >= np.uint64(1 << shift)
        whole += large * np.uint64(shift)
    y, out = x << (np.uint64(31) - whole), whole << np.uint64(FRACTION)  # y in [2^31, 2^32): x / 2^whole
    for bit in range(FRACTION - 1, -1, -1):
        y = y * y >> np.uint64(31)
        carry = y >> np.uint64(32)
        y >>= carry
        out += carry << np.uint64(bit)
    return out


def zipf_table(vocab_size: int, exponent: int) -> np.ndarray:
    """Cumulative frequencies, uint64 [vocabulary + 1] from 0, of p(k) ~ (k + 1)^(-exponent / EXPONENT). Every symbol has a
    frequency of at least 1, and all of them less than 2^32. Raises SpecError beyond 2^24 symbols.

    This is the definition; the coder takes the same numbers from `zipf_law`, which needs neither the time nor the memory of
    all symbols."""
    _check_model(vocab_size, exponent)
    log2 = _log2(np.arange(1, vocab_size + 1, dtype=np.uint64))
    return np.concatenate([np.zeros(1, np.uint64), _frequencies(log2, exponent).cumsum(dtype=np.uint64)])


def _check_model(vocab_size: int, exponent: int) -> None:
    if not (1 <= vocab_size <= 1 << 24 and exponent >= EXPONENT and exponent <= 2 * EXPONENT):
        raise SpecError(f"no Zipf table of {vocab_size} symbols with exponent {exponent} / {EXPONENT}")


def _frequencies(log2: np.ndarray, exponent: int) -> np.ndarray:
    """`_log2` of k + 1, uint64 [N] -> the frequencies of those symbols, uint64 [N]."""
    power = log2 * np.uint64(exponent) >> np.uint64(EXPONENT.bit_length() - 1)
    fraction = power & np.uint64((1 << FRACTION) - 1)
    low = FRACTION - HIGH
    weight = _powers()[fraction >> np.uint64(low)]
    for bit, factor in enumerate(_factors()[HIGH:]):
        weight = np.where(fraction >> np.uint64(low - 1 - bit) & np.uint64(1), weight * factor >> np.uint64(31), weight)
    weight = weight >> np.minimum(power >> np.uint64(FRACTION), np.uint64(63)) >> np.uint64(6)
    return np.maximum(weight, 1)


@cache
def _factors() -> np.ndarray:
    """2^(-2^-n), n = 1 ... FRACTION, with 31 bits: uint64 [FRACTION]."""
    out, root = [], 1 << 128  # with 64 bits, by repeated square roots of 1/2
    for n in range(FRACTION):
        root = math.isqrt(root << 127 + (n > 0))
        out.append(root >> 97)
    return np.array(out, np.uint64)


@cache
def _powers() -> np.ndarray:
    """2^(32 - x) of the fractions x of HIGH bits, multiplied bit by bit: uint64 [2^HIGH]."""
    fraction, weight = np.arange(1 << HIGH, dtype=np.uint64), np.full(1 << HIGH, 1 << 32, np.uint64)
    for bit, factor in enumerate(_factors()[:HIGH]):
        weight = np.where(fraction >> np.uint64(HIGH - 1 - bit) & np.uint64(1), weight * factor >> np.uint64(31), weight)
    return weight


@cache
def _first_log2() -> np.ndarray:
    """`_log2` of 1 ... FIRST, which all tables share."""
    return _log2(np.arange(1, FIRST + 1, dtype=np.uint64))


class ZipfLaw(NamedTuple):
    """The table of a model in pieces of symbols that have one frequency. Frequencies never rise, and there are few small
    ones, so that 2^24 symbols are some 10,000 pieces.

    begins, below  uint32 [P + 1]: the first symbol of each piece, and the cumulative frequency before it; at the end
                   vocabulary and total
    """

    begins: array
    below: array

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Both as the extension takes them."""
        return np.frombuffer(self.begins, np.uint32), np.frombuffer(self.below, np.uint32)

    @property
    def total(self) -> int:
        return self.below[-1]

    def interval(self, symbol: int) -> tuple[int, int]:
        """(cumulative frequency before a symbol, its frequency)."""
        piece = bisect_right(self.begins, symbol) - 1
        begin, below = self.begins[piece], self.below[piece]
        frequency = (self.below[piece + 1] - below) // (self.begins[piece + 1] - begin)
        return below + (symbol - begin) * frequency, frequency

    def find(self, value: int) -> tuple[int, int, int]:
        """A cumulative frequency below the total -> (its symbol, and what `interval` says of that)."""
        piece = bisect_right(self.below, value) - 1
        begin, below = self.begins[piece], self.below[piece]
        frequency = (self.below[piece + 1] - below) // (self.begins[piece + 1] - begin)
        ahead = (value - below) // frequency
        return begin + ahead, below + ahead * frequency, frequency


@lru_cache(64)  # of at most 200 KB each
def zipf_law(vocab_size: int, exponent: int) -> ZipfLaw:
    """The model's table in pieces, the same numbers as `zipf_table`. Raises SpecError as that."""
    _check_model(vocab_size, exponent)
    frequency = _frequencies(_first_log2()[:vocab_size], exponent)
    changes = np.flatnonzero(frequency[1:] != frequency[:-1]) + 1
    begins, kinds = np.concatenate([[0], changes]), frequency[np.concatenate([[0], changes])]
    if vocab_size > FIRST:  # each smaller frequency begins where no symbol has a larger one, by bisection for all at once
        smaller = np.arange(int(frequency[-1]) - 1, 0, -1, dtype=np.uint64)
        low, high = np.full(len(smaller), FIRST), np.full(len(smaller), vocab_size)
        while (low < high).any():
            middle = (low + high) // 2
            later = _frequencies(_log2(middle.astype(np.uint64) + np.uint64(1)), exponent) > smaller
            low, high = np.where(later & (low < high), middle + 1, low), np.where(later, high, middle)
        kept = np.append(low[1:] > low[:-1], True) & (low < vocab_size) if len(low) else np.empty(0, bool)
        begins, kinds = np.concatenate([begins, low[kept]]), np.concatenate([kinds, smaller[kept]])
    ends = np.append(begins[1:], vocab_size)
    below = np.concatenate([[0], ((ends - begins).astype(np.uint64) * kinds).cumsum(dtype=np.uint64)])
    return ZipfLaw(
        array("I", np.append(begins, vocab_size).astype(np.uint32).tobytes()), array("I", below.astype(np.uint32).tobytes())
    )


def law_cost(vocab_size: int) -> int:
    """About the microseconds of one core that `zipf_law` takes."""
    return 200 + min(vocab_size, FIRST) // 16 + (vocab_size > FIRST) * 15_000


# ---- the range coder ----------------------------------------------------------------------------------------------------
Model = tuple[int, int]  # (vocabulary, exponent) of `zipf_table`
TOP, LEAST = 1 << 64, 1 << 48  # a state below LEAST takes in a byte
FREE = 1 << 16  # symbols that need no bits in a stream


def ideal_bits(symbols: Sequence[int], models: Iterable[Model]) -> float:
    """The code length -sum log2 p of symbols, each under its model."""
    total = 0.0
    for k, model in zip(symbols, models, strict=True):
        law = zipf_law(*model)
        total += math.log2(law.total / law.interval(k)[1])
    return total


def least_bytes(count: int) -> int:
    """The bytes that `count` symbols take at least. No symbol has half of a law's frequencies, so that each narrows the
    interval by more than a bit; where many likely ones at the end of a stream would leave fewer bytes, zeros fill it up, so
    that the length of a file bounds its symbols."""
    return max(0, count - FREE) // 8


def encode_symbols(symbols: Sequence[int], models: Iterable[Model]) -> bytes:
    """Range-codes symbols, each under its own model, in the fewest bytes that say which interval (Martin 1979), but at least
    `least_bytes`.

    Within two bytes of `ideal_bits`. Raises SpecError for a symbol outside its vocabulary."""
    out, low, width = bytearray(), 0, TOP
    for k, model in zip(symbols, models, strict=True):
        if not 0 <= k < model[0]:
            raise SpecError(f"symbol {k} is outside its vocabulary of {model[0]}")
        law = zipf_law(*model)
        begin, frequency = law.interval(k)
        unit = width // law.total
        low, width = low + unit * begin, unit * frequency
        while width < LEAST:
            _emit(out, low)
            low, width = (low << 8) % TOP, width << 8
    for count in range(9):  # the shortest string of bytes with all its continuations by zeros inside [low, low + width)
        unit = TOP >> 8 * count
        value = -(-low // unit) * unit
        if value < low + width:
            for _ in range(count):
                _emit(out, value)
                value = (value << 8) % TOP
            if count == 0 and value >= TOP:
                _emit(out, value, True)
            break
    while out and out[-1] == 0:
        out.pop()
    return bytes(out).ljust(least_bytes(len(symbols)), b"\0")


def _emit(out: bytearray, low: int, carry_alone: bool = False) -> None:
    """Appends the highest byte of the state; a carry goes into the bytes before."""
    if low >= TOP:
        place = len(out) - 1
        while out[place] == 255:
            out[place] = 0
            place -= 1
        out[place] += 1
    if not carry_alone:
        out.append(low >> 56 & 255)


def decode_symbols(data: bytes, models: Sequence[Model]) -> np.ndarray:
    """The inverse of `encode_symbols`: int64 [len(models)]. Raises FormatError for anything that it did not write."""
    return decode_runs(data, [(sum(1 for _ in same), model) for model, same in groupby(models)])


def decode_runs(data: bytes, runs: Sequence[tuple[int, Model]]) -> np.ndarray:
    """As `decode_symbols`, with (how many, their model) for symbols that follow each other."""
    if (c := native()) is not None and all(vocab_size > 1 for _, (vocab_size, _) in runs):
        models = list(dict.fromkeys(model for _, model in runs))
        numbers = {model: number for number, model in enumerate(models)}
        table = np.array([(count, numbers[model]) for count, model in runs], np.int64).reshape(-1, 2)
        found = c.nbk_decode_coded(data, table, [zipf_law(*model).arrays for model in models])
        if found is None:
            raise FormatError(DAMAGED)
        out, place, code, width = found
        return _checked(data, out, place, code, width or TOP)
    return _decode_runs(data, runs)


def _decode_runs(data: bytes, runs: Sequence[tuple[int, Model]]) -> np.ndarray:
    code, place, width = int.from_bytes(data[:8].ljust(8, b"\0"), "big"), 8, TOP  # code and width: above the interval's low
    out, at = np.empty(sum(count for count, _ in runs), np.int64), 0
    for count, model in runs:
        law = zipf_law(*model)
        for start in range(0, count, CHUNK):  # as Python's own integers they take five times the memory
            symbols = []
            for _ in range(min(CHUNK, count - start)):
                unit = width // law.total
                value = code // unit
                if value >= law.total:
                    raise FormatError(DAMAGED)
                symbol, begin, frequency = law.find(value)
                code, width = code - unit * begin, unit * frequency
                while width < LEAST:
                    code, width = code << 8 | (data[place] if place < len(data) else 0), width << 8
                    place += 1
                symbols.append(symbol)
            out[at : at + len(symbols)] = symbols
            at += len(symbols)
    return _checked(data, out, place, code, width)


def _checked(data: bytes, out: np.ndarray, place: int, code: int, width: int) -> np.ndarray:
    """The symbols, if `data` is what `encode_symbols` writes for the interval in which the decoder ends: of this width, with
    the number of the `place` first bytes `code` above its beginning. Raises FormatError."""
    least, written = least_bytes(len(out)), None
    if len(data) <= max(place, least):
        low = (int.from_bytes(data[:place], "big") << 8 * max(0, place - len(data))) - code
        values = (-(-low >> bits) << bits for bits in range(64, -1, -8))
        value = next(value for value in values if value < low + width)
        written = value.to_bytes(place, "big").rstrip(b"\0").ljust(least, b"\0")
    if data != written:
        raise FormatError("the range-coded tokens end elsewhere than their file: it is damaged, or of another codec")
    return out
