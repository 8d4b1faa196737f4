"""Data sets as a user meets them: inputs of three kinds, shards, ledger, resuming, reading back."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import noisebook
from bench.reliability import whole_dataset
from common import TINY, random_images, tiny_backbone
from noisebook.cli import show
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset, TokenizeBatch, TokenStream, ledger, loader
from noisebook.datasets.decoding import Request
from noisebook.datasets.export import export
from noisebook.datasets.job import Rank
from noisebook.datasets.loader import Workers, ahead
from noisebook.datasets.shard import versions
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.sources.base import File, Item
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, FormatError, SpecError
from noisebook.format.container import unpack

SIDE, COUNT, SHARD, BATCH = 16, 23, 6, 4


@pytest.fixture
def net(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("net") / "tiny.safetensors")


@pytest.fixture
def pixels(fresh):
    """uint8 [N, H, W, C]."""
    return random_images(fresh, COUNT, SIDE, SIDE).permute(0, 2, 3, 1).numpy()


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path, pixels):
    folder = tmp_path / "in"
    for i, image in enumerate(pixels):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[i % 2] / f"{i:03d}.png").write_bytes(png(image))
    return folder


def order(pixels):
    """The images as they lie in `pictures`: by name."""
    return [*range(0, len(pixels), 2), *range(1, len(pixels), 2)]


def tokenize(source, out, net, *options, code=0):
    sizes = ["--shard-size", str(SHARD), "--batch-size", str(BATCH), "--workers", "0"]
    sources = source if isinstance(source, list) else [source]
    command = ["tokenize", *map(str, sources), "-o", str(out), "--backbone", net, *TINY, *sizes, *options]
    assert main(command) == code
    return out


def shards(out):
    return {p.name: p.read_bytes() for p in sorted((Path(out) / "shards").iterdir())}


def codec_of(net, **changes):
    plain = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
    return noisebook.load(backbone=net, **{**plain, **changes})


def in_batches(codec, images):
    """Tokens of images uint8 [N, H, W, C] coded as a data set is: shard by shard, batch by batch."""
    out = []
    for first in range(0, len(images), SHARD):
        shard = torch.from_numpy(np.stack(images[first : first + SHARD])).permute(0, 3, 1, 2)
        out += [codec.encode(part) for part in shard.split(BATCH)]
    return torch.cat(out).numpy()


def test_a_folder_of_pictures(tmp_path, pictures, pixels, net, capsys):
    out = tokenize(pictures, tmp_path / "out", net, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["n_in"], found["n_ok"], found["n_failed"], found["shards"]) == (COUNT, COUNT, 0, 4)
    data, place = TokenDataset(out, inputs=pictures), order(pixels)
    assert [row["key"] for row in data] == [f"{'ab'[i % 2]}/{i:03d}.png" for i in place]
    assert [row["label"] for row in data] == ["ab"[i % 2] for i in place]
    expected = in_batches(codec_of(net), [pixels[i] for i in place])
    assert (np.stack([row["tokens"] for row in data]) == expected).all()
    for i in (0, 7, -1):
        assert (data.original(i) == pixels[place[i]]).all()
    assert main(["verify", str(out)]) == 0


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(path, images, **columns):
    image = pa.array([{"bytes": b, "path": None} for b in images], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=5)


def test_the_same_images_have_the_same_tokens_in_every_input(tmp_path, pixels, net):
    files, labels = [png(x) for x in pixels], list(range(COUNT))
    (tmp_path / "tars").mkdir()
    for name, part in (("x-000", range(9)), ("x-001", range(9, COUNT))):
        samples = [{"png": files[i], "cls": str(i).encode(), "json": b'{"a": 1}'} for i in part]
        members = [(f"{i:05d}.{kind}", data) for i, one in zip(part, samples, strict=True) for kind, data in one.items()]
        write_tar(tmp_path / "tars" / f"{name}.tar", members)
    (tmp_path / "parquet").mkdir()
    text = [f"text {i}" for i in labels]
    for name, part in (("p-0", slice(0, 13)), ("p-1", slice(13, COUNT))):
        write_parquet(
            tmp_path / "parquet" / f"{name}.parquet", files[part], label=pa.array(labels[part]), caption=text[part]
        )
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, data in enumerate(files):
        (flat / f"{i:05d}.png").write_bytes(data)
    names = ("flat", "tars", "parquet")
    sets = {n: TokenDataset(tokenize(tmp_path / n, tmp_path / f"out-{n}", net), inputs=tmp_path / n) for n in names}
    tokens = {name: np.stack([row["tokens"] for row in data]) for name, data in sets.items()}
    assert (tokens["flat"] == tokens["tars"]).all()
    assert (tokens["flat"] == tokens["parquet"]).all()
    assert len(np.unique(tokens["flat"], axis=0)) == COUNT
    assert [row["key"] for row in sets["tars"]] == [f"{i:05d}" for i in labels]
    assert [row["key"] for row in sets["parquet"]] == [*(f"p-0/{i}" for i in range(13)), *(f"p-1/{i}" for i in range(10))]
    for name in ("tars", "parquet"):
        assert [row["label"] for row in sets[name]] == labels
    assert [row["caption"] for row in sets["parquet"]] == text
    assert {row["json"] for row in sets["tars"]} == {'{"a": 1}'}
    for name, data in sets.items():
        assert (data.original(17) == pixels[17]).all(), name


def test_keys_that_are_numbered_anew_in_each_tar_carry_its_name(tmp_path, pixels):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("0.png", png(pixels[0])), ("1.png", png(pixels[1]))])
    assert [item.key for item in enumerate_inputs([str(tmp_path)]).items] == ["a/0", "a/1", "b/0", "b/1"]
    write_tar(tmp_path / "b.tar", [("0.png", png(pixels[0])), ("x/0.png", png(pixels[1]))])
    assert [item.key for item in enumerate_inputs([str(tmp_path / "b.tar")]).items] == ["0", "x/0"]


def test_shard_bytes_depend_on_inputs_specification_and_versions_alone(tmp_path, pictures, net):
    first = shards(tokenize(pictures, tmp_path / "a", net))
    shutil.copytree(pictures, tmp_path / "elsewhere/in")  # other times, another place
    for i, options in enumerate((["--workers", "1"], ["--workers", "2"], [])):
        assert shards(tokenize(tmp_path / "elsewhere/in", tmp_path / f"b{i}", net, *options)) == first
    assert shards(tokenize(pictures, tmp_path / "c", net, "--seed", "1")) != first
    table = pq.read_table(tmp_path / "a/shards/000000.parquet")
    text = table.schema.metadata[b"noisebook"].decode()
    footer = json.loads(text)
    assert footer["versions"] == versions()
    assert noisebook.CodecSpec.from_json(json.dumps(footer["spec"])) == TokenDataset(tmp_path / "a").spec
    entry = ledger.read_ledger(Store(tmp_path / "a"), 0)
    assert entry["host"] not in text.split('"backbone"')[0]
    assert str(tmp_path) not in text
    assert table.schema.field("tokens").type == pa.list_(pa.uint8(), 32)


@pytest.mark.parametrize(("vocab_size", "kind"), [(256, "uint8"), (512, "uint16"), (1 << 17, "uint32")])
def test_tokens_are_of_the_smallest_unsigned_type(tmp_path, pictures, net, vocab_size, kind):
    out = tokenize(pictures, tmp_path / "out", net, "--vocab-size", str(vocab_size), "--budget", "1", "--budget-last", "1")
    (column,) = {pq.read_table(p)["tokens"].type for p in (out / "shards").iterdir()}
    assert column == pa.list_(getattr(pa, kind)(), 4)
    assert {row["tokens"].dtype for row in TokenDataset(out)} == {np.dtype(kind)}


def test_codes_of_variable_length_are_binary(tmp_path, pictures, pixels, net):
    options = ["--rule", "poisson", "--vocab-size", "4096", "--budget", "9", "--budget-last", "9"]
    out = tokenize(pictures, tmp_path / "out", net, *options)
    rows = [row for p in sorted((out / "shards").iterdir()) for row in pq.read_table(p).to_pylist()]
    assert len({len(row["payload"]) for row in rows}) > 1
    codec = codec_of(net, rule="poisson", budget=9, budget_last=9, vocab_size=4096)
    expected = in_batches(codec, [pixels[i] for i in order(pixels)])
    runs = codec.stream(SIDE, SIDE).runs
    assert all((unpack(row["payload"], runs) == tokens).all() for row, tokens in zip(rows, expected, strict=True))
    assert all((row["tokens"] == tokens).all() for row, tokens in zip(TokenDataset(out), expected, strict=True))
    assert main(["verify", str(out)]) == 0


def test_images_of_many_sizes_share_batches_by_size(tmp_path, fresh, net):
    folder, sizes = tmp_path / "in", [(16, 16), (24, 16), (16, 24)]
    folder.mkdir()
    images = [random_images(fresh, 1, *sizes[i % 3])[0].permute(1, 2, 0).numpy() for i in range(11)]
    for i, image in enumerate(images):
        (folder / f"{i:02d}.png").write_bytes(png(image))
    out = tokenize(folder, tmp_path / "out", net, "--shard-size", "11", "--scale-pixels", "256")
    data = TokenDataset(out)
    assert pq.read_schema(out / "shards/000000.parquet").field("tokens").type == pa.list_(pa.uint8())
    codec = codec_of(net, scale_pixels=256)
    for shape in range(3):
        mine = [i for i in range(11) if i % 3 == shape]
        batch = torch.from_numpy(np.stack([images[i] for i in mine])).permute(0, 3, 1, 2)
        for i, tokens in zip(mine, codec.encode(batch).numpy(), strict=True):  # at most 4 of a size: one batch each
            assert (data[i]["tokens"] == tokens).all()
            assert (data[i]["height"], data[i]["width"]) == sizes[shape]
    assert len({len(row["tokens"]) for row in data}) > 1
    assert main(["verify", str(out)]) == 0
    with pytest.raises(SpecError, match="export as webdataset"):
        export(str(out), tmp_path / "npy", "npy")
    assert not (tmp_path / "npy").exists()


def test_an_odd_one_out_fails_unless_asked_for(tmp_path, pictures, fresh, net):
    odd = random_images(fresh, 1, 24, 40)[0].permute(1, 2, 0).numpy()
    (pictures / "z.png").write_bytes(png(odd))
    import noisebook.datasets.run as run

    peek, run.PEEK = run.PEEK, COUNT
    try:
        out = tokenize(pictures, tmp_path / "a", net, code=3)
    finally:
        run.PEEK = peek
    (failure,) = [f for entry in TokenDataset(out).ledgers for f in entry["failed"]]
    assert (failure["key"], failure["code"]) == ("z.png", "other_size")
    assert "--mixed-sizes" in failure["message"]
    mixed = TokenDataset(tokenize(pictures, tmp_path / "b", net, "--mixed-sizes"))
    assert (mixed[COUNT]["height"], mixed[COUNT]["width"]) == (24, 40)
    square = TokenDataset(tokenize(pictures, tmp_path / "c", net, "--resize", "8"), inputs=[pictures])
    last = square[COUNT]
    assert [last[k] for k in ("height", "width", "original_height", "original_width")] == [8, 8, 24, 40]
    scaled = Image.fromarray(odd).resize((13, 8), Image.Resampling.BICUBIC).crop((2, 0, 10, 8))
    assert (square.original(COUNT) == np.asarray(scaled)).all()


def test_resuming(tmp_path, pictures, pixels, net, capsys):
    whole = shards(tokenize(pictures, tmp_path / "whole", net))
    out = tmp_path / "out"
    tokenize(pictures, out, net, "--resume")
    assert "0 shards done, 4 to do" in capsys.readouterr().err
    tokenize(pictures, out, net, code=7)
    assert "--resume" in capsys.readouterr().err
    changed = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    tokenize(pictures, out, net, "--resume")
    assert "4 shards done, 0 to do" in capsys.readouterr().err
    assert changed == {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    for name in ("ledger/000001.json", "shards/000002.parquet"):
        (out / name).unlink()
    damaged = bytearray((out / "shards/000003.parquet").read_bytes())
    damaged[50] ^= 1
    (out / "shards/000003.parquet").write_bytes(damaged)
    (out / "shards/.000001.parquet.abc_1234.tmp").write_bytes(b"half")
    tokenize(pictures, out, net, "--resume")
    err = capsys.readouterr().err
    assert "1 shards done, 3 to do" in err
    assert "000003.parquet: damaged shard: it is made anew" in err
    assert shards(out) == whole
    tokenize(pictures, out, net, "--resume", "--seed", "5", code=7)
    assert "settings differ (spec)" in capsys.readouterr().err
    tokenize(pictures, out, net, "--resume", "--batch-size", "5", code=7)
    (pictures / "a/000.png").write_bytes(png(pixels[0] ^ 1))
    tokenize(pictures, out, net, "--resume", code=7)
    assert "the input has changed" in capsys.readouterr().err
    (pictures / "a/000.png").unlink()
    tokenize(pictures, out, net, "--resume", code=7)
    assert f"{COUNT} items then, {COUNT - 1} now" in capsys.readouterr().err
    assert shards(out) == whole
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("mine")
    tokenize(pictures, tmp_path / "foreign", net, "--resume", code=7)
    assert "something else is there (thesis.txt)" in capsys.readouterr().err


def test_a_resumed_run_reads_no_input_again_to_know_what_is_in_it(tmp_path, pixels, net, monkeypatch, capsys):
    write_tar(tmp_path / "a.tar", [(f"{i}.png", png(x)) for i, x in enumerate(pixels)])
    whole = shards(tokenize(tmp_path / "a.tar", tmp_path / "out", net))
    (tmp_path / "out/ledger/000001.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        tokenize(tmp_path / "a.tar", tmp_path / "out", net, "--resume")
    assert shards(tmp_path / "out") == whole
    os.utime(tmp_path / "a.tar", (1, 1))
    tokenize(tmp_path / "a.tar", tmp_path / "out", net, "--resume", code=7)
    assert "the input has changed since (a.tar)" in capsys.readouterr().err


def test_bad_images_are_rows_of_the_ledger(tmp_path, pictures, pixels, net, capsys, monkeypatch):
    good = png(pixels[0])
    bad = {"a/!empty.png": b"", "a/!text.png": b"not a picture", "a/!cut.png": good[: len(good) // 2]}
    for name, content in bad.items():
        (pictures / name).write_bytes(content)
    gray = Image.fromarray(pixels[0]).convert("LA")
    gray.save(pictures / "a/!gray.png")
    out = tokenize(pictures, tmp_path / "out", net, "--json", code=3)
    stdout, named = capsys.readouterr()
    found = json.loads(stdout)
    assert found["failed_by_code"] == {"empty": 1, "not_an_image": 1, "damaged": 1}
    assert [row["key"] for row in found["failed"]] == ["a/!cut.png", "a/!empty.png", "a/!text.png"]
    data = TokenDataset(out)
    for entry in data.ledgers:
        assert entry["n_in"] == entry["n_ok"] + entry["n_failed"]
        assert len(entry["failed"]) == entry["n_failed"]
    assert {f["key"]: f["code"] for e in data.ledgers for f in e["failed"]} == {
        "a/!empty.png": "empty",
        "a/!text.png": "not_an_image",
        "a/!cut.png": "damaged",
    }
    assert [r for e in data.ledgers for r in e["remarks"]] == [
        {"key": "a/!gray.png", "code": code} for code in ("gray", "alpha")
    ]
    keys = [row["key"] for row in data]
    assert keys == sorted(keys)
    assert len(keys) == COUNT + 1
    assert main(["verify", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["failed"] == found["failed"] == [f for e in data.ledgers for f in e["failed"]]
    assert not said.err
    monkeypatch.setattr(show, "FAILURES", 2)
    assert main(["verify", str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [line for line in named.splitlines() if line.startswith("failed: ")][:2]
    assert lines[1:] == ["failed: a/!empty.png: empty: no bytes", f"... and 1 more: {out}/ledger names all"]
    tokenize(pictures, tmp_path / "few", net, "--max-errors", "1", code=3)
    assert "more than --max-errors 1" in capsys.readouterr().err
    assert len(shards(tmp_path / "few")) < 5
    tokenize(pictures, tmp_path / "few", net, "--max-errors", "3", "--resume", code=3)
    assert shards(tmp_path / "few") == shards(out)


def test_a_parquet_row_without_bytes_and_a_shard_of_failures(tmp_path, pixels, net):
    files = [png(pixels[0]), None, *[b""] * SHARD * 2]
    write_parquet(tmp_path / "x.parquet", files, label=pa.array(range(len(files)), pa.int16()))
    out = tokenize(tmp_path / "x.parquet", tmp_path / "out", net, code=3)
    data = TokenDataset(out)
    assert [(row["key"], row["label"]) for row in data] == [("x/0", 0)]
    assert Counter(f["code"] for e in data.ledgers for f in e["failed"]) == {"no_image": 1, "empty": 2 * SHARD}
    assert {pq.read_schema(p).field("label").type for p in (out / "shards").iterdir()} == {pa.int16()}
    assert len({pq.read_schema(p).remove_metadata() for p in (out / "shards").iterdir()}) == 1
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "x.txt").write_text("x"), "no pictures"),
        (lambda p: [(p / "x.png").write_bytes(b""), write_tar(p / "x.tar", [])], "say which with --input-format"),
        (lambda p: pq.write_table(pa.table({"a": [1]}), p / "x.parquet"), "no column of image bytes"),
        (lambda p: (p / "x.parquet").write_bytes(b"nonsense"), "none of the Parquet files"),
        (lambda p: write_tar(p / "x.tar", [("a/b.png", b"1"), ("c.png", b"2"), ("a/b.png", b"3")]), None),
    ],
)
def test_inputs_that_are_none_say_so(tmp_path, net, capsys, make, message):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    code = main(["tokenize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--backbone", net, *TINY])
    assert code == (7 if message else 3)
    assert (message or "warning") in capsys.readouterr().err


def test_a_damaged_tar_loses_what_comes_after_and_says_so(tmp_path, pixels, net):
    write_tar(tmp_path / "x.tar", [(f"{i}.png", png(x)) for i, x in enumerate(pixels[:8])])
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: len(data) // 2])
    found = TokenDataset(tokenize(tmp_path / "x.tar", tmp_path / "out", net, code=3))
    failed = [f for e in found.ledgers for f in e["failed"]]
    assert 0 < len(found) < 8
    assert failed[-1]["key"] == "x.tar"
    assert "the tar, from here on" in failed[-1]["message"]


def test_verify_finds_what_is_wrong(tmp_path, pictures, net, capsys, fresh):
    out = tokenize(pictures, tmp_path / "out", net)
    for name in ("shards/000001.parquet", "ledger/000002.json", "plan.json", "plan-items.parquet"):
        data = (out / name).read_bytes()
        bit = int(fresh.integers(8 * len(data)))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            same = json.loads(changed) == json.loads(data)
        except ValueError:
            same = False
        (out / name).write_bytes(changed)
        assert main(["verify", str(out)]) == (0 if same else 4), (name, bit)
        (out / name).write_bytes(data)
    assert main(["verify", str(out)]) == 0
    entry = (out / "ledger/000001.json").read_bytes()
    (out / "ledger/000001.json").unlink()
    capsys.readouterr()
    assert main(["verify", str(out)]) == 7  # as every other command that needs all of it
    assert f"{out}: not complete: 3 of 4 shards whole" in capsys.readouterr().out
    (out / "ledger/000001.json").write_bytes(entry[:-9])
    (out / "ledger/000002.json").unlink()
    assert main(["verify", str(out)]) == 4  # damage is worse
    assert f"{out}: damaged: 2 of 4" in capsys.readouterr().out
    (out / "shards/000009.parquet").write_bytes(b"")
    assert main(["verify", str(out)]) == 4
    assert "not a shard of the plan" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="not a data set"):
        TokenDataset(str(pictures))


def test_random_access(tmp_path, pictures, net):
    out = tokenize(pictures, tmp_path / "out", net)
    data = TokenDataset(out, kept=1)
    everything = [data[i] for i in range(len(data))]
    assert len(data) == COUNT
    for i in np.random.default_rng(0).permutation(COUNT):
        assert data[i]["key"] == everything[i]["key"] == data[i - COUNT]["key"]
    for i in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            data[i]
    copy = pickle.loads(pickle.dumps(data))
    assert (copy[5]["tokens"] == everything[5]["tokens"]).all()
    loader = torch.utils.data.DataLoader(data, batch_size=5, num_workers=1, collate_fn=list)
    assert [row["key"] for batch in loader for row in batch] == [row["key"] for row in everything]
    sampler = torch.utils.data.DistributedSampler(data, 2, 1, shuffle=False)
    assert [data[i]["key"] for i in sampler] == [everything[i]["key"] for i in sampler]
    (out / "ledger/000003.json").unlink()
    with pytest.raises(DatasetError, match="3 of 4 shards are done"):
        TokenDataset(out)
    assert len(TokenDataset(out, partial=True)) == 18
    (out / "shards/000000.parquet").write_bytes(b"x")
    with pytest.raises(FormatError, match="makes it anew"):
        TokenDataset(out, partial=True)[0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_gives_every_row_once_over_ranks_and_workers(tmp_path, pictures, net, shuffle):
    out = str(tokenize(pictures, tmp_path / "out", net))
    keys = [row["key"] for row in TokenDataset(out)]
    found = []
    for rank in range(3):
        stream = TokenStream(out, shuffle, rank=rank, world=3)
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2 if rank == 0 else 0)
        found += [row["key"] for row in loader]
    assert sorted(found) == sorted(keys)
    alone = TokenStream(out, shuffle, seed=7)
    first = [row["key"] for row in alone]
    assert (first == keys) != shuffle
    assert first == [row["key"] for row in alone]
    alone.set_epoch(1)
    assert (first == [row["key"] for row in alone]) != shuffle


def test_exports_read_back(tmp_path, pictures, net):
    out = tokenize(pictures, tmp_path / "out", net)
    data = TokenDataset(out)
    tokens = np.stack([row["tokens"] for row in data])
    for form in ("npy", "webdataset", "megatron"):
        assert main(["export", str(out), "-o", str(tmp_path / form), "--format", form]) == 0
        assert main(["export", str(out), "-o", str(tmp_path / form), "--format", form]) == 7
    assert (np.load(tmp_path / "npy/tokens.npy", mmap_mode="r") == tokens).all()
    rows = [json.loads(line) for line in (tmp_path / "npy/rows.jsonl").read_text().splitlines()]
    assert [(r["key"], r["label"]) for r in rows] == [(r["key"], r["label"]) for r in data]
    found = []
    for path in sorted((tmp_path / "webdataset").iterdir()):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        stems = list(dict.fromkeys(name.split(".")[0] for name in members))
        for stem in stems:
            found.append((json.loads(members[f"{stem}.json"])["key"], np.load(io.BytesIO(members[f"{stem}.tokens.npy"]))))
    assert [key for key, _ in found] == [row["key"] for row in data]
    assert (np.stack([t for _, t in found]) == tokens).all()
    index = (tmp_path / "megatron/tokens.idx").read_bytes()  # as Megatron-LM's IndexedDataset reads it
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, kind, count, documents = struct.unpack_from("<QBQQ", index, 9)
    assert (version, kind, count, documents) == (1, 1, COUNT, COUNT + 1)
    sizes = np.frombuffer(index, np.int32, count, 34)
    pointers = np.frombuffer(index, np.int64, count, 34 + sizes.nbytes)
    ends = np.frombuffer(index, np.int64, documents, 34 + sizes.nbytes + pointers.nbytes)
    assert len(index) == 34 + sizes.nbytes + pointers.nbytes + ends.nbytes
    assert (ends == np.arange(documents)).all()
    stream = (tmp_path / "megatron/tokens.bin").read_bytes()
    for i, (size, pointer) in enumerate(zip(sizes, pointers, strict=True)):
        assert (np.frombuffer(stream, np.uint8, size, pointer) == tokens[i]).all()
    assert not list(tmp_path.glob(".*.tmp"))


def test_names_in_a_tar_are_one_a_sample_however_long(tmp_path, pixels, net):
    keys = ["a/b", "a__b", "x.1", "x_1", "f" * 200, "/".join(["d" * 60] * 5)]
    for key, image in zip(keys, pixels, strict=False):
        (tmp_path / "in" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{key}.png").write_bytes(png(image))
    out = tokenize(tmp_path / "in", tmp_path / "out", net)
    assert main(["export", str(out), "-o", str(tmp_path / "tars"), "--format", "webdataset"]) == 0
    with tarfile.open(tmp_path / "tars/000000.tar") as tar:
        names = [member.name for member in tar]
        keys = [json.loads(tar.extractfile(name).read())["key"] for name in names if name.endswith(".json")]
    assert len(set(names)) == len(names) == 2 * len(keys)
    assert keys == [row["key"] for row in TokenDataset(out)]
    assert all(name.count(".") <= 2 and "/" not in name for name in names)


@pytest.mark.parametrize("name", whole_dataset.READERS)
def test_readers_that_people_use_give_the_same_tokens(tmp_path, pictures, net, name):
    form, read = whole_dataset.READERS[name]
    out = folder = tokenize(pictures, tmp_path / "out", net)
    if form:
        folder = tmp_path / form
        assert main(["export", str(out), "-o", str(folder), "--format", form]) == 0
    try:
        found = list(read(folder))
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    data = TokenDataset(out)
    assert [key for key, _ in found] == [row["key"] for row in data]
    assert all(np.array_equal(tokens, row["tokens"]) for (_, tokens), row in zip(found, data, strict=True))


def test_detokenize(tmp_path, pictures, net, capsys):
    out = tokenize(pictures, tmp_path / "out", net)
    command = ["detokenize", str(out), "-o", str(tmp_path / "back"), "--backbone", net, "--batch-size", "5", "--json"]
    assert main([*command, "--first", "7"]) == 0
    assert main(command) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.split("\n")[-3:-1]] == [
        {"written": 7, "skipped": 0, "n_failed": 0, "failed_by_code": {}, "failed": [], "realism": 0.0},
        {"written": COUNT - 7, "skipped": 7, "n_failed": 0, "failed_by_code": {}, "failed": [], "realism": 0.0},
    ]
    data, codec = TokenDataset(out), codec_of(net)
    for first, last in ((0, 5), (5, 7), (7, 12)):
        some = [data[i] for i in range(first, last)]
        shown = codec.decode(torch.from_numpy(np.stack([r["tokens"] for r in some]).astype(np.int64)), (SIDE, SIDE))
        for row, image in zip(some, shown, strict=True):
            expected = image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
            assert (np.asarray(Image.open(tmp_path / "back" / row["key"])) == expected).all()
    assert main([*command[:-3], "--json"]) == 0
    other = tiny_backbone(tmp_path / "other.safetensors", seed=3)
    assert main(["detokenize", str(out), "-o", str(tmp_path / "no"), "--backbone", other]) == 5


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a/../../x", "a//b/x"])
def test_keys_that_lead_out_of_the_folder_are_refused_when_they_are_written(tmp_path, pixels, net, key):
    write_tar(tmp_path / "x.tar", [(f"{key}.png", png(pixels[0])), ("good.png", png(pixels[1]))])
    out = tokenize(tmp_path / "x.tar", tmp_path / "out", net, code=3)
    data = TokenDataset(out)
    assert [row["key"] for row in data] == ["good"]
    (failure,) = data.ledgers[0]["failed"]
    assert (failure["key"], failure["code"]) == (key, "bad_key")
    assert main(["verify", str(out)]) == 0
    tokenize(tmp_path / "x.tar", out, net, "--resume", code=3)


def test_object_stores(pictures, net, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(pictures), "/pics", recursive=True)
    try:
        tokenize("memory://pics", "memory://out", net)
        assert len(memory.ls("/out/shards", detail=False)) == 4
        tokenize("memory://pics", "memory://out", net, "--resume")
        data = TokenDataset("memory://out", inputs="memory://pics")
        local = TokenDataset(tokenize(pictures, tmp_path / "out", net), inputs=pictures)
        assert [row["key"] for row in data] == [row["key"] for row in local]
        assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(data, local, strict=True))
        assert (data.original(3) == local.original(3)).all()
        assert main(["verify", "memory://out"]) == 0
    finally:
        memory.rm("/", recursive=True)


def test_a_rate_in_place_of_a_preset(tmp_path, pictures, capsys):
    command = ["tokenize", str(pictures), "--backbone", "gaussian-prior", "--workers", "0", "--max-nfe", "4"]
    assert main([*command, "-o", str(tmp_path / "out"), "--bpp", "1"]) == 0
    bits = 8 * 2 * len(TokenDataset(tmp_path / "out")[0]["tokens"])
    assert bits == pytest.approx(SIDE * SIDE, rel=0.1)
    assert main([*command, "-o", str(tmp_path / "no"), "--bpp", "1", "--mixed-sizes"]) == 2
    assert main([*command, "-o", str(tmp_path / "no")]) == 2
    assert "go with --bpp" in capsys.readouterr().err
    assert main(["tokenize", str(pictures), "-o", str(tmp_path / "no"), "--shard-size", "0"]) == 2


def test_events_are_json_lines(tmp_path, pictures, net):
    out = tokenize(pictures, tmp_path / "out", net)
    events = [json.loads(line) for line in (out / "events-0.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["begin", *["shard"] * 4, "end"]
    assert sum(e["n_ok"] for e in events if e["event"] == "shard") == COUNT
    assert all(e["time"] > 1.6e9 for e in events)


def test_ranks_make_every_shard_once(tmp_path, pictures, net, monkeypatch):
    whole = shards(tokenize(pictures, tmp_path / "whole", net))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        tokenize(pictures, tmp_path / "out", net, "--resume")
        assert len(shards(tmp_path / "out")) == [2, 3, 4][rank]
    assert shards(tmp_path / "out") == whole
    assert Rank.of_environment({}) == Rank(0, 1)
    assert Rank.of_environment({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}) == Rank(2, 4)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_PROCID": "0"}
    assert Rank.of_environment(array) == Rank(2, 4)
    both = {**array, "SLURM_PROCID": "1", "SLURM_NTASKS": "3"}  # an array of jobs that call srun
    assert Rank.of_environment(both) == Rank(7, 12)
    steps = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
    assert Rank.of_environment({**steps, "SLURM_ARRAY_TASK_STEP": "4"}) == Rank(2, 4)
    with pytest.raises(SpecError):
        Rank(4, 4)


def test_ranks_of_torchrun_make_the_bytes_of_one_process(tmp_path, pictures, net):
    """A bad image of the rank that ends first: torchrun would end the others if its exit code said so."""
    (pictures / "a/000.png").write_bytes(b"")
    whole = shards(tokenize(pictures, tmp_path / "whole", net, "--shard-size", "3", code=3))
    command = [
        "tokenize",
        str(pictures),
        "-o",
        str(tmp_path / "out"),
        "--backbone",
        net,
        *TINY,
        "--workers",
        "0",
        "--batch-size",
        str(BATCH),
        "--shard-size",
        "3",
        "--resume",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([*launcher, "-m", "noisebook", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "out") == whole
    assert {p.name for p in (tmp_path / "out").glob("events-*")} == {"events-0.jsonl", "events-1.jsonl"}
    assert sum(e["n_failed"] for e in TokenDataset(tmp_path / "out").ledgers) == 1


@pytest.mark.skipif(os.name != "posix", reason="locks are of POSIX")
def test_one_process_at_a_time(tmp_path, pictures, net, capsys):
    store = Store(tmp_path / "out")
    with store.lock():
        tokenize(pictures, tmp_path / "out", net, "--resume", code=7)
        assert "another process is writing here" in capsys.readouterr().err
    tokenize(pictures, tmp_path / "out", net, "--resume")


def requests_of(pixels):
    return [Request(Item(f"{i}.png", i), File(f"{i}.png", f"{i}.png", 0, ""), png(x), 3, 0) for i, x in enumerate(pixels)]


def test_workers_answer_in_order(pixels):
    for count in (0, 1, 2):
        with Workers(count) as workers:
            answers = list(workers.map(iter(requests_of(pixels))))
        assert all((a.pixels == x).all() for a, x in zip(answers, pixels, strict=True))


def test_a_run_whose_workers_cannot_live_says_so_and_blames_no_image(pixels, monkeypatch):
    monkeypatch.setattr(loader, "watch_parent", os.abort)
    with Workers(1) as workers, pytest.raises(DatasetError, match="--workers 0"):
        list(workers.map(iter(requests_of(pixels[:3]))))


def test_a_run_whose_workers_cannot_be_started_says_so(pixels, monkeypatch):
    def refuse(*_):
        raise OSError("no more processes")

    monkeypatch.setattr(loader.ProcessPoolExecutor, "submit", refuse)
    with Workers(1) as workers, pytest.raises(DatasetError, match="no more processes"):
        list(workers.map(iter(requests_of(pixels[:3]))))


def test_what_a_thread_ahead_raises_is_raised_here():
    def items():
        yield 1
        raise ValueError("two")

    made = ahead(items(), 1)
    assert next(made) == 1
    with pytest.raises(ValueError, match="two"):
        next(made)


def test_a_batch_of_somebody_elses_pipeline(pixels, net):
    work = TokenizeBatch(backbone=net, steps=4, budget=8, budget_last=8, vocab_size=256, scale_pixels=0, start_budget=0)
    work = pickle.loads(pickle.dumps(work))
    expected = codec_of(net).encode(torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2)).numpy()
    kinds = (
        [*pixels[:4]],
        pixels[:4],
        [png(x) for x in pixels[:4]],
        [{"bytes": png(x), "path": None} for x in pixels[:4]],
        [Image.fromarray(x) for x in pixels[:4]],
    )
    for images in kinds:
        out = work({"image": images, "label": [1, 2, 3, 4]})
        assert out["label"] == [1, 2, 3, 4]
        assert set(out) == {"label", "tokens"}
        assert out["tokens"].dtype == np.uint8
        assert (out["tokens"] == expected).all()
    mixed = work({"image": [pixels[0], pixels[1][:8]]})["tokens"]
    assert [len(t) for t in mixed] == [32, 32]


def test_a_map_of_hugging_face(pixels, net, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": png(x), "path": None} for x in pixels], "label": list(range(COUNT))}
    data = datasets.Dataset.from_dict(rows, features=features)
    options = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
    work = TokenizeBatch(backbone=net, **options)
    made = data.map(work, batched=True, batch_size=5, remove_columns="image", cache_file_name=str(tmp_path / "cache.arrow"))
    expected = codec_of(net).encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert made.column_names == ["label", "tokens"]
    assert made["label"][:] == list(range(COUNT))
    assert torch.equal(torch.tensor(made["tokens"][:]), expected)
