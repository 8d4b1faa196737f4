"""Inputs that cannot be read or change, and pictures that kill or hang what decodes them."""

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.lib.images import smooth
from bench.reliability.faults_deadly import HANGS, KILLS, KILLS_WHILE_SENDING, serve
from bench.reliability.faults_kit import Child, Ground, faults_of
from bench.reliability.faults_zoo import codes, flipped
from noisebook.datasets import decoding, loader
from noisebook.datasets import shard as tokenizer
from noisebook.images.io import png_bytes
from noisebook.runtime.limits import DEFAULT


# ---- inputs that cannot be read, or change ------------------------------------------------------------------------------
def _tar(path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(pictures):
            for ending, some in (("png", data), ("cls", b"%d" % i)):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(some)
                tar.addfile(info, io.BytesIO(some))


def _parquet(path: Path, pictures: list[bytes]) -> None:
    table = pa.table({"image": pictures, "label": list(range(len(pictures)))})
    pq.write_table(table, path, row_group_size=4, compression="none", write_page_checksum=True)


def _flip(path: Path, place: int) -> None:
    path.write_bytes(flipped(path.read_bytes(), place))


def _overwritten(path: Path, data: bytes) -> None:
    """Other bytes in place, at another time."""
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1_000_000_000))


def nothing(_: Path) -> None:
    """No fault here."""


def cases(rng: np.random.Generator) -> Iterator[tuple[str, Callable[[Path], None], dict[str, str], Callable, Callable]]:
    """(name, makes the input, key -> code wanted, the fault before the plan, the fault between plan and reading)."""
    pictures = [png_bytes(smooth(rng)) for _ in range(12)]
    other = png_bytes(smooth(rng))

    def folder(to: Path) -> None:
        for i, data in enumerate(pictures):
            (to / f"{i:03d}.png").write_bytes(data)

    def tar(to: Path) -> None:
        _tar(to / "x.tar", pictures)

    def parquet(to: Path) -> None:
        _parquet(to / "x.parquet", pictures)

    def cut(to: Path) -> None:
        os.truncate(to / "x.tar", 512 * 21 + 600)

    def end(to: Path) -> None:
        with tarfile.open(to / "x.tar") as tar:
            os.truncate(to / "x.tar", tar.getmembers()[14].offset)

    def header(to: Path) -> None:
        with tarfile.open(to / "x.tar") as tar:
            _flip(to / "x.tar", tar.getmembers()[14].offset + 5)

    def label(to: Path) -> None:
        place = pq.ParquetFile(to / "x.parquet").metadata.row_group(1).column(1)
        _flip(to / "x.parquet", place.dictionary_page_offset + place.total_compressed_size // 2)

    def image(to: Path) -> None:
        place = pq.ParquetFile(to / "x.parquet").metadata.row_group(1).column(0)
        _flip(to / "x.parquet", (place.dictionary_page_offset or place.data_page_offset) + place.total_compressed_size // 2)

    def linked(to: Path) -> None:
        (to / "005.png").rename(to.parent / f"{to.name}-elsewhere.png")
        (to / "005.png").symlink_to(to.parent / f"{to.name}-elsewhere.png")

    def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def act(to: Path) -> None:
            (to / "005.png").unlink()
            make(to / "005.png")

        return act

    def named(to: Path) -> None:
        os.rename(os.fsencode(to / "005.png"), os.fsencode(to) + b"/005\xff.png")

    five = "005.png"
    rows_4 = {f"x/{i}": "unreadable" for i in range(4, 8)}
    yield "permission denied", folder, {five: "unreadable"}, nothing, nothing
    yield "a folder in its place, after the plan", folder, {five: "changed"}, nothing, replaced(Path.mkdir)
    yield "a pipe in its place, before", folder, {five: "unreadable"}, replaced(os.mkfifo), nothing
    yield "a pipe in its place, after the plan", folder, {five: "changed"}, nothing, replaced(os.mkfifo)
    yield "a link to nothing", folder, {five: "missing"}, replaced(lambda p: p.symlink_to("nowhere")), nothing
    yield "a link to a picture", folder, {}, linked, nothing
    yield "a name that is not UTF-8", folder, {"005\\xff.png": "unreadable"}, named, nothing
    yield "a circle of links", folder, {}, lambda to: (to / "round").symlink_to(to), nothing
    yield "vanishes after the plan", folder, {five: "missing"}, nothing, lambda to: (to / five).unlink()
    yield "grows after the plan", folder, {five: "changed"}, nothing, lambda to: _overwritten(to / five, pictures[5] + b"0")
    yield "is touched after the plan", folder, {five: "changed"}, nothing, lambda to: _overwritten(to / five, pictures[5])
    same = other[: len(pictures[5])].ljust(len(pictures[5]), b"0")
    yield "is rewritten in equal size", folder, {five: "changed"}, nothing, lambda to: _overwritten(to / five, same)
    yield "a tar cut within a picture", tar, {"x.tar": "damaged", "?": "damaged"}, cut, nothing
    yield "a tar cut between two members", tar, {"x.tar": "damaged"}, end, nothing
    yield "a bit flipped in a header of a tar", tar, {"x.tar": "damaged"}, header, nothing
    gone = {f"{i:03d}": "missing" for i in range(12)}
    yield "a tar that vanishes after the plan", tar, gone, nothing, lambda to: (to / "x.tar").unlink()
    late = {f"{i:03d}": "changed" for i in range(12)}

    def tar_again(to: Path) -> None:
        _tar(to / "x.tar", pictures[::-1])
        os.utime(to / "x.tar", (1, 1))

    def parquet_again(to: Path) -> None:
        _parquet(to / "x.parquet", pictures[::-1])
        os.utime(to / "x.parquet", (1, 1))

    def two_parquets(to: Path) -> None:
        parquet(to)
        shutil.copy(to / "x.parquet", to / "y.parquet")
        _flip(to / "y.parquet", (to / "y.parquet").stat().st_size - 4)

    yield "a tar rewritten after the plan", tar, late, nothing, tar_again
    yield "a bit flipped in a page of images", parquet, rows_4, image, nothing
    yield "a bit flipped in a page of labels", parquet, rows_4, label, nothing
    changed = {f"x/{i}": "changed" for i in range(12)}
    yield "a Parquet rewritten after the plan", parquet, changed, nothing, parquet_again
    yield "the footer of a Parquet damaged", two_parquets, {"y.parquet": "unreadable"}, nothing, nothing


def inputs_run(ground: Ground, only: Callable[[int], bool] = lambda _: True) -> dict[str, Any]:
    """Every case: the codes are those wanted and no others, exit code 3 (0 where there are none), the data set is whole by
    `verify`, and a resumed run on an input that has changed is refused."""
    faults, table = [], []
    for number, (name, make, wanted, before, between) in enumerate(cases(ground.rng)):
        if not only(number):
            continue
        source = ground.folder / f"case-{number}"
        source.mkdir()
        make(source)
        before(source)
        output = ground.output()

        def prepare(source: Path = source, between: Callable = between, name: str = name) -> None:
            if name == "permission denied":  # not by chmod: permissions do not bind root
                _deny("005.png")
            there = tokenizer.Tokenizer.run
            tokenizer.Tokenizer.run = lambda *a: (between(source), there(*a))[1]  # type: ignore[method-assign]

        child = Child(ground.arguments(output, source=source), prepare)
        code, bad = child.wait(), []
        found = {key: ", ".join(sorted(x)) for key, x in codes(output).items()} if output.exists() else {}
        table.append({"case": name, "codes": sorted(set(found.values())), "rows": len(found), "exit": code})
        unnamed = wanted.pop("?", None)  # one more, whose key depends on sizes
        extra = {k: v for k, v in found.items() if wanted.get(k) != v}
        if set(wanted) - set(found) or list(extra.values()) != ([unnamed] if unnamed else []) or code != (3 if found else 0):
            bad.append(f"{found}, exit code {code}: {child.errors()[-400:]}")
        else:
            bad += [x for x in faults_of(output, "") if not x.startswith("other bytes")]
        if between is not nothing:
            again = Child(ground.arguments(output, "--resume", source=source))
            if (code := again.wait()) != 7 or len(again.message()) != 1:
                bad.append(f"resumed on a changed input: exit code {code}: {again.errors()[-300:]}")
        faults += [f"{name}: {x}" for x in bad]
    return {"cases": table, "tried": len(table), "faults": faults}


def _deny(name: str) -> None:
    there = decoding.refuse_changed

    def denied(file: Any) -> None:
        if file.name == name:
            raise PermissionError(13, "Permission denied")
        there(file)

    decoding.refuse_changed = denied


def refusals(ground: Ground) -> dict[str, Any]:
    """What --resume must refuse: exit code 7, one line, nothing changed; and the same without --resume."""
    output, faults, tried = ground.whole(), [], 0
    other = ground.folder / "other"
    shutil.copytree(ground.input, other)
    (other / "zzz.png").write_bytes(png_bytes(smooth(ground.rng)))
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and p.name[0] != "."}
    runs = {"no --resume": ([], None), "one more picture": (["--resume"], other)} | {
        f"{option} {value}": (["--resume", option, value], None)
        for option, value in (
            ("--shard-size", "7"),
            ("--batch-size", "3"),
            ("--vocab-size", "128"),
            ("--start-budget", "1"),
            ("--steps", "3"),
            ("--resize", "8"),
            ("--dtype", "bfloat16"),
            ("--seed", "1"),
        )
    }
    for name, (more, source) in runs.items():
        child = Child(ground.arguments(output, *more, source=source))
        tried += 1
        if child.wait() != 7 or len(child.message()) != 1:
            faults.append(f"{name}: exit code {child.code}: {child.errors()[-300:]}")
    after = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and p.name[0] != "."}
    return {"tried": tried, "faults": faults + ([] if after == before else ["a refused run has changed files"])}


# ---- pictures that kill -------------------------------------------------------------------------------------------------
PATIENCE = 4.0  # seconds until a picture hangs


def deaths(ground: Ground, workers: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Pictures that kill or hang their worker, among good ones: each gets its code, the others their tokens in order."""
    faults, table = [], []
    source = ground.folder / "deadly"
    source.mkdir()
    wanted = {"003.png": "worker_died", "012.png": "timeout", "013.png": "worker_died", "030.png": "worker_died"}
    bad = {"003.png": KILLS, "012.png": HANGS, "013.png": KILLS, "030.png": KILLS_WHILE_SENDING}
    for i in range(80):  # the first 64 are looked at for their size: those too are decoded in workers
        name = f"{i:03d}.png"
        (source / name).write_bytes(bad.get(name) or png_bytes(smooth(ground.rng)))

    def prepare() -> None:
        loader.serve = serve
        there = loader.Workers.__init__
        loader.Workers.__init__ = lambda self, count, _=0.0, limits=DEFAULT: there(self, count, PATIENCE, limits)  # type: ignore

    for count in workers:
        output, begin = ground.output(), time.monotonic()
        child = Child(ground.arguments(output, source=source, workers=count), prepare)
        code = child.wait(300)
        found = {key: ", ".join(x) for key, x in codes(output).items()}
        if found != wanted or code != 3:
            faults.append(f"{count} workers: {found}, exit code {code}: {child.errors()[-300:]}")
        else:
            faults += [x for x in faults_of(output, "") if not x.startswith("other bytes")]  # order of keys among them
        table.append({"workers": count, "rows": found, "seconds": round(time.monotonic() - begin, 1)})
    return {"tried": len(table) * len(bad), "patience": PATIENCE, "runs": table, "faults": faults}
