"""What a plan records is data: it is never opened, run or contacted, and names are joined with what the user gives only."""

import base64
import contextlib
import hashlib
import io
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.datasets import TokenDataset
from noisebook.errors import DatasetError, FormatError, ImageError
from noisebook.report.build import build_report

COUNT = 6
WATCHED = ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


class Watch:
    """An audit hook, which cannot be removed, and what it has heard since it was last told to listen."""

    def __init__(self):
        self.heard, self.listens = [], False
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.listens and event in WATCHED:
            self.heard.append((event, str(arguments[0] if event == "open" else arguments)))

    @contextlib.contextmanager
    def listening(self):
        self.heard, self.listens = [], True
        try:
            yield self.heard
        finally:
            self.listens = False


watch = Watch()


@pytest.fixture
def server():
    """A port of this machine, and who has connected with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visits = []

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    visits.append(listener.accept()[1])

        threading.Thread(target=listen, daemon=True).start()
        yield listener.getsockname()[1], visits


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


@pytest.fixture
def made(tmp_path, fresh, net):
    """A data set of pictures in the folder `in`, and these, uint8 [N, H, W, C]."""
    images = random_images(fresh, COUNT, 16, 16).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(images):
        path = tmp_path / f"in/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    out = tmp_path / "tokens"
    command = ["tokenize", str(tmp_path / "in"), "-o", str(out), "--backbone", net, *TINY, "--workers", "0"]
    assert main(command) == 0
    return out, images[[*range(0, COUNT, 2), *range(1, COUNT, 2)]]


def forge(out: Path, **columns) -> None:
    """Other values in the plan's table of files, with hashes that fit."""
    path = out / "plan-files.parquet"
    table = pq.read_table(path)
    for name, value in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([value(x) for x in table[name].to_pylist()], table[name].type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True, compression="zstd")
    path.write_bytes(buffer.getvalue())
    rows = [json.dumps([a, b]) for a, b in zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True)]
    names = list(zip(table["name"].to_pylist(), table["stamp"].to_pylist(), strict=True))
    items = pq.read_table(out / "plan-items.parquet")
    rows += [json.dumps(list(row)) for row in zip(*(items[name].to_pylist() for name in items.column_names), strict=True)]
    about = json.loads((out / "plan.json").read_text())
    settings = {name: about[name] for name in ("version", "settings", "kind", "columns", "image_column")}
    before = about["hash"]
    about["hash"] = hashlib.sha256((json.dumps(settings, sort_keys=True) + "".join(rows)).encode()).hexdigest()
    about["stamp"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    about["sha256"]["plan-files.parquet"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (out / "plan.json").write_text(json.dumps(about))
    for entry_path in (out / "ledger").iterdir():
        entry = json.loads(entry_path.read_text())["entry"]
        assert entry["plan"] == before
        entry["plan"] = about["hash"]
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        entry_path.write_text(json.dumps({"sha256_of_entry": digest, "entry": entry}))


def chain(marker: Path) -> str:
    """A chain that ran a shell command with fsspec 2024.2 to 2026.4: its references are templates."""
    command = f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
    references = {"version": 1, "templates": {"u": command}, "refs": {"a": ["{{u}}", 0, 1]}}
    data = base64.b64encode(json.dumps(references).encode()).decode()
    return f"reference://a::data:application/json;base64,{data}"


def test_recorded_paths_are_not_opened_or_contacted(tmp_path, made, net, server, capsys):
    (out, images), (port, visits) = made, server
    secret = tmp_path / "secret.png"
    Image.fromarray(images[0]).save(secret)
    paths = [
        chain(tmp_path / "ran"),
        f"ftp://127.0.0.1:{port}/x",
        f"http://127.0.0.1:{port}/x",
        str(secret),
        f"file://{secret}",
    ]
    for path in paths:
        forge(out, path=lambda _, path=path: path)
        with watch.listening() as heard:
            data = TokenDataset(out)
            with pytest.raises(DatasetError, match="inputs=") as error:
                data.original(0)
            assert "\n" not in str(error.value)
            build_report([str(out)], backbone=net)
            assert main(["report", str(out), "-o", str(tmp_path / "r.html"), "--backbone", net, "--force"]) == 0
        opened = [name for event, name in heard if event == "open"]
        assert opened
        assert not [name for name in opened if "secret" in name or str(tmp_path / "in") in name]
        assert not [event for event, _ in heard if event != "open"]
    assert not visits
    assert not (tmp_path / "ran").exists()
    assert "--inputs FOLDER" in capsys.readouterr().err
    page = (tmp_path / "r.html").read_text()
    assert page.count("report --inputs FOLDER") == 1
    assert "original of" not in page
    data = TokenDataset(out, inputs=tmp_path / "in")  # the recorded path has no say in it
    assert all((data.original(i) == images[i]).all() for i in range(COUNT))


def test_the_chain_that_ran_a_command_runs_nothing_on_the_fsspec_that_is_required(tmp_path):
    """Nobody hands it to fsspec here; the required version does not run it either (2026.4 does)."""
    pytest.importorskip("jinja2")
    from fsspec.core import url_to_fs

    with contextlib.suppress(Exception):
        fs, _ = url_to_fs(chain(tmp_path / "ran"))
        fs.cat("a")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/hostname", "a/../../secret.png", "a//0.png", "\\\\host\\x", "http://127.0.0.1/x", "x\0", ""],
)
def test_recorded_names_stay_below_the_inputs(tmp_path, made, name):
    out, images = made
    secret = tmp_path / "secret.png"
    Image.fromarray(images[0]).save(secret)
    about = secret.stat()  # whoever opened it would find the file of the plan
    forge(out, name=lambda _: name, size=lambda _: about.st_size, stamp=lambda _: f"{about.st_size} {about.st_mtime}")
    data = TokenDataset(out, inputs=tmp_path / "in")
    with watch.listening() as heard, pytest.raises(ImageError):
        data.original(0)
    assert not [x for x in heard if "secret" in x[1] or "hostname" in x[1] or x[0] != "open"]


def test_inputs_are_a_folder_a_file_or_several_and_the_stamp_decides(tmp_path, made, net):
    out, images = made
    copy = tmp_path / "copy"
    for path in (tmp_path / "in").rglob("*.png"):
        to = copy / path.relative_to(tmp_path / "in")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
        os.utime(to, (1, 1))
    one = TokenDataset(out, inputs=str(tmp_path / "in/a/0.png"))
    assert (one.original(0) == images[0]).all()
    with pytest.raises(ImageError, match="not among the inputs"):
        one.original(1)
    for inputs in ([copy, tmp_path / "in"], [tmp_path / "in", copy], [tmp_path / "in/*/*.png"]):
        assert (TokenDataset(out, inputs=inputs).original(3) == images[3]).all()
    with pytest.raises(ImageError, match="not the one of the plan"):
        TokenDataset(out, inputs=copy).original(3)
    with pytest.raises(DatasetError, match="nothing is there"):
        TokenDataset(out, inputs=tmp_path / "gone")
    Image.fromarray(images[0]).save(tmp_path / "other.png")
    with pytest.raises(DatasetError, match="no file of that name"):
        TokenDataset(out, inputs=tmp_path / "other.png")
    page = build_report([str(out)], 3, net, inputs=[tmp_path / "in"])
    assert page.count("original of") == 3
    assert "--inputs" not in page


def test_plans_that_cannot_be_are_refused_in_one_line(tmp_path, made):
    """Items outside of the files, or of their bytes; sizes that no run has."""
    out, _ = made
    whole = {name: (out / name).read_bytes() for name in ("plan.json", "plan-items.parquet")}

    def load(**columns):
        items = pq.read_table(pa.BufferReader(whole["plan-items.parquet"]))
        for name, value in columns.items():
            place = items.column_names.index(name)
            items = items.set_column(place, name, pa.array([value] * COUNT, items[name].type))
        buffer = io.BytesIO()
        pq.write_table(items, buffer, write_page_checksum=True, compression="zstd")
        (out / "plan-items.parquet").write_bytes(buffer.getvalue())
        about = json.loads(whole["plan.json"])
        about["sha256"]["plan-items.parquet"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        (out / "plan.json").write_text(json.dumps(about))
        TokenDataset(out)

    bad = [{"file": COUNT}, {"file": -1}, {"start": -1}, {"size": -2}, {"key": None}, {"file": 1 << 62}]
    for columns in bad:
        with pytest.raises(FormatError, match="its plan is damaged") as error:
            load(**columns)
        assert "\n" not in str(error.value)
    settings = json.loads(whole["plan.json"])["settings"]
    changes = [
        ("shard_size", 0),
        ("shard_size", -5),
        ("shard_size", 1.5),
        ("size", [16]),
        ("network", {"a": 1}),
        ("resize", True),
    ]
    (out / "plan-items.parquet").write_bytes(whole["plan-items.parquet"])
    for name, value in changes:
        about = {**json.loads(whole["plan.json"]), "settings": {**settings, name: value}}
        (out / "plan.json").write_text(json.dumps(about))
        with pytest.raises(FormatError, match="its plan is damaged"):
            TokenDataset(out)
    for text in ("[" * 100_000, "[]", "3", '{"version": 1}', "{}"):
        (out / "plan.json").write_text(text)
        with pytest.raises(FormatError, match="its plan is damaged"):
            TokenDataset(out)


SPANS = ("1", "[-5, 1]", "[0, 1e9]", "[0, 99999999]")
NOWHERE = ("[]", "3", "{", "[" * 3000, '{"x": [0, 1]}', *(f'{{"cls": {span}}}' for span in SPANS))


@pytest.mark.parametrize("extra", NOWHERE)
def test_what_goes_along_lies_where_the_plan_says_or_is_refused(tmp_path, extra):
    from noisebook.datasets.sources.base import File, Item, Items
    from noisebook.datasets.sources.places import Place
    from noisebook.datasets.sources.webdataset import WebDataset

    path = tmp_path / "x.tar"
    path.write_bytes(bytes(1024))
    file = File(str(path), "x.tar", 1024, "", place=Place("", str(path)))
    source = WebDataset([file], Items.of([Item("a", 0, extra=extra)]), {"label": "int64"})
    with pytest.raises(ValueError, match="does not say where"):
        source.carried(source.items)


def test_items_outside_of_their_file_are_failures(tmp_path):
    from noisebook.datasets.decoding import read_bytes
    from noisebook.datasets.sources import enumerate_inputs
    from noisebook.datasets.sources.base import Failure, Item

    (tmp_path / "x.png").write_bytes(b"12345678")
    (file,) = enumerate_inputs([str(tmp_path)]).files
    for start, size in ((0, 9), (8, 1), (1 << 62, 1), (0, 1 << 62), (4, -1)):
        answer = read_bytes(file, Item("x.png", 0, start, size))
        assert isinstance(answer, Failure)
        assert answer.code in ("unreadable", "changed")
    assert read_bytes(file, Item("x.png", 0, 2, 3)) == b"345"
