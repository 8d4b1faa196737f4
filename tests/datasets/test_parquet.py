"""Parquet as people have it: files that differ, columns of any name, pictures in any type of bytes."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common import TINY, tiny_backbone
from noisebook.cli.main import main
from noisebook.cli.tokenize import names_of
from noisebook.datasets import CodecRecipe, TokenDataset, tokenize
from noisebook.datasets.plan import Plan
from noisebook.datasets.sources import columns, cursor, enumerate_inputs
from noisebook.datasets.sources.base import Failure
from noisebook.datasets.sources.parquet import Parquet
from noisebook.datasets.store import Store
from noisebook.datasets.table import OWN, names_beside_own
from noisebook.errors import DatasetError, FormatError

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def picture(i: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(i) for i in range(4)]


def images(count: int = 4, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(PICTURES[:count], kind or pa.binary())


def folder_of(path: Path, *tables: pa.Table, **options) -> str:
    path.mkdir()
    for i, table in enumerate(tables):
        pq.write_table(table, path / f"{i}.parquet", **options)
    return str(path)


def with_images(**values) -> pa.Table:
    return pa.table({"image": images(), **values})


def carried(source) -> pa.Table:
    """The columns of all rows, as a shard gets them, in any order of files and of one row each too."""
    table = source.carried(source.items)
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == source.columns
    one_by_one = pa.concat_tables([source.carried([item]) for item in source.items])
    assert one_by_one.to_pylist() == table.to_pylist()
    return table


# ---- row groups --------------------------------------------------------------------------------------------------------
def test_a_row_group_for_each_row_is_read_once_and_its_footer_too(tmp_path, monkeypatch):
    """20,000 groups: shards at the beginning and at the end cost the same, whatever lies between."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x" * 50] * 20_000, "label": range(20_000)}), path, row_group_size=1)
    opened = []
    make = pq.ParquetFile.__init__
    monkeypatch.setattr(pq.ParquetFile, "__init__", lambda self, *a, **k: opened.append(1) or make(self, *a, **k))
    source = enumerate_inputs([str(path)])
    begun = []
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: begun.append(a[2]) or batches(*a, **k))
    for first in (0, 10_000, 19_900):
        items = source.items[first : first + 100]
        assert len(list(source.image_bytes(items))) == 100
        assert source.carried(items)["label"].to_pylist() == list(range(first, first + 100))
    assert len(opened) == 2  # for images, and for the columns that go along
    assert len(begun) == 2 * 300
    assert all(len(groups) == 1 for groups in begun)


MIB = 1 << 20
READ_AT_ONCE = {  # the images of a row group, how they are written -> how many are read at once
    "small ones": ([bytes(100)] * 300, {"use_dictionary": False}, cursor.MANY),
    "one that many rows share": ([bytes(MIB)] * 20, {}, 15),  # 16 MiB hold no more of it
    "as large as a group may be": ([bytes(MIB)] * 40, {"use_dictionary": False}, 1),
    "lengths apart from values": ([bytes(100)] * 300, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}, 1),
}


@pytest.mark.parametrize("case", READ_AT_ONCE)
@pytest.mark.parametrize("kind", [pa.binary(), STRUCT], ids=["bytes", "struct"])
def test_many_small_images_are_read_at_once_and_large_ones_are_not(tmp_path, monkeypatch, case, kind):
    """Whatever the file claims of itself: only the headers of the pages count, by which Arrow takes memory."""
    values, how, many = READ_AT_ONCE[case]
    name = "image.bytes" if kind == STRUCT else "image"
    if encoding := how.get("column_encoding"):
        how = {**how, "column_encoding": {name: encoding}}
    array = pa.array([{"bytes": value, "path": "x"} for value in values] if kind == STRUCT else values, kind)
    pq.write_table(pa.table({"image": array}), tmp_path / "x.parquet", compression="zstd", **how)
    sizes = []
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: sizes.append(a[1]) or batches(*a, **k))
    source = enumerate_inputs([str(tmp_path / "x.parquet")], image_column="image")
    sizes.clear()
    assert list(source.image_bytes(source.items)) == values
    assert sizes == [many]


def test_images_before_a_damaged_page_are_read(tmp_path):
    """Also where they are read together with those in that page."""
    values = [random.Random(i).randbytes(3000) for i in range(60)]
    path = tmp_path / "x.parquet"
    how = {
        "use_dictionary": False,
        "compression": "none",
        "data_page_size": 8000,
        "write_page_checksum": True,
        "write_statistics": False,
    }
    pq.write_table(pa.table({"image": values}), path, write_batch_size=1, **how)
    data = bytearray(path.read_bytes())
    data[data.index(values[40]) + 5] ^= 1
    path.write_bytes(data)
    source = enumerate_inputs([str(path)], image_column="image")
    read = list(source.image_bytes(source.items))
    good = next(i for i, value in enumerate(read) if isinstance(value, Failure))
    assert 36 <= good <= 40
    assert read[:good] == values[:good]
    assert {value.code for value in read[good:]} == {"unreadable"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pa.binary(), STRUCT], ids=["bytes", "struct"])
def test_a_row_group_above_two_gib_is_read(tmp_path, kind):
    pad = bytes(8 << 20)
    values = [{"bytes": pad, "path": None}] if kind == STRUCT else [pad]
    chunk = pa.array(values, kind)  # one, which all rows share
    table = pa.table({"image": pa.chunked_array([chunk] * 270), "label": range(270)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=270, use_dictionary=False, compression="zstd")
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 1
    source = enumerate_inputs([str(tmp_path / "x.parquet")])
    assert sum(value == pad for value in source.image_bytes(source.items)) == 270
    assert carried(source)["label"].to_pylist() == list(range(270))


# ---- files that differ -------------------------------------------------------------------------------------------------
def dictionary(values, index=None):
    return pa.array(values).dictionary_encode().cast(pa.dictionary(index or pa.int8(), pa.string()))


ONES = pa.array([1, 2, 3, None], pa.int32())
PAIRS = {
    "int32, int64": (ONES, pa.array([5, 6, 7, 1 << 40]), "int64"),
    "int64, double": (pa.array([1, 2, 3, 4]), pa.array([1.5, None, 2, 3]), "double"),
    "uint8, int8": (pa.array([255, 0, 1, 2], pa.uint8()), pa.array([-1, 0, 1, 2], pa.int8()), "int16"),
    "null, string": (pa.nulls(4), pa.array(list("abcd")), "string"),
    "string, null": (pa.array(list("abcd")), pa.nulls(4), "string"),
    "string, large_string": (pa.array(list("abcd")), pa.array(list("efgh"), pa.large_string()), "large_string"),
    "string, dictionary": (pa.array(list("abcd")), dictionary(list("efgh")), "string"),
    "string, view": (pa.array(list("abcd")), pa.array(list("efgh")).cast(pa.string_view()), "string"),
    "views": (pa.array([b"a"] * 4).cast(pa.binary_view()), pa.array([b"b"] * 4).cast(pa.binary_view()), "binary"),
    "null, dictionary": (pa.nulls(4), dictionary(list("efgh")), "string"),
    "dictionaries": (dictionary(list("abcd")), dictionary(list("efgh"), pa.int32()), "string"),
    "lists": (pa.array([[1], [], None, [2, 3]]), pa.array([[0.5]] * 4), "list<element: double>"),
    "empty lists": (pa.array([[]] * 4, pa.list_(pa.null())), pa.array([["a"]] * 4), "list<element: string>"),
    "structs": (pa.array([{"x": 1}] * 4), pa.array([{"y": "a", "x": 0.5}] * 4), "struct<x: double, y: string>"),
    "timestamps": (pa.array([0, 1, 2, 3], pa.timestamp("s")), pa.array([0, 1, 2, 3], pa.timestamp("us")), None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_types_that_differ_are_promoted(tmp_path, name):
    one, other, kind = PAIRS[name]
    source = enumerate_inputs([folder_of(tmp_path / "in", with_images(c=one), with_images(c=other))])
    if kind is not None:
        assert source.columns == {"c": kind}
    values = carried(source)["c"].to_pylist()

    def widened(value):
        return {"x": None, "y": None, **value} if isinstance(value, dict) else value

    assert values == [widened(value) for array in (one, other) for value in array.to_pylist()]


def test_order_nullability_and_metadata_of_columns_do_not_matter(tmp_path):
    one = with_images(label=[1, 2, 3, 4], name=list("abcd")).replace_schema_metadata({"pandas": "x"})
    strict = pa.schema([pa.field(f.name, f.type, nullable=False) for f in one.schema])
    other = one.cast(strict).select(["name", "image", "label"])
    source = enumerate_inputs([folder_of(tmp_path / "in", one, other)])
    rows = [{"label": i + 1, "name": "abcd"[i]} for i in range(4)]
    assert carried(source).to_pylist() == rows * 2
    assert list(source.image_bytes(source.items)) == PICTURES * 2


def test_a_column_that_a_file_has_not_is_null_there(tmp_path):
    tables = with_images(a=[1, 2, 3, 4]), with_images(b=list("wxyz")), with_images()
    source = enumerate_inputs([folder_of(tmp_path / "in", *tables)])
    assert source.columns == {"a": "int64", "b": "string"}
    table = carried(source)
    assert table["a"].to_pylist() == [1, 2, 3, 4] + [None] * 8
    assert table["b"].to_pylist() == [None] * 4 + list("wxyz") + [None] * 4


def test_what_cannot_be_one_type_is_named_with_the_way_out(tmp_path):
    one = with_images(a=[1, 2, 3, 4], b=[True] * 4, label=[1] * 4, **{"c,d": list("abcd")})
    other = with_images(a=list("abcd"), b=[1, 2, 3, 4], label=[0.5] * 4, **{"c,d": [1.0] * 4})
    folder = folder_of(tmp_path / "in", one, other)
    with pytest.raises(DatasetError) as refused:
        enumerate_inputs([folder])
    text = str(refused.value)
    for part in ("'a' is of type string", "int64", "1.parquet", "0.parquet", "bool", '--drop-columns a,b,"c,d"'):
        assert part in text
    assert "label" not in text
    dropped = names_of(text.rpartition("--drop-columns ")[2])
    assert dropped == ["a", "b", "c,d"]
    assert carried(enumerate_inputs([folder], drop_columns=dropped)).column_names == ["label"]
    with pytest.raises(DatasetError, match=r"--drop-columns labels: no such column: there are .*label"):
        enumerate_inputs([folder], drop_columns=["labels"])
    decimals = with_images(x=pa.array([1] * 4, pa.decimal128(10, 2))), with_images(x=[1] * 4)
    with pytest.raises(DatasetError, match="--drop-columns x"):  # Arrow names a type to which it does not cast
        enumerate_inputs([folder_of(tmp_path / "decimals", *decimals)])


def test_a_value_that_the_wider_type_cannot_hold_fails_its_row_in_words(tmp_path):
    big = [1, (1 << 53) + 1, 3, 4]
    source = enumerate_inputs([folder_of(tmp_path / "in", with_images(id=big), with_images(id=[0.5] * 4))])
    for i, item in enumerate(source.items):
        if i == 1:
            with pytest.raises(ValueError, match=r"'id' cannot be double .*--drop-columns id"):
                source.carried([item])
        else:
            source.carried([item])


def test_types_are_found_again_by_who_only_has_the_plan(tmp_path):
    """A resumed run and Ray's actors know the names of the types, and the files."""
    tables = with_images(a=ONES, d=dictionary(list("abcd")), s=pa.array([{"x": 1}] * 4))
    other = with_images(a=pa.array([0.5] * 4), d=pa.nulls(4), s=pa.array([{"y": "a"}] * 4))
    source = enumerate_inputs([folder_of(tmp_path / "in", tables, other)])
    expected = carried(source)
    assert isinstance(source, Parquet)
    source.types = None
    assert carried(source).equals(expected)
    source.types = None
    assert source.carried([]).schema.equals(expected.schema)
    (tmp_path / "in/1.parquet").write_bytes(b"gone")
    source.types = None
    assert len(source.carried(source.items[:1])) == 1  # as it was when it was opened
    cursor._opened.cache_clear()
    source.types = None
    with pytest.raises(DatasetError, match="cannot be read any more"):
        source.carried(source.items[:1])


def test_dictionaries_of_few_indices_go_along_as_their_values(tmp_path):
    """Two of 100 values each have no common index of 8 bits."""
    tables = []
    for start in (0, 100):
        words = [f"word {i}" for i in range(start, start + 100)]
        tables.append(pa.table({"image": PICTURES * 25, "word": dictionary(words)}))
    source = enumerate_inputs([folder_of(tmp_path / "in", *tables, row_group_size=30)])
    assert source.carried(source.items)["word"].to_pylist() == [f"word {i}" for i in range(200)]


def test_damaged_and_empty_files_among_others(tmp_path):
    empty = with_images(label=[1] * 4).slice(0, 0)
    folder = Path(folder_of(tmp_path / "in", with_images(label=[1] * 4), empty))
    (folder / "2.parquet").write_bytes(b"")
    (folder / "3.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-9])
    source = enumerate_inputs([str(folder)])
    assert [item.key for item in source.items] == ["0/0", "0/1", "0/2", "0/3", "2.parquet", "3.parquet"]
    assert [item.problem.partition(":")[0] for item in source.items] == [""] * 4 + ["unreadable"] * 2
    for name in ("0", "2", "3"):
        (folder / f"{name}.parquet").unlink()
    with pytest.raises(DatasetError, match="no rows"):
        enumerate_inputs([str(folder)])


# ---- which column is the picture ---------------------------------------------------------------------------------------
HASHES = pa.array([bytes([i] * 8) for i in range(4)])
STRUCTS = pa.array([{"bytes": x, "path": None} for x in PICTURES], STRUCT)
SOUNDS = pa.array([{"bytes": b"RIFF\0\0\0\0WAVEfmt " + bytes(20), "path": "a.wav"}] * 4, STRUCT)
PATHS = pa.array([{"bytes": None, "path": f"{i}.png"} for i in range(4)], STRUCT)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"phash": HASHES, "image": images()}, "image"),
        ({"phash": HASHES, "photo": images()}, "photo"),
        ({"png": images(), "jpg": images(), "x": STRUCTS}, "x"),
        ({"png": images(), "jpg": images()}, "jpg"),
        ({"thumbnail": images(), "Image": images()}, "Image"),
        ({"mask": STRUCTS, "image": STRUCTS}, "image"),
        ({"audio": SOUNDS, "image": images()}, "image"),
        ({"audio": SOUNDS, "picture": STRUCTS}, "picture"),
        ({"thumbnail": images(), "image": PATHS}, "image"),
        ({"image": HASHES}, "image"),
        ({"embedding": pa.nulls(4, pa.binary()), "photo": pa.array([None, None, *PICTURES[2:]])}, "photo"),
        ({"scan": pa.array([b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"] * 4), "phash": HASHES}, "scan"),
    ],
)
def test_the_column_of_the_pictures(tmp_path, values, expected):
    source = enumerate_inputs([folder_of(tmp_path / "in", pa.table({**values, "label": [1] * 4}))])
    assert source.image_column == expected
    assert set(source.columns) == {*values, "label"} - {expected}


def test_a_column_that_is_left_out_is_not_the_picture(tmp_path):
    folder = folder_of(tmp_path / "in", pa.table({"image": images(), "crop": images()}))
    source = enumerate_inputs([folder], drop_columns=["image"])
    assert (source.image_column, source.columns) == ("crop", {})
    with pytest.raises(DatasetError, match="--drop-columns leaves out 'crop', the column of the images"):
        enumerate_inputs([folder], image_column="crop", drop_columns=["crop"])


KINDS = {
    "large_binary": images(kind=pa.large_binary()),
    "fixed": pa.array([x.ljust(max(map(len, PICTURES)), b"\0") for x in PICTURES], pa.binary(max(map(len, PICTURES)))),
    "dictionary": images().dictionary_encode(),
    "view": images(kind=pa.binary_view()) if hasattr(pa, "binary_view") else images(),
    "struct of large": pa.array([{"bytes": x} for x in PICTURES], pa.struct({"bytes": pa.large_binary()})),
    "struct of dictionary": pa.StructArray.from_arrays([images().dictionary_encode()], ["bytes"]),
    "nested": pa.array([{"bytes": {"bytes": x}} for x in PICTURES], pa.struct({"bytes": pa.struct({"bytes": pa.binary()})})),
}


def test_bytes_of_every_type_are_read_side_by_side(tmp_path):
    tables = [pa.table({"image": values}) for values in KINDS.values()]
    source = enumerate_inputs([folder_of(tmp_path / "in", *tables, pa.table({"image": pa.nulls(2)}))])
    values = list(source.image_bytes(source.items))
    for i, name in enumerate(KINDS):
        read = [value for value in values[4 * i : 4 * i + 4] if isinstance(value, bytes)]
        assert [value.rstrip(b"\0") for value in read] == [value.rstrip(b"\0") for value in PICTURES], name
    assert values[-2:] == [Failure("no_image", "the row has no bytes")] * 2
    assert len(source.carried(source.items[:3])) in (0, 3)


@pytest.mark.parametrize(
    ("table", "option", "words"),
    [
        (pa.table({"image": [[x] for x in PICTURES]}), None, "a row is one picture"),
        (pa.table({"image": [list(x) for x in PICTURES]}), "image", "a row is one picture"),
        (pa.table({"image": [[{"bytes": x}] for x in PICTURES]}), None, "a row is one picture"),
        (pa.table({"image": ["a.png"] * 4}), "image", "of type string, not bytes"),
        (pa.table({"image": [{"path": "a.png"}] * 4}), "image", "no bytes inside"),
        (pa.table({"label": [1]}), None, "no column of image bytes: there are label"),
        (pa.table({"phash": HASHES, "label": [1] * 4}), None, "'phash' has no pictures in its first rows"),
        (pa.table({"image": images()}), "img", "no column of image bytes 'img'"),
        (pa.table({"image": pa.nulls(4)}), None, "no column of image bytes"),
        (pa.table({"image": pa.nulls(4)}), "image", "are null"),
    ],
)
def test_inputs_without_pictures_are_refused_in_true_words(tmp_path, table, option, words):
    with pytest.raises(DatasetError) as refused:
        enumerate_inputs([folder_of(tmp_path / "in", table)], image_column=option)
    assert words in str(refused.value)
    assert "--image-column" in str(refused.value) or words == "are null"
    assert "\n" not in str(refused.value)


def test_a_file_without_the_column_of_the_pictures_is_named(tmp_path):
    folder = folder_of(tmp_path / "in", with_images(label=[1] * 4), pa.table({"label": [1]}))
    with pytest.raises(DatasetError, match=r"1\.parquet: no column of image bytes 'image', which .*0\.parquet has"):
        enumerate_inputs([folder])


def test_a_row_that_has_only_a_path_says_so_and_opens_nothing(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(PICTURES[0])
    monkeypatch.chdir(tmp_path)
    rows = [{"bytes": PICTURES[0], "path": "0.png"}, {"bytes": None, "path": "0.png"}, None, {"bytes": None, "path": None}]
    source = enumerate_inputs(
        [folder_of(tmp_path / "in", pa.table({"image": pa.array(rows * 3, STRUCT)}), row_group_size=5)]
    )
    values = list(source.image_bytes(source.items))
    for at in range(0, 12, 4):
        assert values[at] == PICTURES[0]
        only = values[at + 1]
        assert isinstance(only, Failure)
        assert only.code == "no_image"
        assert "only the path '0.png', which is not opened" in only.message
        assert values[at + 2] == values[at + 3] == Failure("no_image", "the row has no bytes")


def test_names_with_dots_are_no_places_inside_of_others(tmp_path):
    table = pa.table(
        {"a": [1] * 4, "a.b": [2] * 4, "s": [{"b": 3}] * 4, "s.b": [4] * 4, "image": STRUCTS, "image.x": [5] * 4}
    )
    source = enumerate_inputs([folder_of(tmp_path / "in", table)])
    assert carried(source).to_pylist() == [{"a": 1, "a.b": 2, "s": {"b": 3}, "s.b": 4, "image.x": 5}] * 4
    assert list(source.image_bytes(source.items)) == PICTURES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_pictures_are_known_by_their_first_bytes(kind):
    data = picture(0, kind)
    assert columns.is_picture(data[:512])
    assert not columns.is_picture(data[:512][::-1])


def test_what_is_no_picture_is_not_taken_for_one():
    rng = random.Random(0)
    others = [rng.randbytes(n) for n in (*range(9), *[64] * 200)]
    assert sum(map(columns.is_picture, others)) <= 2


# ---- names -------------------------------------------------------------------------------------------------------------
def test_columns_of_the_users_keep_apart_from_noisebooks():
    assert names_beside_own(["key", "label"]) == ["key_", "label"]
    assert names_beside_own(["key", "key_"]) == ["key__", "key_"]
    assert names_beside_own(["key_", "key"]) == ["key_", "key__"]
    assert names_beside_own(["key", "key_", "key__"]) == ["key___", "key_", "key__"]
    assert names_beside_own(OWN) == [f"{name}_" for name in OWN]


@pytest.fixture
def net(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("net") / "tiny.safetensors")


def command(folder, out, net, *more):
    return ["tokenize", folder, "-o", str(out), "--backbone", net, *TINY, "--workers", "0", "--shard-size", "3", *more]


def test_a_run_over_files_that_differ(tmp_path, net, capsys):
    """The whole way: names, types, dropped columns, a shard of failures; resumed, verified, and read by others."""
    own = {name: list("abcd") for name in ("key", "key_", "tokens", "height", "payload")}
    one = with_images(**own, n=[1, 2, 3, 4], other=[1] * 4)
    two = pa.table({"n": [0.5] * 4, "image": [b"no"] * 4, **own, "other": list("abcd")})
    folder = folder_of(tmp_path / "in", one, two)
    out = tmp_path / "out"
    assert main(command(folder, out, net)) == 7
    assert not list(out.glob("shards/*"))
    assert main(command(folder, out, net, "--drop-columns", "other")) == 3
    shards = {p.name: p.read_bytes() for p in (out / "shards").iterdir()}
    names = ["key", "tokens", "height", "width", "original_height", "original_width"]
    for data in shards.values():
        table = pq.read_table(pa.BufferReader(data))
        assert table.column_names == [*names, "key__", "key_", "tokens_", "height_", "payload_", "n"]
        assert table.schema.field("n").type == pa.float64()
    data = TokenDataset(str(out))
    rows = [data[i] for i in range(len(data))]
    assert [(r["key"], r["key__"], r["key_"], r["n"]) for r in rows] == [
        (f"0/{i}", "abcd"[i], "abcd"[i], i + 1) for i in range(4)
    ]
    assert main(["verify", str(out)]) == 0
    assert json.loads((out / "plan.json").read_text())["settings"]["drop_columns"] == ["other"]
    capsys.readouterr()
    for name in ("000000.parquet", "000002.parquet"):
        (out / "shards" / name).unlink()
    assert main(command(folder, out, net, "--resume")) == 7
    assert "settings differ (drop_columns)" in capsys.readouterr().err
    assert main(command(folder, out, net, "--resume", "--drop-columns", "other")) == 3
    assert shards == {p.name: p.read_bytes() for p in (out / "shards").iterdir()}


def test_a_name_twice_is_refused_before_the_work(tmp_path, net, capsys):
    ones = pa.array([1, 2, 3, 4])
    table = pa.Table.from_arrays([images(), ones, ones], ["image", "label", "label"])
    folder = folder_of(tmp_path / "in", table)
    assert main(command(folder, tmp_path / "out", net)) == 7
    assert "two of its columns are called 'label'" in capsys.readouterr().err
    assert not (tmp_path / "out/plan.json").exists()
    source = enumerate_inputs([folder], drop_columns=["label"])
    assert source.columns == {}
    assert list(source.image_bytes(source.items)) == PICTURES
    struct = pa.StructArray.from_arrays([ones, ones], ["x", "x"])
    inside = folder_of(tmp_path / "inside", with_images(s=struct))
    with pytest.raises(DatasetError, match=r"two fields of its column 's' are called 'x'.*--drop-columns s"):
        enumerate_inputs([inside])
    twice = pa.Table.from_arrays([images(), images()], ["image", "image"])
    with pytest.raises(DatasetError, match="two of its columns are called 'image'"):
        enumerate_inputs([folder_of(tmp_path / "twice", twice)])


def test_columns_of_other_inputs_can_be_left_out_too(tmp_path, net):
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes(PICTURES[0])
    with pytest.raises(DatasetError, match="--drop-columns txt: no such column: there are label"):
        enumerate_inputs([str(tmp_path / "in")], drop_columns=["txt"])
    assert main(command(str(tmp_path / "in"), tmp_path / "out", net, "--drop-columns", "label")) == 0
    data = TokenDataset(str(tmp_path / "out"))
    assert ["label" in data[i] for i in range(2)] == [False, False]


def test_settings_without_dropped_columns_are_as_they_were(tmp_path, net):
    folder = folder_of(tmp_path / "in", with_images(label=[1] * 4))
    recipe = CodecRecipe(None, net, changes={"steps": 2, "budget": 2, "vocab_size": 256})
    tokenize(folder, str(tmp_path / "out"), codec=recipe)
    plan = Plan.load(Store(str(tmp_path / "out")))
    assert plan is not None
    assert "drop_columns" not in plan.settings.as_dict()
    about = json.loads((tmp_path / "out/plan.json").read_text())
    about["settings"]["drop_columns"] = [1]
    (tmp_path / "out/plan.json").write_text(json.dumps(about))
    with pytest.raises(FormatError, match="drop_columns"):
        Plan.load(Store(str(tmp_path / "out")))
