"""Places of inputs: folders with other files in them, patterns, archives, web servers, an output inside of the input."""

import functools
import io
import json
import os
import re
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common import TINY, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset
from noisebook.datasets.decoding import read_bytes
from noisebook.datasets.sources import enumerate_inputs
from noisebook.datasets.sources.base import Failure
from noisebook.errors import DatasetError
from noisebook.images.folders import SUFFIXES, find_files

pytestmark = pytest.mark.quick


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def data(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *names: str) -> Path:
    """Pictures, each with the number of its name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(i))
    return folder


def contents(*inputs, **options) -> dict[str, bytes | str]:
    """key -> bytes, or the code of the failure."""
    source = enumerate_inputs([str(url) for url in inputs], **options)
    found = {}
    for item in source.items:
        read = read_bytes(source.files[item.file], item) if not item.problem else item.problem.partition(":")[0]
        found[item.key] = read.code if isinstance(read, Failure) else read
    return found


# ---- folders ------------------------------------------------------------------------------------------------------------
HIDDEN = (
    ".ipynb_checkpoints/a-checkpoint.png",
    "b/.thumbnails/0.png",
    "@eaDir/a.jpg",
    "__MACOSX/._a.png",
    "._a.png",
    ".x.png",
)


def test_what_is_hidden_and_what_is_no_picture_is_counted(tmp_path):
    write(tmp_path, "a.png", "b/c.png", *HIDDEN)
    for name in ("notes.txt", "more.TXT", "b/Thumbs.db", ".DS_Store", "LICENSE", "movie.mp4"):
        (tmp_path / name).write_bytes(b"?")
    source = enumerate_inputs([str(tmp_path)])
    assert [item.key for item in source.items] == ["a.png", "b/c.png"]
    assert source.passed_over == {"hidden": len(HIDDEN)}
    assert source.other_files == {".txt": 2, ".db": 1, "hidden": 1, "without an ending": 1, ".mp4": 1}
    assert [p.name for p in find_files([tmp_path])] == ["a.png", "c.png"]
    assert contents(tmp_path / "._a.png") == {"._a.png": data(6)}  # what is named is taken
    assert contents(tmp_path / "b/.thumbnails") == {"0.png": data(3)}


def test_pictures_of_every_format_are_found(tmp_path):
    forms = {
        "jfif": "JPEG",
        "jpe": "JPEG",
        "jp2": "JPEG2000",
        "tga": "TGA",
        "dib": "DIB",
        "pnm": "PPM",
        "ico": "ICO",
        "apng": "PNG",
    }
    for ending, form in forms.items():
        picture(0).save(tmp_path / f"{ending}.{ending.upper()}", form)
        assert f".{ending}" in SUFFIXES
    assert len(contents(tmp_path)) == len(find_files([tmp_path])) == len(forms)
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        for ending in forms:
            out.add(tmp_path / f"{ending}.{ending.upper()}", f"{ending}.{ending}")
    assert len(contents(tmp_path / "x.tar")) == len(forms)


def test_parquet_files_of_other_endings_are_found(tmp_path):
    for ending in ("parq", "pq", "parquet"):
        pq.write_table(pa.table({"image": [data(0)]}), tmp_path / f"{ending}.{ending}")
    assert len(enumerate_inputs([str(tmp_path)]).items) == 3


def test_what_was_not_asked_for_is_counted(tmp_path):
    write(tmp_path, "a.png", "b.depth.png", "c.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        out.add(tmp_path / "a.png", "a.png")
    tars = enumerate_inputs([str(tmp_path)], "webdataset")
    assert (len(tars.items), tars.passed_over, tars.other_files) == (1, {"other kind of input": 3}, {})
    (tmp_path / "x.tar").rename(tmp_path / "x.tar.gz")
    pictures = enumerate_inputs([str(tmp_path)], "pictures", image_suffix="depth.png")
    assert [item.key for item in pictures.items] == ["b.depth.png"]
    assert (pictures.passed_over, pictures.other_files) == ({"other suffix": 2}, {".gz": 1})
    with pytest.raises(DatasetError, match=r"3 pictures have another ending than mask\.png"):
        enumerate_inputs([str(tmp_path)], "pictures", image_suffix="mask.png")
    write(tmp_path / "only", ".a.png")
    (tmp_path / "only/x.txt").write_text("")
    with pytest.raises(
        DatasetError, match=r"no pictures.*1 picture passed over \(hidden 1\); 1 other file passed over \(.txt 1\)"
    ):
        enumerate_inputs([str(tmp_path / "only")])


@pytest.mark.parametrize("verb", ["encode", "roundtrip"])
def test_verbs_of_pictures_say_what_they_pass_over(tmp_path, capsys, verb):
    folder = write(tmp_path / "in", "a.png", ".thumbnails/a.png")
    for name in ("x.txt", "y.txt", "z.mp4"):
        (folder / name).write_text("")
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    command = [verb, str(folder), "-o", str(folder / "out"), "--backbone", net, *TINY]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "1 picture passed over (hidden 1)" in said
    assert "3 other files passed over (.txt 2, .mp4 1)" in said


# ---- patterns -----------------------------------------------------------------------------------------------------------
def test_patterns_match_folders_too(tmp_path):
    write(tmp_path, "n01/a.png", "n02/deep/b.png", "m/c.png", "n03.png", "n04.txt", ".n/d.png")
    expected = {"n01/a.png", "n02/deep/b.png", "n03.png"}
    assert set(contents(f"{tmp_path}/n*")) == expected
    assert set(contents(f"{tmp_path}/n0?")) == {"n01/a.png", "n02/deep/b.png"}
    assert set(contents(f"{tmp_path}/[n]0[1-2]")) == {"n01/a.png", "n02/deep/b.png"}
    assert set(contents(f"{tmp_path}/**/*.png")) == {*expected, "m/c.png"}
    assert set(contents(f"{tmp_path}/*/*.png")) == {"n01/a.png", "m/c.png"}
    with pytest.raises(DatasetError, match="no pictures"):
        contents(f"{tmp_path}/q*")


def test_a_name_that_exists_is_no_pattern(tmp_path):
    names = ("set [v2]/1.png", "set [v2]/what?.png", "set [v2]/[x].png", "a*b/c.png")
    write(tmp_path, *names)
    for i, name in enumerate(names):
        assert contents(tmp_path / name) == {Path(name).name: data(i)}
    assert set(contents(tmp_path / "set [v2]")) == {"1.png", "what?.png", "[x].png"}
    assert set(contents(f"{tmp_path}/set [v2]/*.png")) == {"1.png", "what?.png", "[x].png"}
    assert set(contents(f"{tmp_path}/a*b/*")) == {"c.png"}
    assert set(contents(f"{tmp_path}/set [[]v2]/*")) == {f"set [v2]/{name}" for name in ("1.png", "what?.png", "[x].png")}


# ---- the output ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["pictures", "parquet", "pattern"])
def test_an_output_inside_of_the_input_is_no_input(tmp_path, kind, capsys):
    folder = tmp_path / "in"
    if kind == "parquet":
        folder.mkdir()
        pq.write_table(pa.table({"image": [data(i) for i in range(3)]}), folder / "a.parquet")
    else:
        write(folder, "a.png", "b/c.png", "b/d.png")
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    given = f"{folder}/*" if kind == "pattern" else str(folder)
    command = ["tokenize", given, "-o", str(folder / "tokens"), "--backbone", net, *TINY, "--workers", "0"]
    assert main(command) == 0
    (folder / "tokens/shards/000000.parquet").unlink()
    assert main([*command, "--resume", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (counts["n_found"], counts["n_ok"], counts["n_passed_over"]) == (3, 3, 0)
    assert len(TokenDataset(str(folder / "tokens"))) == 3


# ---- archives -----------------------------------------------------------------------------------------------------------
def test_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        for i, name in enumerate(("p/0.png", "p/q/1.png", "2.png", "__MACOSX/p/._0.png")):
            out.writestr(name, data(i))
        out.writestr("p/notes.txt", "x")
    whole = {"p/0.png": data(0), "p/q/1.png": data(1), "2.png": data(2)}
    for url in (
        f"zip://{tmp_path}/a.zip",
        f"zip://::{tmp_path}/a.zip",
        f"zip::{tmp_path}/a.zip",
        f"zip://::file://{tmp_path}/a.zip",
    ):
        assert contents(url) == whole, url
    source = enumerate_inputs([f"zip://{tmp_path}/a.zip"])
    assert (source.passed_over, source.other_files) == ({"hidden": 1}, {".txt": 1})
    assert contents(f"zip://p::{tmp_path}/a.zip") == {"0.png": data(0), "q/1.png": data(1)}
    assert contents(f"zip://p/*.png::{tmp_path}/a.zip") == {"0.png": data(0)}
    assert contents(f"zip://p/q/1.png::{tmp_path}/a.zip") == {"1.png": data(1)}
    for url in (f"zip://{tmp_path}/no.zip", f"zip://no.png::{tmp_path}/a.zip"):
        with pytest.raises(DatasetError):
            contents(url)


# ---- web servers --------------------------------------------------------------------------------------------------------
class Whole(SimpleHTTPRequestHandler):
    """Gives whole files, whatever part is asked for. Its pages have links to elsewhere, as Apache's have."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        self.asked.append(self.path)

    def list_directory(self, path):
        names = [f"{n}/" if os.path.isdir(os.path.join(path, n)) else n for n in sorted(os.listdir(path))]
        links = ["/", "/secret/", "?C=N;O=D", "../", "/secret/x.png", *names]
        return self.answer("".join(f'<a href="{name}">{name}</a>\n' for name in links).encode(), "text/html")

    def answer(self, body, kind, code=200, **headers):
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        return io.BytesIO(body)


class Parts(Whole):
    """Gives parts of files."""

    def send_head(self):
        path = Path(self.translate_path(self.path))
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not path.is_file():
            return super().send_head()
        body = path.read_bytes()
        if asked is None:
            return self.answer(body, "application/x", Accept_Ranges="bytes")
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        return self.answer(body[first : last + 1], "application/x", 206, Content_Range=f"bytes {first}-{last}/{len(body)}")


@pytest.fixture
def server(tmp_path):
    """Starts a server of a folder; its URL."""
    pytest.importorskip("aiohttp")
    started = []

    def start(handler) -> str:
        started.append(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "www"))))
        threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    Whole.asked.clear()
    write(tmp_path / "www", "d/0.png", "d/deep/1.png", "d/._2.png", "secret/x.png")
    (tmp_path / "www/d/n.txt").write_text("x")
    with tarfile.open(tmp_path / "www/a.tar", "w") as out:
        out.add(tmp_path / "www/d/0.png", "0.png")
        out.add(tmp_path / "www/d/deep/1.png", "1.png")
    pq.write_table(pa.table({"image": [data(0), data(1)]}), tmp_path / "www/a.parquet")
    with zipfile.ZipFile(tmp_path / "www/a.zip", "w") as out:
        out.writestr("p/0.png", data(0))
    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def test_a_server_that_gives_parts_is_read(server, tmp_path):
    url = server(Parts)
    assert contents(f"{url}/a.tar") == contents(f"{url}/a.tar?signature=1") == {"0": data(0), "1": data(1)}
    assert contents(f"{url}/d/0.png") == contents(f"{url}/d/*.png") == {"0.png": data(0)}
    assert contents(f"{url}/d/") == contents(f"{url}/d") == {"0.png": data(0), "deep/1.png": data(1)}
    for pattern, keys in {
        "d/*/*.png": ["deep/1.png"],
        "d/dee*": ["deep/1.png"],
        "d/**/[01].png": ["0.png", "deep/1.png"],
    }.items():
        assert list(contents(f"{url}/{pattern}")) == keys
    assert not {"/", "/secret/", "/secret/x.png"} & set(Whole.asked)  # what the pages of /d/ lead to
    source = enumerate_inputs([f"{url}/d/"])
    assert (source.passed_over, source.other_files) == ({"hidden": 1}, {".txt": 1})
    assert contents(f"zip://p/*.png::{url}/a.zip") == {"0.png": data(0)}
    assert enumerate_inputs([f"{url}/a.tar?signature=1"]).files[0].path == f"{url}/a.tar"  # no secret is written down
    with pytest.raises(DatasetError, match=r"nothing is there.*404"):
        contents(f"{url}/no.tar")
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    command = ["tokenize", f"{url}/a.parquet", "-o", str(tmp_path / "out"), "--backbone", net, *TINY, "--workers", "0"]
    assert main(command) == main([*command, "--resume"]) == 0
    read = TokenDataset(str(tmp_path / "out"), inputs=f"{url}/a.parquet")
    assert [(read.original(i) == np.asarray(picture(i))).all() for i in range(2)] == [True, True]


def test_a_server_that_gives_whole_files_is_refused_in_true_words(server):
    url = server(Whole)
    for name in ("a.tar", "a.parquet"):
        with pytest.raises(DatasetError, match="its server gives whole files only"):
            contents(f"{url}/{name}")
        assert enumerate_inputs([f"simplecache::{url}/{name}"]).items  # what it says is to be done
    assert contents(f"{url}/d/") == {"0.png": data(0), "deep/1.png": data(1)}  # these are read whole


def test_a_missing_package_is_named(monkeypatch):
    def missing(url):
        raise ImportError("no aiohttp")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DatasetError, match=r"pip install 'noisebook\[http\]'"):
        contents("https://127.0.0.1/a.tar")
