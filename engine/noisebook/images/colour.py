"""Colours that are no sRGB: what a file says about its own, and the way from them to sRGB, by LittleCMS.

The order of what counts is that of PNG, third edition: cICP, an ICC profile, the chunk sRGB, then gAMA and cHRM. Conversions
are relative colorimetric without black point compensation, in 8 bits. Nothing is converted that moves no colour by more than
`SAME`: so the many profiles that are sRGB in all but name change no bit.
"""

import contextlib
import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SAME = 2  # grey levels by which a profile may move colours and still count as sRGB: LittleCMS rounds, tables are short
LARGEST = 1 << 24  # bytes of a profile; the segments of a JPEG hold no more

Primaries = tuple[float, ...]  # x and y of white, red, green, blue, as in the chunk cHRM
D65 = (0.3127, 0.3290)
SRGB: Primaries = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Primaries = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PRIMARIES = {  # of ITU-T H.273, for cICP and the box nclx
    **dict.fromkeys((1, 2), SRGB),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    **dict.fromkeys((6, 7), (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
#: Decoding exponents; 0: the curve of sRGB. Those of cameras (1, 6, 14, 15) are shown as sRGB, as browsers do.
EXPONENTS = {**dict.fromkeys((1, 2, 6, 13, 14, 15), 0.0), 4: 2.2, 5: 2.8, 8: 1.0}
HDR = (16, 18)  # PQ and HLG

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}
_OUT = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Colours:
    """What is done with a picture's colours: `transform` of `base` ("RGB", "L", "CMYK" or "LAB", without alpha) to RGB, or
    nothing; and the remarks for it. A picture of greys may have to become "RGB" first."""

    base: str
    transform: Any = None
    remarks: tuple[str, ...] = ()


def colours_of(image: Any, chunks: dict[bytes, bytes] | None) -> Colours:
    """What is to be done with the colours of a picture that is `opened`; `chunks`: those of a PNG, as `png_chunks`."""
    base = base_of(image)
    chunks = chunks or {}
    codes = _codes(image, chunks)
    if codes is not None and base == "RGB":
        if codes[1] in HDR:
            return Colours(base, None, ("hdr",))
        if codes[0] in PRIMARIES and codes[1] in EXPONENTS:
            return _made(base, PRIMARIES[codes[0]], EXPONENTS[codes[1]])
        return Colours(base, None, ("bad_profile",))
    data = _profile(image, chunks)
    if data is not None:
        colours = _by_profile(data, base)
        if base != "LAB" or colours.transform is not None:
            return colours
    if base == "LAB":
        lab = _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")
        return Colours(base, lab, ("profile",) if data is None else ("profile", "bad_profile"))
    if data is None and base in ("RGB", "L"):
        primaries, exponent = _described(image, chunks)
        return _made(base, primaries, exponent)
    return Colours(base)


def base_of(image: Any) -> str:
    """The mode of a picture's colours, without alpha: "L", "RGB", "CMYK" or "LAB"."""
    mode = image.mode
    if any(tile.args == "LA;16B" for tile in image.tile):
        return "L"  # Pillow makes RGBA of it
    if mode in ("CMYK", "LAB"):
        return mode
    return "L" if mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F")) else "RGB"


# ---- what a file says ---------------------------------------------------------------------------------------------------
def _profile(image: Any, chunks: dict[bytes, bytes]) -> bytes | None:
    """The ICC profile; b"" for one that cannot be read; None where there is none."""
    if chunks.get(b"iCCP"):
        _, _, packed = chunks[b"iCCP"].partition(b"\0")
        if packed[:1] != b"\0":
            return b""
        with contextlib.suppress(zlib.error):
            unpack = zlib.decompressobj()
            data = unpack.decompress(packed[1:], LARGEST)
            return b"" if unpack.unconsumed_tail else data
        return b""
    if "icc_profile" not in image.info:
        return None
    data = image.info["icc_profile"]
    if isinstance(data, (tuple, list)):  # of a TIFF that calls its type something else
        data = b"".join(part for part in data if isinstance(part, bytes))
    return data if isinstance(data, bytes) else b""


def _codes(image: Any, chunks: dict[bytes, bytes]) -> tuple[int, int] | None:
    """(primaries, transfer function) by the numbers of ITU-T H.273."""
    if len(chunks.get(b"cICP", b"")) == 4:
        return chunks[b"cICP"][0], chunks[b"cICP"][1]
    if image.format == "HEIF" and "icc_profile" not in image.info:
        nclx = image.info.get("nclx_profile")
        if isinstance(nclx, dict):
            return int(nclx.get("color_primaries", 2)), int(nclx.get("transfer_characteristics", 2))
    if image.format == "AVIF" and "icc_profile" not in image.info:
        return image.info.get("nclx")
    return None


def _described(image: Any, chunks: dict[bytes, bytes]) -> tuple[Primaries, float]:
    """(primaries, decoding exponent) that a file names without a profile. Those of sRGB where it does not."""
    if b"sRGB" in chunks:
        return SRGB, 0.0
    primaries, exponent = SRGB, 0.0
    if len(chunks.get(b"gAMA", b"")) == 4 and (gamma := int.from_bytes(chunks[b"gAMA"])) and 5_000 <= gamma <= 1_000_000:
        exponent = 100_000 / gamma
        if abs(exponent / 2.2 - 1) < 0.05:  # what sRGB writes there
            exponent = 0.0
    if len(chunks.get(b"cHRM", b"")) == 32:
        primaries = tuple(n / 100_000 for n in struct.unpack(">8I", chunks[b"cHRM"]))
    if image.format in ("JPEG", "MPO") and _is_adobe_rgb(image):
        primaries, exponent = ADOBE_RGB, 563 / 256
    return primaries, exponent


def _is_adobe_rgb(image: Any) -> bool:
    """What cameras write for Adobe RGB, by the Design rule for Camera File system: no profile, but the index R03."""
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing
        exif = image.getexif()
        space = exif.get_ifd(0x8769).get(0xA001)
        index = exif.get_ifd(0xA005).get(1)
        index = index.decode("latin-1") if isinstance(index, bytes) else str(index)
        return space == 2 or (space in (0xFFFF, None) and index.startswith("R03"))
    return False


# ---- the way to sRGB ----------------------------------------------------------------------------------------------------
def _made(base: str, primaries: Primaries, exponent: float) -> Colours:
    if exponent == 0 and max(abs(a - b) for a, b in zip(primaries, SRGB, strict=True)) < 0.005:
        return Colours(base)
    try:
        return _by_profile(matrix_profile(primaries, exponent), base)
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError, struct.error):
        return Colours(base, None, ("bad_profile",))


@lru_cache(maxsize=16)  # most pictures of a data set have the same few
def _by_profile(data: bytes, base: str) -> Colours:
    bad = Colours(base, None, ("bad_profile",))
    if not 128 < len(data) <= LARGEST:
        return bad
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
        space = data[16:20]
        fed = "RGB" if base == "L" and space == _SPACES["RGB"] else base  # greys in a space of colours: its three are equal
        if space != _SPACES[fed]:
            return bad
        transform = _transform(profile, fed)
        same = fed in ("RGB", "L") and _is_srgb(transform, fed)
        return Colours(base) if same else Colours(fed, transform, ("profile",))
    except Exception:  # PyCMSError, and what Pillow's wrapper raises on damaged profiles
        return bad


def _transform(profile: Any, base: str) -> Any:
    # The short tables that it works with otherwise are 10 levels off for dark greys, 50 at the edge of what sRGB holds.
    flags = ImageCms.Flags.NOOPTIMIZE if base in ("L", "LAB") else ImageCms.Flags.NONE
    return ImageCms.buildTransform(profile, _OUT, base, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)


def _is_srgb(transform: Any, base: str) -> bool:
    """Whether it moves no colour by more than `SAME`."""
    ramp = np.arange(256, dtype=np.uint8)
    greys = np.stack([ramp] * 3, 1)
    if base == "L":
        colours, given = greys, Image.fromarray(ramp[None])
    else:
        grid = np.stack(np.meshgrid(*[ramp[::15]] * 3, indexing="ij"), -1).reshape(-1, 3)
        colours = np.concatenate([greys, grid])
        given = Image.fromarray(colours[None])
    moved = np.asarray(ImageCms.applyTransform(given, transform))[0].astype(int)
    return int(np.abs(moved - colours).max()) <= SAME


def matrix_profile(primaries: Primaries, exponent: float) -> bytes:
    """An ICC profile, version 2, of the colours with these primaries and this decoding exponent (0: the curve of sRGB).
    Raises ValueError or numpy's LinAlgError for primaries that span nothing."""
    if not 0.1 <= (exponent or 1) <= 20 or not all(0 <= n <= 1 for n in primaries) or min(primaries[1::2]) <= 0:
        raise ValueError("no primaries of colours")

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white = xyz(*primaries[:2])
    columns = np.stack([xyz(*primaries[i : i + 2]) for i in (2, 4, 6)], 1)
    columns = columns * np.linalg.solve(columns, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford @ columns

    def fixed(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    if exponent:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, min(65535, round(exponent * 256))) + bytes(2)
    else:
        x = np.linspace(0, 1, 1024)
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        curve = b"curv" + bytes(4) + struct.pack(">I", 1024) + np.rint(linear * 65535).astype(">u2").tobytes()
    name = b"made of what the file says\0"
    text = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    tags = {b"desc": text + bytes(-len(text) % 4), b"cprt": b"text" + bytes(4) + b"none", b"wtpt": fixed(*d50)}
    tags |= {kind: fixed(*adapted[:, i]) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for kind, value in tags.items():
        table += kind + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + table + body
