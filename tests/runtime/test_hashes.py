"""Hashes of files: what they are, and a cache of them that nobody has to trust."""

import hashlib
import json
import os
import stat
import time

import pytest

from noisebook.runtime import cache, hashes
from noisebook.runtime.hashes import FileChangedError, Stamp, hashes_of

pytestmark = pytest.mark.quick


@pytest.fixture
def small(monkeypatch):
    """Pieces of 64 bytes, and files of 100 bytes that are worth noting down."""
    for name, value in {"PIECE": 64, "BLOCK": 16, "NOTED": 100}.items():
        monkeypatch.setattr(hashes, name, value)


@pytest.fixture
def notes(small, tmp_path, monkeypatch):
    """The file of the cache, which is on, in a folder that is not there yet."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "home" / "cache"))
    return tmp_path / "home" / "cache" / hashes.NOTES


@pytest.fixture
def settled(monkeypatch):
    """Every file is old."""
    monkeypatch.setattr(hashes, "SETTLED", -1000.0)


@pytest.fixture
def reads(monkeypatch):
    """The pieces that were read."""
    found, piece = [], hashes._hash_piece
    monkeypatch.setattr(hashes, "_hash_piece", lambda p: found.append(p) or piece(p))
    return found


def definition(data: bytes, piece: int = 64) -> str:
    """As the module's text says."""
    digests = [hashlib.sha256(data[i : i + piece]).digest() for i in range(0, len(data), piece)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def hashed(*paths) -> list[str]:
    return hashes_of(paths, [Stamp.of(path) for path in paths])


def written(path, data: bytes):
    path.write_bytes(data)
    return path


def test_a_private_folder_is_made_unless_others_could_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert cache.private_folder("x") is None
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "home/cache"))
    place = tmp_path / "home/cache/x"
    assert cache.private_folder("x") == cache.private_folder("x") == place
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place.parent)] == [0o700, 0o700]
    place.chmod(0o777)
    assert cache.private_folder("x") is None
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    assert cache.private_folder("x") is None
    monkeypatch.setenv(cache.VARIABLE, "/dev/null/cache")
    assert cache.private_folder("x") is None


@pytest.mark.parametrize("threads", [1, 8])
def test_the_hash_is_its_definition_with_any_number_of_threads(small, tmp_path, fresh, monkeypatch, threads):
    monkeypatch.setattr(hashes, "THREADS", threads)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    sizes = [0, 1, 15, 16, 17, 63, 64, 65, 128, int(fresh.integers(129, 5000))]
    data = [fresh.bytes(size) for size in sizes]
    paths = [written(tmp_path / str(i), content) for i, content in enumerate(data)]
    assert hashed(*paths) == list(map(definition, data))


def test_pieces_have_16_mebibytes(tmp_path):
    """Files carry it: it does not change."""
    data = bytes(range(256)) * 65536 + b"and one more"
    assert hashes.PIECE == 2**24 < len(data)
    assert hashed(written(tmp_path / "a", data)) == [definition(data, 2**24)]
    assert definition(b"") == hashlib.sha256().hexdigest()


def test_a_hash_is_noted_down_for_its_user_only_and_found_again(notes, settled, reads, tmp_path, fresh):
    small, large = (written(tmp_path / name, fresh.bytes(size)) for name, size in (("a", 99), ("b", 300)))
    first = hashed(small, large)
    assert len(reads) == 2 + 5
    assert stat.S_IMODE(notes.stat().st_mode) == 0o600
    assert stat.S_IMODE(notes.parent.stat().st_mode) == 0o700
    assert json.loads(notes.read_text()) == {Stamp.of(large).key: first[1]}
    reads.clear()
    assert hashed(small, large) == first
    assert {path for path, *_ in reads} == {small}  # it is hashed sooner than a file of notes is read
    written(tmp_path / "c", large.read_bytes())
    assert hashed(tmp_path / "c") == first[1:]  # another file of these bytes is noted down beside it
    assert len(json.loads(notes.read_text())) == 2


def test_a_file_that_was_changed_is_hashed_again(notes, settled, tmp_path, fresh):
    """Also where its size and its time of change are what they were."""
    path, before = written(tmp_path / "a", fresh.bytes(200)), Stamp.of(tmp_path / "a")
    old = hashed(path)
    time.sleep(0.02)  # more than a tick of the file system's clock
    with open(path, "rb+") as f:
        f.write(bytes(255 - b for b in path.read_bytes()[:1]))
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns))
    assert (Stamp.of(path).size, Stamp.of(path).mtime_ns) == (before.size, before.mtime_ns)
    assert hashed(path) == [definition(path.read_bytes())] != old


def test_a_file_of_this_moment_is_not_noted_down(notes, tmp_path, fresh, monkeypatch):
    path = written(tmp_path / "a", fresh.bytes(200))
    hashed(path)
    assert not notes.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3)
    hashed(path)
    assert notes.exists()


def test_a_cache_that_is_off_writes_nothing(notes, settled, tmp_path, fresh, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    hashed(written(tmp_path / "a", fresh.bytes(200)))
    assert not (tmp_path / "home").exists()
    assert cache.cache_folder() is None


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_folder() == tmp_path / ".cache" / "noisebook"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # never where somebody happens to stand
    assert cache.cache_folder() == tmp_path / ".cache" / "noisebook"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.cache_folder() == tmp_path / "x" / "noisebook"
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "y"))
    assert cache.cache_folder() == tmp_path / "y"


KEY, WRONG = "1:2:3:4:5", "0" * 64
DAMAGES = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no text": b'{"1:2:3:4:5": 1}',
    "no digest": b'{"1:2:3:4:5": "zz"}',
    "another key": b'{"../x": "%s"}' % (64 * b"0"),
    "twice": b'{"1": "%s", "1": "%s"}' % (64 * b"0", 64 * b"1"),
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "huge": b'{"1": "%s"' % (64 * b"0") + b" " * cache.MOST + b"}",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_passed_over_and_replaced(notes, settled, tmp_path, fresh, content):
    notes.parent.mkdir(parents=True, mode=0o700)
    path = written(tmp_path / "a", fresh.bytes(200))
    notes.write_bytes(content.replace(KEY.encode(), Stamp.of(path).key.encode()))
    assert hashed(path) == [definition(path.read_bytes())]
    assert json.loads(notes.read_text()) == {Stamp.of(path).key: definition(path.read_bytes())}


@pytest.mark.parametrize("how", ["file", "folder", "link", "pipe", "a folder for all", "a link to a folder"])
def test_what_others_may_have_written_is_not_believed(notes, settled, tmp_path, fresh, how):
    path = written(tmp_path / "a", fresh.bytes(200))
    lie = json.dumps({Stamp.of(path).key: WRONG})
    notes.parent.mkdir(parents=True, mode=0o700)
    if how == "folder":
        notes.mkdir()
    elif how == "link":
        notes.symlink_to(written(tmp_path / "lie", lie.encode()))
    elif how == "pipe":
        os.mkfifo(notes)
    else:
        notes.write_text(lie)
        notes.chmod(0o602 if how == "file" else 0o600)
        notes.parent.chmod(0o777 if how == "a folder for all" else 0o700)
    if how == "a link to a folder":
        notes.parent.rename(tmp_path / "there")
        notes.parent.symlink_to(tmp_path / "there")
    assert hashed(path) == [definition(path.read_bytes())]


def test_a_cache_of_ones_own_is_believed(notes, settled, tmp_path, fresh):
    """Else the tests above could not fail."""
    path = written(tmp_path / "a", fresh.bytes(200))
    notes.parent.mkdir(parents=True, mode=0o700)
    notes.write_text(json.dumps({Stamp.of(path).key: WRONG}))
    notes.chmod(0o600)
    assert hashed(path) == [WRONG]


def test_a_cache_that_cannot_be_written_is_no_error(notes, settled, tmp_path, fresh, monkeypatch):
    path = written(tmp_path / "a", fresh.bytes(200))
    written(tmp_path / "home", b"no folder")
    assert hashed(path) == [definition(path.read_bytes())]
    (tmp_path / "home").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert hashed(path) == [definition(path.read_bytes())]
    assert not notes.exists()
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_the_oldest_notes_go(notes, monkeypatch):
    monkeypatch.setattr(cache, "MOST_NOTES", 3)
    for key in "12345":
        cache.add_notes(hashes.NOTES, {key: WRONG})
    assert list(cache.read_notes(hashes.NOTES)) == ["3", "4", "5"]
    most = {f"{2**64 - i}:{2**64}:{2**64}:{2**64}:{2**64}": WRONG for i in range(4096)}
    monkeypatch.undo()
    monkeypatch.setenv(cache.VARIABLE, str(notes.parent))
    cache.add_notes(hashes.NOTES, most)
    assert cache.read_notes(hashes.NOTES) == most, "as many notes as there may be are read again"


def test_a_file_that_changes_under_the_hand_is_refused(notes, settled, tmp_path, fresh, monkeypatch):
    path, piece = written(tmp_path / "a", fresh.bytes(200)), hashes._hash_piece
    stamp = Stamp.of(path)
    monkeypatch.setattr(hashes, "THREADS", 1)

    def grown(given):
        digest = piece(given)
        with open(path, "ab") as f:
            f.write(b"more")
        return digest

    monkeypatch.setattr(hashes, "_hash_piece", grown)
    with pytest.raises(FileChangedError, match="has changed since it was read"):
        hashes_of([path], [stamp])
    monkeypatch.setattr(hashes, "_hash_piece", piece)
    with pytest.raises(FileChangedError):  # another file in its place
        hashes_of([path], [stamp])
    assert not notes.exists()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        hashes_of([path], [stamp])
