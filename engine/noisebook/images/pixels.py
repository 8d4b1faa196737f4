"""From an open picture of Pillow's to uint8 pixels: which numbers are black and white, which colours they mean, what lies
under what is transparent, and which side is up. The rules are on docs/datasets.md, "What a picture's numbers mean"."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from noisebook.errors import ImageError
from noisebook.images import tiff
from noisebook.images.colour import Colours, colours_of
from noisebook.images.numbers import Numbers, Scale, Unsupported, scale_of, top_of

ORIENTATION = 0x0112  # of EXIF; 1: upright
STRIP = 1 << 20  # pixels that are converted at once
DEEP_DARK = 64  # a sample of 16 bits whose higher byte is below this may be one of 14 bits or fewer
FREE_ALPHA = ("BMP", "DIB", "ICO", "TGA")  # their writers leave alpha at 0 where there is none
GREY_PAIRS = "noisebook_grey_pairs"  # of a picture's info: four bytes of a pixel are grey and alpha of 16 bits

Chunks = dict[bytes, bytes] | None
#: Opens the same picture again, for a block.
Again = Callable[[], contextlib.AbstractContextManager[Any]]


class Deep(NamedTuple):
    """The scales of a picture with 16 bits of each colour."""

    colour: Scale
    alpha: Scale


class Facts(NamedTuple):
    """What was found out about a picture before it was decoded: its `numbers`, whether it is `opaque` whatever its fourth
    channel says, its `colours`, and the number that is transparent in a PNG of 16 bits."""

    numbers: Numbers
    opaque: bool
    colours: Colours
    clear: tuple[int, ...] = ()


def prepare(image: Any, head: bytes, chunks: Chunks) -> Facts:
    """What there is to know of a picture that is opened and not yet decoded. `head`: its first bytes; `chunks`: of a PNG, as
    `formats.png_chunks`. What Pillow would decode wrongly is set right. Raises Unsupported for what cannot be."""
    numbers, opaque, clear = Numbers(), False, ()
    if image.format == "TIFF":
        numbers = tiff.prepare(image)
    elif image.format == "PNG":
        clear = _clear_of_png(image, head, (chunks or {}).get(b"tRNS", b""))
        if image.mode == "P" and image.palette is None:
            raise ImageError("the file is damaged: a PNG of palette colours without a palette")
        numbers = Numbers(bits=16)
    elif image.format in ("PPM", "JPEG2000"):
        numbers = Numbers("float", 32) if image.mode == "F" else Numbers(bits=16, top=65535)  # the file says which is white
    elif image.format == "TGA":
        if not image.tile:
            raise Unsupported("a TGA of a kind that Pillow does not read")
        opaque = image.mode in ("RGBA", "P") and not head[17] & 15  # no bits of alpha, it says
    elif image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        # Adobe's files have inks inverted. Pillow takes all for Adobe's.
        image.tile = [t._replace(args=("CMYK", *t.args[1:])) for t in image.tile]
    if image.mode == "F" and numbers.kind != "float":
        numbers = Numbers("float", 32)
    return Facts(numbers, opaque, colours_of(image, chunks), clear)


def to_pixels(image: Any, channels: int, facts: Facts, again: Again | None = None) -> tuple[np.ndarray, list[str]]:
    """uint8 [H, W, C] of a picture that is `prepare`d, upright; and remarks that only the pixels tell.
    `again` opens it once more, prepared: 16 bits of a colour come in two halves."""
    deep = is_deep(image)
    image.load()
    Image._decompression_bomb_check(image.size)  # once more: some formats know it only now
    opaque = facts.opaque or (
        image.format in FREE_ALPHA and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    )
    remarks = ["alpha"] if facts.clear or (has_alpha(image) and not opaque) else []
    scale: Scale | None = None
    both: Deep | None = None
    if image.mode.startswith(("I", "F")) or facts.numbers.kind == "int":
        scale = scale_of(facts.numbers, (_values(strip, facts.numbers) for _, strip in _strips(image)))
        remarks += ["scaled"] if scale.inferred else []
    with contextlib.ExitStack() as stack:
        low: Any = None
        if deep and again is not None and (len(facts.clear) == 3 or _is_dark(image)):
            low = stack.enter_context(again())
            low.load()
            both = _deep_scale(image, low)
            remarks += ["scaled"] if both.colour.inferred else []
        out, target = _turned(image, channels)
        for box, strip in _strips(image):
            if both is not None:
                strip = _of_both(strip, low.crop(box), both, facts.clear)
            elif scale is not None:
                strip = _scaled(strip, scale, facts)
            target[box[1] : box[3]] = _strip(strip, channels, facts.colours, opaque)
    return out, remarks


def _strips(image: Any) -> Iterator[tuple[tuple[int, int, int, int], Any]]:
    """(box, picture) of its strips: what lies between picture and pixels is not held for all of them."""
    width, height = image.size
    rows = max(1, STRIP // max(1, width))
    for top in range(0, height, rows):
        box = (0, top, width, min(height, top + rows))
        yield box, image.crop(box)


def _turned(image: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels of the upright picture, the same memory as the picture lies in its file)."""
    turn = 1
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels; Pillow raises many types here
        turn = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    out = np.empty((width, height, channels) if turn in (5, 6, 7, 8) else (height, width, channels), np.uint8)
    views = {
        2: lambda: out[:, ::-1],
        3: lambda: out[::-1, ::-1],
        4: lambda: out[::-1],
        5: lambda: out.transpose(1, 0, 2),
        6: lambda: np.rot90(out, 1),
        7: lambda: out[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(out, -1),
    }
    return out, views[turn]() if turn in views else out


def _values(strip: Any, numbers: Numbers) -> np.ndarray:
    values = np.asarray(strip)
    if numbers.kind == "uint" and numbers.bits == 32:
        return values.view(np.uint32)  # Pillow's 32 bits are signed
    return values.view(np.int8) if numbers.kind == "int" and values.dtype == np.uint8 else values


# ---- one strip ----------------------------------------------------------------------------------------------------------
def _scaled(strip: Any, scale: Scale, facts: Facts) -> Any:
    """A strip of 8 bits."""
    values = _values(strip, facts.numbers)
    out = Image.fromarray(scale(values))
    if len(facts.clear) == 1:
        out.putalpha(Image.fromarray(np.where(values == facts.clear[0], 0, 255).astype(np.uint8)))
    return out


def _strip(strip: Any, channels: int, colours: Colours, opaque: bool) -> np.ndarray:
    """uint8 [h, W, C] of some rows."""
    if strip.mode in ("La", "RGBa"):
        strip = strip.convert(strip.mode[:-1] + "A")
    if colours.transform is not None:
        strip = _converted(strip, colours)
    if not opaque and has_alpha(strip):
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    out = np.asarray(strip.convert("RGB" if channels == 3 else "L"))
    return out if channels == 3 else out[:, :, None]


def has_alpha(image: Any) -> bool:
    """Whether a picture has a channel, or a number, of what is transparent. The A of Lab is none."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _converted(strip: Any, colours: Colours) -> Any:
    """A strip in sRGB, its alpha as it was."""
    alpha = strip.convert("RGBA").getchannel("A") if has_alpha(strip) else None
    strip.info.pop("transparency", None)
    strip = ImageCms.applyTransform(strip if strip.mode == colours.base else strip.convert(colours.base), colours.transform)
    if alpha is not None:
        strip.putalpha(alpha)
    return strip


# ---- 16 bits of a colour ------------------------------------------------------------------------------------------------
def is_deep(image: Any) -> bool:
    """Whether a picture of colours, not yet decoded, has 16 bits of each, of which Pillow keeps the higher 8."""
    if image.format == "TIFF":
        return image.mode in ("RGB", "RGBA") and tiff.is_deep(image)
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in image.tile)


def low_bytes(image: Any) -> None:
    """Makes Pillow decode the lower bytes of a picture that is `prepare`d and has 16 bits of each colour. Raises Unsupported
    where it cannot."""
    if image.format == "PNG":
        names = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}  # the last: all four bytes as they lie
        image.info[GREY_PAIRS] = image.tile[0].args == "LA;16B"
        image.tile = [t._replace(args=names[t.args]) for t in image.tile]
    elif not tiff.low_bytes(image):
        raise Unsupported("16 bits, and so dark that it may be fewer: write it as 8 bits, or pixel by pixel without alpha")


def _is_dark(image: Any) -> bool:
    return max(high for _, high in image.getextrema()[:3]) < DEEP_DARK


def _words(high: Any, low: Any) -> np.ndarray:
    """uint16 [h, W, C] of the higher and the lower bytes; C: 1 or 3, and 1 more for alpha."""
    upper, lower = np.asarray(high).astype(np.uint16), np.asarray(low)
    if low.info.get(GREY_PAIRS):
        upper, lower = upper[:, :, [0, 3]], lower[:, :, 1::2]
    return upper << 8 | lower


def _deep_scale(image: Any, low: Any) -> Deep:
    most = np.zeros(4, np.int64)
    for box, strip in _strips(image):
        words = _words(strip, low.crop(box))
        most[: words.shape[2]] = np.maximum(most[: words.shape[2]], words.max((0, 1)))
    colours = words.shape[2] - (image.mode == "RGBA")
    top, inferred = top_of(int(most[:colours].max()), 16)
    return Deep(Scale(top, inferred), Scale(top if most[colours:].max() <= top else 65535, inferred))


def _of_both(high: Any, low: Any, deep: Deep, clear: tuple[int, ...]) -> Any:
    """A strip of 8 bits."""
    words = _words(high, low)
    colours = words.shape[2] - (high.mode == "RGBA")
    out = np.full((*words.shape[:2], 4), 255, np.uint8)
    if deep.colour.inferred:
        out[:, :, :3] = deep.colour(words[:, :, :colours])
    else:
        out[:, :, :3] = np.asarray(high)[:, :, :3]
    if high.mode == "RGBA":
        out[:, :, 3] = deep.alpha(words[:, :, -1])
    elif len(clear) == 3:
        out[:, :, 3] = np.where((words == clear).all(2), 0, 255)
    else:
        return Image.fromarray(out[:, :, :3])
    return Image.fromarray(out)


def _clear_of_png(image: Any, head: bytes, chunk: bytes) -> tuple[int, ...]:
    """The number that is transparent, where Pillow does not know it rightly: it compares what the file says with what it has
    scaled. () where Pillow does the rest."""
    depth = head[24] if len(head) > 24 else 8
    if image.mode in ("P", "1") or "transparency" not in image.info:
        return ()
    numbers = tuple(int.from_bytes(chunk[i : i + 2]) & ((1 << depth) - 1) for i in range(0, len(chunk) - 1, 2))
    if depth == 16:
        del image.info["transparency"]
        return numbers[: 3 if image.mode == "RGB" else 1]
    scaled = tuple(n * 255 // ((1 << depth) - 1) for n in numbers)
    image.info["transparency"] = scaled[0] if image.mode == "L" else scaled[:3]
    return ()
