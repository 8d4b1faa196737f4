"""PNG: every depth and kind of colour, what is transparent, and what its chunks say about colours."""

import struct
import zlib

import numpy as np
from PIL import Image

from zoo import colours
from zoo.animal import HEIGHT, WIDTH, eight, noise, over_white, refused, smooth, taken
from zoo.writers import PNG, chunk, exif, png, saved


def animals():
    yield from depths()
    yield from transparent()
    yield from few_bits()
    yield from spaces()
    yield from sizes()
    yield from others()


def depths():
    for interlaced in (False, True):
        end = "-interlaced" if interlaced else ""
        for depth in (1, 2, 4, 8, 16):
            top = (1 << depth) - 1
            v = noise(HEIGHT, WIDTH, 1, top=top)
            right = eight(v[:, :, 0], top)
            data = png(v, depth, 0, interlaced=interlaced)
            yield taken(f"png-grey{depth}{end}.png", data, right, "bits16" if depth == 16 else "gray")
        for depth in (1, 2, 4, 8):
            v = noise(HEIGHT, WIDTH, 1, top=(1 << depth) - 1)
            palette = noise(1 << depth, 3, seed=1).astype(np.uint8)
            data = png(v, depth, 3, (b"PLTE", palette.tobytes()), interlaced=interlaced)
            yield taken(f"png-palette{depth}{end}.png", data, palette[v[:, :, 0]])
        for colour, channels, kind in ((2, 3, "rgb"), (4, 2, "la"), (6, 4, "rgba")):
            for depth in (8, 16):
                v = noise(HEIGHT, WIDTH, channels, top=(1 << depth) - 1)
                v[0, 0] = (1 << depth) - 1  # not so dark that fewer bits are likely
                said = {"bits16"} if depth == 16 else set()
                said |= {"alpha"} if channels % 2 == 0 else set()
                said |= {"gray"} if (colour, depth) == (4, 8) else set()
                shown = v if depth == 8 else v >> 8
                right = over_white(shown[:, :, :-1], shown[:, :, -1]) if channels % 2 == 0 else shown
                data = png(v, depth, colour, interlaced=interlaced)
                yield taken(f"png-{kind}{depth}{end}.png", data, right, *said, within=1 if channels % 2 == 0 else 0)


def transparent():
    for depth in (1, 2, 4, 8, 16):
        top = (1 << depth) - 1
        v = noise(HEIGHT, WIDTH, 1, top=top)
        clear = int(v[3, 3, 0])
        right = np.where(v[:, :, 0] == clear, 255, eight(v[:, :, 0], top))
        said = ("alpha", "bits16") if depth == 16 else ("alpha", "gray")
        yield taken(f"png-grey{depth}-clear.png", png(v, depth, 0, (b"tRNS", struct.pack(">H", clear))), right, *said)
    for depth in (8, 16):
        v = noise(HEIGHT, WIDTH, 3, top=(1 << depth) - 1)
        v[5, 5] = v[4, 4] + [0, 0, 1 if v[4, 4, 2] < 255 else -1]  # only the lowest bit differs
        clear = v[4, 4]
        right = np.where((v == clear).all(2)[:, :, None], 255, v if depth == 8 else v >> 8)
        said = ("alpha", "bits16") if depth == 16 else ("alpha",)
        yield taken(f"png-rgb{depth}-clear.png", png(v, depth, 2, (b"tRNS", struct.pack(">3H", *clear))), right, *said)
    for depth in (1, 2, 4, 8):
        v = noise(HEIGHT, WIDTH, 1, top=(1 << depth) - 1)
        palette = noise(1 << depth, 3, seed=2).astype(np.uint8)
        alpha = np.full(1 << depth, 255)
        alpha[:2] = 0, 128
        data = png(v, depth, 3, (b"PLTE", palette.tobytes()), (b"tRNS", bytes([0, 128])))
        right = over_white(palette[v[:, :, 0]], alpha[v[:, :, 0]])
        yield taken(f"png-palette{depth}-clear.png", data, right, "alpha", within=1)


def few_bits():
    """8 to 14 bits in 16: the largest number decides."""
    for bits in (8, 10, 12, 14, 15):
        top = (1 << bits) - 1
        white = top if bits != 15 else 65535  # more than a quarter of 65,535: it is what it says
        said = ("scaled", "bits16") if bits != 15 else ("bits16",)
        v = noise(HEIGHT, WIDTH, 1, top=top)
        yield taken(f"png-grey-{bits}-in-16.png", png(v, 16, 0), eight(v[:, :, 0], white), *said)
        v = noise(HEIGHT, WIDTH, 3, top=top)
        yield taken(f"png-rgb-{bits}-in-16.png", png(v, 16, 2), eight(v, white) if bits != 15 else v >> 8, *said)
        for colour, channels, kind in ((4, 2, "la"), (6, 4, "rgba")):
            v = noise(HEIGHT, WIDTH, channels, top=top)
            v[0, 0, :-1] = top
            v[:, :, -1] = noise(HEIGHT, WIDTH, top=65535, seed=3)
            shown = eight(v[:, :, :-1], white) if bits != 15 else v[:, :, :-1] >> 8
            right = over_white(shown, v[:, :, -1], 65535)
            yield taken(f"png-{kind}-{bits}-in-16.png", png(v, 16, colour), right, *said, "alpha", within=1)
    v = noise(HEIGHT, WIDTH, 4, top=4095)  # all four channels of 12 bits
    v[0, 0, :3] = 4095
    right = over_white(eight(v[:, :, :3], 4095), v[:, :, 3], 4095)
    yield taken("png-rgba-all-12-in-16.png", png(v, 16, 6), right, "scaled", "bits16", "alpha", within=1)


def icc(data):
    return (b"iCCP", b"zoo\0\0" + zlib.compress(data))


def spaces():
    rgb = noise(HEIGHT, WIDTH, 3)
    grey = noise(HEIGHT, WIDTH, 1)
    named = {
        "adobe": (colours.ADOBE, 563 / 256),
        "p3": (colours.P3, 0),
        "prophoto": (colours.PROPHOTO, 461 / 256),
        "linear": (colours.SRGB, 1.0),
        "bt2020": (colours.BT2020, 2.4),
        "gamma22": (colours.SRGB, 563 / 256),
    }
    for name, (primaries, gamma) in named.items():
        block = icc(colours.rgb_profile(primaries, gamma))
        right = colours.in_srgb(rgb, primaries, gamma)
        yield taken(f"png-icc-{name}.png", png(rgb, 8, 2, block), right, "profile", within=3)
    block = icc(colours.rgb_profile(colours.P3, 0))
    right = colours.in_srgb(rgb, colours.P3, 0)
    alpha = noise(HEIGHT, WIDTH, 1, seed=9)
    both = np.concatenate([rgb, alpha], 2)
    yield taken("png-icc-alpha.png", png(both, 8, 6, block), over_white(right, alpha[:, :, 0]), "profile", "alpha", within=3)
    palette = rgb.reshape(-1, 3)[:256]
    index = noise(HEIGHT, WIDTH, 1, seed=4)
    shown = colours.in_srgb(palette[None], colours.P3, 0)[0][index[:, :, 0]]
    data = png(index, 8, 3, (b"PLTE", palette.astype(np.uint8).tobytes()), block)
    yield taken("png-icc-palette.png", data, shown, "profile", within=3)
    deep = rgb * 257
    yield taken("png-icc-rgb16.png", png(deep, 16, 2, block), right, "profile", "bits16", within=3)
    for gamma in (1.0, 1.8):
        shown = colours.grey_in_srgb(grey[:, :, 0], gamma)
        data = png(grey, 8, 0, icc(colours.grey_profile(gamma)))
        yield taken(f"png-icc-grey-{round(gamma * 10)}.png", data, shown, "profile", "gray", within=3)
    shown = colours.grey_in_srgb(grey[:, :, 0], 1.0)
    data = png(grey * 257, 16, 0, icc(colours.grey_profile(1.0)))
    yield taken("png-icc-grey16.png", data, shown, "profile", "bits16", within=3)
    pair = np.concatenate([grey, np.full_like(grey, 255)], 2)
    yield taken(
        "png-icc-la16.png",
        png(pair * 257, 16, 4, icc(colours.grey_profile(1.0))),
        shown,
        "profile",
        "bits16",
        "alpha",
        within=3,
    )
    yield taken(
        "png-icc-rgb-of-grey.png",
        png(grey, 8, 0, icc(colours.rgb_profile(colours.SRGB, 1.0))),
        shown,
        "profile",
        "gray",
        within=3,
    )
    # sRGB in all but name, by a table, and by its own chunk: not a bit changes
    yield taken("png-icc-srgb.png", png(rgb, 8, 2, icc(colours.rgb_profile(colours.SRGB, 0))), rgb)
    yield taken("png-icc-srgb-grey.png", png(grey, 8, 0, icc(colours.grey_profile(0))), grey, "gray")
    yield taken("png-srgb.png", png(rgb, 8, 2, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))), rgb)
    # what cannot be used: the numbers as they are, and a remark
    p3 = colours.rgb_profile(colours.P3, 0)
    for name, block in {
        "empty": icc(b""),
        "cut": icc(p3[: len(p3) // 2]),
        "noise": icc(noise(4000, seed=5).astype(np.uint8).tobytes()),
        "not-zlib": (b"iCCP", b"zoo\0\0nothing"),
        "method": (b"iCCP", b"zoo\0\1" + zlib.compress(p3)),
        "huge": icc(bytes(1 << 25)),
        "grey-of-rgb": icc(colours.grey_profile(1.0)),
        "cmyk": icc(colours.cmyk_profile()),
    }.items():
        yield taken(f"png-icc-bad-{name}.png", png(rgb, 8, 2, block), rgb, "bad_profile")
    large = colours.profile(b"RGB ", {b"zoo0": bytes(2 << 20), **tags_of(colours.P3)})  # more than Pillow reads of a PNG
    yield taken("png-icc-2-megabytes.png", png(rgb, 8, 2, icc(large)), right, "profile", within=3)
    gama, chrm = (b"gAMA", struct.pack(">I", 45455)), lambda p: (b"cHRM", struct.pack(">8I", *(round(n * 1e5) for n in p)))
    yield taken("png-gama-22.png", png(rgb, 8, 2, gama, chrm(colours.SRGB)), rgb)
    yield taken("png-chrm-p3.png", png(rgb, 8, 2, gama, chrm(colours.P3)), right, "profile", within=3)
    one = (b"gAMA", struct.pack(">I", 100000))
    yield taken("png-gama-10.png", png(rgb, 8, 2, one), colours.in_srgb(rgb, colours.SRGB, 1.0), "profile", within=3)
    yield taken("png-gama-10-grey.png", png(grey, 8, 0, one), shown, "profile", "gray", within=3)
    mac = (b"gAMA", struct.pack(">I", 55556))
    yield taken("png-gama-18.png", png(rgb, 8, 2, mac), colours.in_srgb(rgb, colours.SRGB, 1.8), "profile", within=3)
    yield taken("png-gama-cut.png", png(rgb, 8, 2, (b"gAMA", b"\0")), rgb)
    yield taken("png-cicp-p3.png", png(rgb, 8, 2, (b"cICP", b"\x0c\x0d\0\1"), icc(b"x" * 200)), right, "profile", within=3)
    yield taken("png-cicp-srgb.png", png(rgb, 8, 2, (b"cICP", b"\1\x0d\0\1"), one), rgb)
    yield taken("png-cicp-pq.png", png(rgb, 8, 2, (b"cICP", b"\x09\x10\0\1")), rgb, "hdr")


def tags_of(primaries):
    matrix = colours.to_d50(primaries)
    tags = {kind: colours.fixed(matrix[:, i]) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), colours.curve(0))


def sizes():
    for height, width in ((1, 1), (1, 37), (37, 1), (3, 5), (1, 2000), (2000, 1), (101, 103), (16, 16), (15, 64)):
        v = noise(height, width, 3)
        yield taken(f"png-{height}x{width}.png", png(v, 8, 2), v, *(("tiny",) if min(height, width) < 16 else ()))


def others():
    rgb = smooth()
    second = Image.fromarray(255 - rgb)
    yield taken("apng.png", saved(rgb, "PNG", save_all=True, append_images=[second]), rgb, "animated")
    yield taken("apng-named.apng", saved(rgb, "PNG", save_all=True, append_images=[second]), rgb, "animated")
    turned = exif(orientation=6)[6:]
    yield taken("png-exif-first.png", png(rgb, 8, 2, (b"eXIf", turned)), np.rot90(rgb, -1), "rotated")
    yield taken("png-exif-last.png", png(rgb, 8, 2, after=[(b"eXIf", turned)]), np.rot90(rgb, -1), "rotated")
    whole = png(rgb, 8, 2)
    yield refused("png-cut.png", whole[: len(whole) // 2], "damaged", "truncated|damaged|cannot be read")
    yield refused(
        "png-crc.png", whole.replace(zlib.crc32(b"IDAT" + whole[41:-16]).to_bytes(4), b"zoo!"), "damaged", "wrong CRC"
    )
    yield refused("png-head.png", whole[:30], "damaged", "damaged, or of a kind of PNG")
    yield refused("png-no-palette.png", png(noise(9, 9, 1), 8, 3), "damaged", "without a palette")
    yield refused(
        "png-no-pixels.png",
        PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        "damaged",
        "cannot be read",
    )
    yield taken("png-called.jpg", whole, rgb, "wrong_extension")
