"""Damaged and hostile `.nbk` files: a sample of bench/reliability/fuzz.py, on fresh inputs every time."""

import json
import subprocess

import numpy as np
import pytest

from bench.reliability import fuzz
from noisebook import FormatError, SpecError
from noisebook.format import container
from noisebook.format.container import MAX_CODED, MAX_FILE, Container, crc32c, pack, unpack
from noisebook.format.runs import Run
from noisebook.images.files import spec_of

native = container.native()
needs_native = pytest.mark.skipif(native is None, reason="the C++ extension was not built")


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    try:
        return fuzz.build(tmp_path_factory.mktemp("fuzz"))
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no compiler with address and undefined-behaviour sanitizers")


@needs_native
def test_mutated_and_made_up_files_crash_nothing_and_all_parsers_agree(harness, tmp_path, fresh):
    files, dump, seed = tmp_path / "corpus", tmp_path / "dump", int(fresh.integers(1 << 62))
    files.write_bytes(b"".join(map(fuzz.record_of, fuzz.corpus(fresh))))
    found = fuzz.batch(harness, files, seed, 0, 40_000)
    assert sum(sum(counts.values()) for counts in found["verdicts"].values()) == 40_000
    assert found["verdicts"]["mutated"]["accepted"] == 0
    for kind in ("mutated and resealed", "grammar"):  # the sample went through every check
        counts = found["verdicts"][kind]
        assert all(counts[verdict] for verdict in fuzz.VERDICTS if verdict not in ("many", "few", "magic", "checksum"))
    fuzz.batch(harness, files, seed, 0, 1000, dump)
    assert sum(fuzz.compared(fuzz.records(dump.read_bytes())).values()) == 1000


def test_the_harness_finds_what_is_wrong(harness, tmp_path, fresh):
    """A corpus that is cut off, or whose files are refused, is no silent success."""
    data, runs = fuzz.corpus(fresh)[0]
    for bad in (b"", fuzz.record_of((data, runs))[:-1], fuzz.record_of((data[:-1] + bytes([data[-1] ^ 1]), runs))):
        (tmp_path / "corpus").write_bytes(bad)
        with pytest.raises(RuntimeError, match="corpus"):
            fuzz.batch(harness, tmp_path / "corpus", 0, 0, 1)


@needs_native
def test_every_flip_and_truncation_of_some_variants_is_refused_by_both(fresh):
    files = fuzz.variants(fresh)
    some = [files[i] for i in fresh.choice(len(files), 3, False)]
    counts = fuzz.exhausted(some)
    assert counts["flips"] == 8 * counts["truncations"] == 8 * sum(map(len, some))


def test_specifications_made_by_hand_raise_no_error_but_ours(fresh):
    found = fuzz.specifications(1500, fresh)
    assert found["verdicts"]["accepted"]
    assert found["verdicts"]["SpecError"]


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"noisebook_spec":1,"a":' + b"9" * 5000 + b"}", b"\xff", b"", b"7"])
def test_json_that_is_no_specification_is_refused(text):
    file = Container(fuzz.hashlib.sha256(text).digest()[:8], 5, 5, b"", 0, text)
    with pytest.raises(SpecError):
        spec_of(Container.from_bytes(file.to_bytes()))


def test_a_level_of_400_digits_is_no_specification():
    value = json.loads(fuzz.golden_nbk.variants()["finish"][0].to_json())
    value["schedule"][0][0] = 10**400
    with pytest.raises(SpecError):
        fuzz.golden_nbk.CodecSpec.from_json(json.dumps(value))


# ---- the two implementations --------------------------------------------------------------------------------------------
@needs_native
def test_checksums_are_the_same(fresh):
    for size in [*range(40), 255, 4096, 10_007]:
        data = fresh.bytes(size)
        with fuzz.definition():
            expected = crc32c(data)
        for same in (data, bytearray(data), memoryview(b"x" + data)[1:]):  # also where it is not aligned
            assert native.nbk_crc32c(same) == expected


@needs_native
def test_packing_is_the_same(fresh):
    for _ in range(300):
        runs = []
        for _ in range(fresh.integers(0, 5)):
            vocab_size = int(fresh.integers(2, 1 << int(fresh.integers(2, 62))))
            runs.append(
                (int(fresh.integers(0, 70)), 1 << int(fresh.integers(1, 63)) if fresh.random() < 0.3 else vocab_size)
            )
        tokens = np.concatenate([np.empty(0, np.int64), *(fresh.integers(0, v, n) for n, v in runs)])
        payload = pack(tokens, runs)
        assert unpack(payload, runs).tolist() == tokens.tolist()
        with fuzz.definition():
            assert pack(tokens, runs) == payload
            assert unpack(payload, runs).tolist() == tokens.tolist()
        for bad in (payload[:-1], payload + b"\0", fresh.bytes(len(payload)), payload[:-1] + b"\xff"):
            found = fuzz.outcome(lambda bad=bad, runs=runs: unpack(bad, runs))
            with fuzz.definition():
                assert found == fuzz.outcome(lambda bad=bad, runs=runs: unpack(bad, runs))


@pytest.mark.parametrize("python", [False, True])
def test_tokens_that_do_not_fit_are_not_packed(python, monkeypatch):
    if python:
        monkeypatch.setattr(container, "native", lambda: None)
    for token in (-1, 1000, 1 << 62, -(1 << 63)):
        with pytest.raises(SpecError, match=f"token {token} is outside"):
            pack(np.array([999, 0, token, 5]), [(2, 1000), (2, 1000)])
    for count in (3, 5):
        with pytest.raises(SpecError, match="4 tokens do not fit"):
            pack(np.zeros(4, np.int64), [(count, 1000)])


@pytest.mark.parametrize("python", [False, True])
def test_what_is_too_large_is_refused_before_it_is_read(python, monkeypatch):
    if python:
        monkeypatch.setattr(container, "native", lambda: None)
    with pytest.raises(FormatError, match="more than 268435456 bytes"):
        Container.from_bytes(bytes(MAX_FILE + 1))
    for runs in ([(1 << 40, 6)], [(1 << 70, 6)], [(1 << 40, 1 << 33)] * 300):
        with pytest.raises(FormatError, match="the payload has 8 bytes where"):
            unpack(bytes(8), runs)
    with pytest.raises(FormatError, match="at least"):  # not by counting the sets: that takes hours
        unpack(bytes(8), [Run(1 << 24, 1 << 33, subset=1 << 24)])
    coded = [Run(MAX_CODED, 256, zipf=5000), Run(1, 16, zipf=5000)]
    with pytest.raises(FormatError, match="range-coded"):
        unpack(b"", coded)
    with pytest.raises(SpecError, match="range-coded"):
        pack(np.zeros(MAX_CODED + 1, np.int8), coded)


@needs_native
def test_the_extension_checks_its_arguments():
    runs = np.array([[1, 4]])
    for call in (
        lambda: native.nbk_crc32c("text"),
        lambda: native.nbk_parse(5),
        lambda: native.nbk_parse(memoryview(bytes(40))[::2]),
        lambda: native.nbk_unpack(None, runs),
        lambda: native.nbk_unpack(b"", [(1, 4)]),
        lambda: native.nbk_unpack(b"", runs.astype(np.int32)),
        lambda: native.nbk_unpack(b"", np.array([[1, 4, 0]])),
        lambda: native.nbk_pack(np.array([1.0]), runs),
        lambda: native.nbk_pack(np.array([1, 1]), runs),
        *(lambda row=row: native.nbk_unpack(b"", np.array([row])) for row in ((-1, 4), (1, 1), (1, -4), (1 << 41, 4))),
        lambda: native.nbk_unpack(b"", np.array([[1, (1 << 62) + 1]])),
        lambda: native.nbk_unpack(b"", np.zeros(((1 << 20) + 1, 2), np.int64) + 2),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
