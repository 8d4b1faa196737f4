"""Shards and ledgers that somebody else wrote, with right checksums: what cannot be, or would cost too much, is refused."""

import hashlib
import json
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisebook.cli.main import main
from noisebook.datasets import TokenDataset, ledger, verify
from noisebook.datasets.ledger import _digest, read_json_object, read_ledger
from noisebook.datasets.store import Store
from noisebook.datasets.table import FOOTER, Vocabularies, read_shard
from noisebook.errors import DatasetError, FormatError
from noisebook.runtime.limits import Limits
from tools import golden_datasets as golden

SHARD, ENTRY = "shards/000000.parquet", "ledger/000000.json"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in ("webdataset", "parquet", "pictures-half"):
        shutil.copytree(golden.FOLDER / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


def written(table, **options):
    how = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True} | options
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    return sink.getvalue().to_pybytes()


def table_of(name="webdataset"):
    return pq.read_table(Path(name, SHARD))


def changed(table, **columns):
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, column)
    return table


def entry_of(name="webdataset"):
    return json.loads(Path(name, ENTRY).read_bytes())["entry"]


def put(name, data=None, entry=None):
    """A shard and its entry, as if they had been made."""
    if data is not None:
        Path(name, SHARD).write_bytes(data)
        entry = {**(entry or entry_of(name)), "sha256": hashlib.sha256(data).hexdigest()}
    Path(name, ENTRY).write_text(json.dumps({"sha256_of_entry": _digest(entry), "entry": entry}))


def problem(name, capsys):
    """What verify says of the first shard, in one line."""
    assert main(["verify", name, "--json"]) == 4
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    (found,) = json.loads(out.out)["problems"]
    assert found["name"] == SHARD
    assert "\n" not in found["error"]
    return found["error"]


def rows(value, kind, count=3):
    return pa.array([value] * count, kind)


def with_tokens(change, kind=None):
    """A change of a table: each row's tokens, a list, by a function."""
    kind = kind or pa.list_(pa.uint16())
    return lambda table: changed(table, tokens=pa.array([change(row) for row in table["tokens"].to_pylist()], kind))


def with_columns(**columns):
    return lambda table: changed(table, **columns)


def with_footer(footer):
    return lambda table: table.replace_schema_metadata({} if footer is None else {FOOTER: footer})


CASES = {
    "a token is null": (with_tokens(lambda row: [None, *row]), "missing"),
    "lists are null": (with_tokens(lambda row: None), "missing"),
    "tokens are text": (with_tokens(lambda row: ["a"], pa.list_(pa.string())), "its column tokens is of type list<"),
    "tokens are signed": (with_tokens(lambda row: row, pa.list_(pa.int32())), "its column tokens is of type list<"),
    "tokens are numbers": (with_columns(tokens=rows(1, pa.uint16())), "its column tokens is of type uint16"),
    "too few tokens": (with_tokens(lambda row: row[:1]), "1 tokens where its codec has"),
    "tokens are too large": (with_tokens(lambda row: [65535] * len(row)), "outside its vocabulary"),
    "heights are negative": (with_columns(height=rows(-1, pa.int32())), "a side below 1"),
    "widths are 0": (with_columns(width=rows(0, pa.int32())), "a side below 1"),
    "too many pixels": (with_columns(width=rows(1 << 30, pa.int32())), "more than the limit of 268,435,456"),
    "heights are text": (with_columns(height=rows("1", pa.string())), "its column height is of type string"),
    "a key is null": (with_columns(key=pa.array([None, "a", "b"])), "missing"),
    "other keys": (with_columns(key=pa.array(["a", "b", "c"])), "its keys are not those of the plan"),
    "no keys": (lambda table: table.drop_columns(["key"]), "it has not the columns of a shard"),
    "more rows": (lambda table: pa.concat_tables([table, table]), "its counts are not those of its rows"),
    "both": (lambda table: table.append_column("payload", rows(b"", pa.binary())), "it has not the columns of a shard"),
    "no footer": (with_footer(None), "damaged, or not a shard"),
    "a list as footer": (with_footer(b"[]"), "holds no JSON object"),
    "a deep footer": (with_footer(b"[" * 100_000), "damaged"),
    "a footer of another shard": (with_footer(b"{}"), "another shard"),
}
READABLE = ("too few tokens", "tokens are too large", "other keys", "more rows", "a footer of another shard")


@pytest.mark.parametrize("name", CASES)
def test_a_shard_that_cannot_be_is_refused_in_one_line(name, capsys):
    change, words = CASES[name]
    data = written(change(table_of()))
    put("webdataset", data)
    assert words in problem("webdataset", capsys)
    if name not in READABLE:  # only a plan and a specification show what is wrong with these
        with pytest.raises(FormatError):
            read_shard(data, SHARD)


def test_what_was_written_reads_when_it_is_written_again(capsys):
    put("webdataset", written(table_of()))
    assert main(["verify", "webdataset"]) == 0


def test_a_payload_that_is_null_or_nonsense(capsys):
    table = table_of("parquet")
    for value, words in ((None, "missing"), (b"", "damaged|another codec|codec"), (b"\xff" * 40, "FormatError")):
        put("parquet", written(changed(table, payload=pa.array([value] * len(table), pa.binary()))))
        found = problem("parquet", capsys)
        assert any(word in found for word in words.split("|")), found


def peak_of(action):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - begin


BOMBS = {
    "long texts": ({"key": pa.array(["", "", "a" * (100 << 20)])}, {}),
    "a dictionary": ({"key": rows("a" * 1000, pa.string())}, {"use_dictionary": True}),
    "a prefix code": ({"key": rows("a" * 1000, pa.string())}, {"column_encoding": {"key": "DELTA_BYTE_ARRAY"}}),
    "nulls that cost nothing": ({"tokens": pa.array([[], [], [None] * (1 << 20)], pa.list_(pa.uint8()))}, {}),
    "another compression": ({}, {"compression": "brotli"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_small_file_would_cost_is_refused_before(name, capsys):
    columns, options = BOMBS[name]
    data = written(changed(table_of(), **columns), **options)
    assert len(data) < 1 << 20
    del columns
    put("webdataset", data)

    def read():
        with pytest.raises(FormatError, match=r"not plain|bytes unpacked|dictionary|more values|packed in another way"):
            read_shard(data, SHARD)
        problem("webdataset", capsys)

    kilobytes, seconds = peak_of(read)
    assert kilobytes < 64 << 10
    assert seconds < 2


def test_pages_that_are_larger_than_the_footer_says_are_refused():
    """The sums in a footer are only claims: here one is replaced by a small number of as many bytes."""

    def varint(value, size):
        value, out = value << 1, []
        for _ in range(size - 1):
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value & 127])

    data = written(changed(table_of(), key=rows("a" * (40 << 20), pa.string())), data_page_size=1 << 30)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chunk = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(0)
    claim = varint(chunk.total_uncompressed_size, 4)
    assert data.count(claim, start) == 1
    lying = data[:start] + data[start:].replace(claim, varint(1000, 4))
    assert pq.read_metadata(pa.BufferReader(lying)).row_group(0).column(0).total_uncompressed_size == 1000
    with pytest.raises(FormatError, match="bytes unpacked"):
        read_shard(lying, SHARD)


def test_verify_reads_rows_in_batches_and_no_columns_that_were_carried(monkeypatch):
    from noisebook.datasets import table

    read, batches = [], table.batches_of

    def watched(opened, name, columns, limits):
        for part in batches(opened, name, columns, limits):
            read.append((part.column_names, len(part)))
            yield part

    monkeypatch.setattr(table, "HELD", 1)
    monkeypatch.setattr(verify, "batches_of", watched)
    assert verify.check("webdataset")["complete"]
    assert read == [(["key", "tokens", "height", "width"], 1)] * 8


def test_images_of_many_sizes_under_many_steps_are_bounded_by_work():
    spec = TokenDataset("webdataset").spec
    many = Vocabularies(spec, "x", Limits(work=100))
    for side in range(1, 4):
        many.runs_of(side, side)
    with pytest.raises(FormatError, match="--max-work raises it"):
        many.runs_of(4, 4)


ENTRIES = {
    "a list": b'{"sha256_of_entry": "x", "entry": []}',
    "a list as a whole": b"[]",
    "no JSON": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "deep inside": b'{"sha256_of_entry": "x", "entry": ' + b'{"a": ' * 50_000 + b"1" + b"}" * 50_000 + b"}",
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_ledger_that_is_none_is_refused_in_one_line(name):
    Path("webdataset", ENTRY).write_bytes(ENTRIES[name])
    with pytest.raises(FormatError, match="damaged") as raised:
        read_ledger(Store("webdataset"), 0)
    assert "\n" not in str(raised.value)
    assert main(["verify", "webdataset"]) == 4


FAILURE = {"key": 7, "code": "x", "message": "y"}
WRONG = [
    *({"shard": value} for value in (1, True)),
    *({"status": value} for value in ("x", "poisoned")),
    *({"plan": value} for value in (7, None)),
    *({"n_ok": value} for value in ("3", 1.0, -1)),
    *({"failed": value} for value in ({}, [7], [FAILURE], [{"key": "a"}])),
    *({"versions": value} for value in ([], {"a": 1})),
    *({"seconds": value} for value in ("x", None, float("nan"))),
    {"remarks": [{"key": "a"}]},
    {"sha256": None},
    {"tokens": None},
    {"device": 7},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_entry_of_other_types_is_refused(wrong):
    put("webdataset", entry={**entry_of(), "failed": [], **wrong})
    with pytest.raises(FormatError, match="damaged: remove it, and resume"):
        read_ledger(Store("webdataset"), 0)


def test_json_that_is_too_large_is_not_parsed(monkeypatch):
    monkeypatch.setattr(ledger, "MOST", 100)
    with pytest.raises(FormatError, match="101 bytes of JSON, more than 100"):
        read_json_object(b'"' + b"a" * 99 + b'"', "x")
    with pytest.raises(DatasetError, match="more than the 100 that a file of a data set may have"):
        read_ledger(Store("webdataset"), 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "set").mkdir()
    kinds = {"not a regular file": (os.mkfifo, os.mkdir), "a link": (lambda path: os.symlink("/dev/zero", path),)}
    for word, make in ((word, make) for word, makers in kinds.items() for make in makers):
        make(tmp_path / "set/plan.json")
        with pytest.raises(DatasetError, match=rf"plan\.json: {word}"):
            verify.check(str(tmp_path / "set"))
        (os.rmdir if make is os.mkdir else os.unlink)(tmp_path / "set/plan.json")
    with pytest.raises(DatasetError, match="more than the 9 that"):
        Store("webdataset").read("plan.json", 9)
    assert Store("webdataset").read("none") is None


def test_a_plan_of_very_many_shards_is_checked_in_no_time(monkeypatch):
    store = Store("pictures-half")
    plan = verify.Plan.load(store)
    plan.shards = 3_000_000
    monkeypatch.setattr(verify.Plan, "load", lambda *_: plan)
    begin = time.perf_counter()
    found = verify.check("pictures-half")
    assert time.perf_counter() - begin < 1
    assert (found["shards"], found["of_shards"], found["complete"]) == (1, 3_000_000, False)
    assert len(found["problems"]) == 1001
    assert found["problems"][-1] == {"name": "...", "error": f"{3_000_000 - 1001:,} more problems"}


def test_text_of_a_ledger_is_escaped(capsys):
    entry = {**entry_of(), "status": "poisoned", "failed": [{"key": "a", "code": "b", "message": "\x1b[31mred"}]}
    put("webdataset", entry=entry)
    assert main(["verify", "webdataset"]) == 7
    out = capsys.readouterr().out
    assert "\\x1b[31mred" in out
    assert "\x1b" not in out


def test_a_column_of_flags_goes_along():
    """Flags are written in another encoding than all else."""
    table = table_of().append_column("flag", pa.array([True, None, False]))
    for version in ("1.0", "2.0"):
        found, _ = read_shard(written(table, data_page_version=version), SHARD)
        assert found["flag"].to_pylist() == [True, None, False]
        assert np.array_equal(found["height"], table["height"])
