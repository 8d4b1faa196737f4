"""ICC profiles made of formulas, and what colours they mean: the right pixels beside pictures that are no sRGB."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
SRGB = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3 = (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
PROPHOTO = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
BT2020 = (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_d50(primaries):
    """[3, 3]: linear RGB -> XYZ under D50."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in np.reshape(primaries, (4, 2))])
    white, columns = xyz[0], xyz[1:].T
    columns = columns * np.linalg.solve(columns, white)
    return np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD @ columns


def linear(v, gamma):
    """Numbers 0..1 to light; gamma 0: the curve of sRGB."""
    v = np.asarray(v, np.float64)
    return v**gamma if gamma else np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def seen(xyz):
    """XYZ [..., 3] under D50 -> uint8 sRGB."""
    light = np.clip(xyz @ np.linalg.inv(to_d50(SRGB)).T, 0, 1)
    return np.rint(255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)).astype(np.uint8)


def in_srgb(pixels, primaries, gamma):
    """uint8 [H, W, 3] in a space -> the same colours in sRGB."""
    return seen(linear(pixels / 255, gamma) @ to_d50(primaries).T)


def grey_in_srgb(pixels, gamma):
    """uint8 [H, W] of greys -> [H, W, 3]."""
    return seen(linear(pixels / 255, gamma)[:, :, None] * D50)


def of_lab(lab):
    """L*a*b* under D50, floats [..., 3] -> uint8 sRGB."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    return seen(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50)


def profile(space, tags, kind=b"mntr", connection=b"XYZ ", version=0x02400000):
    name = b"zoo\0"
    text = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": fixed(D50), **tags}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for key, value in tags.items():
        table += key + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI", start + len(body), bytes(4), version) + kind + space + connection
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def fixed(values):
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def curve(gamma):
    if gamma:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    table = np.rint(linear(np.linspace(0, 1, 1024), 0) * 65535).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + table.tobytes()


def rgb_profile(primaries, gamma):
    matrix = to_d50(primaries)
    tags = {kind: fixed(matrix[:, i]) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))})


def grey_profile(gamma):
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


def lab_of_inks(cmyk):
    """What the printer of `cmyk_profile` prints: L*a*b* of inks 0 or 1, [..., 4]."""
    c, m, y, k = np.moveaxis(np.asarray(cmyk, np.float64), -1, 0)
    light = 100 - 25 * c - 30 * m - 5 * y
    return np.stack([light * (1 - 0.8 * k), (40 * m - 30 * c) * (1 - k), (40 * y - 30 * c) * (1 - k)], -1)


def cmyk_profile():
    """A printer's, by a table of two points for each ink: right at the corners."""
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = lab_of_inks(corners)
    table = np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return profile(b"CMYK", {b"A2B0": lut + ramp * 4 + table + ramp * 3}, b"prtr", b"Lab ")
