"""Classical codecs beside noisebook: JPEG, WebP, AVIF, JPEG XL and VVC intra, each at a ladder of its own qualities.

    python -m bench.lib.classical IMAGE [--most 2] [--at .25]      # the curves of one picture

JPEG, WebP and AVIF come with Pillow; JPEG XL needs `pip install pillow-jxl-plugin`; VVC needs `pip install imageio-ffmpeg`,
whose wheel carries an ffmpeg with Fraunhofer's VVenC and with a VVC decoder. A codec that is not there is left out.
`coded` takes other settings than the following by name: tune and speed of AVIF, the perceptual adaptation (qpa) of VVC.

Settings are chosen for PSNR, in which the codecs are compared, where an encoder lets one choose. `psnr` is over the RGB
values. Where an encoder has variants (chroma at full or half size, effort), all are run and the best points are kept.

- JPEG: libjpeg-turbo, progressive, optimised Huffman tables; 4:2:0 and 4:4:4.
- WebP: method 6; always 4:2:0.
- AVIF: libaom with tune=psnr (its default, tune=iq, has fewer dB at equal bits) at speed 2; 4:2:0 and 4:4:4, 8 bits.
  Speed 0 takes about four times as long.
- JPEG XL: VarDCT at effort 7 and 9. The plugin has no quality below 0 (Butteraugli distance 25), so its curves start late.
- VVC: VVenC, preset slow, one intra picture, 10 bits, 4:2:0 (it has no 4:4:4), perceptual QP adaptation off. This is not
  the reference software VTM, and preset slower (2.5 times as long) would save about another 1 to 2 %.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import io
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from bench.lib import metrics, rates
from noisebook.images.io import read_image


@dataclass(frozen=True)
class Codec:
    """A codec: uint8 RGB pixels [H, W, 3] to the bytes of a file and back."""

    encode: Callable[..., bytes]  # pixels, quality, variant; settings by name
    decode: Callable[[bytes, int, int], np.ndarray]  # file, height, width -> uint8 [H, W, 3]
    payload: Callable[[bytes], int]  # bytes of the file that depend on the picture: see `curve`
    qualities: tuple[int, ...]  # by rising rate
    variants: tuple[str, ...]
    version: Callable[[], str | None]  # None where the codec is not installed


# ---- Pillow's -----------------------------------------------------------------------------------------------------------
def _saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _opened(data: bytes, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _jpeg(pixels: np.ndarray, quality: int, chroma: str) -> bytes:
    return _saved(pixels, "JPEG", quality=quality, optimize=True, progressive=True, subsampling=chroma)


def _webp(pixels: np.ndarray, quality: int, _: str) -> bytes:
    return _saved(pixels, "WEBP", quality=quality, method=6)


def _avif(pixels: np.ndarray, quality: int, chroma: str, tune: str = "psnr", speed: int = 2) -> bytes:
    advanced = {"tune": tune}
    return _saved(pixels, "AVIF", quality=quality, subsampling=chroma, codec="aom", speed=speed, advanced=advanced)


def _jxl(pixels: np.ndarray, quality: int, effort: str) -> bytes:
    import pillow_jxl  # noqa: F401  (registers itself with Pillow)

    return _saved(pixels, "JXL", quality=quality, effort=int(effort.split()[1]))


def _pillow_version(feature: str, name: str) -> str | None:
    return f"{name} {features.version(feature)}" if features.check(feature) else None


def _jpeg_version() -> str | None:
    return _pillow_version("libjpeg_turbo", "libjpeg-turbo") or _pillow_version("jpg", "libjpeg")


def _avif_version() -> str | None:
    if not features.check("avif"):
        return None
    from PIL import _avif

    return f"libavif {features.version('avif')}, {_avif.codec_versions()}"


def _jxl_version() -> str | None:
    found = importlib.util.find_spec("pillow_jxl")
    return f"pillow-jxl-plugin {importlib.metadata.version('pillow-jxl-plugin')}" if found else None


# ---- VVC ----------------------------------------------------------------------------------------------------------------
SCALER = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
TO_YUV = f"scale=out_color_matrix=bt709:out_range=full:{SCALER},format=yuv420p10le"
TO_RGB = f"scale=in_color_matrix=bt709:in_range=full:{SCALER},format=rgb24"


@functools.cache
def _ffmpeg() -> str | None:
    """The ffmpeg of imageio-ffmpeg, where it can code and decode VVC."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run([path, "-hide_banner", "-codecs"], capture_output=True, text=True, check=True).stdout
    except (RuntimeError, OSError, subprocess.SubprocessError):
        return None
    lines = [line.split() for line in listed.splitlines() if "libvvenc" in line]
    able = any(words[0].startswith("DE") and words[1] == "vvc" for words in lines)  # flags: decodes, encodes
    return path if able else None


def _call(data: bytes, *options: str) -> bytes:
    command = [_ffmpeg() or "ffmpeg", "-v", "error", *options]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _vvc(pixels: np.ndarray, qp: int, preset: str, qpa: int = 0, weight: float = 1.0) -> bytes:
    """`weight` of rate against error, beside what the QP sets: one QP is a factor of 1.15 in bytes, so 0.9 and 0.8 are
    about thirds of a QP."""
    pixels = np.pad(pixels, [(0, n % 2) for n in pixels.shape[:2]] + [(0, 0)], "edge")  # 4:2:0 has even sides
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{pixels.shape[1]}x{pixels.shape[0]}", "-i", "-", "-vf", TO_YUV]
    coder = ["-c:v", "libvvenc", "-preset", preset, "-qp", str(qp), "-qpa", str(qpa)]
    coder += ["-vvenc-params", f"LambdaModifierI={weight}"] if weight != 1 else []
    return _call(pixels.tobytes(), *raw, *coder, "-frames:v", "1", "-f", "vvc", "-")


def _vvc_decoded(data: bytes, height: int, width: int) -> np.ndarray:
    raw = _call(data, "-f", "vvc", "-i", "-", "-vf", TO_RGB, "-frames:v", "1", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(height + height % 2, width + width % 2, 3)[:height, :width]


def _vvc_version() -> str | None:
    path = _ffmpeg()
    if path is None:
        return None
    shown = subprocess.run([path, "-version"], capture_output=True, text=True, check=True).stdout
    package = importlib.metadata.version("imageio-ffmpeg")
    return f"VVenC of ffmpeg {shown.split()[2]} (imageio-ffmpeg {package})"


# ---- bytes that depend on the picture -----------------------------------------------------------------------------------
def _jpeg_payload(data: bytes) -> int:
    """Huffman tables, scan headers and scans: all but SOI, JFIF, quantisation tables, frame header and EOI."""
    total, at = 0, 2
    while data[at + 1] != 0xD9:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the scan's data go on to the next marker that is neither stuffing nor a restart
            while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                end += 1
        if marker in (0xC4, 0xDA):
            total += end - at
        at = end
    return total


def _avif_payload(data: bytes) -> int:
    """The content of the box of coded data, 'mdat': AV1's frame with its sequence header."""
    at = 0
    while data[at + 4 : at + 8] != b"mdat":
        at += int.from_bytes(data[at : at + 4], "big")
    return int.from_bytes(data[at : at + 4], "big") - 8


def _vvc_payload(data: bytes) -> int:
    """Slices and the filters' parameters (APS): all but start codes, delimiter, sequence and picture parameter sets."""
    units = [unit.rstrip(b"\0") for unit in data.split(b"\0\0\1")[1:]]
    return sum(len(unit) for unit in units if unit[1] >> 3 < 12 or unit[1] >> 3 in (17, 18))


CODECS = {
    "JPEG": Codec(
        _jpeg,
        _opened,
        _jpeg_payload,
        (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 38, 47, 57, 67, 77, 85, 91, 95),
        ("4:2:0", "4:4:4"),
        _jpeg_version,
    ),
    "WebP": Codec(
        _webp,
        _opened,
        lambda data: len(data) - 20,  # RIFF header and the head of its one chunk
        (0, 1, 2, 3, 5, 8, 12, 18, 25, 34, 44, 54, 64, 74, 82, 88, 93, 97),
        ("4:2:0",),
        functools.partial(_pillow_version, "webp", "libwebp"),
    ),
    "AVIF": Codec(_avif, _opened, _avif_payload, (0, 8, 16, 25, 36, 49, 64, 80), ("4:2:0", "4:4:4"), _avif_version),
    "JPEG XL": Codec(_jxl, _opened, len, (0, 8, 16, 25, 36, 50, 66, 82, 94), ("effort 7", "effort 9"), _jxl_version),
    "VVC": Codec(_vvc, _vvc_decoded, _vvc_payload, (57, 51, 45, 40, 35, 30, 26, 22, 18, 10), ("slow",), _vvc_version),
}


def versions() -> dict[str, str]:
    """The codecs that are here, with the versions of their software."""
    return {name: version for name, codec in CODECS.items() if (version := codec.version())}


def coded(
    name: str, pixels: np.ndarray, quality: int, variant: str | None = None, **settings: Any
) -> tuple[bytes, np.ndarray]:
    """(file, decoded uint8 [H, W, 3]) of uint8 pixels [H, W, 3]; the codec's first variant unless one is named."""
    codec = CODECS[name]
    data = codec.encode(pixels, quality, variant or codec.variants[0], **settings)
    return data, codec.decode(data, *pixels.shape[:2])


def curve(name: str, pixels: np.ndarray, most: float = math.inf) -> list[dict[str, Any]]:
    """The codec's points on uint8 pixels [H, W, 3], by rising rate and PSNR: those of all variants that no other one beats.

    Each variant's ladder ends after the first point above `most` bits per pixel, or where the encoder fails. `bytes` and
    `bpp` count the whole file; that is what is compared, unless said otherwise. In files of some 100 bytes most of it is
    frame, so `payload` and `payload_bpp` count the bytes without those that follow from nothing but codec, size and quality:
    container, sizes, JPEG's quantisation tables, VVC's parameter sets. Tables that were fitted to the picture count. A JPEG
    XL file is a bare codestream and counts whole. No codec's own decoder reads a bare payload. `ms_ssim` is None for sides
    below 176.
    """
    codec, rows = CODECS[name], []
    area = pixels.shape[0] * pixels.shape[1]
    original = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    for variant in codec.variants:
        for quality in codec.qualities:
            try:
                data, out = coded(name, pixels, quality, variant)
            except subprocess.CalledProcessError:  # VVenC fails on some pictures of 32 x 32 at its highest rates
                break
            decoded = torch.from_numpy(out.copy()).permute(2, 0, 1)[None]
            rows.append(
                {
                    "quality": quality,
                    "variant": variant,
                    "bytes": len(data),
                    "bpp": 8 * len(data) / area,
                    "payload": codec.payload(data),
                    "payload_bpp": 8 * codec.payload(data) / area,
                    "psnr": float(metrics.psnr(original, decoded)),
                    "decoded": decoded,
                }
            )
            if rows[-1]["bpp"] > most:
                break
    kept = [rows[i] for i in rates.front(rates.pairs(rows))]
    for row in kept:
        decoded = row.pop("decoded")
        multi = float(rates.ms_ssim(original, decoded))
        row["ssim"], row["ms_ssim"] = float(metrics.ssim(original, decoded)), None if math.isnan(multi) else multi
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--codec", action="append", choices=list(CODECS), help="only this one (repeatable)")
    parser.add_argument("--most", type=float, default=math.inf, help="bits per pixel at which a ladder ends")
    parser.add_argument("--at", type=float, default=0.25, help="bits per pixel at which PSNR is read off")
    args = parser.parse_args()
    pixels = read_image(args.image)
    for name, version in versions().items():
        if args.codec and name not in args.codec:
            continue
        points = curve(name, pixels, args.most)
        print(f"{name}, {version}: {rates.at_rate(rates.pairs(points), args.at)} dB at {args.at} bpp")
        for p in points:
            multi = "" if p["ms_ssim"] is None else f", MS-SSIM {p['ms_ssim']:.4f}"
            print(
                f"  {p['quality']:3d} {p['variant']}: {p['bytes']} bytes, {p['bpp']:.4f} bpp, {p['payload_bpp']:.4f} of "
                f"payload, {p['psnr']:.2f} dB, SSIM {p['ssim']:.4f}{multi}",
                flush=True,
            )


if __name__ == "__main__":
    main()
