"""Codes for tokens that are not equally likely, or not in order: ranks of subsets, and a range coder under Zipf's law.

Integers alone decide what a payload means, so that it reads the same on every machine. numpy arrays, Python integers, bytes.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from noisebook.errors import FormatError, SpecError

EXPONENT = 4096  # Zipf exponents are whole multiples of 1 / 4096
FRACTION = 24  # bits after the point of logarithms and weights


# ---- sets of signed atoms -----------------------------------------------------------------------------------------------
def subset_bits(atoms: int, size: int) -> int:
    """Bits of a set of `size` distinct signed atoms out of `atoms`: ceil(log2 C(atoms, size)) + size (Turbo-DDCM)."""
    return (math.comb(atoms, size) - 1).bit_length() + size


def subset_rank(tokens: np.ndarray, atoms: int) -> int:
    """Tokens 2 a + sign, int64 [size], atoms ascending -> the set's number in [0, C 2^size), C = C(atoms, size): its rank
    in the combinatorial number system, then the signs, the smallest atom's first. Raises SpecError where atoms repeat,
    descend or exceed `atoms`."""
    order = (np.asarray(tokens) >> 1).tolist()
    if order and not (order[0] >= 0 and order[-1] < atoms and all(a < b for a, b in zip(order, order[1:], strict=False))):
        raise SpecError("tokens of a set must name distinct atoms in ascending order")
    left, rank = len(order), 0
    count = math.comb(atoms, left)  # C(place, left) below, updated by one multiplication a place
    place = atoms
    for atom in reversed(order):
        while place > atom:
            count = count * (place - left) // place
            place -= 1
        rank += count  # C(atom, left)
        count = count * left // (place - left + 1) if place >= left else 1  # C(atom, left - 1)
        left -= 1
    for sign in (np.asarray(tokens) & 1).tolist():
        rank = rank << 1 | sign
    return rank


def subset_tokens(number: int, atoms: int, size: int) -> np.ndarray:
    """The inverse of `subset_rank`: int64 [size]. Raises FormatError for a number that is no set's."""
    rank, left, place = number >> size, size, atoms
    count, out = math.comb(atoms, size), []
    if rank >= count:
        raise FormatError("a set of tokens has a rank that does not exist: the file is damaged, or of another codec")
    while left:
        count = count * (place - left) // place
        place -= 1
        if rank >= count:
            rank -= count
            out.append(place)
            count = count * left // (place - left + 1) if place >= left else 1
            left -= 1
    signs = [number >> i & 1 for i in range(size)]  # the last sign is the lowest bit and the largest atom's
    return np.array([2 * a + s for a, s in zip(out, signs, strict=True)][::-1], np.int64)


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


@lru_cache(16)
def zipf_table(vocab_size: int, exponent: int) -> np.ndarray:
    """Cumulative frequencies, uint64 [vocabulary + 1] from 0, of p(k) ~ (k + 1)^(-exponent / EXPONENT). Every symbol has a
    frequency of at least 1, and all of them less than 2^32. Raises SpecError beyond 2^24 symbols."""
    if not (1 <= vocab_size <= 1 << 24 and exponent >= EXPONENT and exponent <= 2 * EXPONENT):
        raise SpecError(f"no Zipf table of {vocab_size} symbols with exponent {exponent} / {EXPONENT}")
    power = _log2(np.arange(1, vocab_size + 1, dtype=np.uint64)) * np.uint64(exponent) >> np.uint64(
        EXPONENT.bit_length() - 1
    )
    weight = np.full(vocab_size, 1 << 32, np.uint64)
    root = 1 << 128  # 2^(-2^-n) with 64 bits, by repeated square roots of 1/2
    for bit in range(FRACTION - 1, -1, -1):
        root = math.isqrt(root << 127) if bit == FRACTION - 1 else math.isqrt(root << 128)
        factor = np.uint64(root >> 97)  # 31 bits
        weight = np.where(power >> np.uint64(bit) & np.uint64(1), weight * factor >> np.uint64(31), weight)
    weight = weight >> np.minimum(power >> np.uint64(FRACTION), np.uint64(63)) >> np.uint64(6)
    return np.concatenate([np.zeros(1, np.uint64), np.maximum(weight, 1).cumsum(dtype=np.uint64)])


# ---- the range coder ----------------------------------------------------------------------------------------------------
Model = tuple[int, int]  # (vocabulary, exponent) of `zipf_table`
TOP, LEAST = 1 << 64, 1 << 48  # a state below LEAST takes in a byte


def ideal_bits(symbols: Sequence[int], models: Iterable[Model]) -> float:
    """The code length -sum log2 p of symbols, each under its model."""
    total = 0.0
    for k, model in zip(symbols, models, strict=True):
        table = zipf_table(*model)
        total += math.log2(int(table[-1]) / int(table[k + 1] - table[k]))
    return total


def encode_symbols(symbols: Sequence[int], models: Sequence[Model]) -> bytes:
    """Range-codes symbols, each under its own model, in the fewest bytes that say which interval (Martin 1979).

    Within two bytes of `ideal_bits`. Raises SpecError for a symbol outside its vocabulary."""
    out, low, width = bytearray(), 0, TOP
    for k, model in zip(symbols, models, strict=True):
        if not 0 <= k < model[0]:
            raise SpecError(f"symbol {k} is outside its vocabulary of {model[0]}")
        table = zipf_table(*model)
        begin, end, total = int(table[k]), int(table[k + 1]), int(table[-1])
        low, width = low + width // total * begin, width // total * (end - begin)
        while width < LEAST:
            _emit(out, low)
            low, width = (low << 8) % TOP, width << 8
    for count in range(10):  # the shortest string of bytes with all its continuations by zeros inside [low, low + width)
        unit = TOP >> 8 * count if count <= 8 else 1
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
    return bytes(out)


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
    code, place, width, low = int.from_bytes(data[:8].ljust(8, b"\0"), "big"), 8, TOP, 0
    out = []
    for model in models:
        table = zipf_table(*model)
        total = int(table[-1])
        unit = width // total
        value = (code - low) // unit
        if value >= total:
            raise FormatError("the range-coded tokens are damaged, or of another codec")
        k = int(np.searchsorted(table, np.uint64(value), "right")) - 1
        begin, end = int(table[k]), int(table[k + 1])
        low, width = low + unit * begin, unit * (end - begin)
        while width < LEAST:
            code = code - low << 8 | (data[place] if place < len(data) else 0)
            low, width, place = 0, width << 8, place + 1
        out.append(k)
    if encode_symbols(out, models) != data:
        raise FormatError("the range-coded tokens end elsewhere than their file: it is damaged, or of another codec")
    return np.array(out, np.int64)
