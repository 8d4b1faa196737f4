"""JPEG: greys, colours and inks, with and without Adobe's marker, orientations, profiles in parts, more than one picture."""

import numpy as np
from PIL import Image

from zoo import colours
from zoo.animal import noise, refused, smooth, taken
from zoo.tiffs import turned
from zoo.writers import exif, saved, with_segments, without_segment

FINE = {"quality": 100, "subsampling": 0}


def animals():
    rgb = smooth(48, 40)
    grey = rgb[:, :, 0]
    yield taken("jpeg-grey.jpg", saved(grey, "JPEG", quality=100), grey, "gray", within=2)
    yield taken("jpeg-rgb.jpg", saved(rgb, "JPEG", **FINE), rgb, within=3)
    yield taken("jpeg-halved.jpeg", saved(rgb, "JPEG", quality=95, subsampling=2), rgb, within=10)
    yield taken("jpeg-progressive.jpg", saved(rgb, "JPEG", progressive=True, **FINE), rgb, within=3)
    yield taken("jpeg-optimised.jpg", saved(rgb, "JPEG", optimize=True, restart_marker_blocks=2, **FINE), rgb, within=3)
    yield taken("jpeg-no-ycc.jpg", saved(rgb, "JPEG", keep_rgb=True, quality=100), rgb, within=2)
    for height, width in ((1, 1), (1, 37), (2000, 1), (3, 5), (17, 31)):
        v = smooth(height, width)
        said = ("tiny",) if min(height, width) < 16 else ()
        yield taken(f"jpeg-{height}x{width}.jpg", saved(v, "JPEG", **FINE), v, *said, within=3)
    yield from inks()
    for turn, right in turned(rgb).items():
        data = saved(rgb, "JPEG", exif=exif(orientation=turn, order="<>"[turn % 2]), **FINE)
        yield taken(f"jpeg-turn{turn}.jpg", data, right, *(("rotated",) if turn > 1 else ()), within=3)
    yield taken("jpeg-turn-9.jpg", saved(rgb, "JPEG", exif=exif(orientation=9), **FINE), rgb, within=3)
    yield taken(
        "jpeg-exif-broken.jpg",
        saved(rgb, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12", **FINE),
        rgb,
        "exif",
        within=3,
    )
    yield from spaces(rgb, grey)
    one = Image.fromarray(rgb)
    several = saved(one, "MPO", save_all=True, append_images=[Image.fromarray(255 - rgb)], **FINE)
    yield taken("jpeg-of-two.jpg", several, rgb, "pages", within=3)
    yield taken("jpeg-of-two-named.mpo", several, rgb, "pages", within=3)
    whole = saved(rgb, "JPEG", **FINE)
    yield taken("jpeg-called.png", whole, rgb, "wrong_extension", within=3)
    yield refused("jpeg-cut.jpg", whole[: len(whole) // 2], "damaged", "truncated|cannot be read|damaged")
    twelve = whole.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    yield refused("jpeg-twelve-bits.jpg", twelve, "unsupported", "a JPEG of 12 bits, which is not read")
    yield refused("jpeg-head.jpg", whole[:20], "damaged", "damaged, or of a kind of JPEG that is not read")


def inks():
    cmyk = np.concatenate([smooth(48, 40), smooth(48, 40)[:, ::-1, :1] // 2], 2)
    rest = 255 - cmyk.astype(int)
    right = np.rint(rest[:, :, :3] * rest[:, :, 3:] / 255)
    adobe = saved(Image.fromarray(cmyk, "CMYK"), "JPEG", **FINE)  # inverted, with Adobe's marker
    yield taken("jpeg-cmyk-adobe.jpg", adobe, right, "cmyk", within=4)
    straight = saved(Image.fromarray(255 - cmyk, "CMYK"), "JPEG", **FINE)
    yield taken("jpeg-cmyk.jpg", without_segment(straight, 0xEE), right, "cmyk", within=4)
    ycc = np.asarray(Image.fromarray(cmyk[:, :, :3]).convert("YCbCr"))  # Adobe's transform 2
    ycck = np.concatenate([ycc, 255 - cmyk[:, :, 3:]], 2)
    data = saved(Image.fromarray(255 - ycck, "CMYK"), "JPEG", **FINE)
    at = data.index(b"Adobe")
    yield taken("jpeg-ycck.jpg", data[: at + 11] + b"\2" + data[at + 12 :], right, "cmyk", within=5)
    corners = np.repeat(np.repeat(noise(6, 5, 4, top=1), 8, 0), 8, 1)
    printed = colours.of_lab(colours.lab_of_inks(corners))
    picture = Image.fromarray((corners * 255).astype(np.uint8), "CMYK")
    data = saved(picture, "JPEG", icc_profile=colours.cmyk_profile(), **FINE)
    yield taken("jpeg-cmyk-icc.jpg", data, printed, "cmyk", "profile", within=8)
    yield taken(
        "jpeg-cmyk-icc-of-rgb.jpg",
        saved(Image.fromarray(cmyk, "CMYK"), "JPEG", icc_profile=colours.rgb_profile(colours.P3, 0), **FINE),
        right,
        "cmyk",
        "bad_profile",
        within=4,
    )


def spaces(rgb, grey):
    p3 = colours.rgb_profile(colours.P3, 0)
    right = colours.in_srgb(rgb, colours.P3, 0)
    yield taken("jpeg-icc-p3.jpg", saved(rgb, "JPEG", icc_profile=p3, **FINE), right, "profile", within=12)
    large = colours.profile(b"RGB ", {b"zoo0": noise(200_000).astype(np.uint8).tobytes(), **_tags(colours.P3)})
    parts = saved(rgb, "JPEG", icc_profile=large, **FINE)
    yield taken("jpeg-icc-in-parts.jpg", parts, right, "profile", within=12)
    at = parts.index(b"ICC_PROFILE\0\2")
    size = int.from_bytes(parts[at - 2 : at])
    yield taken("jpeg-icc-part-lost.jpg", parts[: at - 4] + parts[at - 2 + size :], rgb, "bad_profile", within=3)
    yield taken(
        "jpeg-icc-srgb.jpg", saved(rgb, "JPEG", icc_profile=colours.rgb_profile(colours.SRGB, 0), **FINE), rgb, within=3
    )
    shown = colours.grey_in_srgb(grey, 1.8)
    yield taken(
        "jpeg-icc-grey.jpg",
        saved(grey, "JPEG", icc_profile=colours.grey_profile(1.8), quality=100),
        shown,
        "gray",
        "profile",
        within=5,
    )
    plain = saved(rgb, "JPEG", **FINE)
    adobe = colours.in_srgb(rgb, colours.ADOBE, 563 / 256)
    for order in "<>":
        block = exif(orientation=1, space=0xFFFF, index=b"R03", order=order)
        name = f"jpeg-exif-adobe-{'le' if order == '<' else 'be'}.jpg"
        yield taken(name, with_segments(plain, (0xE1, block)), adobe, "profile", within=12)
    yield taken("jpeg-exif-r98.jpg", with_segments(plain, (0xE1, exif(orientation=1, space=1))), rgb, within=3)
    yield taken("jpeg-exif-uncalibrated.jpg", with_segments(plain, (0xE1, exif(orientation=1, space=0xFFFF))), rgb, within=3)


def _tags(primaries):
    matrix = colours.to_d50(primaries)
    tags = {kind: colours.fixed(matrix[:, i]) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), colours.curve(0))
