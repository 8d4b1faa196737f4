"""A zoo of bad pictures: each has its row and code in the ledger, and harms no other."""

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.lib.images import smooth
from bench.reliability.faults_kit import Child, Ground, faults_of
from noisebook.datasets import ledger
from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.store import Store
from noisebook.images.io import png_bytes

SIDE = 16


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
    jpeg, good, tiff = saved(noise, "JPEG", quality=95), png_bytes(pixels), saved(noise, "TIFF", compression="tiff_lzw")
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
        ("one-pixel.png", png_bytes(pixels[:1, :1]), "tiny"),
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
    are those of a run without the zoo. Then every member by itself with --mixed-sizes: none stops a run."""
    plain, mixed = ground.folder / "plain", ground.folder / "zoo"
    plain.mkdir()
    for i in range(16):
        (plain / f"a{i:02d}.png").write_bytes(png_bytes(smooth(ground.rng)))
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
