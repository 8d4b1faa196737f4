"""Codes for tokens that are not equally likely: exact, tight, the same on every machine, and never fooled by damage."""

import itertools
import math

import numpy as np
import pytest

from noisebook import FormatError, SpecError
from noisebook.format import entropy as coding
from noisebook.format.container import pack, packed_bits, unpack
from noisebook.format.entropy import EXPONENT, decode_symbols, encode_symbols, ideal_bits, zipf_table
from noisebook.format.runs import Run
from noisebook.format.sets import subset_bits, subset_rank, subset_tokens
from noisebook.rules.poisson import EXPONENT as RULE_EXPONENT
from noisebook.rules.poisson import Poisson, zipf_exponent


# ---- sets of signed atoms --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("atoms", range(1, 8))
def test_every_small_set_has_a_number_of_its_own(atoms):
    """By brute force: all sets of signed atoms onto all of [0, C 2^size), in the order of the combinatorial numbers."""
    for size in range(1, atoms + 1):
        sets = sorted(itertools.combinations(range(atoms), size), key=lambda s: s[::-1])  # colexicographic
        numbers = []
        for chosen in sets:
            for signs in itertools.product((0, 1), repeat=size):
                tokens = np.array([2 * a + s for a, s in zip(chosen, signs, strict=True)])
                numbers.append(subset_rank(tokens, atoms))
                assert subset_tokens(numbers[-1], atoms, size).tolist() == tokens.tolist()
        assert numbers == list(range(math.comb(atoms, size) << size))
        assert 1 << subset_bits(atoms, size) - 1 <= len(numbers) <= 1 << subset_bits(atoms, size)
        for beyond in (len(numbers), 2 * len(numbers), 10 * len(numbers) + 1):
            with pytest.raises(FormatError, match="rank"):
                subset_tokens(beyond, atoms, size)


def test_sets_out_of_turbo_ddcms_vocabulary(fresh):
    """16384 atoms: the bits that the paper's formula gives (method.md, section 3), and round trips of both extremes."""
    assert [subset_bits(16384, m) for m in (45, 114, 300, 1000)] == [489, 1091, 2455, 6426]
    for size in (1, 2, 45, 300):
        some = np.sort(fresh.choice(16384, size, replace=False))
        for atoms in (some, np.arange(size), np.arange(16384 - size, 16384)):
            tokens = 2 * atoms + fresh.integers(0, 2, size)
            number = subset_rank(tokens, 16384)
            assert 0 <= number < math.comb(16384, size) << size
            rank = sum(math.comb(a, i) for i, a in enumerate(atoms.tolist(), 1))
            assert number >> size == rank
            assert (subset_tokens(number, 16384, size) == tokens).all()


def test_what_is_no_set_is_refused():
    for atoms in ([3, 3], [4, 3], [0, 8], [-1, 2], [8]):
        with pytest.raises(SpecError, match="distinct atoms"):
            subset_rank(2 * np.array(atoms), 8)
    with pytest.raises(SpecError, match="distinct atoms"):
        subset_rank(np.array([6, 7]), 8)  # one atom, both signs


# ---- Zipf's law ------------------------------------------------------------------------------------------------------
def test_exponents_are_those_of_li_and_el_gamal():
    for divergence in (0.5, 1, 6, 12.3, 14, 18):
        exact = 1 + 1 / (divergence + math.log2(math.e) / math.e + 1)
        assert RULE_EXPONENT == EXPONENT  # one unit in the rule and in the coder
        assert zipf_exponent(divergence) == pytest.approx(EXPONENT * exact, abs=0.5)
    assert [zipf_exponent(v) for v in (1, 6, 8, 14, 18)] == [5715, 4640, 4526, 4360, 4306]


# (vocabulary, exponent) -> entries of the cumulative table; these numbers stand in files: never change them
KNOWN_TABLES = {
    (8, 5715): {1: 67108864, 2: 92621989, 3: 107112040, 4: 116811497, 7: 133867419, 8: 137554912},
    (1024, 4526): {1: 67108864, 2: 98308363, 3: 118241251, 512: 346444120, 1023: 369700623, 1024: 369732279},
    (65536, 4360): {1: 67108864, 2: 99197227, 3: 120037657, 32768: 547515756, 65535: 570774457, 65536: 570774958},
    (1 << 20, 4306): {2: 99491800, 3: 120636272, 524288: 681349448, 1048575: 704349185, 1048576: 704349216},
}


@pytest.mark.parametrize("model", KNOWN_TABLES)
def test_tables_have_known_entries(model):
    table = zipf_table(*model)
    assert {k: int(table[k]) for k in KNOWN_TABLES[model]} == KNOWN_TABLES[model]


@pytest.mark.parametrize("bits", [0, 1, 3, 10, 16, 20])
def test_tables_follow_the_law_and_leave_nobody_out(bits, fresh):
    """Also fault 8 of DiffC: from 20 bits on its tables of denominator 2^24 have symbols that cannot be coded."""
    for exponent in {EXPONENT, int(fresh.integers(EXPONENT, 2 * EXPONENT)), 2 * EXPONENT}:
        table = zipf_table(1 << bits, exponent)
        assert (table.dtype, table.shape, table[0]) == (np.uint64, ((1 << bits) + 1,), 0)
        widths = np.diff(table.astype(np.int64))
        assert widths.min() >= 1
        assert int(table[-1]) < 1 << 32
        law = 2.0**26 * np.arange(1.0, (1 << bits) + 1) ** (-exponent / EXPONENT)
        assert (np.abs(widths - np.maximum(law, 1)) <= 1 + 1e-6 * law).all()
        assert (np.diff(widths) <= 0).all()


def test_tables_out_of_range_are_refused():
    for model in ((0, 5000), ((1 << 24) + 1, 5000), (16, EXPONENT - 1), (16, 2 * EXPONENT + 1)):
        with pytest.raises(SpecError, match="Zipf"):
            zipf_table(*model)


# ---- the range coder -------------------------------------------------------------------------------------------------
def naive_interval(choose, models) -> tuple[list[int], int, int, int]:
    """The coder with one integer of any length instead of bytes and carries: (symbols, low, width, bits of the scale).
    `choose(table, low, unit, scale)` says which symbol is next."""
    low, width, scale, symbols = 0, 1 << 64, 64, []
    for model in models:
        table = zipf_table(*model).tolist()
        unit = width // table[-1]
        k = choose(len(symbols), table, low, unit, scale)
        low, width = low + unit * table[k], unit * (table[k + 1] - table[k])
        while width < 1 << 48:
            low, width, scale = low << 8, width << 8, scale + 8
        symbols.append(k)
    return symbols, low, width, scale


def aimed_at(point: bytes):
    """A chooser of the symbols whose interval holds the number with these bytes after the point."""

    def choose(_, table, low, unit, scale):
        length = max(len(point), scale // 8)
        value = int.from_bytes(point.ljust(length, b"\0"), "big") >> 8 * length - scale
        return min(int(np.searchsorted(table, (value - low) // unit, "right")) - 1, len(table) - 2)

    return choose


def random_models(fresh, count: int) -> list[tuple[int, int]]:
    few = [(int(fresh.integers(1, 3000)), int(fresh.integers(EXPONENT, 2 * EXPONENT))) for _ in range(4)]
    return [few[i] for i in fresh.integers(0, 4, count)]


def check_stream(symbols, models, low: int, width: int, scale: int) -> bytes:
    """The stream is the fewest bytes inside the naive coder's interval, near the ideal length, and decodes."""
    data = encode_symbols(symbols, models)
    assert low <= int.from_bytes(data, "big") << scale - 8 * len(data) < low + width
    if data:
        unit = 1 << scale - 8 * (len(data) - 1)
        assert -(-low // unit) * unit >= low + width, "a shorter stream would do"
    assert 8 * len(data) <= ideal_bits(symbols, models) + 16
    decoded = decode_symbols(data, models)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == symbols
    return data


@pytest.mark.parametrize("ends", ["random", "first", "last", "alternating"])
def test_streams_are_the_interval_of_a_coder_without_carries(ends, fresh):
    for count in [0, 1, 2, 3, 30, 300]:
        models = random_models(fresh, count)
        picked = {
            "random": [int(fresh.integers(0, v)) for v, _ in models],
            "first": [0] * count,
            "last": [v - 1 for v, _ in models],
            "alternating": [(v - 1) * (i % 2) for i, (v, _) in enumerate(models)],
        }[ends]
        _, *interval = naive_interval(lambda i, *_, picked=picked: picked[i], models)
        check_stream(picked, models, *interval)


def test_carries_go_through_any_number_of_bytes(fresh, monkeypatch):
    """Symbols aimed at a number just above or below a long run of zero bytes: the last ones decide which side."""
    carries, emit = [], coding._emit

    def counting(out, low, *alone):
        carries.append(low >= coding.TOP)
        emit(out, low, *alone)

    monkeypatch.setattr(coding, "_emit", counting)
    for _ in range(60):
        models = random_models(fresh, int(fresh.integers(10, 60)))
        head = fresh.bytes(int(fresh.integers(0, 4))) + bytes([int(fresh.integers(1, 256))])
        below = (int.from_bytes(head, "big") - 1).to_bytes(len(head), "big") + b"\xff" * int(fresh.integers(0, 30))
        for point in (head, below, below + fresh.bytes(4)):
            symbols, *interval = naive_interval(aimed_at(point), models)
            check_stream(symbols, models, *interval)
    assert sum(carries) > 10


def test_streams_are_tight_on_symbols_of_their_own_law(fresh):
    models = [(1 << c, zipf_exponent(c - 2)) for c in fresh.integers(3, 17, 400).tolist()]
    symbols = [int(np.searchsorted(t := zipf_table(*m), fresh.integers(0, int(t[-1])), "right")) - 1 for m in models]
    bits = 8 * len(encode_symbols(symbols, models))
    assert -16 < bits - ideal_bits(symbols, models) <= 16
    assert bits < sum(v.bit_length() - 1 for v, _ in models)


def test_a_known_stream():
    """Stands in files: never change it."""
    models = [(8, 5715), (1024, 4526), (1024, 4526), (65536, 4360), (1 << 20, 4306), (8, 5715)]
    symbols = [7, 0, 1023, 40000, (1 << 20) - 1, 3]
    assert encode_symbols(symbols, models).hex() == "fa62072af5bcbad7f4"
    assert decode_symbols(bytes.fromhex("fa62072af5bcbad7f4"), models).tolist() == symbols
    assert encode_symbols([0] * 6, models) == b""  # trailing zero bytes are left out, here all


def damages(data: bytes, fresh):
    yield from (data[:n] for n in range(len(data)))
    yield from (data + extra for extra in (b"\0", b"\x80", b"\xff", b"\0\0\0", fresh.bytes(9)))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
    yield from (fresh.bytes(len(data)) for _ in range(50))
    yield from (b"\xff" * n for n in range(1, 20))


def test_damaged_streams_raise_or_are_the_stream_of_other_symbols(fresh):
    refused = kept = 0
    for count in (1, 2, 7, 40):
        models = random_models(fresh, count)
        symbols = [int(fresh.integers(0, v)) for v, _ in models]
        data = encode_symbols(symbols, models)
        for bad in damages(data, fresh):
            try:
                found = decode_symbols(bad, models).tolist()
            except FormatError:
                refused += 1
                continue
            kept += bad != data
            assert bad == data or found != symbols
            assert all(0 <= k < v for k, (v, _) in zip(found, models, strict=True))
            assert encode_symbols(found, models) == bad
    assert refused > 200
    assert kept > 0  # the checksum of the file, not the code, finds those
    with pytest.raises(FormatError):
        decode_symbols(b"\0", [])


def test_symbols_outside_their_vocabulary_are_refused():
    for k in (-1, 16):
        with pytest.raises(SpecError, match="vocabulary"):
            encode_symbols([3, k], [(16, 5000)] * 2)


# ---- runs of all kinds in one payload --------------------------------------------------------------------------------
def chunk_runs(divergence: int, most: int) -> tuple[Run, ...]:
    """The runs of rule `poisson` where no chunk has more than `most` index bits."""
    return tuple(Run(*run) for run in Poisson.runs(divergence, 1, 2 << most, 0))


MIXED = [Run(5, 6), Run(8, 64, subset=4), *chunk_runs(40, 10), Run(3, 32), Run(6, 12, subset=3), *chunk_runs(3, 8)]


def mixed_tokens(fresh) -> np.ndarray:
    parts = []
    for run in MIXED:
        if run.subset:
            for _ in range(run.count // run.subset):
                atoms = np.sort(fresh.choice(run.vocab_size // 2, run.subset, replace=False))
                parts.append(2 * atoms + fresh.integers(0, 2, run.subset))
        else:
            parts.append(fresh.integers(0, run.vocab_size, run.count))
    return np.concatenate(parts)


def test_payloads_of_mixed_runs(fresh):
    plain = 13 + 2 * subset_bits(32, 4) + 15 + 2 * subset_bits(6, 3)
    assert packed_bits(MIXED) == plain
    models = [(run.vocab_size, run.zipf) for run in MIXED if run.zipf for _ in range(run.count)]
    for _ in range(20):
        tokens = mixed_tokens(fresh)
        data = pack(tokens, MIXED)
        assert (unpack(data, MIXED) == tokens).all()
        coded = np.concatenate([tokens[13:18], tokens[-1:]]).tolist()
        assert data[-(-plain // 8) :] == encode_symbols(coded, models)
    for bad in damages(data, fresh):
        try:
            found = unpack(bad, MIXED)
        except FormatError:
            continue
        assert pack(found, MIXED) == bad


def test_chunks_are_those_of_diffc():
    """n whole bits in m = ceil(n / 14) chunks of at most 16 index bits, which share n + 2 m evenly, larger first."""
    for most in (16, 12, 3):
        for divergence in [*range(1, 60), 1288, 9242]:
            chunks = math.ceil(divergence / (most - 2))
            total, sizes = divergence + 2 * chunks, []
            for i in range(chunks):
                sizes.append(math.ceil((total - sum(sizes)) / (chunks - i)))
            runs = chunk_runs(divergence, most)
            assert [run.vocab_size for run in runs for _ in range(run.count)] == [1 << c for c in sizes]
            assert max(sizes) <= most
            for run in runs:
                assert run.zipf == zipf_exponent((run.vocab_size.bit_length() - 1) * divergence / total)
                assert run.subset == 0
