"""Tars: every picture has a row or a reason, and the bytes that `tarfile` reads; what is left out is counted."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common import TINY, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset
from noisebook.datasets.decoding import answer_to, read_bytes, requests_for
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.sources.base import Failure
from noisebook.errors import DatasetError
from noisebook.runtime.limits import Limits

pytestmark = pytest.mark.quick


def data(seed: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def tar(path: Path, *members, form=tarfile.PAX_FORMAT) -> Path:
    """A tar of (name, bytes), or of (name, type, the name that it leads to)."""
    with tarfile.open(path, "w", format=form) as out:
        for name, content, *link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = content, link[0]
                out.addfile(info)
            else:
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return path


def source_of(*paths, **options):
    return enumerate_inputs([str(path) for path in paths], **options)


def contents(source) -> dict[str, bytes | str]:
    """key -> its bytes, or the code of its failure."""
    found = {}
    for item in source.items:
        read = read_bytes(source.files[item.file], item) if not item.problem else item.problem.partition(":")[0]
        found[item.key] = read.code if isinstance(read, Failure) else read
    assert len(found) == len(source.items)
    return found


def rows(source) -> list[tuple[str, object]]:
    """(key, label)."""
    return [(item.key, source.extras(item).get("label")) for item in source.items]


def test_names_with_dots_are_a_row_each(tmp_path):
    names = [f"DSC.{i}.jpg" for i in range(4)]
    members = [(name, data(i, "JPEG")) for i, name in enumerate(names)]
    source = source_of(tar(tmp_path / "x.tar", *members, ("DSC.2.cls", b"5"), ("DSC.cls", b"6"), ("DSC.9.txt", b"?")))
    assert contents(source) == {name[:-4]: content for name, content in members}
    assert dict(rows(source)) == {"DSC.0": None, "DSC.1": None, "DSC.2": 5, "DSC.3": None}
    assert source.passed_over == {}
    assert source.other_files == {".cls": 1, ".txt": 1}
    # folders with dots are no endings
    source = source_of(tar(tmp_path / "y.tar", ("v1.0/a.png", data(0)), ("v1.0/b.png", data(1)), ("v1.0/a.cls", b"3")))
    assert rows(source) == [("v1.0/a", 3), ("v1.0/b", None)]


def test_a_name_that_comes_again_begins_a_sample(tmp_path):
    members = [
        ("0.png", data(0)),
        ("0.cls", b"1"),
        ("1.png", data(1)),
        ("0.png", data(2)),
        ("0.cls", b"7"),
        ("0.png", data(3)),
    ]
    source = source_of(tar(tmp_path / "x.tar", *members))
    assert rows(source) == [("0", 1), ("1", None), ("0.png", 7), ("0.png~2", None)]
    assert [*contents(source).values()] == [data(i) for i in (0, 1, 2, 3)]
    # what goes along may stand before its picture
    source = source_of(tar(tmp_path / "y.tar", ("0.cls", b"1"), ("0.png", data(0)), ("0.cls", b"2"), ("0.png", data(1))))
    assert rows(source) == [("0", 1), ("0.png", 2)]
    # the row of what is damaged has a key of its own
    (tmp_path / "z.tar").write_bytes(tar(tmp_path / "z", ("z.tar.png", data(5))).read_bytes()[:1536])
    assert contents(source_of(tmp_path / "z.tar")) == {"z.tar": data(5), "z.tar~2": "damaged"}


def test_one_stem_with_two_endings_is_two_rows(tmp_path):
    source = source_of(
        tar(tmp_path / "x.tar", ("0.cls", b"4"), ("0.jpg", data(0, "JPEG")), ("0.PNG", data(1)), ("0.gif", data(2, "GIF")))
    )
    assert contents(source) == {"0": data(0, "JPEG"), "0.PNG": data(1), "0.gif": data(2, "GIF")}
    assert {label for _, label in rows(source)} == {4}


def test_the_picture_without_a_second_dot_is_the_samples(tmp_path):
    members = [
        m
        for i in range(3)
        for m in ((f"{i}.depth.png", data(50 + i)), (f"{i}.jpg", data(i, "JPEG")), (f"{i}.cls", b"%d" % i))
    ]
    path = tar(tmp_path / "x.tar", *members, ("0.npy", b"?"), ("0.depth.json", b"{}"))
    source = source_of(path)
    assert contents(source) == {str(i): data(i, "JPEG") for i in range(3)}
    assert source.passed_over == {"second picture of a sample": 3}
    assert source.other_files == {".npy": 1, ".json": 1}
    depth = source_of(path, image_suffix="depth.png")
    assert contents(depth) == {str(i): data(50 + i) for i in range(3)}
    assert rows(depth) == [(str(i), i) for i in range(3)]
    assert depth.passed_over == {"other suffix": 3}
    twice = source_of(tar(tmp_path / "z.tar", ("0.cls", b"1"), ("0.CLS", b"2"), ("0.png", data(0))))
    assert (rows(twice), twice.other_files) == ([("0", 1)], {".cls": 1})
    only = source_of(tar(tmp_path / "y.tar", ("a.left.png", data(0)), ("a.right.png", data(1))))
    assert contents(only) == {"a.left": data(0), "a.right": data(1)}


def test_links_lead_to_files_of_the_same_tar(tmp_path):
    hard, symbolic = tarfile.LNKTYPE, tarfile.SYMTYPE
    path = tar(
        tmp_path / "x.tar",
        ("./a/0.png", data(0)),
        ("./a/0.cls", b"9"),
        ("b/1.png", hard, "./a/0.png"),
        ("b/1.cls", hard, "a/0.cls"),
        ("a/2.png", symbolic, "0.png"),
        ("b/3.png", symbolic, "../a/2.png"),
        ("4.png", symbolic, "blob"),
        ("blob", data(4)),
        ("5.png", symbolic, "/etc/passwd"),
        ("6.png", hard, "later.png"),
        ("later.png", data(6)),
        ("7.png", symbolic, "8.png"),
        ("8.png", symbolic, "7.png"),
        ("9.png", symbolic, "a"),
        ("a", tarfile.DIRTYPE, ""),
    )
    source = source_of(path)
    assert contents(source) == {
        **dict.fromkeys(("a/0", "b/1", "a/2", "b/3"), data(0)),
        "4": data(4),
        "later": data(6),
        **dict.fromkeys(("5", "6"), "missing"),
        **dict.fromkeys(("7", "8", "9"), "unreadable"),
    }
    assert dict(rows(source))["b/1"] == 9
    with tarfile.open(path) as out:  # the standard library agrees
        for name, key in (("b/1.png", "b/1"), ("a/2.png", "a/2"), ("b/3.png", "b/3"), ("4.png", "4")):
            assert out.extractfile(name).read() == contents(source)[key]


def sparse_tar(folder: Path, form: str) -> bytes:
    """A tar, made by GNU tar, with a sparse BMP between others; returns the BMP."""
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:9] = np.random.default_rng(0).integers(0, 256, (9, 400, 3))
    pixels[-5:] = 77
    Image.fromarray(pixels).save(folder / "1.bmp")
    whole = (folder / "1.bmp").read_bytes()
    with open(folder / "1.bmp", "wb") as f:
        for at in range(0, len(whole), 4096):
            piece = whole[at : at + 4096]
            f.seek(at)
            if any(piece):
                f.write(piece)
        f.truncate(len(whole))
    (folder / "0.png").write_bytes(data(0))
    (folder / "2.png").write_bytes(data(2))
    command = ["tar", "-S", f"--format={form}", "--sort=name", "-cf", "x.tar", "0.png", "1.bmp", "2.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    if done.returncode or (folder / "x.tar").stat().st_size > len(whole):
        pytest.skip("no GNU tar, or no holes on this file system")
    return whole


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_whole(tmp_path, form):
    whole = sparse_tar(tmp_path, form)
    source = source_of(tmp_path / "x.tar")
    assert contents(source) == {"0": data(0), "1": whole, "2": data(2)}
    (answer,) = map(answer_to, requests_for(source, [source.items[1]], 3, 0))
    assert (answer.pixels == np.asarray(Image.open(io.BytesIO(whole)))).all()
    (answer,) = map(answer_to, requests_for(source, [source.items[1]], 3, 0, Limits(memory=1 << 20)))
    assert answer.code == "too_large"  # what its header says is bounded before it is made


@pytest.mark.parametrize(
    "name", ["x.tar.gz", "x.tgz", "x.TAR.BZ2", "x.tbz2", "x.tar.xz", "x.txz", "x.tar.zst", "x.tzst", "x.tar"]
)
def test_compressed_tars_are_refused_by_name(tmp_path, capsys, name):
    (tmp_path / "plain").write_bytes(data(0))
    kind = "bz2" if "b" in name.lower() else "xz" if "xz" in name else "gz"
    with tarfile.open(tmp_path / name, f"w:{kind}") as out:
        out.add(tmp_path / "plain", "0.png")
    for typed in (tmp_path / name, tmp_path):
        with pytest.raises(DatasetError, match=r"a compressed tar.* unpack it first: (gzip|bzip2|xz|zstd) -d"):
            source_of(typed)
    if name == "x.tgz":
        subprocess.run(["gzip", "-d", "-k", name], cwd=tmp_path, check=True)  # as it says
        (tmp_path / name).unlink()
        assert [item.key for item in source_of(tmp_path).items] == ["0"]


def test_labels_that_are_words_are_text(tmp_path):
    def labels(*texts):
        members = [m for i, text in enumerate(texts) for m in ((f"{i}.cls", text), (f"{i}.png", data(0)))]
        source = source_of(tar(tmp_path / "x.tar", *members))
        return source.columns["label"], [label for _, label in rows(source)]

    assert labels(b"3\n", b" -4 ", b"") == ("int64", [3, -4, None])
    assert labels(b"3\n", b"n01440764\n", b"a cat") == ("string", ["3", "n01440764", "a cat"])
    assert labels(b"1", b"9" * 30) == ("string", ["1", "9" * 30])
    assert labels(b"x" * 1000, b"2") == ("string", ["x" * 1000, "2"])


def test_names_of_all_kinds(tmp_path):
    long = "d" * 120 + "/" + "n" * 180
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tar(tmp_path / "x.tar", (f"{long}.png", data(0)), ("./a/./b.png", data(1)), ("ü b.png", data(2)), form=form)
        assert contents(source_of(path)) == {long: data(0), "a/b": data(1), "ü b": data(2)}
    path = tar(tmp_path / "x.tar", ("a\udcff.png", data(0)), ("a\udcfe.png", data(1)), form=tarfile.GNU_FORMAT)
    assert contents(source_of(path)) == {"a\\xff": data(0), "a\\xfe": data(1)}


def test_hidden_members_and_what_is_no_file_are_counted(tmp_path):
    path = tar(
        tmp_path / "x.tar",
        ("0.png", data(0)),
        ("._0.png", b"rubbish"),
        ("__MACOSX/._0.png", b"rubbish"),
        ("a/.thumbnails/0.png", data(1)),
        ("a/@eaDir/0.jpg", data(1)),
        (".ipynb_checkpoints/0-checkpoint.png", data(1)),
        (".DS_Store", b"?"),
        ("README.md", b"?"),
        ("1.heic.bak", b"?"),
        ("queue", tarfile.FIFOTYPE, ""),
        ("disk", tarfile.BLKTYPE, ""),
        ("pipe.png", tarfile.FIFOTYPE, ""),
        ("folder.jpg", tarfile.DIRTYPE, ""),
        ("folder.jpg/1.png", data(3)),
    )
    source = source_of(path)
    assert contents(source) == {"0": data(0), "pipe": "unreadable", "folder": "unreadable", "folder.jpg/1": data(3)}
    assert source.passed_over == {"hidden": 5}
    assert source.other_files == {"hidden": 1, ".md": 1, ".bak": 1, "pipe": 1, "device": 1}


def test_samples_without_a_picture_fail(tmp_path):
    source = source_of(tar(tmp_path / "x.tar", ("0.cls", b"1"), ("1.png", data(1)), ("1.txt", b"x"), ("1.txt", b"y")))
    assert contents(source) == {"0": "no_image", "1": data(1), "1.txt": "no_image"}
    assert source.extras(source.items[1]) == {"txt": "x"}


def test_tars_one_after_the_other_are_read_to_the_end(tmp_path):
    first = tar(tmp_path / "a", ("0.png", data(0)), ("0.cls", b"1")).read_bytes()
    second = tar(tmp_path / "b", ("0.jpg", data(1, "JPEG")), ("0.cls", b"2"), ("1.png", data(2))).read_bytes()
    (tmp_path / "x.tar").write_bytes(first + bytes(20480) + second)
    source = source_of(tmp_path / "x.tar")
    assert rows(source) == [("0", 1), ("0.jpg", 2), ("1", None)]
    assert contents(source) == {"0": data(0), "0.jpg": data(1, "JPEG"), "1": data(2)}
    (tmp_path / "x.tar").write_bytes(first + b"a signature, say")
    source = source_of(tmp_path / "x.tar")
    assert rows(source) == [("0", 1)]
    assert source.other_files == {"data after the end of a tar": 1}


@pytest.mark.parametrize("where", ["header", "picture", "sidecar", "end"])
def test_what_a_cut_tar_still_has_is_kept(tmp_path, where):
    members = [("0.png", data(0)), ("0.cls", b"1"), ("1.png", data(1)), ("1.txt", b"long " * 500)]
    path = tar(tmp_path / "x.tar", *members)
    with tarfile.open(path) as out:
        places = {m.name: m for m in out}
    size = {
        "header": places["1.png"].offset + 100,
        "picture": places["1.png"].offset_data + 20,
        "sidecar": places["1.txt"].offset_data + 20,
        "end": places["1.txt"].offset_data + 2560,
    }[where]
    path.write_bytes(path.read_bytes()[:size])
    link = tar(tmp_path / "y.tar", ("z.png", data(9)))  # another tar is not touched
    found = contents(source_of(path, link))
    expected = {"0": data(0), "z": data(9), "x.tar": "damaged"}
    expected |= {} if where == "header" else {"1": data(1) if where == "end" else "damaged"}
    assert found == expected


def test_damaged_headers_end_in_words(tmp_path):
    """Whatever stands there: rows and reasons, never a traceback, and never for ever."""
    members = [("0.png", data(0)), ("x" * 150 + ".png", data(1)), ("ü.png", data(2)), ("2.png", tarfile.SYMTYPE, "0.png")]
    whole = tar(tmp_path / "a", *members).read_bytes()
    random = np.random.default_rng(7)
    for _ in range(60):
        broken = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            broken[at] = random.integers(256)
        start = 512 * int(random.integers(0, len(whole) // 512))
        if random.integers(2):
            broken[start + 124 : start + 136] = b"\xff" * 12  # a size below 0
            total = sum(broken[start : start + 148]) + 8 * 32 + sum(broken[start + 156 : start + 512])
            broken[start + 148 : start + 156] = b"%06o\0 " % total
        (tmp_path / "x.tar").write_bytes(broken)
        assert contents(source_of(tmp_path / "x.tar"))


def test_a_run_says_and_records_what_it_passed_over(tmp_path, capsys):
    path = tar(
        tmp_path / "x.tar", ("0.png", data(0)), ("0.mask.png", data(1)), ("._0.png", b"?"), ("1.png", b"no"), ("a.md", b"?")
    )
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    command = ["tokenize", str(path), "-o", str(tmp_path / "out"), "--backbone", net, *TINY, "--workers", "0"]
    for more in ([], ["--resume"]):
        assert main([*command, "--json", *more]) == 3
        said = capsys.readouterr()
        counts = json.loads(said.out)
        assert counts["n_found"] == 4 == counts["n_ok"] + counts["n_failed"] + counts["n_passed_over"]
        assert (counts["n_in"], counts["n_passed_over"]) == (2, 2)
        assert counts["passed_over"] == {"second picture of a sample": 1, "hidden": 1}
        assert "1 other file passed over (.md 1)" in said.err
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert (plan["version"], plan["n_found"], plan["items"]) == (2, 4, 2)
    assert (plan["n_ok"], plan["n_failed"], plan["n_passed_over"]) == (1, 1, 2)
    assert (plan["passed_over"], plan["other_files"]) == ({"second picture of a sample": 1, "hidden": 1}, {".md": 1})
    assert main([*command, "--resume"]) == 3
    assert (
        "4 images found: 1 ok, 1 failed (1 not_an_image), 2 passed over (1 hidden, 1 second picture"
        in capsys.readouterr().out
    )
    assert main([*command, "--resume", "--image-suffix", "mask.png"]) == DatasetError.code
    assert "image_suffix" in capsys.readouterr().err


def test_words_and_links_and_holes_reach_the_shard(tmp_path):
    whole = sparse_tar(tmp_path, "pax")
    members = ("9.bmp", tarfile.SYMTYPE, "1.bmp"), ("9.cls", b"n02"), ("8.png", tarfile.LNKTYPE, "0.png"), ("8.cls", b"8")
    with tarfile.open(tmp_path / "x.tar", "a") as out:
        for name, content, *link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = content, link[0]
            info.size = 0 if link else len(content)
            out.addfile(info, None if link else io.BytesIO(content))
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    command = ["tokenize", str(tmp_path / "x.tar"), "-o", str(tmp_path / "out"), "--backbone", net, *TINY, "--resize", "16"]
    assert main([*command, "--workers", "1"]) == 0
    read = TokenDataset(str(tmp_path / "out"), inputs=tmp_path / "x.tar")
    by_key = {row["key"]: row for row in read}
    assert {key: row["label"] for key, row in by_key.items()} == {"0": None, "1": None, "2": None, "8": "8", "9": "n02"}
    assert (by_key["9"]["tokens"] == by_key["1"]["tokens"]).all()
    assert (by_key["8"]["tokens"] == by_key["0"]["tokens"]).all()
    where = [row["key"] for row in read].index("9")
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    assert read.original(where).shape == (16, 16, 3)
    assert abs(read.original(where).astype(int).mean() - expected[:, 50:350].mean()) < 3
    assert pq.read_schema(tmp_path / "out/shards/000000.parquet").field("label").type == "string"
    assert os.path.exists(tmp_path / "out/plan.json")
