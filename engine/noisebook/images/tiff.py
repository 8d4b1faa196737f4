"""TIFF: what Pillow reads in another way than the file says is set right before it is decoded, or refused."""

import sys
from typing import Any, BinaryIO

from PIL import ImagePalette, TiffImagePlugin

from noisebook.errors import ImageError
from noisebook.images.numbers import Numbers, Unsupported

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 254, 256, 257, 258, 259, 262, 277, 284
COLORMAP, INK_SET, DOT_RANGE, EXTRA, SAMPLE_FORMAT, SUBSAMPLING, DNG_VERSION = 320, 332, 336, 338, 339, 530, 50706
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}


def prepare(image: Any) -> Numbers:
    """What the numbers of a TIFF are that is open and not yet decoded; its tiles are set right. Raises Unsupported."""
    tags = image.tag_v2
    if tags.next == tags.offset:  # Pillow stopped before its end
        raise ImageError("the file is damaged: a TIFF whose tags are cut off")
    if DNG_VERSION in tags:
        raise Unsupported("a camera's RAW file (DNG): not read; develop it to PNG, TIFF or JPEG first")
    if tags.get(SUBFILE, 0) & 1:
        raise Unsupported(
            "its first page is a small copy of another, as in cameras' RAW files: write the full page as PNG or TIFF"
        )
    bits, planar, photometric = tags.get(BITS, (1,))[0], tags.get(PLANAR, 1) == 2, tags.get(PHOTOMETRIC, 0)
    if photometric == 5 and (tags.get(INK_SET, 1) != 1 or _inverted_dots(tags.get(DOT_RANGE, ()))):
        raise Unsupported("inks other than cyan, magenta, yellow and black, or in another order")
    if (planar and image.mode in ("LA", "La", "PA", "LAB")) or (planar and image.mode == "CMYK" and bits == 16):
        raise Unsupported(f"its {image.mode} samples lie in planes: write them pixel by pixel")
    if image.use_load_libtiff:
        _set_rawmode(
            image, NATIVE
        )  # libtiff gives numbers in this machine's order of bytes, Pillow takes them in the file's
    elif photometric == 6 and (planar or tuple(tags.get(SUBSAMPLING, (2, 2))) != (1, 1)):
        _by_libtiff(image)
    elif planar and bits == 16:  # Pillow takes the samples of a plane for bytes
        order = "L" if tags.prefix == b"II" else "B"
        image.tile = [t._replace(args=(f"{t.args[0]};16{order}", *t.args[1:])) for t in image.tile]
    if image.mode in ("P", "PA") and (colours := tags.get(COLORMAP)) and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))  # written as 8 bits, against the rule
    kind = {2: "int", 3: "float"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "uint")
    unturned = photometric == 0 and image.mode.startswith(("I", "F"))  # Pillow turns 8 bits
    return Numbers(kind, bits, 4095 if bits == 12 else None, unturned)


def describe(file: BinaryIO) -> str:
    """The kind of a TIFF that Pillow does not know, for a message. Raises ImageError where it is damaged."""
    try:
        file.seek(0)
        head = file.read(16)
        if head.startswith(b"MM\0+"):
            return "a BigTIFF with its bytes in big-endian order, which is not read: write it in little-endian order"
        tags = TiffImagePlugin.ImageFileDirectory_v2(head if head[2] == 43 else head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits = "/".join(map(str, dict.fromkeys(tags.get(BITS, (1,)))))
        kind = KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "numbers of an unknown format")
        samples = tags.get(SAMPLES, 1)
        what = f"{samples} x {bits} bits, {kind}, photometric interpretation {tags[PHOTOMETRIC]}"
    except Exception as error:  # whatever is wrong with it
        raise ImageError("the file is damaged: a TIFF whose first page cannot be found") from error
    return f"a TIFF of a kind that is not read ({what}): write it as 8 or 16 bits, RGB or grey"


def is_deep(image: Any) -> bool:
    """Whether its samples have more than 8 bits."""
    return max(image.tag_v2.get(BITS, (1,))) > 8


def low_bytes(image: Any) -> bool:
    """Makes Pillow take the lower byte of each sample of 16 bits for the higher one, in a colour TIFF that is `prepare`d;
    whether it can."""
    if image.tag_v2.get(PLANAR, 1) == 2 and image.use_load_libtiff:
        return False
    native = "L" if sys.byteorder == "little" else "B"
    turned = {"L": "B", "B": "L", "N": "B" if native == "L" else "L"}
    for tile in image.tile:
        if ";16" not in tile.args[0] or tile.args[0].startswith("RGBa"):
            return False
    image.tile = [t._replace(args=(t.args[0][:-1] + turned[t.args[0][-1]], *t.args[1:])) for t in image.tile]
    return True


def _set_rawmode(image: Any, names: dict[str, str]) -> None:
    image.tile = [t._replace(args=(names.get(t.args[0], t.args[0]), *t.args[1:])) for t in image.tile]


def _by_libtiff(image: Any) -> None:
    """The decoder for subsampled colours: Pillow's own takes them for three samples a pixel."""
    image._mode, image.use_load_libtiff = "RGB", True
    args = ("RGBX", False, image.tag_v2.offset)
    image.tile = [image.tile[0]._replace(codec_name="libtiff", extents=(0, 0, *image._tile_size), offset=0, args=args)]


def _inverted_dots(dots: Any) -> bool:
    values = dots if isinstance(dots, tuple) else ()
    return len(values) >= 2 and values[0] > values[1]
