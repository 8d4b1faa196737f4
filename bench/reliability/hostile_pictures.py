"""Hostile pictures, alone, in folders, in tars and in Parquet files."""

import io
import struct
import tarfile
import zlib
from typing import Any

import numpy as np
from PIL import Image

from bench.reliability.hostile_kit import Case, Command, Place
from bench.reliability.hostile_models import FEW
from bench.reliability.hostile_values import INTEGERS, Rng, some, string
from noisebook.errors import NoisebookError
from noisebook.images.io import read_image

COST = (20.0, 1500.0)
FORMS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "MPO", "DIB", "AVIF")
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK")
ENDINGS = (".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", ".ppm")


def pixels(rng: Rng, mode: str) -> Image.Image:
    side = int(rng.choice([1, 8, 32]))
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    return image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)


def honest(rng: Rng) -> bytes:
    """A picture of any format that Pillow writes here."""
    while True:
        form, mode = FORMS[rng.integers(len(FORMS))], MODES[rng.integers(len(MODES))]
        buffer, options = io.BytesIO(), {}
        if rng.random() < 0.2:
            options = {"exif": b"Exif\0\0" + rng.bytes(60)} if form in ("PNG", "JPEG", "WEBP") else {}
        if form in ("GIF", "TIFF", "WEBP", "MPO") and rng.random() < 0.3:
            options |= {"save_all": True, "append_images": [pixels(rng, mode)] * int(rng.choice([1, 50]))}
        try:
            pixels(rng, mode).save(buffer, form, **options)
            return buffer.getvalue()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            continue


def png(rng: Rng, place: Place) -> bytes:
    """Chunks with right checksums and any contents."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = [int(rng.choice([1, 32, 5000, 20_000, 65_536, (1 << 31) - 1])) if rng.random() < 0.5 else 16 for _ in range(2)]
    depth, colour = int(rng.choice([1, 2, 4, 8, 16])), int(rng.choice([0, 2, 3, 4, 6]))
    head = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, int(rng.choice([0, 0, 1])))
    body = zlib.compress(bytes(int(rng.choice([100, 5000, 1 << 20]))), 9)
    extra = b""
    if rng.random() < 0.4:
        packed = zlib.compress(bytes(8 << 20), 9)
        kinds = [b"tEXt", b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL"]
        text = string(rng, place.traps).encode("utf-8", "replace")[:2000]
        extra = chunk(kinds[rng.integers(len(kinds))], [b"n\0\0" + packed, text, rng.bytes(30)][rng.integers(3)])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(rng: Rng) -> bytes:
    """A directory of tags with any values."""
    big = int(INTEGERS[rng.integers(len(INTEGERS))]) & 0xFFFFFFFF
    values = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256, 284: 1}
    for tag in list(values):
        if rng.random() < 0.15:
            values[tag] = big if rng.random() < 0.5 else int(rng.integers(0, 40_000))
    if rng.random() < 0.2:
        values |= {322: int(rng.choice([16, 1 << 16, 1 << 31])), 323: 16, 324: 8, 325: 256}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, v & 0xFFFFFFFF) for tag, v in sorted(values.items()))
    data = rng.bytes(256)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(values)) + entries + bytes(4)


def program(place: Place) -> list[bytes]:
    """Formats for which Pillow, or what it calls, starts a program or reads a file that is named inside."""
    eps = place.base["eps"]
    return [
        eps,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20) + eps,
        b"%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\ntrailer << /Root 1 0 R >>\n%%EOF",
        b"\xd7\xcd\xc6\x9a" + bytes(100),
        b"#FIG 3.2\n",
        f"P6 16 16 255\n{place.traps.file}\n".encode(),
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:{place.traps.port}/x"/></svg>'.encode(),
        b"push graphic-context\nviewbox 0 0 64 64\nimage over 0,0 0,0 'ephemeral:/x'\npop graphic-context\n",
    ]


def picture(place: Place, rng: Rng) -> bytes:
    how = some(rng, 6, 4, 3, 1.5, 1.5)
    if how == 0:
        return honest(rng)
    if how == 1:
        return png(rng, place)
    if how == 2:
        return tiff(rng)
    if how == 3:
        return program(place)[rng.integers(len(program(place)))]
    data = bytearray(honest(rng))  # a few bytes of the header, wherever fields of sizes are
    for _ in range(int(rng.integers(1, 4))):
        data[rng.integers(min(len(data), 64))] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(data)


def readable(data: bytes) -> bool:
    try:
        read_image(io.BytesIO(data))
    except NoisebookError as error:
        return "pixels" in str(error) or "damaged" in str(error)  # the format was taken
    return True


def make_picture(place: Place, rng: Rng) -> Case:
    data = picture(place, rng)
    path = place.inputs / f"photo{ENDINGS[rng.integers(len(ENDINGS))]}"
    path.write_bytes(data)
    out = str(place.outputs / "o")
    backbone = ["--backbone", "gaussian-prior", *FEW]
    if rng.random() < 0.7:
        commands = [Command(["encode", str(path), "-o", out, *backbone, "--max-pixels", "300000"], *COST)]
    else:
        memory = ["--memory", "900M", "--max-pixels", "300000"]
        commands = [Command(["tokenize", str(place.inputs), "-o", out, "--workers", "0", *backbone, *memory], *COST)]
    return Case(readable(data), commands, path.suffix)


# ---- many in one file ---------------------------------------------------------------------------------------------------
def tar(place: Place, rng: Rng) -> bytes:
    """Members with any name, kind and size; small enough to be read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=int(rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))) as archive:
        for i in range(int(rng.integers(1, 6))):
            data = picture(place, rng)
            name = f"{i}.png" if rng.random() < 0.5 else string(rng, place.traps)[:3000].replace("\0", "0") + ".png"
            info = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
            info.size = len(data)
            if rng.random() < 0.25:
                kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
                info.type = kinds[rng.integers(len(kinds))]
                info.linkname = str(place.traps.file) if rng.random() < 0.5 else "0.png"
                info.size = 0
            if rng.random() < 0.2:
                info.pax_headers = {"GNU.sparse.major": "1", "comment": "x\n" * 3}
            try:
                archive.addfile(info, io.BytesIO(data) if info.size else None)
                for kind in ("cls", "json", "txt"):
                    if rng.random() < 0.2:
                        extra = string(rng, place.traps).encode("utf-8", "surrogatepass")[:2000]
                        other = tarfile.TarInfo(f"{i}.{kind}")
                        other.size = len(extra)
                        archive.addfile(other, io.BytesIO(extra))
            except (ValueError, UnicodeError):
                continue
    return buffer.getvalue()


def table(place: Place, rng: Rng) -> bytes:
    """A Parquet file with few bytes and many rows, or odd columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = int(rng.choice([1, 3, 2000, 20_000, 2_000_000], p=[0.4, 0.35, 0.15, 0.06, 0.04]))
    one = picture(place, rng)
    few: Any = [one if rng.random() < 0.8 else None for _ in range(min(rows, 3))]
    struct_ = rng.random() < 0.5
    values = pa.array([None] * rows if rows > 3 else few, pa.binary())
    images: Any = (
        values if not struct_ else pa.StructArray.from_arrays([values, pa.nulls(rows, pa.string())], ["bytes", "path"])
    )
    columns = {"image": images, "label": pa.array(np.zeros(rows, np.int64))}
    if rng.random() < 0.3:
        columns[string(rng, place.traps)[:500].encode("utf-8", "replace").decode()] = pa.nulls(rows, pa.int64())
    if rng.random() < 0.1:
        columns["zeros"] = pa.array([bytes(1 << 20)] * min(rows, 3) + [None] * max(0, rows - 3), pa.binary())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=int(rng.choice([1000, 1 << 20])), compression="zstd")
    return buffer.getvalue()


def make_many(place: Place, rng: Rng) -> Case:
    kind = str(rng.choice(["tar", "parquet", "pictures"]))
    source: Any = place.inputs
    if kind == "tar":
        (place.inputs / "a.tar").write_bytes(tar(place, rng))
    elif kind == "parquet":
        (place.inputs / "a.parquet").write_bytes(table(place, rng))
    else:
        for _ in range(3):
            name = string(rng, place.traps).replace("/", "_").replace("\0", "0")[:200].encode("utf-8", "replace")[:240]
            (place.inputs / (name.decode("utf-8", "replace") + ".png")).write_bytes(picture(place, rng))
    out = str(place.outputs / "o")
    codec = ["--backbone", "gaussian-prior", *FEW, "--workers", "0", "--memory", "900M", "--max-pixels", "300000"]
    command = Command(["tokenize", str(source), "-o", out, *codec, "--max-rows", "25000", "--resize", "8"], 60.0, 1000.0)
    return Case(True, [command], kind)
