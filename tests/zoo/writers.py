"""Writes files of pictures byte by byte, as their formats' definitions say: no library chooses what is in them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(array, form, **options):
    """The bytes of a file that Pillow writes of an array or a picture."""
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, form, **options)
    return buffer.getvalue()


def packed(values, bits):
    """Integers [H, N] -> the bytes of each row, the first value in the highest bits."""
    digits = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return [row.tobytes() for row in np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)]


# ---- PNG ----------------------------------------------------------------------------------------------------------------
PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, colour, *before, interlaced=False, after=()):
    """Integers [H, W, C] of `depth` bits. `before`, `after`: (kind, data) of chunks around the pixels."""
    height, width = values.shape[:2]

    def rows(part):
        return b"".join(b"\0" + row for row in packed(part.reshape(len(part), -1).astype(np.int64), depth))

    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [values[y::dy, x::dx] for y, x, dy, dx in passes]
        data = b"".join(rows(part) for part in parts if part.size)
    else:
        data = rows(values)
    assert values.shape[2] == CHANNELS[colour]
    out = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    out += b"".join(chunk(*c) for c in before) + chunk(b"IDAT", zlib.compress(data)) + b"".join(chunk(*c) for c in after)
    return out + chunk(b"IEND", b"")


# ---- TIFF ---------------------------------------------------------------------------------------------------------------
BYTE, ASCII, SHORT, LONG, UNDEFINED, LONG8 = 1, 2, 3, 4, 7, 16
SIZES = {BYTE: "B", ASCII: "c", SHORT: "H", LONG: "I", UNDEFINED: "B", LONG8: "Q"}


def tiff_of(pages, order="<", big=False):
    """A TIFF of pages (tags, strips): tags {number: (type, values)}, strips a list of bytes; tiles if tag 322 is there."""
    offset, count = (LONG8, "Q") if big else (LONG, "I")
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
    out += struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4)
    link = len(out) - (8 if big else 4)
    for tags, strips in pages:
        places = []
        for strip in strips:
            places.append(len(out))
            out += strip + bytes(len(strip) % 2)
        where, sizes = (324, 325) if 322 in tags else (273, 279)
        tags = {**tags, where: (offset, places), sizes: (offset, [len(strip) for strip in strips])}
        entries, most = [], 8 if big else 4
        for number, (kind, values) in sorted(tags.items()):
            if isinstance(values, bytes):
                data, n = values, len(values)
            else:
                data, n = struct.pack(order + SIZES[kind] * len(values), *values), len(values)
            if len(data) > most:
                at = len(out)
                out += data + bytes(len(data) % 2)
                data = struct.pack(order + count, at)
            entries.append(struct.pack(order + "HH" + count, number, kind, n) + data.ljust(most, b"\0"))
        out[link : link + most] = struct.pack(order + count, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries)
        link = len(out)
        out += bytes(most)
    return bytes(out)


def page(
    values,
    photometric,
    *,
    order="<",
    planar=1,
    zipped=False,
    bits=None,
    rows=None,
    tile=None,
    fill=1,
    extra=(),
    kind=None,
    tags=(),
):
    """(tags, strips) of an array [H, W, C] of any type; `bits`: of each sample where they are fewer than the type's."""
    height, width, channels = values.shape
    depth = bits or values.dtype.itemsize * 8
    kind = kind or {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    planes = [values[:, :, i : i + 1] for i in range(channels)] if planar == 2 else [values]

    def block(part):
        if bits and bits % 8:
            data = b"".join(packed(part.reshape(len(part), -1).astype(np.int64), bits))
        else:
            data = part.astype(part.dtype.newbyteorder(order)).tobytes()
        if fill == 2:
            data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
        return zlib.compress(data) if zipped else data

    strips = []
    for plane in planes:
        if tile:
            whole = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, plane.shape[2]), values.dtype)
            whole[:height, :width] = plane
            spots = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
            strips += [block(whole[y : y + tile, x : x + tile]) for y, x in spots]
        else:
            strips += [block(plane[y : y + (rows or height)]) for y in range(0, height, rows or height)]
    out = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [depth] * channels),
        259: (SHORT, [8 if zipped else 1]),
        262: (SHORT, [photometric]),
        277: (SHORT, [channels]),
        284: (SHORT, [planar]),
        339: (SHORT, [kind] * channels),
    }
    if fill != 1:
        out[266] = (SHORT, [fill])
    if tile:
        out |= {322: (LONG, [tile]), 323: (LONG, [tile])}
    else:
        out[278] = (LONG, [rows or height])
    if extra:
        out[338] = (SHORT, list(extra))
    return {**out, **dict(tags)}, strips


def tiff(values, photometric, big=False, **options):
    return tiff_of([page(values, photometric, **options)], options.get("order", "<"), big)


# ---- others -------------------------------------------------------------------------------------------------------------
def bmp(body, width, height, bits, *, compression=0, palette=b"", masks=(), size=40, end=b"", colours=0):
    """A BMP whose header has `size` bytes; `body`: rows as they lie in the file; `end`: bytes after them (a profile)."""
    if size == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
        info += b"".join(struct.pack("<I", mask) for mask in masks)
        info = info.ljust(size, b"\0")
        if end:
            info = (
                info[:56]
                + b"DEBM"
                + info[60:112]
                + struct.pack("<II", size + len(palette) + len(body), len(end))
                + info[120:]
            )
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(body) + len(end), 0, 0, at) + info + palette + body + end


def padded(rows):
    """Rows of bytes -> those of a BMP, from below, each to a multiple of 4 bytes."""
    return b"".join(row + bytes(-len(row) % 4) for row in reversed(rows))


def tga(body, width, height, depth, kind, flags, *, palette=b"", colours=0, map_depth=0):
    head = struct.pack("<BBBHHBHHHHBB", 0, bool(palette), kind, 0, colours, map_depth, 0, 0, width, height, depth, flags)
    return head + palette + body


def icon(*pictures):
    """An icon of (width, height, bits, data)."""
    at, out, body = 6 + 16 * len(pictures), struct.pack("<3H", 0, 1, len(pictures)), b""
    for width, height, bits, data in pictures:
        out += struct.pack("<4B2H2I", width, height, 0, 0, 1, bits, len(data), at + len(body))
        body += data
    return out + body


def with_segments(jpeg, *segments):
    """A JPEG with (marker, data) behind its first two bytes."""
    return jpeg[:2] + b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(d) + 2) + d for m, d in segments) + jpeg[2:]


def without_segment(jpeg, marker):
    at, out = 2, jpeg[:2]
    while jpeg[at + 1] != 0xDA:
        size = int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] != marker:
            out += jpeg[at : at + 2 + size]
        at += 2 + size
    return out + jpeg[at:]


def exif(*, orientation=None, space=None, index=None, order="<"):
    """An EXIF block with an orientation, a ColorSpace and an InteroperabilityIndex."""
    tags = {} if orientation is None else {0x0112: struct.pack(order + "HIHH", 3, 1, orientation, 0)}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    main = 8 + 2 + 12 * (len(tags) + (2 if space else 0)) + 4
    exif_ifd = struct.pack(order + "H", 2) + struct.pack(order + "HHIHH", 0xA001, 3, 1, space or 0, 0)
    exif_ifd += struct.pack(order + "HHII", 0xA005, 4, 1, main + 30) + bytes(4)
    index_ifd = struct.pack(order + "HHHI4s", 1, 1, 2, 4, (index or b"R98") + b"\0") + bytes(4)
    out = head
    entries = [struct.pack(order + "H", k) + v for k, v in tags.items()]
    if space:
        entries.append(struct.pack(order + "HHII", 0x8769, 4, 1, main))
        entries.append(struct.pack(order + "HHII", 0xA005, 4, 1, main + 30))
    out += struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0" + out + (exif_ifd + index_ifd if space else b"")


def boxes(data, path, change):
    """An ISO file of boxes with `change` applied to the bytes of the first box at `path`, sizes made right again."""
    out, at, done = b"", 0, False
    while at < len(data):
        size = int.from_bytes(data[at : at + 4]) or len(data) - at
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + size]
        if kind == path[0] and not done:
            body, done = (change(body) if len(path) == 1 else boxes(body, path[1:], change)), True
        out += struct.pack(">I", len(body) + 8) + kind + body
        at += size
    return out
