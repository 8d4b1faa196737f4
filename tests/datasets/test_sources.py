"""Inputs: any name a file can have, an allow-list of protocols, chains that were typed, Parquet in small batches."""

import ast
import io
import os
import random
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset
from noisebook.datasets.decoding import read_bytes
from noisebook.datasets.sources import cursor, enumerate_inputs, parquet
from noisebook.datasets.sources.base import Changed, Failure
from noisebook.datasets.sources.places import PROTOCOLS, Place, filesystem
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError
from noisebook.runtime.limits import Limits

NAMES = (
    "a::b.png",
    "c:d.png",
    "x#y.png",
    "[z].png",
    "~.png",
    "a%20b.png",
    "q?r.png",
    "s;t.png",
    "zip::x.png",
    "file:u.png",
    "ü.png",
)


def png(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def files(fresh):
    """Pictures as PNG files, bytes."""
    return [png(x) for x in random_images(fresh, len(NAMES), 16, 16).permute(0, 2, 3, 1).numpy()]


def contents(source) -> dict:
    return {item.key: read_bytes(source.files[item.file], item) for item in source.items}


def test_local_paths_are_no_urls(tmp_path, files, monkeypatch):
    for name, data in zip(NAMES, files, strict=True):
        (tmp_path / name).write_bytes(data)
    expected = dict(zip(NAMES, files, strict=True))
    assert contents(enumerate_inputs([str(tmp_path)])) == expected
    monkeypatch.chdir(tmp_path)
    for name, data in expected.items():
        for typed in (name, str(tmp_path / name), f"file://{tmp_path / name}"):
            assert contents(enumerate_inputs([typed])) == {name: data}, typed
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.core.url_to_fs", None)  # no text of this machine's files is parsed as a URL
        assert contents(enumerate_inputs([str(tmp_path)])) == expected


def test_a_folder_of_such_names_is_tokenised_and_read_again(tmp_path, files):
    for name, data in zip(NAMES, files, strict=True):
        (tmp_path / "in::x").mkdir(exist_ok=True)
        (tmp_path / "in::x" / name).write_bytes(data)
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    command = [
        "tokenize",
        str(tmp_path / "in::x"),
        "-o",
        str(tmp_path / "out::y"),
        "--backbone",
        net,
        *TINY,
        "--workers",
        "0",
    ]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    data = TokenDataset(str(tmp_path / "out::y"), inputs=tmp_path / "in::x")
    assert {row["key"] for row in data} == set(NAMES)
    expected = dict(zip(NAMES, files, strict=True))
    assert all(
        (data.original(i) == np.asarray(Image.open(io.BytesIO(expected[data[i]["key"]])))).all() for i in range(len(data))
    )


REFUSED = ("reference", "data", "ftp", "github", "git", "dask", "dir", "jupyter", "generic", "libarchive", "smb", "x-y")


@pytest.mark.parametrize("protocol", REFUSED)
def test_other_protocols_are_refused_before_anything_is_contacted(protocol):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        url = f"{protocol}://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for typed in (url, f"zip://x.png::{url}", f"{protocol.replace('-', '')}::file:///x.png", f"simplecache::{url}"):
            with pytest.raises(DatasetError) as error:
                enumerate_inputs([typed])
            assert "\n" not in str(error.value)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_every_protocol_is_named_in_the_docs():
    text = (Path(__file__).parents[2] / "docs/scale.md").read_text()
    assert all(f"`{name}`" in text for name in (*PROTOCOLS, "file", "zip", "tar", "simplecache", "filecache", "blockcache"))


@pytest.fixture
def memory():
    import fsspec

    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def test_chains_that_were_typed(tmp_path, files, memory):
    with zipfile.ZipFile(tmp_path / "a::b.zip", "w") as archive:
        for i, data in enumerate(files[:3]):
            archive.writestr(f"c::{i}.png", data)
        archive.writestr("../out.png", files[0])
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for i, data in enumerate(files[:3]):
            info = tarfile.TarInfo(f"in/{i}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for i, data in enumerate(files[:3]):
        memory.pipe_file(f"/p/{i}.png", data)
    inside = contents(enumerate_inputs([f"zip://c*.png::{tmp_path}/a::b.zip"]))
    assert inside == {f"c::{i}.png": data for i, data in enumerate(files[:3])}
    outside = enumerate_inputs([f"zip://::{tmp_path}/a::b.zip"])
    assert [item.key for item in outside.items if item.problem.startswith("bad_key")] == ["../out.png"]
    assert outside.files[0].path == f"zip://../out.png::{tmp_path}/a::b.zip"
    plain = {f"{i}.png": data for i, data in enumerate(files[:3])}
    assert contents(enumerate_inputs([f"tar://in::{tmp_path}/t.tar"])) == plain
    for cache in ("simplecache", "filecache"):  # blockcache asks for ranges, which memory has not
        assert contents(enumerate_inputs([f"{cache}::memory://p"])) == plain
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    for url, workers in ((f"zip://c*.png::{tmp_path}/a::b.zip", "1"), ("simplecache::memory://p", "0")):
        out = tmp_path / url.split(":")[0]
        command = ["tokenize", url, "-o", str(out), "--backbone", net, *TINY, "--workers", workers]
        assert main(command) == 0
        assert main([*command, "--resume"]) == 0
        data = TokenDataset(out, inputs=url)
        assert (data.original(1) == pixels(files[1])).all()
    with pytest.raises(DatasetError, match="inputs only"):
        Store("simplecache::memory://out")
    with pytest.raises(DatasetError, match="inputs only"):
        filesystem("zip://x::/a.zip")
    for url in (f"zip://*.png::{tmp_path}/gone.zip", f"zip://*.png::{tmp_path}/t.tar", "simplecache://x::memory://p"):
        with pytest.raises(DatasetError):
            enumerate_inputs([url])


def test_names_below_a_server_do_not_ask_it_for_something_else():
    root = Place("http://127.0.0.1/data", "http://127.0.0.1/data")
    assert root.below("a/b%20c.png").path == "http://127.0.0.1/data/a/b%20c.png"
    for name in ("%2e%2e/x", "a/%2E%2e%2fx", "x?y", "x#y", "..%5cx"):
        with pytest.raises(DatasetError):
            root.below(name)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_names_are_utf8_in_every_locale(tmp_path, files):
    for name, data in zip(("ä.png", "日.png", "z.png"), files, strict=False):
        (tmp_path / name).write_bytes(data)
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as f:
        f.write(files[0])
    code = (
        "import sys\nfrom noisebook.datasets.sources import enumerate_inputs\n"
        "from noisebook.datasets.decoding import read_bytes\n"
        "s = enumerate_inputs([sys.argv[1]])\n"
        "print(ascii([(i.key, i.problem or len(read_bytes(s.files[i.file], i))) for i in s.items]))"
    )
    found = []
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}):
        environment = {**os.environ, **locale}
        found.append(
            subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, check=True).stdout
        )
    assert found[0] == found[1]
    rows = dict(ast.literal_eval(found[0].decode()))
    assert rows["ä.png"] == len(files[0])
    assert rows["\\xff.png"].startswith("unreadable")
    assert [*rows] == ["z.png", "ä.png", "日.png", "\\xff.png"]


# ---- Parquet ------------------------------------------------------------------------------------------------------------
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, images, group, **options) -> str:
    values = pa.array([None if x is None else {"bytes": x, "path": "p" * 50} for x in images], STRUCT)
    table = pa.table({"image": values, "label": list(range(len(images))), "name": [f"n{i}" for i in range(len(images))]})
    pq.write_table(table, path, row_group_size=group, write_page_checksum=True, **options)
    return str(path)


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_come_in_order_and_no_group_is_begun_twice(tmp_path, group, monkeypatch):
    rng = random.Random(group)
    images = [rng.randbytes(rng.randrange(1, 300)) if i % 11 else None for i in range(100)]
    source = enumerate_inputs([write(tmp_path / "x.parquet", images, group)])
    begun = []
    make = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: begun.append((a[2][0], a[3][0])) or make(*a, **k))
    for first in range(0, 100, 13):  # shards that follow each other
        items = source.items[first : first + 13]
        values = list(source.image_bytes(items))
        assert [None if isinstance(v, Failure) else v for v in values] == images[first : first + 13]
        assert all(v.code == "no_image" for v in values if isinstance(v, Failure))
        carried = source.carried(items)
        assert carried.to_pylist() == [{"label": i, "name": f"n{i}"} for i in range(first, min(100, first + 13))]
    assert len(begun) == len(set(begun)) == 2 * -(-100 // group)
    some = [source.items[i] for i in (3, 50, 99)]  # others have failed
    assert source.carried(some).to_pylist() == [{"label": i, "name": f"n{i}"} for i in (3, 50, 99)]
    assert list(source.image_bytes([source.items[i] for i in (99, 2, 50)])) == [
        Failure("no_image", "the row has no bytes"),
        images[2],
        images[50],
    ]


def test_a_damaged_page_fails_its_rows_and_those_after_it_in_its_group(tmp_path):
    rng = random.Random(0)
    images = [rng.randbytes(1000) for _ in range(40)]
    plain = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    path = write(tmp_path / "x.parquet", images, 20, data_page_size=4000, write_batch_size=4, **plain)
    whole = Path(path).read_bytes()
    place = whole.index(images[10]) + 500
    damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    Path(path).write_bytes(damaged)
    source = enumerate_inputs([path])
    values = list(source.image_bytes(source.items))
    good = [i for i, value in enumerate(values) if value == images[i]]
    failed = [i for i, value in enumerate(values) if isinstance(value, Failure)]
    assert sorted(good + failed) == list(range(40))
    assert set(good) >= {0, 1, 2, 3, *range(20, 40)}
    assert set(failed) >= set(range(10, 20))
    assert {v.code for v in values if isinstance(v, Failure)} == {"unreadable"}


def test_a_file_that_changes_while_it_is_read_gives_nothing_of_both(tmp_path):
    path = write(tmp_path / "x.parquet", [b"a"] * 10, 5)
    source = enumerate_inputs([path])
    list(source.image_bytes(source.items[:3]))
    os.utime(path, (1, 1))
    assert {v.code for v in source.image_bytes(source.items)} == {"changed"}
    with pytest.raises(Changed):
        source.carried(source.items)


def test_a_value_of_many_rows_is_held_once(tmp_path):
    """A dictionary of one large value in 1,000 rows: 1,000 times its bytes for who reads the group."""
    big = bytes(4 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([big]))
    pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet", store_schema=False)
    source = enumerate_inputs([str(tmp_path / "x.parquet")])
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for value in source.image_bytes(source.items[:100]):
        assert value == big
        most = max(most, pool.bytes_allocated() - before)
    assert most < 8 * len(big)


def test_columns_that_go_along_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "CARRIED", 20_000)
    table = pa.table({"image": pa.array([b"x"] * 100), "text": ["y" * 1000] * 100})
    pq.write_table(table, tmp_path / "x.parquet")
    source = enumerate_inputs([str(tmp_path / "x.parquet")])
    assert len(source.carried(source.items[:10])) == 10
    with pytest.raises(DatasetError, match="--shard-size"):
        source.carried(source.items)


def test_more_rows_than_the_limit_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet", [b"a"] * 10, 5)
    with pytest.raises(DatasetError, match="--max-rows"):
        enumerate_inputs([path], limits=Limits(rows=9))
    assert len(enumerate_inputs([path], limits=Limits(rows=10)).items) == 10
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / f"in/{i}.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="--max-rows"):
        enumerate_inputs([str(tmp_path / "in")], limits=Limits(rows=2))


def test_a_file_whose_counts_lie_is_a_failure_and_a_row_that_is_not_there_too(tmp_path):
    path = write(tmp_path / "x.parquet", [b"a"] * 10, 5)
    data = Path(path).read_bytes()
    lies = data.replace(b"\x16\x0a", b"\x16\x0c")  # num_rows of row groups, 5 as a zigzag number, becomes 6
    assert lies != data
    Path(path).write_bytes(lies)
    with pytest.raises(DatasetError, match="none of the Parquet files can be read"):
        enumerate_inputs([path])
    Path(path).write_bytes(data)
    (file,) = enumerate_inputs([path]).files
    values = list(cursor.reader(file, ["label"], "images").batches([9, 10, 11]))
    assert [type(v) for v in values] == [pa.Table, ValueError, ValueError]
