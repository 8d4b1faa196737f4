"""Inputs that cannot be read or change, a zoo of bad pictures, and pictures that kill or hang what decodes them."""

import io
import os
import shutil
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from faults_deadly import HANGS, KILLS, KILLS_WHILE_SENDING, serve
from faults_kit import SIDE, Child, Ground, faults_of, png, smooth
from PIL import Image

from noisebook.datasets import decoding, ledger, loader
from noisebook.datasets import shard as tokenizer
from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.store import Store


def codes(output: Path) -> dict[str, set[str]]:
    """Key -> the codes of its failures and remarks."""
    found: dict[str, set[str]] = {}
    store = Store(output)
    for name in store.names(ledger.LEDGER):
        entry = ledger.read_ledger(store, int(name.split(".")[0]))
        for row in entry["failed"] + entry["remarks"] if entry else []:
            found.setdefault(row["key"], set()).add(row["code"])
    return found


def rows(output: Path) -> dict[str, bytes]:
    """Key -> tokens."""
    return {row["key"]: np.asarray(row["tokens"]).tobytes() for row in TokenDataset(str(output))}  # type: ignore[misc]


# ---- a zoo of pictures --------------------------------------------------------------------------------------------------
def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be so large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def zoo(rng: np.random.Generator) -> list[tuple[str, bytes | None, str]]:
    """(file name, bytes or None for a folder, the code it should get; "" for none): of SIDE x SIDE pixels where they can."""
    pixels = smooth(rng)
    rgb = Image.fromarray(pixels)
    noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)))
    frames = [Image.fromarray(smooth(rng)) for _ in range(3)]
    jpeg, good, tiff = saved(noise, "JPEG", quality=95), png(pixels), saved(noise, "TIFF", compression="tiff_lzw")
    exif = Image.Exif()
    exif[0x0112] = 6
    idat, webp = good.index(b"IDAT"), saved(noise, "WEBP", lossless=True)
    wide = Image.fromarray(rng.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16))
    sized = bytearray(jpeg)
    sof = sized.index(b"\xff\xc0")
    sized[sof + 5 : sof + 9] = struct.pack(">HH", 65500, 65500)
    broken = jpeg[:2] + b"\xff\xe1\x00\x16Exif\x00\x00II*\x00\xff\xff\xff\xff\x01\x02\x03\x04\x05\x06" + jpeg[2:]
    return [
        ("truncated.jpg", jpeg[: len(jpeg) // 2], "damaged"),
        ("broken-exif.jpg", broken, "exif"),
        ("no-bytes.png", b"", "empty"),
        ("one-pixel.png", png(pixels[:1, :1]), "tiny"),
        ("16-bit.png", saved(wide, "PNG"), "bits16"),
        ("cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG"), "cmyk"),
        ("palette-alpha.png", saved(alpha.quantize(16), "PNG"), "alpha"),
        ("alpha.png", saved(alpha, "PNG"), "alpha"),
        ("animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated"),
        ("animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        ("animated.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        ("bomb.png", claiming(30000, 30000), "too_large"),
        ("huge-header.jpg", bytes(sized), "too_large"),
        ("extension.png", jpeg, "wrong_extension"),
        ("text.jpg", b"this is a text, not a picture\n" * 9, "not_an_image"),
        ("folder.png", None, "unreadable"),
        ("gray.png", saved(rgb.convert("L"), "PNG"), "gray"),
        ("gray-alpha.png", saved(alpha.convert("LA"), "PNG"), "alpha"),
        ("progressive.jpg", saved(noise, "JPEG", progressive=True), ""),
        ("rotated.jpg", saved(noise, "JPEG", exif=exif), "rotated"),
        ("bad-crc.png", flipped(good, len(good) - 14), "damaged"),
        ("bad-pixels.png", flipped(good, idat + 20), "damaged"),
        ("bad-header.png", flipped(good, 19), "damaged"),
        ("truncated.png", good[: len(good) // 2], "damaged"),
        ("cut.webp", webp[: len(webp) // 2], "damaged"),
        ("damaged-lzw.tif", _lzw(tiff), "damaged"),
        ("cut.gif", saved(noise, "GIF")[:900], "damaged"),
    ]


def _lzw(tiff: bytes) -> bytes:
    """The strip of a TIFF overwritten with codes that no LZW table has."""
    with Image.open(io.BytesIO(tiff)) as image:
        start, count = image.tag_v2[273][0], image.tag_v2[279][0]  # type: ignore[attr-defined]
    return tiff[:start] + b"\xff" * count + tiff[start + count :]


def zoo_run(ground: Ground, workers: int = 1) -> dict[str, Any]:
    """The zoo in shards of its own, behind 16 good pictures and before 8: each member has its row, and the good ones' tokens
    are those of a run without the zoo. Then every member alone with --mixed-sizes: none stops a run."""
    plain, mixed = ground.folder / "plain", ground.folder / "zoo"
    plain.mkdir()
    for i in range(16):
        (plain / f"a{i:02d}.png").write_bytes(png(smooth(ground.rng)))
    shutil.copytree(plain, mixed)
    members, faults, table = zoo(ground.rng), [], []
    for name, data, _ in members:
        (mixed / f"m-{name}").write_bytes(data) if data is not None else (mixed / f"m-{name}").mkdir()
    with_zoo, without = (ground.whole(source=s, workers=workers, code=None) for s in (mixed, plain))
    found, tokens = codes(with_zoo), rows(with_zoo)
    for name, _, wanted in members:
        got = found.pop(f"m-{name}", set())
        table.append({"member": name, "code": ", ".join(sorted(got)), "tokens": f"m-{name}" in tokens})
        if (wanted not in got) if wanted else bool(got):
            faults.append(f"{name}: {got or 'nothing'}, not {wanted or 'nothing'}")
    faults += [f"{key}: {got}" for key, got in found.items()]
    same = [tokens.get(key) == value for key, value in rows(without).items()]
    if not all(same) or len(same) != 16:
        faults.append(f"{same.count(False)} good pictures have other tokens")
    faults += [x for x in faults_of(with_zoo, "") if not x.startswith("other bytes")]
    child = Child(ground.arguments(with_zoo, "--resume", source=mixed))
    faults += [] if child.wait() == 3 else ["exit code not 3"]
    child = Child(ground.arguments(ground.output(), "--mixed-sizes", source=mixed))
    if child.wait() != 3:
        faults.append(f"--mixed-sizes: exit code {child.code}: {child.errors()[-300:]}")
    return {"members": table, "tried": len(members), "good_unchanged": sum(same), "faults": faults}


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
    pictures = [png(smooth(rng)) for _ in range(12)]
    other = png(smooth(rng))

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
    (other / "zzz.png").write_bytes(png(smooth(ground.rng)))
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
        (source / name).write_bytes(bad.get(name) or png(smooth(ground.rng)))

    def prepare() -> None:
        loader.serve = serve
        there = loader.Workers.__init__
        loader.Workers.__init__ = lambda self, count, patience=PATIENCE: there(self, count, patience)  # type: ignore

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
