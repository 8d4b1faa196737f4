"""What the command line shows of names and texts that strangers chose, and of errors that nobody foresaw."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from noisebook.cli import inspect, show
from noisebook.cli.main import VERBS, main
from noisebook.errors import FormatError
from noisebook.format.container import Container
from noisebook.images import files
from noisebook.spec import presets

pytestmark = pytest.mark.quick
HOSTILE = "a\x1b[31m\n\u202e\udcff"
SHOWN = "a\\x1b[31m\\x0a\\u202e\\udcff"


def preset_file(path) -> None:
    preset = presets.get("photo").spec
    count = sum(run.count for _, run in preset.runs_for(2, 3))
    path.write_bytes(Container(preset.hash, 2, 3, bytes(2 * count), presets.get("photo").number).to_bytes())


def test_messages_keep_their_beginning_and_their_end():
    long = show.shown("path/" + "x" * 5000 + ": choose another -o")
    assert long.startswith("path/x")
    assert long.endswith(": choose another -o")
    assert len(long) < 520
    assert show.shown(HOSTILE) == SHOWN


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_a_file_says_is_shown_and_not_obeyed(verb, tmp_path, capsys, monkeypatch):
    """Names of files, and texts of specifications, in tables, in logs and in JSON."""
    path = tmp_path / f"{HOSTILE}.nbk"
    preset_file(path)
    bad = tmp_path / f"{HOSTILE}-2.nbk"
    bad.write_bytes(b"nothing")
    describe = files.describe

    def named(path, *rest, **more):
        row = describe(path, *rest, **more)
        return row | {"codec": f"a codec on {HOSTILE}" + "b" * 9000}

    monkeypatch.setattr(files, "describe", named)
    assert main([verb, str(path), str(bad)]) == 4
    out, err = capsys.readouterr()
    assert err == ""
    assert SHOWN in out
    assert all(len(line) < 1000 and line.isprintable() for line in out.splitlines())
    assert main([verb, str(path), str(bad), "--json"]) == 4
    text = capsys.readouterr().out
    assert text.strip().isprintable()
    assert text.isascii()
    assert json.loads(text)["files"][0]["name"] == str(path)


def test_pictures_with_such_names_are_rows(tmp_path, capsys):
    names = [str(tmp_path / f"{HOSTILE}.png"), "x" * 5000, "a\0b", str(tmp_path / "pipe"), "/dev/zero"]
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "a.png"
    folder.mkdir()
    assert main(["encode", *names, "-o", str(tmp_path / "out"), "--backbone", "gaussian-prior"]) == 3
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), len(err.splitlines())) == (5, 5)
    assert SHOWN in out
    assert all(line.isprintable() and len(line) < 1000 for line in (out + err).splitlines())
    assert out.count("only regular files are read") == 2
    assert main(["encode", "", "-o", str(tmp_path / "out")]) == 1
    assert "an empty name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call",
    [
        "inspect p.nbk",
        "verify p.nbk",
        "decode p.nbk -o out",
        "calibrate gaussian-prior p.nbk -o out",
        "calibrate gaussian-prior p.npz -o out",
        "check gaussian-prior p.nbk",
        "fit-prior dct p.npz -o out",
        "convert p.pkl -o out",
        "train edm p.npz -o out",
        "encode a.png --roi p.nbk --backbone gaussian-prior -o out",
    ],
)
def test_nobody_waits_for_a_pipe(call, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p.nbk", "p.npz", "p.pkl"):
        os.mkfifo(name)
    assert main(call.split()) in (3, 4, 6)
    out, err = capsys.readouterr()
    assert "only regular files are read" in out + err
    assert not os.path.exists("out")


class Panic(BaseException):
    """What an extension in Rust raises."""


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_no_fault_of_noisebook(error, monkeypatch, capsys):
    def fails(args):
        raise error

    monkeypatch.setattr(VERBS["backbones"], "run", fails)
    assert main(["backbones"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("noisebook: MemoryError: this machine has too little memory for it: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(f"{HOSTILE} first\nsecond"), "RuntimeError: a\\x1b[31m"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (UnicodeEncodeError("ascii", "\xe4", 0, 1, "no"), "UnicodeEncodeError: 'ascii' codec can't encode"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),
        (Panic("a panic"), "Panic: a panic"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_line(error, line, monkeypatch, capsys):
    def fails(args):
        raise error

    monkeypatch.setattr(VERBS["backbones"], "run", fails)
    assert main(["backbones"]) == 70
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"noisebook: {line}")
    assert said.endswith(": this is a fault of noisebook: run again with --traceback, and report it")
    assert main(["backbones", "--json", "--traceback"]) == 70
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": said.removeprefix("noisebook: "), "code": 70}
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in fails" in err
    assert all(text.isprintable() for text in err.splitlines())


def test_one_fault_does_not_end_a_batch(tmp_path, capsys, monkeypatch):
    for name in "abc":
        preset_file(tmp_path / f"{name}.nbk")
    describe = files.describe

    def fails(path, *rest, **more):
        if path.stem == "b":
            raise RecursionError("too deep")
        return describe(path, *rest, **more)

    monkeypatch.setattr(files, "describe", fails)
    for verb in ("inspect", "verify"):
        assert main([verb, str(tmp_path), "--json"]) == 70
        rows = json.loads(capsys.readouterr().out)["files"]
        assert [row["error"] is None for row in rows] == [True, False, True]
        (tmp_path / "aa.nbk").write_bytes(b"nothing")
        assert main([verb, str(tmp_path)]) == FormatError.code
        (tmp_path / "aa.nbk").unlink()
        capsys.readouterr()
    monkeypatch.setattr("noisebook.images.reading.read_picture", lambda *_, **__: 1 / 0)
    call = ["eval", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--backbone", "gaussian-prior"]
    assert main(call) == 70
    assert capsys.readouterr().out.count("ZeroDivisionError: division by zero: this is a fault of noisebook") == 2


def test_json_of_an_error_has_the_verbs_own_keys(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    expected = {"encode": {"images": [], "codec": None}, "inspect": {"files": []}, "verify": {"files": [], "datasets": []}}
    for verb, empty in expected.items():
        assert main([verb, str(tmp_path / "empty"), "--json"]) > 0
        out, err = capsys.readouterr()
        assert json.loads(out).keys() == {*empty, "error", "code"}
        assert {key: json.loads(out)[key] for key in empty} == empty
        assert err == f"noisebook: {json.loads(out)['error']}\n"


def test_verify_prints_one_object(capsys, tmp_path):
    preset_file(tmp_path / "a.nbk")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "plan.json").write_bytes(b"nothing")
    pytest.importorskip("pyarrow")
    a, data = str(tmp_path / "a.nbk"), str(tmp_path / "set")
    for named, keys in (([a], {"files"}), ([data], {"name", "error", "code"}), ([a, data], {"files", "datasets"})):
        main(["verify", *named, "--json"])
        assert json.loads(capsys.readouterr().out).keys() == keys


def test_a_command_in_this_process_leaves_it_as_it_was(capsys, tmp_path):
    before = warnings.showwarning, sys.stdout, sys.stderr
    main(["inspect", str(tmp_path / "none.nbk")])
    main(["backbones"])
    assert (warnings.showwarning, sys.stdout, sys.stderr) == before
    assert inspect.WIDEST < show.MOST


STREAMS = [  # redirections, exit code, lines on stderr, lines on stdout at least
    ("inspect none.nbk > /dev/full", 1, 1, 0),
    ("--help > /dev/full", 1, 1, 0),
    ("inspect none.nbk >&-", 1, 1, 0),
    ("inspect none.nbk 2>&-", 4, 0, 2),
    ("inspect none.nbk 2> /dev/full", 4, 0, 1),
    ("inspect none.nbk <&- >&- 2>&-", 1, 0, 0),
    ("inspect none.nbk | head -0; exit ${PIPESTATUS[0]}", 141, 0, 0),
]


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
    code = "import os, sys\nfrom noisebook.cli.main import main\nos.close(0)\nos.close(2)\nsys.stderr = None\n"
    code += "main(['inspect', 'none.nbk'])\nprint(os.open(os.devnull, os.O_RDONLY) > 2, sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "True None", run


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_streams_that_are_full_or_closed_lose_nothing_in_silence(tmp_path):
    """Each in a process of its own; they run at the same time, since each costs a start."""
    runs = [
        subprocess.Popen(
            ["bash", "-c", f'"{sys.executable}" -m noisebook {redirected}'],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for redirected, *_ in STREAMS
    ]
    for run, (redirected, code, errors, lines) in zip(runs, STREAMS, strict=True):
        out, err = run.communicate()
        assert (run.returncode, len(err.splitlines())) == (code, errors), (redirected, out, err)
        assert len(out.splitlines()) >= lines, redirected
        assert "Exception ignored" not in err
    assert not list(tmp_path.iterdir())


def test_a_terminal_without_unicode_gets_escapes(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    run = subprocess.run(
        [sys.executable, "-m", "noisebook", "inspect", "\u65e5\u672c.nbk"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
    )
    assert (run.returncode, run.stderr) == (4, b"")
    assert run.stdout.startswith(b"\\u65e5\\u672c.nbk\n")
