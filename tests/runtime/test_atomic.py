"""Files are written whole or not at all, by this package and by libraries that it lets write."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from noisebook.errors import NoisebookError
from noisebook.runtime import atomic

pytestmark = pytest.mark.quick


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "new" / "f.bin"
    atomic.write_bytes(target, b"one")
    atomic.write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    for name in ("fsync", "replace"):

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr(os, name, full)
            with pytest.raises(NoisebookError, match="No space left"):
                atomic.write_bytes(target, b"three")
        assert target.read_bytes() == b"two"
        assert [p.name for p in target.parent.iterdir()] == ["f.bin"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            atomic.write_bytes(target, b"four")
    assert [p.name for p in target.parent.iterdir()] == ["f.bin"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NoisebookError, match="cannot be written"):
        atomic.write_bytes(tmp_path / "file" / "x", b"")


def test_what_a_library_writes_is_whole_or_not_there(tmp_path, monkeypatch):
    target = tmp_path / "f.bin"
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(b"one")
        assert not target.exists()
    assert target.read_bytes() == b"one"

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as m:
            m.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"), atomic.replacing(target) as temporary:
                temporary.write_bytes(b"two")

    def half(path, error):
        path.write_bytes(b"half")
        raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), atomic.replacing(target) as temporary:
            half(temporary, error)
    with pytest.raises(FileNotFoundError), atomic.replacing(target):
        pass  # nothing is written: that is no reason to lose what was there
    assert target.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_user_gives_to_new_ones(tmp_path, mask):
    """safetensors gives its files to their owner only."""
    old = os.umask(mask)
    try:
        atomic.write_bytes(tmp_path / "a", b"")
        with atomic.replacing(tmp_path / "b") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
    finally:
        os.umask(old)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_what_is_there_is_replaced_only_on_request_and_only_a_regular_file(tmp_path):
    target = tmp_path / "f.bin"
    atomic.write_bytes(target, b"one", replace=False)
    with pytest.raises(NoisebookError, match="--force replaces it"):
        atomic.write_bytes(target, b"two", replace=False)
    assert target.read_bytes() == b"one"
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, word in (("link", "a link"), ("folder", "a folder"), ("pipe", "a pipe")):
        before = os.lstat(tmp_path / name)
        for replace in (False, True):
            with pytest.raises(NoisebookError, match=f"{word} is there, and only regular files are replaced"):
                atomic.write_bytes(tmp_path / name, b"two", replace)
        assert os.lstat(tmp_path / name).st_ino == before.st_ino
    with pytest.raises(NoisebookError, match="a device is there"):
        atomic.write_bytes("/dev/null", b"two")
    with pytest.raises(NoisebookError, match="a link is there"), atomic.replacing(tmp_path / "link"):
        pass
    assert target.read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.bin", "folder", "link", "pipe"]


def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path):
    for name in ("a" * 300, "a\0b", "/".join(["a" * 200] * 30)):
        with pytest.raises(NoisebookError, match="cannot be written"):
            atomic.write_bytes(tmp_path / name, b"")
    longest = tmp_path / ("a" * 255)
    atomic.write_bytes(longest, b"one")  # its temporary name is shorter
    assert longest.read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_temporary_file_is_abandoned_when_its_process_is_gone(tmp_path):
    stray = tmp_path / ".f.bin.abc.tmp"
    stray.write_bytes(b"half")
    assert atomic.is_abandoned(stray)
    with open(stray, "rb+") as owner:
        import fcntl

        fcntl.flock(owner, fcntl.LOCK_EX)
        assert not atomic.is_abandoned(stray)
    assert atomic.is_abandoned(stray)
    assert not atomic.is_abandoned(tmp_path / "none")
