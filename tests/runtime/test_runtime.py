"""Without the C++ extension noisebook works, and nobody can overlook why it is slow."""

import subprocess
import sys
import types
import warnings

import pytest
import torch

from noisebook import codebook
from noisebook.format import container
from noisebook.runtime.native import NoExtensionWarning, native, warn_without_native

HIDDEN = "import sys; sys.modules['noisebook._C'] = None; "


@pytest.fixture
def forgotten():
    """`native` looks for the extension anew, in the test and after it."""
    native.cache_clear()
    yield
    native.cache_clear()


def python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True)


def test_one_loader_serves_both_users():
    assert codebook.extension is container.native is native
    assert native() is None or hasattr(native(), "nbk_parse")


def test_without_the_extension_one_warning_says_so(monkeypatch, forgotten):
    monkeypatch.setitem(sys.modules, "noisebook._C", None)
    monkeypatch.delattr("noisebook._C", raising=False)
    assert codebook.backend(torch.device("cpu")) is codebook.reference
    with pytest.warns(RuntimeWarning, match="C\\+\\+") as caught:
        warn_without_native()
    assert len(caught) == 1
    assert caught[0].category is NoExtensionWarning


def test_an_extension_of_another_version_is_none(monkeypatch, forgotten):
    old = types.ModuleType("noisebook._C")
    monkeypatch.setitem(sys.modules, "noisebook._C", old)
    monkeypatch.setattr("noisebook._C", old, raising=False)
    assert native() is None


def test_no_filter_hides_it_or_makes_it_an_error(monkeypatch, forgotten):
    monkeypatch.setitem(sys.modules, "noisebook._C", None)
    monkeypatch.delattr("noisebook._C", raising=False)
    for action in ("ignore", "error"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            warn_without_native()
        assert [w.category for w in caught] == [NoExtensionWarning]


def test_import_of_the_codec_says_what_to_do():
    code = "import warnings; warnings.simplefilter('ignore'); import noisebook.codec; import noisebook.codec.codec"
    done = python(HIDDEN + code, "-W", "ignore")
    assert done.stdout == ""
    assert done.stderr.count("NoExtensionWarning: noisebook runs without its C++ extension") == 1
    assert "Install a C++ compiler and reinstall noisebook." in done.stderr


def test_with_the_extension_or_without_a_codec_nothing_is_said():
    if native() is not None:
        assert python("import noisebook.codec").stderr == ""
    assert python(HIDDEN + "import noisebook.cli.main, noisebook.format.container").stderr == ""


def test_a_codec_works_without_the_extension():
    code = (
        "import noisebook, torch; recipe = dict(steps=2, budget=4, budget_last=4, vocab_size=16); "
        "codec = noisebook.load('photo', backbone='gaussian-prior', scale_pixels=0, start_budget=0, **recipe); "
        "print(codec.encode((torch.arange(768).reshape(1, 3, 16, 16) % 256).to(torch.uint8)).tolist())"
    )
    without = python(HIDDEN + code)
    assert "NoExtensionWarning" in without.stderr
    assert without.stdout == python(code).stdout
