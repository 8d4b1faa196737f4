"""A data set leads nowhere else, and only noisebook's own temporary files are removed."""

import os

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from noisebook.datasets.export import export
from noisebook.datasets.store import Store
from noisebook.errors import DatasetError, ImageError, NoisebookError
from noisebook.images.io import find_files, png_bytes
from noisebook.runtime import atomic
from tools import golden_datasets as golden


@pytest.mark.parametrize("name", ["shards", "ledger", "shards/000000.parquet", "plan.json"])
def test_a_link_in_a_data_set_is_refused(name, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder = golden.copied(tmp_path / "sets") / "pictures"
    os.rename(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    store = Store(folder)
    file = name if "." in name else f"{name}/x"
    with pytest.raises(DatasetError, match="a link, and a data set leads nowhere else"):
        store.read(file)
    with pytest.raises(DatasetError, match="a link"):
        store.write(file, b"")
    if "." not in name:
        with pytest.raises(DatasetError, match="a link"):
            store.names(name)
        with pytest.raises(DatasetError, match="a link"):
            store.collect_strays(("", name))


def test_only_temporary_names_of_noisebook_are_strays(tmp_path):
    kept = [".notes.tmp", ".a.txt.tmp", ".x.12345678.tmp.keep", "a.12345678.tmp"]
    for name in [*kept, ".000000.parquet.ab_12xyz.tmp"]:
        (tmp_path / name).write_text("x")
    assert Store(tmp_path).collect_strays(("",)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_library_writes_under_a_name_of_its_own(tmp_path):
    (tmp_path / ".f.bin.tmp").write_text("of the user")
    dead = tmp_path / ".f.bin.noisebook-999999999.tmp"
    dead.write_text("left by a killed process")
    with atomic.replacing(tmp_path / "f.bin") as temporary:
        temporary.write_bytes(b"one")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.bin.tmp", "f.bin"]
    assert (tmp_path / ".f.bin.tmp").read_text() == "of the user"


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        atomic.folder_lock(tmp_path / "run"),
        pytest.raises(NoisebookError, match="another process is writing here"),
        atomic.folder_lock(tmp_path / "run"),
    ):
        pass
    with atomic.folder_lock(tmp_path / "run"):
        pass


def test_a_folder_loses_no_picture(tmp_path):
    pixels = png_bytes(np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for place in ("in/a.png", "in/sub/b.png", "other/c.png"):
        (tmp_path / place).write_bytes(pixels)
    (tmp_path / "in/linked").symlink_to(tmp_path / "other")
    (tmp_path / "in/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.png").symlink_to("nothing")
    (tmp_path / "in/folder.png").mkdir()
    os.mkfifo(tmp_path / "in/pipe.png")
    found = [str(p.relative_to(tmp_path / "in")) for p in find_files([tmp_path / "in"])]
    assert found == ["a.png", "folder.png", "gone.png", "linked/c.png", "pipe.png", "sub/b.png"]


def test_a_folder_that_cannot_be_listed_is_no_folder_without_pictures(tmp_path, monkeypatch):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a.png").write_bytes(b"")
    there = os.scandir

    def scandir(path="."):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(os, "scandir", scandir)  # permissions do not bind the administrator
    with pytest.raises(ImageError, match="sub: cannot be listed: Permission denied"):
        find_files([tmp_path / "in"])


def test_an_export_holds_no_token_outside_the_vocabulary(tmp_path, monkeypatch):
    folder = golden.copied(tmp_path / "sets") / "pictures"
    from noisebook.datasets.reader import TokenDataset

    there = TokenDataset.read

    def read(self, entry):
        return [{**row, "tokens": row["tokens"].astype(np.uint32) + (1 << 20)} for row in there(self, entry)]

    monkeypatch.setattr(TokenDataset, "read", read)
    with pytest.raises(NoisebookError, match="outside its vocabulary"):
        export(str(folder), tmp_path / "out", "npy")
    assert not (tmp_path / "out").exists()
