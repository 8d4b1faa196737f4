"""What is no picture of a format that is read: it is refused, and named where it can be."""

import struct

from noisebook.images.formats import has_heif
from zoo.animal import noise, refused, smooth
from zoo.writers import saved

READ = "not a picture of a format that noisebook reads"


def ftyp(brand, *others):
    body = brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + bytes(200)


def animals():
    for name, data, kind in (
        ("psd.psd", b"8BPS\0\1" + bytes(60), "a Photoshop document"),
        ("pdf.pdf", b"%PDF-1.7\n" + bytes(60), "a PDF document"),
        ("eps.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
        ("svg.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("svg-bare.svg", b"<svg></svg>", "SVG"),
        ("jxl.jxl", b"\xff\x0a" + bytes(60), "JPEG XL"),
        ("jxl-boxed.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
        ("jxr.jxr", b"II\xbc\x01" + bytes(60), "JPEG XR"),
        ("exr.exr", b"\x76\x2f\x31\x01" + bytes(60), "OpenEXR"),
        ("hdr.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n", "Radiance HDR"),
        ("dds.dds", b"DDS " + bytes(124), "a DirectDraw surface"),
        ("fits.fits", b"SIMPLE  =                    T" + bytes(60), "FITS"),
        ("cr2.cr2", b"II*\0\x10\0\0\0CR\2\0" + bytes(60), r"RAW file \(Canon\)"),
        ("cr3.cr3", ftyp(b"crx "), r"RAW file \(Canon\)"),
        ("raf.raf", b"FUJIFILMCCD-RAW 0201" + bytes(60), "RAW file"),
        ("orf.orf", b"IIRO\x08\0\0\0" + bytes(60), "RAW file"),
        ("rw2.rw2", b"IIU\0\x18\0\0\0" + bytes(60), "RAW file"),
        ("nef.nef", b"nothing that is known" + bytes(60), r"RAW file \(Nikon\)"),
        ("dicom.dcm", bytes(128) + b"DICM" + bytes(60), "DICOM"),
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
        ("video.jpg", ftyp(b"isom", b"mp42"), "a video"),
        ("array.png", b"\x93NUMPY\1\0" + bytes(60), "NumPy"),
        ("zip.png", b"PK\3\4" + bytes(60), "a zip archive"),
        ("text.png", b"this is a text, not a picture\n" * 9, READ),
        ("zeros.png", bytes(500), READ),
        ("bytes.jpg", noise(500, seed=4).astype("u1").tobytes(), READ),
    ):
        yield refused(f"stranger-{name}", data, "not_an_image", kind)
    if not has_heif():
        for brand in (b"heic", b"mif1", b"heix", b"msf1"):
            name = f"stranger-{brand.decode()}.heic"
            yield refused(name, ftyp(brand), "not_an_image", r"^HEIC: pip install 'noisebook\[heif\]' reads it$")
    yield refused("stranger-qoi.png", saved(smooth(), "QOI"), "not_an_image", "QOI")
    yield refused("stranger-pcx.png", saved(smooth(), "PCX"), "not_an_image", READ)
    yield refused("stranger-empty.png", b"", "empty", f"{READ}|no bytes")
