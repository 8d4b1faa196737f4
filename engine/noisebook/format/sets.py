"""Sets of signed atoms as one number: the combinatorial number system and the signs. Integers alone decide what it means."""

import math
from functools import lru_cache

import numpy as np

from noisebook.errors import FormatError, SpecError
from noisebook.format.runs import Run

NEAR = 16  # places between two atoms, on average, up to which walking them is faster than a jump


@lru_cache(4096)
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
    left, rank, place = len(order), 0, atoms
    count = math.comb(atoms, left)  # C(place, left) below
    for atom in reversed(order):
        count = _moved(count, place, atom, left)
        rank += count
        place, count = atom, _fewer(count, atom, left)
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
        if place > NEAR * left:
            place, count = _last_within(rank, count, place, left)
        else:
            while rank < count:
                count = count * (place - left) // place
                place -= 1
        rank -= count
        out.append(place)
        count = _fewer(count, place, left)
        left -= 1
    signs = [number >> i & 1 for i in range(size)]  # the last sign is the lowest bit and the largest atom's
    return np.array([2 * a + s for a, s in zip(out, signs, strict=True)][::-1], np.int64)


def unpack_sets(payload: bytes, at: int, run: Run, out: np.ndarray, wrong: np.ndarray | None = None) -> int:
    """Fills `out` with the tokens of a run of sets whose bits begin at `at`; gives where they end. A rank that does not
    exist is refused, or, where `wrong` is given, bool as `out`, counted from 0 again and its tokens marked there."""
    atoms, size = run.vocab_size // 2, run.subset
    bits = subset_bits(atoms, size)
    for first in range(0, run.count - run.count % size, size):
        end = at + bits
        number = int.from_bytes(payload[at // 8 : -(-end // 8)], "big") >> -end % 8 & (1 << bits) - 1
        if wrong is not None and number >> size >= (sets := math.comb(atoms, size)):
            number, wrong[first : first + size] = number - (sets << size), True  # there are less than twice as many numbers
        out[first : first + size] = subset_tokens(number, atoms, size)
        at = end
    return at


def subset_cost(atoms: int, size: int) -> float:
    """About the microseconds of one core that `subset_tokens` takes, without working it out."""
    bits = (math.lgamma(atoms + 1) - math.lgamma(size + 1) - math.lgamma(atoms - size + 1)) / math.log(2)
    if atoms <= NEAR * size:  # a walk
        return 10 * size + atoms * (0.1 + bits / 9000)
    factors = min(3 * atoms // size, size)  # of a jump's numbers
    return size * (6 + bits / 700 + factors * (0.08 + bits / 300_000))


def _fewer(count: int, place: int, left: int) -> int:
    """C(place, left) -> C(place, left - 1)."""
    return count * left // (place - left + 1) if place >= left else 1


def _moved(count: int, place: int, to: int, left: int) -> int:
    """C(place, left) -> C(to, left), to <= place."""
    gap = place - to
    if gap > left:
        return math.comb(to, left)
    return count * math.perm(place - left, gap) // math.perm(place, gap) if to >= left else 0


def _last_within(rank: int, count: int, place: int, left: int) -> tuple[int, int]:
    """(the largest a < place with C(a, left) <= rank, that number), for rank < count = C(place, left): Newton's method on
    the logarithm in floating point, which is concave, and then exact steps from where it ends."""
    if not rank:
        return left - 1, 0
    goal = math.log(rank)
    if place > 64 * left:
        a = int(math.exp((goal + math.lgamma(left + 1)) / left) + (left - 1) / 2)
    else:
        a = place + math.floor((goal - math.log(count)) / _slope(place, left))
    for _ in range(64):
        a = min(max(a, left), place - 1)
        found = _moved(count, place, a, left)
        ahead = (goal - math.log(found)) / _slope(a, left)
        if abs(ahead) < 4:
            break
        a += round(ahead)
    while found > rank:
        found = found * (a - left) // a
        a -= 1
    while (more := found * (a + 1) // (a + 1 - left) if a >= left else 1) <= rank:
        a, found = a + 1, more
    return a, found


def _slope(place: int, left: int) -> float:
    """d ln C(a, left) / da at a = place >= left, nearly."""
    return math.log((place + 0.5) / (place - left + 0.5))
