"""Plans as columns: their hash is that of the objects, and a table from elsewhere costs no more than its bytes can hold."""

import hashlib
import io
import json
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisebook.datasets import plan_tables
from noisebook.datasets.plan import Plan, PlanSettings
from noisebook.datasets.plan_tables import read_table, table_bytes
from noisebook.datasets.sources import enumerate_inputs, rows
from noisebook.datasets.sources.base import File, Item, Items
from noisebook.datasets.sources.folder import Folder
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, FormatError
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.spec.presets import get

ODD = ("a", "ä", '"q\\', "\x7f", "\n", "日本", "😀", "x" * 50, "", "\0", "], [", "\u2028")


def items_of(count: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)

    def item(i: int) -> Item:
        extra = rng.choice(["", f'{{"cls": [{i}, 1]}}'])
        return Item(
            f"{i}{rng.choice(ODD)}", i // 7, rng.randrange(1 << rng.randrange(63)), rng.randrange(-1, 300), ".png", extra
        )

    return [item(i) for i in range(count)]


def plan_of(items: list[Item], files: list[File]) -> Plan:
    source = Folder(files, Items.of(items), {"label": "string"})
    return Plan(source, PlanSettings(get("photo").spec, 10, 4, 0, None))


@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_the_hash_is_that_of_the_rows_as_json(tmp_path, count, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 1000)  # more than one
    items = items_of(count)
    files = [File(f"/p/{i}", f"{i}é", i, f"{i} 1.5") for i in range(count // 7 + 1)]
    plan = plan_of(items, files)
    texts = [json.dumps([f.name, f.size]) for f in files]
    texts += [json.dumps([i.key, i.file, i.start, i.size, i.ending, i.extra, i.problem]) for i in items]
    settings = json.dumps(plan._about(), sort_keys=True)
    assert plan.hash == hashlib.sha256((settings + "".join(texts)).encode()).hexdigest()
    assert plan.stamp == hashlib.sha256(json.dumps([(f.name, f.stamp) for f in files]).encode()).hexdigest()
    plan.save(Store(tmp_path))
    loaded = Plan.load(Store(tmp_path))
    assert loaded is not None
    assert list(loaded.source.items) == items
    assert [(f.name, f.size, f.stamp, f.path, f.place) for f in loaded.source.files] == [
        (f.name, f.size, f.stamp, "", None) for f in files
    ]
    assert pq.read_table(tmp_path / "plan-files.parquet")["path"].to_pylist() == [f.path for f in files]


def test_items_are_a_sequence():
    items, columns = items_of(300), Items.of(items_of(300))
    assert list(columns) == items
    assert len(columns) == 300
    rng = random.Random(1)
    for _ in range(50):
        a, b, step = rng.randrange(-350, 350), rng.randrange(-350, 350), rng.choice([1, 1, 2, -1, -7])
        part = columns[a:b:step]
        assert list(part) == items[a:b:step]
        assert list(part[3:9]) == items[a:b:step][3:9]
        if -300 <= a < 300:
            assert columns[a] == items[a]
    assert columns[: 10**30][299] == items[299]
    for index in (300, -301):
        with pytest.raises(IndexError):
            columns[index]
    assert not Items.of([])
    assert items[5] in columns


def test_bytes_of_a_plan_that_noisebook_writes_are_far_from_the_bounds(capsys):
    """The bounds leave a factor of four over what plans of names that follow a pattern take, which compress best."""
    count = 40_000
    shapes = {
        "rows of one file": (Item(f"train/{i}", 0, i) for i in range(count)),
        "rows of many files": (Item(f"{i // 500:05d}-of-00080/{i % 500}", i // 500, i % 500) for i in range(count)),
        "pictures": (Item(f"n{i // 1000:08d}/{i:08d}.png", i, 0) for i in range(count)),
        "samples": (
            Item(f"{i:08d}", i // 1000, 512 + 1536 * i, 512, ".png", f'{{"cls": [{1536 * i}, 1]}}') for i in range(count)
        ),
    }
    for name, items in shapes.items():
        data = table_bytes(Items.of(items))
        metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
        raw = sum(metadata.row_group(0).column(i).total_uncompressed_size for i in range(7))
        print(f"{name}: {len(data) / count:.2f} bytes per item, {raw / len(data):.0f} times that uncompressed")
        assert 4 * count < plan_tables.ROWS_PER_BYTE * len(data), name
        assert 4 * raw < plan_tables.EXPANSION * len(data), name
        assert len(read_table(Items, data, (), DEFAULT)) == count


def test_a_plan_that_would_not_be_read_again_is_refused_before_it_is_written(tmp_path):
    plan = plan_of(items_of(50), [File("x", "x", 1, "")] * 8)
    with pytest.raises(DatasetError, match="--max-rows"):
        plan.save(Store(tmp_path), Limits(rows=20))
    assert not list(tmp_path.iterdir())


# ---- tables from elsewhere ----------------------------------------------------------------------------------------------
def table(count: int, **columns) -> pa.Table:
    plain = {"key": "k", "file": 0, "start": 0, "size": -1, "ending": "", "extra": "", "problem": ""}
    same = {n: pa.repeat(pa.scalar(v, rows.arrow_type(Items.fields[n])), count) for n, v in plain.items()}
    return pa.table({**same, **columns})


def file_of(made: pa.Table, size: int = 0, **options) -> bytes:
    """A Parquet file; with `size`, of that many bytes: between pages and footer is what nobody reads."""
    buffer = io.BytesIO()
    pq.write_table(made, buffer, write_page_checksum=True, store_schema=False, **{"compression": "zstd", **options})
    data = buffer.getvalue()
    cut = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:cut] + bytes(max(0, size - len(data))) + data[cut:]


def coded(values, codes) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values))


def hostile(name: str) -> bytes:
    count, mib = 500_000, 1 << 20
    many = np.arange(count) // 130
    if name == "rows":
        return file_of(table(count))
    if name == "one long text in all rows":
        return file_of(table(count, key=coded(["x" * 900_000], [0] * count)), mib)
    if name == "one long text":
        return file_of(table(1, key=["x" * 20_000_000]), use_dictionary=False)
    if name == "many texts":
        return file_of(table(count, key=coded([f"{i:04d}" + "x" * 250 for i in range(4000)], many)), mib)
    if name == "texts that share their beginning":
        keys = ["x" * 5000 + str(i) for i in range(3000)]
        return file_of(table(3000, key=keys), use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"})
    if name == "other columns":
        return file_of(pa.table({"key": ["a"]}))
    if name == "lists":
        return file_of(table(1, key=pa.array([["a"]])))
    if name == "null":
        return file_of(table(2, key=["a", None]))
    if name == "not UTF-8":
        return file_of(table(1, key=pa.array([b"\xff\xfe"]).view(pa.string())))
    if name == "many groups":
        return file_of(table(2_000), row_group_size=1)
    data = file_of(table(3))
    if name == "page":  # the header says that it has 1 GiB
        return data.replace(data[4:8], bytes([data[4], data[5]]) + b"\x80\x80", 1)
    return {
        "cut": data[:-20],
        "nothing": b"",
        "text": b"PAR1" + b"x" * 100 + b"PAR1",
        "footer": data[:-8] + b"\xff\xff\xff\x7fPAR1",
    }[name]


HOSTILE = (
    "rows",
    "one long text in all rows",
    "one long text",
    "many texts",
    "texts that share their beginning",
    "other columns",
    "lists",
    "null",
    "not UTF-8",
    "many groups",
    "page",
    "cut",
    "nothing",
    "text",
    "footer",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_from_elsewhere_are_refused_before_they_cost(name):
    data, pool = hostile(name), pa.default_memory_pool()
    before = pool.bytes_allocated()
    with pytest.raises(FormatError) as error:
        read_table(Items, data, (), DEFAULT)
    assert "\n" not in str(error.value)
    assert pool.bytes_allocated() - before < 100 << 20


def test_a_flipped_byte_in_a_table_is_refused_or_changes_nothing_that_is_read():
    items = items_of(40)
    data, rng = table_bytes(Items.of(items)), random.Random(0)
    for _ in range(300):
        place = rng.randrange(len(data))
        damaged = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        try:
            found = read_table(Items, damaged, (), DEFAULT)
        except FormatError:
            continue
        assert all(isinstance(item.key, str) for item in found)


COST = """
import sys
import pyarrow.compute, pyarrow.parquet
from noisebook.datasets.sources import enumerate_inputs
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
before = peak()
source = enumerate_inputs([sys.argv[1]])
assert len(source.items) == 2_000_000 and source.items[1_999_999].key == "x/1999999"
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_million_rows_in_a_few_kilobytes_are_arrays(tmp_path):
    """They took 1 GiB as objects."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.repeat(pa.scalar(b"x"), 2_000_000)}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    done = subprocess.run([sys.executable, "-c", COST, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120 << 20


def test_parquet_items_are_made_as_columns(tmp_path, monkeypatch):
    from noisebook.datasets.sources import parquet

    monkeypatch.setattr(parquet, "CHUNK", 10)
    for name, count in (("a", 25), ("b", 0), ("c", 3)):
        pq.write_table(pa.table({"image": pa.array([b"x"] * count, pa.binary())}), tmp_path / f"{name}.parquet")
    (tmp_path / "d.parquet").write_bytes(b"no")
    source = enumerate_inputs([str(tmp_path)])
    wanted = [*(Item(f"a/{i}", 0, i) for i in range(25)), *(Item(f"c/{i}", 2, i) for i in range(3))]
    assert list(source.items)[:-1] == wanted
    assert source.items[-1].problem.startswith("unreadable")
    assert all(a.file <= b.file for a, b in pairwise(source.items))
