"""GIF, WebP, AVIF, HEIC where it is read, JPEG 2000, BMP, TGA, ICO, PPM and PFM."""

import struct

import numpy as np
from PIL import Image, features

from noisebook.images.formats import has_heif
from zoo import colours
from zoo.animal import HEIGHT, WIDTH, eight, noise, over_white, refused, smooth, taken
from zoo.tiffs import turned
from zoo.writers import bmp, boxes, exif, icon, packed, padded, png, saved, tga


def animals():
    yield from gifs()
    yield from webps()
    if features.check("avif"):
        yield from avifs()
    if has_heif():
        yield from heics()
    if features.check("jpg_2000"):
        yield from jpeg2000s()
    yield from bmps()
    yield from tgas()
    yield from icons()
    yield from ppms()


def indexed(seed=0):
    palette = noise(256, 3, seed=seed + 50).astype(np.uint8)
    index = noise(HEIGHT, WIDTH, seed=seed).astype(np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette(palette.tobytes())
    return picture, palette[index], index


def gifs():
    picture, right, index = indexed()
    yield taken("gif.gif", saved(picture, "GIF"), right)
    yield taken("gif-plain.gif", saved(picture, "GIF", interlace=0), right)
    clear = int(index[4, 4])
    hole = np.where((index == clear)[:, :, None], 255, right)
    yield taken("gif-clear.gif", saved(picture, "GIF", transparency=clear), hole, "alpha")
    other = Image.fromarray(255 - index, "P")
    other.putpalette(picture.getpalette())
    yield taken("gif-moves.gif", saved(picture, "GIF", save_all=True, append_images=[other]), right, "animated")
    yield refused("gif-cut.gif", saved(picture, "GIF")[:400], "damaged", "of a kind of GIF")
    yield refused("gif-later-cut.gif", saved(picture, "GIF")[:1100], "damaged", "truncated")
    grey = noise(HEIGHT, WIDTH).astype(np.uint8)
    yield taken("gif-grey.gif", saved(grey, "GIF"), grey)
    data = bytearray(saved(picture, "GIF", optimize=False, interlace=0))
    data[6:10] = struct.pack("<2H", WIDTH + 4, HEIGHT + 3)  # a frame smaller than its screen
    whole = np.full((HEIGHT + 3, WIDTH + 4, 3), right_background(picture, data), np.uint8)
    whole[:HEIGHT, :WIDTH] = right
    yield taken("gif-small-frame.gif", bytes(data), whole)


def right_background(picture, data):
    return picture.getpalette()[3 * data[11] : 3 * data[11] + 3]


def webps():
    rgb, alpha = noise(HEIGHT, WIDTH, 3).astype(np.uint8), noise(HEIGHT, WIDTH, 1).astype(np.uint8)
    yield taken("webp.webp", saved(rgb, "WEBP", lossless=True), rgb)
    flat = smooth(48, 40)
    yield taken("webp-lossy.webp", saved(flat, "WEBP", quality=95), flat, within=12)
    both = np.concatenate([rgb, alpha], 2)
    data = saved(both, "WEBP", lossless=True, exact=True)
    yield taken("webp-alpha.webp", data, over_white(rgb, alpha[:, :, 0]), "alpha", within=1)
    second = Image.fromarray(255 - rgb)
    yield taken("webp-moves.webp", saved(rgb, "WEBP", lossless=True, save_all=True, append_images=[second]), rgb, "animated")
    p3 = colours.rgb_profile(colours.P3, 0)
    yield taken(
        "webp-icc.webp",
        saved(rgb, "WEBP", lossless=True, icc_profile=p3),
        colours.in_srgb(rgb, colours.P3, 0),
        "profile",
        within=3,
    )
    data = saved(rgb, "WEBP", lossless=True, exif=exif(orientation=8)[6:])
    yield taken("webp-turned.webp", data, turned(rgb)[8], "rotated")
    yield taken("webp-called.png", saved(rgb, "WEBP", lossless=True), rgb, "wrong_extension")
    yield refused("webp-cut.webp", saved(rgb, "WEBP", lossless=True)[:200], "damaged", "cannot be read")


def avifs():
    rgb = smooth(48, 40)
    fine = {"quality": 100, "subsampling": "4:4:4", "speed": 9}
    data = saved(rgb, "AVIF", **fine)
    yield taken("avif.avif", data, rgb, within=3)
    alpha = np.full((48, 40, 1), 255, np.uint8)
    alpha[:20] = 0
    both = np.concatenate([rgb, alpha], 2)
    yield taken("avif-alpha.avif", saved(both, "AVIF", **fine), over_white(rgb, alpha[:, :, 0]), "alpha", within=4)
    moves = saved(rgb, "AVIF", save_all=True, append_images=[Image.fromarray(255 - rgb)], **fine)
    yield taken("avif-moves.avif", moves, rgb, "animated", within=4)
    at = data.index(b"colrnclx") + 8
    p3 = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    yield taken("avif-p3.avif", p3, colours.in_srgb(rgb, colours.P3, 0), "profile", within=12)
    pq = data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :]
    yield taken("avif-pq.avif", pq, rgb, "hdr", within=3)
    icc = saved(rgb, "AVIF", icc_profile=colours.rgb_profile(colours.P3, 0), **fine)
    yield taken("avif-icc.avif", icc, colours.in_srgb(rgb, colours.P3, 0), "profile", within=12)
    yield refused("avif-cut.avif", data[: len(data) // 2], "damaged", "of a kind of AVIF")
    turn = saved(rgb, "AVIF", exif=exif(orientation=6)[6:], **fine)
    yield taken("avif-turned.avif", turn, np.rot90(rgb, -1), "rotated", within=3)


def heics():
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    rgb = smooth(48, 40)
    fine = {"quality": -1, "chroma": 444}
    data = saved(rgb, "HEIF", **fine)
    yield taken("heic.heic", data, rgb, within=2)
    yield taken("heic-named.heif", data, rgb, within=2)
    yield taken("heic-called.jpg", data, rgb, "wrong_extension", within=2)
    yield taken("heic-grey.heic", saved(rgb[:, :, 0], "HEIF", **fine), rgb[:, :, 0], "gray", within=2)
    p3 = colours.rgb_profile(colours.P3, 0)
    yield taken(
        "heic-icc.heic",
        saved(rgb, "HEIF", icc_profile=p3, **fine),
        colours.in_srgb(rgb, colours.P3, 0),
        "profile",
        within=12,
    )
    turn = saved(rgb, "HEIF", exif=exif(orientation=6)[6:], **fine)
    yield taken("heic-turned.heic", turn, np.rot90(rgb, -1), "rotated", within=2)
    alpha = np.full((48, 40), 255, np.uint8)
    alpha[:20] = 0
    both = np.concatenate([rgb, alpha[:, :, None]], 2)
    yield taken("heic-alpha.heic", saved(both, "HEIF", **fine), over_white(rgb, alpha), "alpha", within=3)
    several = saved(rgb, "HEIF", save_all=True, append_images=[Image.fromarray(255 - rgb)], **fine)
    yield taken("heic-of-two.heic", several, rgb, "pages", within=2)
    yield refused("heic-cut.heic", data[: len(data) // 2], "damaged", "damaged")
    yield refused("heic-head.heic", data[:300], "damaged", "of a kind of HEIF")


def jpeg2000s():
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    exact = {"irreversible": False}
    data = saved(rgb, "JPEG2000", **exact)
    yield taken("jpeg2000.jp2", data, rgb)
    yield taken("jpeg2000.j2k".replace("2000", "2000-bare"), saved(rgb, "JPEG2000", no_jp2=True, **exact), rgb)
    yield taken("jpeg2000-grey.jp2", saved(rgb[:, :, 0], "JPEG2000", **exact), rgb[:, :, 0], "gray")
    deep = noise(HEIGHT, WIDTH, top=65535).astype(np.uint16)
    yield taken("jpeg2000-16.jp2", saved(deep, "JPEG2000", **exact), eight(deep, 65535), "bits16")
    yield taken("jpeg2000-dark-16.jp2", saved(deep // 40, "JPEG2000", **exact), eight(deep // 40, 65535), "bits16")
    both = noise(HEIGHT, WIDTH, 4).astype(np.uint8)
    yield taken(
        "jpeg2000-alpha.jp2", saved(both, "JPEG2000", **exact), over_white(both[:, :, :3], both[:, :, 3]), "alpha", within=1
    )
    pair = Image.fromarray(both[:, :, :2], "LA")
    yield taken(
        "jpeg2000-la.jp2",
        saved(pair, "JPEG2000", **exact),
        over_white(both[:, :, :1], both[:, :, 1]),
        "gray",
        "alpha",
        within=1,
    )
    p3 = colours.rgb_profile(colours.P3, 0)
    icc = boxes(data, [b"jp2h", b"colr"], lambda body: b"\2\0\0" + p3)
    yield taken("jpeg2000-icc.jp2", icc, colours.in_srgb(rgb, colours.P3, 0), "profile", within=3)
    lab = boxes(data, [b"jp2h", b"colr"], lambda body: b"\1\0\0" + struct.pack(">I", 14))
    yield refused("jpeg2000-lab.jp2", lab, "unsupported", "colour space 14")


def bmps():
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    bgr = rgb[:, :, ::-1]
    rows = [row.tobytes() for row in bgr]
    yield taken("bmp-24.bmp", bmp(padded(rows), WIDTH, HEIGHT, 24), rgb)
    yield taken("bmp-24-core.bmp", bmp(padded(rows), WIDTH, HEIGHT, 24, size=12), rgb)
    yield taken("bmp-24-down.bmp", bmp(padded(rows[::-1]), WIDTH, -HEIGHT, 24), rgb)
    for bits in (1, 4, 8):
        v = noise(HEIGHT, WIDTH, top=(1 << bits) - 1)
        palette = noise(1 << bits, 4, seed=7).astype(np.uint8)
        data = bmp(padded(packed(v, bits)), WIDTH, HEIGHT, bits, palette=palette.tobytes())
        yield taken(f"bmp-{bits}.bmp", data, palette[v][:, :, 2::-1])
    v = noise(HEIGHT, WIDTH, top=1)
    data = bmp(padded(packed(v, 1)), WIDTH, HEIGHT, 1, palette=bytes([255, 255, 255, 0, 0, 0, 0, 0]))
    yield taken("bmp-1-white-first.bmp", data, 255 * (1 - v))
    v = noise(HEIGHT, WIDTH, 3, top=31)
    words = v[:, :, 0] << 10 | v[:, :, 1] << 5 | v[:, :, 2]
    rows16 = [row.astype("<u2").tobytes() for row in words]
    yield taken("bmp-555.bmp", bmp(padded(rows16), WIDTH, HEIGHT, 16), v * 255 // 31, within=1)
    words = v[:, :, 0] << 11 | v[:, :, 1] << 6 | v[:, :, 2]
    masks = (0xF800, 0x7E0, 0x1F)
    data = bmp(
        padded([row.astype("<u2").tobytes() for row in words]), WIDTH, HEIGHT, 16, compression=3, masks=masks, size=52
    )
    yield taken(
        "bmp-565.bmp", data, np.stack([v[:, :, 0] * 255 // 31, v[:, :, 1] * 510 // 63, v[:, :, 2] * 255 // 31], 2), within=1
    )
    for name, alpha, said in (("zero", 0, ()), ("full", 255, ("alpha",))):
        four = np.concatenate([bgr, np.full((HEIGHT, WIDTH, 1), alpha, np.uint8)], 2)
        body = padded([row.tobytes() for row in four])
        yield taken(f"bmp-32-{name}.bmp", bmp(body, WIDTH, HEIGHT, 32), rgb)
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        yield taken(
            f"bmp-32-alpha-{name}.bmp", bmp(body, WIDTH, HEIGHT, 32, compression=3, masks=masks, size=108), rgb, *said
        )
    alpha = noise(HEIGHT, WIDTH, 1, seed=8).astype(np.uint8)
    body = padded([row.tobytes() for row in np.concatenate([bgr, alpha], 2)])
    right = over_white(rgb, alpha[:, :, 0])
    yield taken(
        "bmp-32-alpha.bmp", bmp(body, WIDTH, HEIGHT, 32, compression=3, masks=masks, size=124), right, "alpha", within=1
    )
    v = noise(HEIGHT, WIDTH, seed=9)
    palette = noise(256, 4, seed=7).astype(np.uint8)
    coded = b"".join(b"".join(bytes([1, n]) for n in row) + b"\0\0" for row in v[::-1].tolist()) + b"\0\1"
    data = bmp(coded, WIDTH, HEIGHT, 8, compression=1, palette=palette.tobytes())
    yield taken("bmp-runs.bmp", data, palette[v][:, :, 2::-1])
    p3 = colours.rgb_profile(colours.P3, 0)
    data = bmp(padded(rows), WIDTH, HEIGHT, 24, size=124, end=p3)
    yield taken("bmp-icc.bmp", data, colours.in_srgb(rgb, colours.P3, 0), "profile", within=3)
    yield taken("dib.dib", bmp(padded(rows), WIDTH, HEIGHT, 24)[14:], rgb)


def tgas():
    rgb, alpha = noise(HEIGHT, WIDTH, 3).astype(np.uint8), noise(HEIGHT, WIDTH, 1, seed=1).astype(np.uint8)
    bgr = rgb[:, :, ::-1]
    for flags, body in ((0, bgr[::-1]), (0x10, bgr[::-1, ::-1]), (0x20, bgr), (0x30, bgr[:, ::-1])):
        yield taken(f"tga-origin-{flags >> 4}.tga", tga(body.tobytes(), WIDTH, HEIGHT, 24, 2, flags), rgb)
    four = np.concatenate([bgr, alpha], 2)
    yield taken(
        "tga-alpha.tga", tga(four.tobytes(), WIDTH, HEIGHT, 32, 2, 0x28), over_white(rgb, alpha[:, :, 0]), "alpha", within=1
    )
    yield taken("tga-no-alpha.tga", tga(four.tobytes(), WIDTH, HEIGHT, 32, 2, 0x20), rgb)
    four[:, :, 3] = 0
    yield taken("tga-alpha-zero.tga", tga(four.tobytes(), WIDTH, HEIGHT, 32, 2, 0x28), rgb)
    v = noise(HEIGHT, WIDTH, 3, top=31)
    words = (v[:, :, 0] << 10 | v[:, :, 1] << 5 | v[:, :, 2]).astype("<u2")
    yield taken("tga-16.tga", tga(words.tobytes(), WIDTH, HEIGHT, 16, 2, 0x20), v * 255 // 31, within=1)
    grey = rgb[:, :, 0]
    yield taken("tga-grey.tga", tga(grey.tobytes(), WIDTH, HEIGHT, 8, 3, 0x20), grey, "gray")
    pair = np.stack([grey, alpha[:, :, 0]], 2)
    yield taken(
        "tga-la.tga",
        tga(pair.tobytes(), WIDTH, HEIGHT, 16, 3, 0x28),
        over_white(pair[:, :, :1], pair[:, :, 1]),
        "gray",
        "alpha",
        within=1,
    )
    palette = noise(256, 3, seed=5).astype(np.uint8)
    data = tga(grey.tobytes(), WIDTH, HEIGHT, 8, 1, 0x20, palette=palette.tobytes(), colours=256, map_depth=24)
    yield taken("tga-palette.tga", data, palette[grey][:, :, ::-1])
    four = np.concatenate([palette, np.zeros((256, 1), np.uint8)], 1)
    data = tga(grey.tobytes(), WIDTH, HEIGHT, 8, 1, 0x20, palette=four.tobytes(), colours=256, map_depth=32)
    yield taken("tga-palette-32.tga", data, palette[grey][:, :, ::-1])
    runs = b"".join(b"".join(b"\0" + bytes(p) for p in row) for row in bgr.tolist())
    yield taken("tga-runs.tga", tga(runs, WIDTH, HEIGHT, 24, 10, 0x20), rgb)
    yield refused("tga-unknown.tga", tga(grey.tobytes() * 2, WIDTH, HEIGHT, 16, 1, 0x20), "unsupported", "TGA")


def icons():
    one, two = noise(16, 16, 3).astype(np.uint8), noise(32, 32, 3, seed=1).astype(np.uint8)
    small, large = png(one, 8, 2), png(two, 8, 2)
    yield taken("ico-two.ico", icon((16, 16, 24, small), (32, 32, 24, large)), two, "pages")
    yield taken("ico-one.ico", icon((32, 32, 24, large)), two)
    poor = png(noise(32, 32, 1, top=1), 1, 0)
    yield taken("ico-deepest.ico", icon((32, 32, 1, poor), (32, 32, 24, large)), two, "pages")
    bgra = np.concatenate([two[::-1, :, ::-1], np.zeros((32, 32, 1), np.uint8)], 2)
    dib = struct.pack("<IiiHHIIiiII", 40, 32, 64, 1, 32, 0, 0, 0, 0, 0, 0) + bgra.tobytes() + bytes(32 * 4)
    yield taken("ico-bitmap-no-alpha.ico", icon((32, 32, 32, dib)), two)
    yield refused("ico-lying.ico", icon((32, 32, 24, b"nothing at all")), "damaged", "cannot be read")


def ppms():
    rgb = noise(HEIGHT, WIDTH, 3).astype(np.uint8)
    grey = rgb[:, :, 0]
    size = f"\n# of the zoo\n{WIDTH} {HEIGHT}\n".encode()
    one = grey >> 7
    yield taken("ppm-p4.pbm", b"P4" + size + b"".join(packed(one, 1)), 255 * (1 - one), "gray")
    yield taken(
        "ppm-p1.pbm", b"P1" + size + b"\n".join(b" ".join(b"%d" % n for n in row) for row in one), 255 * (1 - one), "gray"
    )
    yield taken("ppm-p5.pgm", b"P5" + size + b"255\n" + grey.tobytes(), grey, "gray")
    yield taken("ppm-p6.ppm", b"P6" + size + b"255\n" + rgb.tobytes(), rgb)
    yield taken("ppm-p6-called.pnm", b"P6" + size + b"255\n" + rgb.tobytes(), rgb)
    for top in (1, 15, 100, 1023, 4095, 65535):
        kind = ">u2" if top > 255 else "u1"
        v = noise(HEIGHT, WIDTH, 3, top=top)
        v[:, :, 1] = v[:, :, 1] // 3
        plain = f"{top}\n".encode() + "\n".join(" ".join(map(str, row)) for row in v.reshape(HEIGHT, -1)).encode()
        yield taken(
            f"ppm-p6-{top}.ppm", b"P6" + size + f"{top}\n".encode() + v.astype(kind).tobytes(), eight(v, top), within=1
        )
        yield taken(f"ppm-p3-{top}.ppm", b"P3" + size + plain, eight(v, top), within=1)
        w = v[:, :, 1]
        said = "bits16" if top > 255 else "gray"
        yield taken(
            f"ppm-p5-{top}.pgm", b"P5" + size + f"{top}\n".encode() + w.astype(kind).tobytes(), eight(w, top), said, within=1
        )
    unit = np.random.default_rng(3).random((HEIGHT, WIDTH), np.float32)
    right = np.rint(unit.astype(float) * 255)
    for scale, order, name in ((b"-1.0", "<", "le"), (b"1.0", ">", "be")):
        data = b"Pf\n%d %d\n%s\n" % (WIDTH, HEIGHT, scale) + unit[::-1].astype(order + "f4").tobytes()
        yield taken(f"pfm-{name}.pfm", data, right, "bits16", "scaled")
    data = b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + (unit * 7).astype("<f4").tobytes()
    yield refused("pfm-hdr.pfm", data, "unsupported", "from 0 to 1")
    yield refused(
        "pfm-colour.pfm",
        b"PF\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + np.repeat(unit, 3).tobytes(),
        "not_an_image",
        "not a picture of a format",
    )
    yield refused("ppm-cut.ppm", (b"P6" + size + b"255\n" + rgb.tobytes())[:-300], "damaged", "truncated")
