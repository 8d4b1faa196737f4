"""What a file may cost its reader: bounded by its bytes and by limits, before it is spent."""

import json
import math
import os
import time
import tracemalloc

import numpy as np
import pytest

from noisebook import FormatError, SpecError
from noisebook.format import container, cost, entropy
from noisebook.format.container import Container, pack, packed_bits, unpack
from noisebook.format.entropy import EXPONENT, FREE, decode_runs, encode_symbols, least_bytes, zipf_law, zipf_table
from noisebook.format.runs import Run
from noisebook.format.sets import subset_rank, subset_tokens
from noisebook.rules.poisson import Poisson
from noisebook.runtime.limits import Limits
from noisebook.spec import curve as curves
from noisebook.spec.spec import CodecSpec
from tools import golden_nbk

BOTH = pytest.mark.parametrize("python", [False, True])


@pytest.fixture
def without_extension(monkeypatch):
    for module in (container, entropy, cost):
        monkeypatch.setattr(module, "native", lambda: None)


def chosen(python: bool, request) -> None:
    if python:
        request.getfixturevalue("without_extension")
    elif container.native() is None:
        pytest.skip("the C++ extension was not built")


# ---- sets ---------------------------------------------------------------------------------------------------------------
def walked(number: int, atoms: int, size: int) -> list[int]:
    """`subset_tokens` one place after the other."""
    rank, left, place, out = number >> size, size, atoms, []
    count = math.comb(atoms, size)
    while left:
        count, place = count * (place - left) // place, place - 1
        if rank >= count:
            rank -= count
            out.append(place)
            count = count * left // (place - left + 1) if place >= left else 1
            left -= 1
    return [2 * a + (number >> i & 1) for i, a in enumerate(out)][::-1]


def test_jumps_between_atoms_end_where_a_walk_does(fresh):
    for _ in range(200):
        atoms = int(fresh.integers(1, 4000))
        size = int(fresh.integers(1, min(atoms, 40) + 1)) if fresh.random() < 0.8 else max(1, atoms - int(fresh.integers(4)))
        whole = math.comb(atoms, size) << size
        near = [int(fresh.integers(0, 1 << 62)) * whole >> 62, math.comb(min(atoms, size + 3), size) << size]
        for number in (0, 1, whole - 1, whole >> 1, *near, *(n - 1 for n in near if n)):
            if number < whole:
                tokens = subset_tokens(number, atoms, size)
                assert tokens.tolist() == walked(number, atoms, size)
                assert subset_rank(tokens, atoms) == number


def test_sets_out_of_a_vocabulary_that_no_walk_ends_in(fresh):
    begin = time.process_time()
    for size in (1, 2, 7, 45, 120):
        for atoms in (np.unique(fresh.integers(0, 1 << 32, size)), np.arange(size), np.arange((1 << 32) - size, 1 << 32)):
            tokens = 2 * atoms + fresh.integers(0, 2, len(atoms))
            number = subset_rank(tokens, 1 << 32)
            assert number >> len(atoms) == sum(math.comb(a, i) for i, a in enumerate(atoms.tolist(), 1))
            assert (subset_tokens(number, 1 << 32, len(atoms)) == tokens).all()
    assert time.process_time() - begin < 2


# ---- laws and the range decoder -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 8, 1000, 1 << 13, (1 << 16) + 1, 1 << 17, 300_000])
def test_a_law_in_pieces_is_the_table(vocab_size, fresh):
    for exponent in (EXPONENT, int(fresh.integers(EXPONENT, 2 * EXPONENT)), 2 * EXPONENT):
        law, table = zipf_law(vocab_size, exponent), zipf_table(vocab_size, exponent).astype(np.int64)
        begins, below = (a.astype(np.int64) for a in law.arrays)
        each = (np.diff(below) // np.diff(begins)).repeat(np.diff(begins))
        assert each.tolist() == np.diff(table).tolist()
        assert (law.total, begins[-1]) == (table[-1], vocab_size)
        for k in {0, vocab_size - 1, *fresh.integers(0, vocab_size, 20).tolist()}:
            interval = int(table[k]), int(table[k + 1] - table[k])
            assert law.interval(k) == interval
            for value in (interval[0], interval[0] + interval[1] - 1):
                assert law.find(value) == (k, *interval)


def test_the_extension_decodes_what_python_does(fresh, request):
    chosen(False, request)
    verdicts = {True: 0, False: 0}
    for _ in range(60):
        runs = []
        for _ in range(int(fresh.integers(0, 5))):
            model = (int(fresh.integers(2, 1 << int(fresh.integers(2, 19)))), int(fresh.integers(EXPONENT, 2 * EXPONENT)))
            runs.append((int(fresh.integers(0, 60)), model))
        models = [model for count, model in runs for _ in range(count)]
        symbols = [int(v * fresh.random() ** 4) for v, _ in models]
        data = encode_symbols(symbols, models)
        assert decode_runs(data, runs).tolist() == symbols
        for bad in (data[:-1], data + b"\0", data + b"\1", fresh.bytes(len(data)), b"\xff" * len(data), fresh.bytes(9)):
            found = []
            for decode in (decode_runs, entropy._decode_runs):
                try:
                    found.append(decode(bad, runs).tolist())
                except FormatError as error:
                    found.append(str(error))
            assert found[0] == found[1]
            verdicts[isinstance(found[0], list)] += 1
    assert all(verdicts.values())


def test_the_extension_checks_laws_and_runs(request):
    chosen(False, request)
    law, runs = zipf_law(8, 5000).arrays, np.array([[1, 0]])
    flat = np.zeros(3, np.uint32)
    for call in (
        lambda c: c.nbk_decode_coded("text", runs, [law]),
        lambda c: c.nbk_decode_coded(b"", runs, []),
        lambda c: c.nbk_decode_coded(b"", runs - 2, [law]),
        lambda c: c.nbk_decode_coded(b"", np.array([[(1 << 24) + 1, 0]]), [law]),
        lambda c: c.nbk_decode_coded(b"", np.array([[1 << 23, 0]] * 3), [law]),
        lambda c: c.nbk_decode_coded(b"", runs, [law[0]]),
        lambda c: c.nbk_decode_coded(b"", runs, [(law[0], law[1][:-1])]),
        lambda c: c.nbk_decode_coded(b"", runs, [(law[0], law[1].astype(np.int64))]),
        lambda c: c.nbk_decode_coded(b"", runs, [(flat, flat)]),
        lambda c: c.nbk_decode_coded(b"", runs, [(law[0][:1], law[1][:1])]),
        lambda c: c.nbk_decode_coded(b"", runs, [(law[0][:2], law[1][:2])]),  # one symbol
        lambda c: c.nbk_decode_coded(b"", runs, [(law[1], law[0])]),  # a frequency below 1
    ):
        with pytest.raises(ValueError, match="must"):
            call(container.native())


# ---- range-coded tokens -------------------------------------------------------------------------------------------------
@BOTH
def test_range_coded_tokens_are_bounded_by_the_bytes(python, request, fresh):
    chosen(python, request)
    begin = time.process_time()
    for count in (FREE + 9, 1 << 20, 1 << 24):
        for payload in (b"", fresh.bytes(least_bytes(count) - 1)):
            with pytest.raises(FormatError, match="range-coded tokens"):
                unpack(payload, [Run(count, 8, zipf=5715)])
    assert time.process_time() - begin < 0.5
    spec = CodecSpec("b", "0" * 64, (golden_nbk.Step(2, 0.5, 1, 1 << 24),), rule="poisson", vocab_size=16)
    with pytest.raises(FormatError, match="more than 0 bytes hold"):
        unpack(b"", [run for _, run in spec.runs_for(9, 9)])


@BOTH
@pytest.mark.parametrize("last", [0, 1, 7])
def test_what_is_packed_unpacks_however_likely_it_is(python, last, request):
    chosen(python, request)
    for count in (0, 1, 4096, FREE, FREE + 7, FREE + 8, FREE + 4096):
        runs, tokens = [Run(3, 5), Run(count, 8, zipf=5715)], np.zeros(3 + count, np.int64)
        tokens[-1] = min(last, 4)
        payload = pack(tokens, runs)
        assert (unpack(payload, runs) == tokens).all()
        assert len(payload) >= 1 + least_bytes(count)
        if last == 0:
            assert payload == bytes(1 + max(0, count - FREE) // 8)
        for bad in (payload + b"\0", *([payload[:-1]] if last == 0 else [])):  # others may be the code of other tokens
            with pytest.raises(FormatError):
                unpack(bad, runs)


def test_no_law_of_the_rule_gives_half_to_one_symbol():
    """What `least_bytes` says of them."""
    for most in range(4, 26):
        for budget in (*range(1, 60), 1000, 12345, 1 << 24):
            for run in Poisson.runs(budget, 1, 1 << most, 0):
                law = zipf_law(run[1], run[3])
                assert 2 * law.below[1] < law.total


# ---- work ---------------------------------------------------------------------------------------------------------------
def test_work_is_refused_before_it_is_done_and_by_its_option(request):
    sets = Run(1 << 14, 1 << 15, subset=1 << 14)  # half a minute of long numbers
    payload = bytes(-(-packed_bits([sets]) // 8))
    slow = [Run(300 * 1000, 1 << 15, subset=300)]
    begin = time.process_time()
    for runs, data in (([sets._replace(count=1 << 20)], payload * 64), (slow, bytes(-(-packed_bits(slow) // 8)))):
        with pytest.raises(FormatError, match=r"takes about [\d,]+, more than the limit of 2,000,000: --max-work raises it"):
            unpack(data, runs)
    assert time.process_time() - begin < 1
    short = [Run(3 * 45, 1 << 15, subset=45)]
    data = bytes(-(-packed_bits(short) // 8))
    unpack(data, short)
    with pytest.raises(FormatError, match="limit of 100: --max-work"):
        unpack(data, short, Limits(work=100))
    with pytest.raises(FormatError, match="limit of 100: --max-work"):
        unpack(bytes(1 << 20), [(1 << 23, 2)], Limits(work=100))


@BOTH
def test_plain_tokens_take_no_memory_but_their_own(python, request, fresh):
    chosen(python, request)
    payload = fresh.bytes(1 << 18)
    tracemalloc.start()
    tokens = unpack(payload, [(1 << 21, 2)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(tokens) + (6 << 20)
    assert (tokens == np.unpackbits(np.frombuffer(payload, np.uint8))).all()


def test_long_runs_unpack_in_pieces(without_extension, fresh):
    for count, vocab_size in ((500_001, 8), (300_000, 6), (40_000, (1 << 33) - 2)):
        runs = [(3, 2), (count, vocab_size), (5, 7)]
        tokens = np.concatenate([fresh.integers(0, v, n) for n, v in runs])
        assert (unpack(pack(tokens, runs), runs) == tokens).all()


# ---- specifications -----------------------------------------------------------------------------------------------------
def text_with(**changes) -> str:
    spec = golden_nbk.variants()["finish"][0]
    return json.dumps({**json.loads(spec.to_json()), **changes})


BAD = {
    "brackets": b"[" * (1 << 22),
    "objects": b'{"a":' * 100_000,
    "a long text": b" " * (1 << 22) + b"1",
    "NaN": text_with().replace('"seed": 0', '"seed": NaN'),
    "infinity": text_with(scale_pixels=math.inf),
    "a float that is infinite": text_with().replace("0.5", "1e999"),
    "a key twice": text_with().replace("{", '{"seed": 0, ', 1),
    "a long number": text_with(seed=10**4000),
    "long numbers": text_with(rows=10**4000, columns=10**4000),
    "a negative number": text_with(rows=-1, columns=-1),
    "a number as text": text_with(finish_levels=["0.5", "0"]),
    "a bool": text_with(finish_levels=[True, 0]),
    "a list": text_with(seed=[1]),
    "a step as text": text_with(schedule=["1234"]),
    "a level as text": text_with(schedule=[["2", 0.5, 1, 4]]),
    "a budget": text_with(schedule=[[2, 0.5, 1, 1 << 25]]),
    "steps": text_with(schedule=[[1, 1, 1, 1]] * ((1 << 16) + 1)),
    "levels": text_with(finish_levels=[0.1] * ((1 << 16) + 1)),
    "a condition": text_with(condition=[1] * 100_000),
    "many fields": text_with(**{f"field {i}": i for i in range(50_000)}),
    "a long rule": text_with(rule="r" * 1_000_000),
    "a long name": text_with(backbone="ä" * 128),
    "NUL in a name": text_with(backbone="photo\0"),
    "an escape in a name": text_with(backbone="\x1b[2J"),
    "half a character": text_with(backbone="\ud800"),
    "a short fingerprint": text_with(fingerprint="0" * 63),
    "capitals": text_with(fingerprint="A" * 64),
    "a line more": text_with(fingerprint="0" * 64 + "\n"),
    "other digits": text_with(fingerprint="\u0661" * 64),
    "no object": b"7",
    "no UTF-8": b"\xff\xfe\xff",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_specification_is_one_short_line_at_once(name):
    begin = time.process_time()
    with pytest.raises(SpecError) as caught:
        CodecSpec.from_json(BAD[name])
    assert time.process_time() - begin < 3
    said = str(caught.value)
    assert len(said) < 500
    assert said.isprintable()
    text = BAD[name]
    if name in ("NaN", "infinity", "a float that is infinite", "a key twice"):  # as the standard library would have it
        assert json.loads(text)


def test_names_of_255_bytes_are_names():
    for name in ("ä" * 127 + "x", "photo", "日本", "a b/c"):
        assert CodecSpec.from_json(text_with(backbone=name)).backbone == name


CURVE = curves.Curve("b", "0" * 64, (2.0, 1.0), (0.2, 0.1), 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": ""},
        {"fingerprint": "x" * 64},
        {"backbone": "a\0"},
        {"backbone": 7},
        {"about": ["a"]},
        {"power": "1"},
        {"power": True},
        {"lam": ["2", "1"]},
        {"lam": "21"},
        {"multiple": 0},
        {"multiple": 1.5},
        {"channels": -1},
        {"least": 10**30},
        {"number": None},
        {"condition": [1, 2]},
        {"condition": "123"},
        {"lam": [float(v) for v in range(70_000, 0, -1)], "mse": [0.1] * 70_000},
        {"unknown": 1},
    ],
)
def test_a_bad_curve_is_one_short_line(changes):
    good = json.loads(CURVE.to_json())
    assert curves.Curve.from_json(json.dumps(good)) == CURVE
    with pytest.raises(SpecError) as caught:
        curves.Curve.from_json(json.dumps({**good, **changes}))
    assert len(str(caught.value)) < 500


def test_the_largest_specifications_are_cheap():
    levels = np.geomspace(50, 0.01, (1 << 16) + 1).tolist()
    steps = tuple(golden_nbk.Step(a, b / a * b, b, 1) for a, b in zip(levels, levels[1:], strict=False))
    spec = CodecSpec("b", "0" * 64, steps, vocab_size=2)
    text = spec.to_json()
    begin = time.process_time()  # not of the clock: other processes are at work
    if len(text) <= 1 << 22:
        assert CodecSpec.from_json(text).hash == spec.hash
    assert len(spec.runs_for(65535, 65535)) == 1 << 16
    for number in range(1, 6):
        curve = curves.by_number(number)
        if curve is not None:
            made = curves.spec_for(curve, curve.dims(65535, 65535), (1 << 24) - 1, 255)
            assert sum(run.count for _, run in made.runs_for(65535, 65535)) < 1 << 25
    assert time.process_time() - begin < 4


# ---- what is no file ----------------------------------------------------------------------------------------------------
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.nbk")
    (tmp_path / "link.nbk").symlink_to(tmp_path / "pipe.nbk")
    for path in (tmp_path / "pipe.nbk", tmp_path / "link.nbk", "/dev/zero", tmp_path):
        with pytest.raises(FormatError, match="no regular file"):
            Container.read(path)
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(FormatError, match="cannot be read"):
            Container.read(path)
