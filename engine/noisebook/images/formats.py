"""Which formats are read, and what a file is that is none of them."""

import importlib.util
import posixpath
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO

from PIL import Image

from noisebook.errors import ImageError
from noisebook.images.numbers import Unsupported

#: Pillow's names of the formats that are read, whatever a file is called. Others are not even looked at: Pillow hands an EPS
#: to Ghostscript, which is a program. Those that are known by their first bytes come first, TGA has none.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "HEIF", "TGA")
HEIF = "HEIF"  # Pillow's name of what pillow-heif reads
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEAD = 512  # bytes that say what a file is

_PNG = b"\x89PNG\r\n\x1a\n"
MAY_HOLD_EXIF = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG
COLOURS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP")
_PILLOWS_PROFILE = 1 << 20  # bytes of a PNG's profile at which Pillow gives up
_LONGEST_CHUNK = 1 << 24  # bytes of one that describes colours

_STARTS = (
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "a DirectDraw surface"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"gimp xcf", "a GIMP document"),
    (b"qoif", "QOI"),
    (b"icns", "an icon of macOS"),
    (b"FUJIFILMCCD-RAW", "a camera's RAW file (Fujifilm)"),
    (b"IIRO", "a camera's RAW file (Olympus)"),
    (b"IIRS", "a camera's RAW file (Olympus)"),
    (b"MMOR", "a camera's RAW file (Olympus)"),
    (b"IIU\0", "a camera's RAW file (Panasonic)"),
    (b"FOVb", "a camera's RAW file (Sigma)"),
    (b"\0MRM", "a camera's RAW file (Minolta)"),
    (b"AT&TFORM", "DjVu"),
    (b"BPG\xfb", "BPG"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"PK\3\4", "a zip archive"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the picture itself (git lfs pull fetches it)"),
)
_SUFFIXES = {
    **dict.fromkeys((".cr2", ".cr3", ".crw"), "a camera's RAW file (Canon)"),
    **dict.fromkeys((".nef", ".nrw"), "a camera's RAW file (Nikon)"),
    **dict.fromkeys((".arw", ".srf", ".sr2"), "a camera's RAW file (Sony)"),
    **dict.fromkeys((".dng", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".mrw", ".3fr", ".raw"), "a camera's RAW file"),
    **dict.fromkeys((".psd", ".psb"), "a Photoshop document"),
    **dict.fromkeys((".svg", ".svgz"), "SVG, a drawing"),
    ".pdf": "a PDF document",
    **dict.fromkeys((".eps", ".ps"), "a PostScript document"),
    ".jxl": "JPEG XL",
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR"),
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".dds": "a DirectDraw surface",
    ".xcf": "a GIMP document",
    ".cur": "a cursor of Windows",
    **dict.fromkeys(HEIF_SUFFIXES, "HEIC"),
}


def has_heif() -> bool:
    """Whether HEIC pictures are read: the extra `heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


@cache
def known(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these formats that this Pillow reads by themselves: it makes an MPO of a JPEG, and AVIF may be missing."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def register_heif(head: bytes) -> bool:
    """Makes Pillow read HEIC, if a file that begins so is one and pillow-heif is installed."""
    if _of_ftyp(head) != "HEIC" or not has_heif():
        return False
    import pillow_heif  # pyright: ignore[reportMissingImports] - the extra `heif`

    pillow_heif.register_heif_opener(thumbnails=False)
    known.cache_clear()
    return True


def kind_of(head: bytes, name: str = "") -> str | None:
    """What a file is that begins with these bytes, or else by the ending of its name: "a Photoshop document". None for a
    format that is read, and for what is not known."""
    if found := _of_ftyp(head):
        return found
    if head[:4] == b"II*\0" and head[8:10] == b"CR":
        return "a camera's RAW file (Canon)"
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if head[128:132] == b"DICM":
        return "DICOM"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page"
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return "SVG, a drawing"
    return _SUFFIXES.get(posixpath.splitext(name.lower())[1])


def take_deepest(icon: Any) -> None:
    """Of the largest pictures in an icon, Pillow takes the one with the fewest colours; this takes the one with the most."""
    entries = icon.ico.entry
    best = max(range(len(entries)), key=lambda i: (entries[i].square, entries[i].color_depth))
    if best:
        frame = icon.ico.frame(best)
        frame.load()
        icon.im, icon._mode, icon._size, icon.palette = frame.im, frame.mode, frame.size, frame.palette


def refusal(head: bytes, name: str, formats: tuple[str, ...]) -> str:
    """Why a file that begins so is not read."""
    kind = kind_of(head, name)
    if kind == "HEIC" and HEIF in formats and not has_heif():
        return "HEIC: pip install 'noisebook[heif]' reads it"
    names = ", ".join(form for form in formats if form not in ("MPO", "DIB", HEIF))
    return f"{kind + ': ' if kind else ''}not a picture of a format that noisebook reads ({names})"


def begins_as(head: bytes) -> str:
    """Which format that is read begins so; "" for another, and for one that has no sure beginning."""
    for start, form in ((_PNG, "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"\0\0\0\x0cjP  ", "JPEG2000")):
        if head.startswith(start):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return HEIF if _of_ftyp(head) == "HEIC" else "AVIF"
    return ""


def undecodable(form: str, file: BinaryIO) -> ImageError:
    """Why Pillow does not open a file that begins as this format does."""
    bits = _bits_of_jpeg(file) if form == "JPEG" else 8
    if bits != 8:
        return Unsupported(f"a JPEG of {bits} bits, which is not read: write it as 8 bits, or as PNG or TIFF of 16")
    return ImageError(f"the file is damaged, or of a kind of {form} that is not read")


def _bits_of_jpeg(file: BinaryIO) -> int:
    """Bits of a sample, by the header of its frame; 8 where there is none."""
    at = 2
    while True:
        file.seek(at)
        marker = file.read(5)
        if len(marker) < 5 or marker[0] != 0xFF:
            return 8
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            return marker[4]
        at += 2 + int.from_bytes(marker[2:4])


def _of_ftyp(head: bytes) -> str | None:
    """HEIC, or another relative of MP4 that is no AVIF, by its brands."""
    if head[4:8] != b"ftyp":
        return None
    size = int.from_bytes(head[:4])
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)) - 3, 4))]
    if brands[0] == b"crx ":
        return "a camera's RAW file (Canon)"
    if {b"avif", b"avis"} & set(brands):
        return None if "AVIF" in known(("AVIF",)) else "AVIF, which this Pillow does not read"
    if {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"} & set(brands):
        return "HEIC"
    return "a video"


# ---- PNG ----------------------------------------------------------------------------------------------------------------
def png_chunks(file: BinaryIO) -> dict[bytes, bytes] | None:
    """The chunks of a PNG that say what its numbers mean; None where the file is no PNG. Raises ImageError for a critical
    chunk with a wrong CRC: Pillow does not check those of the pixels."""
    file.seek(0)
    if file.read(len(_PNG)) != _PNG:
        return None
    found: dict[bytes, bytes] = {}
    for kind, size, at in _chunks(file):
        if kind[:1].isupper():
            crc = zlib.crc32(kind)
            file.seek(at)
            left = size
            while left and (part := file.read(min(left, 1 << 20))):
                crc, left = zlib.crc32(part, crc), left - len(part)
            said = file.read(4)
            if not left and len(said) == 4 and crc != int.from_bytes(said):
                raise ImageError(f"the file is damaged: wrong CRC in chunk {kind.decode('latin-1')!r}")
        elif kind in (b"tRNS", *COLOURS) and size <= _LONGEST_CHUNK and kind not in found:
            file.seek(at)
            found[kind] = file.read(size)
        elif kind in MAY_HOLD_EXIF:
            found[kind] = b""
    return found


def refused_by_pillow(chunks: dict[bytes, bytes]) -> bool:
    """Whether Pillow refuses a PNG for one of these, which say nothing about how to decode it."""
    if any(len(chunks.get(kind, bytes(n))) < n for kind, n in ((b"gAMA", 4), (b"cHRM", 32), (b"sRGB", 1))):
        return True
    _, _, packed = chunks.get(b"iCCP", b"").partition(b"\0")
    if not packed:
        return b"iCCP" in chunks
    unpack = zlib.decompressobj()
    try:
        return packed[0] != 0 or len(unpack.decompress(packed[1:], _PILLOWS_PROFILE)) == _PILLOWS_PROFILE
    except zlib.error:
        return False  # Pillow goes on without it


def png_without(file: BinaryIO, unwanted: tuple[bytes, ...]) -> bytes:
    """A PNG without the chunks of these kinds: Pillow refuses a picture for what is wrong with its profile."""
    parts = [_PNG]
    file.seek(0)
    for kind, size, at in _chunks(file):
        if kind not in unwanted:
            file.seek(at - 8)
            parts.append(file.read(size + 12))
    return b"".join(parts)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, bytes, where its data begin) of each chunk of a PNG."""
    at = len(_PNG)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind = int.from_bytes(head[:4]), head[4:]
        yield kind, size, at + 8
        if kind == b"IEND":
            return
        at += size + 12


# ---- colours that Pillow does not tell ----------------------------------------------------------------------------------
def hidden_colours(image: Any, file: BinaryIO) -> dict[str, Any]:
    """What a file says about its colours and Pillow leaves out: `icc_profile` of BMP and JPEG 2000, `nclx` of AVIF, the
    numbers of ITU-T H.273. As entries of Pillow's `info`. Raises Unsupported for a JPEG 2000 in a space that Pillow takes
    for RGB."""
    if image.format in ("BMP", "JPEG2000", "AVIF"):
        where = file.tell()
        file.seek(0)
        start = file.read(_LONGEST_CHUNK if image.format != "AVIF" else 1 << 16)
        file.seek(where)
        if image.format == "BMP":
            return _of_bmp(start)
        return _of_avif(start) if image.format == "AVIF" else _of_jp2(start)
    return {}


def _of_bmp(data: bytes) -> dict[str, Any]:
    if len(data) < 138 or int.from_bytes(data[14:18], "little") != 124 or data[70:74] != b"DEBM":  # "MBED", turned
        return {}
    at, size = (int.from_bytes(data[i : i + 4], "little") for i in (126, 130))
    return {"icc_profile": data[14 + at : 14 + at + size]}


def _of_avif(data: bytes) -> dict[str, Any]:
    at = data.find(b"colrnclx")
    return {"nclx": (int.from_bytes(data[at + 8 : at + 10]), int.from_bytes(data[at + 10 : at + 12]))} if at > 0 else {}


def _of_jp2(data: bytes) -> dict[str, Any]:
    header = next((body for kind, body in _boxes(data) if kind == b"jp2h"), b"")
    for kind, body in _boxes(header):
        if kind == b"colr" and body[:1] in (b"\2", b"\3"):
            return {"icc_profile": body[3:]}
        if kind == b"colr" and body[:1] == b"\1":
            space = int.from_bytes(body[3:7])
            if space not in (0, 12, 15, 16, 17, 18):
                raise Unsupported(f"a JPEG 2000 in the colour space {space}, which is not read: write it as sRGB")
            return {}
    return {}


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind, skip = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], 8
        if size == 1:
            size, skip = int.from_bytes(data[at + 8 : at + 16]), 16
        size = size or len(data) - at
        yield kind, data[at + skip : at + size]
        if size < skip:
            return
        at += size
