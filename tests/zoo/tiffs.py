"""TIFF: types, orders of bytes, planes, compressions, colours, and what no rule can read."""

import numpy as np
from PIL import Image

from zoo import colours
from zoo.animal import HEIGHT, WIDTH, eight, noise, over_white, refused, smooth, taken
from zoo.writers import SHORT, UNDEFINED, page, saved, tiff, tiff_of


def animals():
    yield from integers()
    yield from floats()
    yield from palettes()
    yield from other_colours()
    yield from layouts()
    yield from refusals()


def integers():
    for order, name in (("<", "le"), (">", "be")):
        for zipped in (False, True):
            end = f"{name}{'-zip' if zipped else ''}"
            how = {"order": order, "zipped": zipped}
            v = noise(HEIGHT, WIDTH, 1).astype(np.uint8)
            yield taken(f"tiff-u8-{end}.tif", tiff(v, 1, **how), v, "gray")
            yield taken(f"tiff-u8-white0-{end}.tif", tiff(v, 0, **how), 255 - v, "gray")
            v = noise(HEIGHT, WIDTH, 1, top=65535).astype(np.uint16)
            yield taken(f"tiff-u16-{end}.tif", tiff(v, 1, **how), eight(v, 65535), "bits16")
            for bits in (8, 10, 12, 14):
                v = noise(HEIGHT, WIDTH, 1, top=(1 << bits) - 1)
                if not zipped:
                    yield taken(
                        f"tiff-u16-{bits}-{end}.tif",
                        tiff(v.astype(np.uint16), 1, **how),
                        eight(v, v.max()),
                        "bits16",
                        "scaled",
                    )
            v = noise(HEIGHT, WIDTH, 1, top=32767).astype(np.int16)
            yield taken(f"tiff-i16-{end}.tif", tiff(v, 1, **how), eight(v, 32767), "bits16")
            v = noise(HEIGHT, WIDTH, 1).astype(np.int32)
            yield taken(f"tiff-i32-{end}.tif", tiff(v, 1, **how), v, "bits16", "scaled")
            v = noise(HEIGHT, WIDTH, 1, top=2**31 - 1).astype(np.int32)
            yield taken(f"tiff-i32-full-{end}.tif", tiff(v, 1, **how), eight(v, 2**31 - 1), "bits16")
            for channels, extra in ((3, ()), (4, (2,))):
                for planar in (1, 2):
                    v = noise(HEIGHT, WIDTH, channels).astype(np.uint8)
                    w = noise(HEIGHT, WIDTH, channels, top=65535).astype(np.uint16)
                    w[0, 0, :3] = 65535
                    for values, shown, depth in ((v, v, 8), (w, w >> 8, 16)):
                        right = shown if channels == 3 else over_white(shown[:, :, :3], shown[:, :, 3])
                        said = ({"alpha"} if channels == 4 else set()) | ({"bits16"} if depth == 16 else set())
                        data = tiff(values, 2, planar=planar, extra=extra, **how)
                        label = (
                            f"tiff-{'rgb' if channels == 3 else 'rgba'}{depth}{'-planes' if planar == 2 else ''}-{end}.tif"
                        )
                        yield taken(label, data, right, *said, within=1 if extra else 0)
            v = noise(HEIGHT, WIDTH, 3, top=4095).astype(np.uint16)
            yield taken(f"tiff-rgb-12-in-16-{end}.tif", tiff(v, 2, **how), eight(v, 4095), "bits16", "scaled")
    v = noise(HEIGHT, WIDTH, 3, top=4095).astype(np.uint16)
    yield taken("tiff-rgb-12-in-16-planes.tif", tiff(v, 2, planar=2), eight(v, 4095), "bits16", "scaled")
    yield refused("tiff-rgb-12-in-16-planes-zip.tif", tiff(v, 2, planar=2, zipped=True), "unsupported", "fewer")
    v = noise(HEIGHT, WIDTH, 4, top=4095).astype(np.uint16)
    v[:, :, 3] = noise(HEIGHT, WIDTH, top=65535, seed=8)
    right = over_white(eight(v[:, :, :3], 4095), v[:, :, 3], 65535)
    yield taken("tiff-rgba-12-in-16.tif", tiff(v, 2, extra=(2,)), right, "bits16", "scaled", "alpha", within=1)
    v = noise(HEIGHT, WIDTH, 1, top=127).astype(np.int8)
    yield taken("tiff-i8.tif", tiff(v, 1), eight(v, 127), "gray")
    v = noise(HEIGHT, WIDTH, 1, top=2**32 - 1).astype(np.uint32)
    yield taken("tiff-u32-full.tif", tiff(v, 1), eight(v, 2**32 - 1), "bits16")
    yield taken("tiff-u32-zip.tif", tiff(v % 200, 1, zipped=True), v % 200, "bits16", "scaled")
    for bits in (1, 2, 4, 12):
        v = noise(HEIGHT, WIDTH, 1, top=(1 << bits) - 1).astype(np.uint16)
        data = tiff(v, 1, bits=bits)
        yield taken(f"tiff-packed{bits}.tif", data, eight(v, v.max()), "bits16" if bits == 12 else "gray")
        if bits < 12:
            yield taken(f"tiff-packed{bits}-white0.tif", tiff(v, 0, bits=bits), 255 - eight(v, v.max()), "gray")
            yield taken(f"tiff-packed{bits}-fill2.tif", tiff(v, 1, bits=bits, fill=2), eight(v, v.max()), "gray")
    v = noise(HEIGHT, WIDTH, 1, top=65535).astype(np.uint16)
    yield taken("tiff-u16-white0.tif", tiff(v, 0), 255 - eight(v, 65535).astype(int), "bits16")
    yield taken("tiff-u16-fill2.tif", tiff(v, 1, fill=2), eight(v, 65535), "bits16")
    v = noise(HEIGHT, WIDTH, 2).astype(np.uint8)
    yield taken("tiff-la.tif", tiff(v, 1, extra=(2,)), over_white(v[:, :, :1], v[:, :, 1]), "gray", "alpha", within=1)
    yield taken("tiff-lx.tif", tiff(v, 1, extra=(0,)), v[:, :, 0], "gray")
    v = noise(HEIGHT, WIDTH, 4).astype(np.uint8)
    yield taken("tiff-rgbx.tif", tiff(v, 2, extra=(0,)), v[:, :, :3])
    yield refused("tiff-rgbx-planes.tif", tiff(v, 2, extra=(0,), planar=2), "unsupported", "4 x 8 bits, unsigned integers")
    yield taken("tiff-rgbx-planes-zip.tif", tiff(v, 2, extra=(0,), planar=2, zipped=True), v[:, :, :3])
    alpha = v[:, :, 3:].astype(int)
    v[:, :, :3] = v[:, :, :3] * alpha // 255  # premultiplied
    yield taken("tiff-premultiplied.tif", tiff(v, 2, extra=(1,)), v[:, :, :3] + 255 - alpha, "alpha", within=2)
    pair = np.stack([v[:, :, 0], v[:, :, 3]], 2)
    yield taken(
        "tiff-la-premultiplied.tif", tiff(pair, 1, extra=(1,)), v[:, :, 0] + 255 - alpha[:, :, 0], "gray", "alpha", within=2
    )


def floats():
    unit = np.random.default_rng(3).random((HEIGHT, WIDTH, 1), np.float32)
    unit.flat[:2] = 0, 1
    right = np.rint(unit.astype(float) * 255)
    for order, name in (("<", "le"), (">", "be")):
        for zipped in (False, True):
            data = tiff(unit, 1, order=order, zipped=zipped)
            yield taken(f"tiff-float1-{name}{'-zip' if zipped else ''}.tif", data, right, "bits16", "scaled")
    yield taken("tiff-float255.tif", tiff(unit * 255, 1), right, "bits16", "scaled", within=1)
    yield taken(
        "tiff-float-over.tif",
        tiff(unit * 1.08 - 0.04, 1),
        np.clip(np.rint((unit * 1.08 - 0.04) * 255.0), 0, 255),
        "bits16",
        "scaled",
        within=1,
    )
    yield taken("tiff-float-white0.tif", tiff(unit, 0), 255 - right, "bits16", "scaled")
    for name, values in (("pm1", unit * 2 - 1), ("hdr", unit * 5), ("counts", unit * 60000)):
        yield refused(f"tiff-float-{name}.tif", tiff(values, 1), "unsupported", "from 0 to 1, or from 0 to 255")
    for name, odd in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        values = unit.copy()
        values[7, 7] = odd
        yield refused(f"tiff-float-{name}.tif", tiff(values, 1), "unsupported", "finite")
    yield refused("tiff-float-all-nan.tif", tiff(unit * np.nan, 1), "unsupported", "finite")
    for kind in (np.float16, np.float64):
        yield refused(f"tiff-{kind.__name__}.tif", tiff(unit.astype(kind), 1), "unsupported", "floats")
    yield refused("tiff-float-rgb.tif", tiff(np.repeat(unit, 3, 2), 2), "unsupported", "3 x 32 bits, floats")


def palettes():
    for bits in (1, 2, 4, 8):
        v = noise(HEIGHT, WIDTH, 1, top=(1 << bits) - 1).astype(np.uint8)
        palette = noise(1 << bits, 3, seed=6)
        for name, factor in (("", 257), ("-of-8-bits", 1)):
            table = (320, (SHORT, [int(n) for n in (palette.T * factor).ravel()]))
            yield taken(
                f"tiff-palette{bits}{name}.tif",
                tiff(v, 3, bits=bits if bits < 8 else None, tags=[table]),
                palette[v[:, :, 0]],
            )


def other_colours():
    lab = np.stack(
        [noise(HEIGHT, WIDTH, seed=1), noise(HEIGHT, WIDTH, top=80, seed=2) - 40, noise(HEIGHT, WIDTH, top=80, seed=3) - 40],
        2,
    )
    lab[:, :, 0] = 60 + lab[:, :, 0] // 2
    right = colours.of_lab(lab * [100 / 255, 1, 1])
    data = np.stack([lab[:, :, 0], lab[:, :, 1] % 256, lab[:, :, 2] % 256], 2).astype(np.uint8)
    for zipped in (False, True):
        yield taken(f"tiff-lab{'-zip' if zipped else ''}.tif", tiff(data, 8, zipped=zipped), right, "profile", within=3)
    inks = noise(HEIGHT, WIDTH, 4).astype(np.uint8)
    rest = 255 - inks.astype(int)
    plain = np.rint(rest[:, :, :3] * rest[:, :, 3:] / 255)
    yield taken("tiff-cmyk.tif", tiff(inks, 5), plain, "cmyk", within=1)
    yield taken("tiff-cmyk-planes.tif", tiff(inks, 5, planar=2), plain, "cmyk", within=1)
    yield taken("tiff-cmyk16.tif", tiff(inks.astype(np.uint16) * 257, 5), plain, "cmyk", "bits16", within=1)
    corners = noise(HEIGHT, WIDTH, 4, top=1)
    printed = colours.of_lab(colours.lab_of_inks(corners))
    block = (34675, (UNDEFINED, colours.cmyk_profile()))
    yield taken(
        "tiff-cmyk-icc.tif", tiff((corners * 255).astype(np.uint8), 5, tags=[block]), printed, "cmyk", "profile", within=4
    )
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    p3 = (34675, (UNDEFINED, colours.rgb_profile(colours.P3, 0)))
    yield taken("tiff-icc.tif", tiff(rgb, 2, tags=[p3]), colours.in_srgb(rgb, colours.P3, 0), "profile", within=3)
    yield taken("tiff-icc-bad.tif", tiff(rgb, 2, tags=[(34675, (UNDEFINED, b"no profile" * 30))]), rgb, "bad_profile")
    yield taken("tiff-icc-of-lab.tif", tiff(data, 8, tags=[p3]), right, "profile", "bad_profile", within=3)
    flat = smooth(24, 20)
    ycc = np.asarray(Image.fromarray(flat).convert("YCbCr"))
    yield taken("tiff-ycc.tif", tiff(ycc, 6, tags=[(530, (SHORT, [1, 1]))]), flat, within=4)
    yield taken("tiff-ycc-zip.tif", tiff(ycc, 6, zipped=True, tags=[(530, (SHORT, [1, 1]))]), flat, within=4)
    blocks = ycc[:, :, 0].reshape(12, 2, 10, 2).transpose(0, 2, 1, 3).reshape(120, 4)
    halves = ycc[:, :, 1:].reshape(12, 2, 10, 2, 2).mean((1, 3)).round().astype(np.uint8).reshape(120, 2)
    strip = b"".join(bytes(y) + bytes(c) for y, c in zip(blocks, halves, strict=True))
    tags, _ = page(ycc, 6)
    for name, more in (("", {530: (SHORT, [2, 2])}), ("-untold", {})):
        yield taken(f"tiff-ycc-halved{name}.tif", tiff_of([({**tags, **more}, [strip])]), flat, within=12)


def layouts():
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    deep = noise(HEIGHT, WIDTH, 1, top=65535).astype(np.uint16)
    yield taken("tiff-strips.tif", tiff(rgb, 2, rows=5), rgb)
    yield taken("tiff-strips-planes.tif", tiff(rgb, 2, rows=5, planar=2), rgb)
    yield taken("tiff-strips-zip.tif", tiff(rgb, 2, rows=5, zipped=True), rgb)
    yield taken("tiff-tiles.tif", tiff(rgb, 2, tile=16), rgb)
    yield taken("tiff-tiles-planes.tif", tiff(rgb, 2, tile=16, planar=2), rgb)
    yield taken("tiff-tiles-u16.tif", tiff(deep, 1, tile=16, order=">"), eight(deep, 65535), "bits16")
    yield taken("tiff-tiles-rgb16-planes.tif", tiff(np.repeat(deep, 3, 2), 2, tile=16, planar=2), deep >> 8, "bits16")
    yield taken("bigtiff.tif", tiff(rgb, 2, big=True), rgb)
    yield taken("bigtiff-u16.tif", tiff(deep, 1, big=True), eight(deep, 65535), "bits16")
    yield refused("bigtiff-be.tif", tiff(deep, 1, big=True, order=">"), "unsupported", "big-endian")
    yield taken("tiff-pages.tif", tiff_of([page(rgb, 2), page(255 - rgb, 2)]), rgb, "pages")
    small = page(rgb[::2, ::2], 2, tags=[(254, (4, [1]))])
    yield taken("tiff-small-second.tif", tiff_of([page(rgb, 2), small]), rgb, "pages")
    for turn, right in turned(rgb).items():
        said = ("rotated",) if turn > 1 else ()
        yield taken(f"tiff-turn{turn}.tif", tiff(rgb, 2, tags=[(274, (SHORT, [turn]))]), right, *said)
    yield taken(
        "tiff-turn6-u16.tif",
        tiff(deep, 1, tags=[(274, (SHORT, [6]))]),
        np.rot90(eight(deep, 65535), -1),
        "bits16",
        "rotated",
    )
    for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        yield taken(f"tiff-by-{name}.tif", saved(rgb, "TIFF", compression=name), rgb)
    one = (noise(HEIGHT, WIDTH, top=1) * 255).astype(np.uint8)
    yield taken("tiff-by-group4.tif", saved(Image.fromarray(one).convert("1"), "TIFF", compression="group4"), one, "gray")
    flat = smooth(64, 64)
    yield taken("tiff-by-jpeg.tif", saved(flat, "TIFF", compression="jpeg", quality=95), flat, within=10)


def turned(v):
    """EXIF's orientation -> the upright picture of an array that a file with it holds."""
    return {
        1: v,
        2: v[:, ::-1],
        3: v[::-1, ::-1],
        4: v[::-1],
        5: v.transpose(1, 0, 2),
        6: np.rot90(v, -1),
        7: v[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(v, 1),
    }


def refusals():
    for order in "<>":
        for zipped in (False, True):
            for kind in (np.int8, np.int16, np.int32):
                v = (noise(HEIGHT, WIDTH, 1, top=200) - 100).astype(kind)
                name = f"tiff-{kind.__name__}-negative-{'le' if order == '<' else 'be'}{'-zip' if zipped else ''}.tif"
                yield refused(name, tiff(v, 1, order=order, zipped=zipped), "unsupported", "from -100 to 100")
    v = noise(HEIGHT, WIDTH, 1, top=10**6).astype(np.uint32)
    yield refused("tiff-u32-million.tif", tiff(v, 1), "unsupported", "1,000,000 of 32 bits")
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    yield refused("tiff-dng.tif", tiff(rgb, 2, tags=[(50706, (1, [1, 4, 0, 0]))]), "unsupported", "RAW")
    yield refused(
        "tiff-small-first.tif", tiff_of([page(rgb, 2, tags=[(254, (4, [1]))]), page(rgb, 2)]), "unsupported", "small copy"
    )
    yield refused("tiff-mosaic.tif", tiff(rgb[:, :, :1], 32803), "unsupported", "32803")
    yield refused(
        "tiff-inks.tif", tiff(np.repeat(rgb, 2, 2)[:, :, :4], 5, tags=[(332, (SHORT, [2]))]), "unsupported", "inks"
    )
    pair = rgb[:, :, :2]
    for zipped in (False, True):
        data = tiff(pair, 1, extra=(2,), planar=2, zipped=zipped)
        yield refused(f"tiff-la-planes{'-zip' if zipped else ''}.tif", data, "unsupported", "planes")
    yield refused("tiff-la16.tif", tiff(pair.astype(np.uint16), 1, extra=(2,)), "unsupported", "2 x 16 bits")
    yield refused("tiff-cut.tif", tiff(rgb, 2)[:500], "damaged", "damaged")
    yield refused("tiff-tags-cut.tif", tiff(rgb, 2)[:-20], "damaged", "tags are cut off")
    whole = bytearray(tiff(rgb, 2))
    whole[200:260] = bytes(60)
    yield taken("tiff-zeros.tif", bytes(whole), np.frombuffer(bytes(whole)[8 : 8 + rgb.size], np.uint8).reshape(rgb.shape))
