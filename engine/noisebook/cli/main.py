"""The command line. Pictures and files go under -o, results to stdout, logs and progress to stderr."""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import calibrate as calibrating
from noisebook.cli.options import (
    KNOBS,
    add_codec_options,
    add_target_options,
    codec_info,
    device,
    encoder,
    load_codec,
    log,
    network,
)
from noisebook.errors import CodecMismatchError, ImageError, NoisebookError
from noisebook.runtime import __version__

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec.codec import Codec
    from noisebook.format.container import Container


# ---- arguments ----------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="noisebook",
        description="Images to integer tokens and back, with any pretrained diffusion model and no training.",
    )
    top.add_argument("--version", action="version", version=f"noisebook {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(function=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return sub

    encode = command("encode", run_encode, "Images to .nbk files.")
    roundtrip = command(
        "roundtrip",
        run_roundtrip,
        "Images to .nbk files and back: writes original | decoded and prints "
        "bits per pixel, PSNR, SSIM, network calls and seconds.",
    )
    evaluate = command("eval", run_eval, "The roundtrip table of a folder, without writing pictures.")
    decode = command(
        "decode",
        run_decode,
        "The .nbk files to PNG pictures. --steps N without other codec options decodes "
        "the first N steps of each file alone: what the beginning of its tokens says.",
    )
    for sub in (encode, roundtrip, evaluate):
        sub.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or folders of them")
        sub.add_argument("--samples", action="store_true", help="also the three photographs that scikit-image carries")
    for sub in (encode, roundtrip):
        sub.add_argument(
            "--embed-spec",
            action=argparse.BooleanOptionalAction,
            help="write the whole specification into "
            "each file (done anyway when the codec is not a preset, unless --no-embed-spec: such a file is "
            "decoded with the options it was made with)",
        )
    decode.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, or folders of them")
    for sub in (encode, roundtrip, decode):
        sub.add_argument(
            "-o",
            "--output",
            type=Path,
            default=Path("noisebook-out"),
            metavar="DIR",
            help="folder to write to (default: noisebook-out)",
        )
    for sub in (encode, roundtrip, evaluate, decode):
        sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
        add_codec_options(sub)
        if sub is not decode:
            add_target_options(sub)
    inspect = command("inspect", run_inspect, "What stands in .nbk files; needs no backbone.")
    verify = command(
        "verify",
        run_verify,
        "Checks .nbk files and tokenised data sets: checksums, sizes, tokens, counts; needs no backbone.",
    )
    inspect.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, or folders of them")
    verify.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, folders of them, or folders of `tokenize`")
    calibrate = command(
        "calibrate",
        run_calibrate,
        "Measures how well a backbone predicts at every noise level: the curve "
        "from which --bpp, --bytes and --psnr make their schedules.",
    )
    calibrating.add_options(calibrate)
    command("backbones", run_backbones, "The backbones and presets that come with the package.")
    from noisebook.cli import convert, datasets, fit_prior, report

    for name, module in (("convert", convert), ("fit-prior", fit_prior)):
        module.add(command(name, module.run, module.ABOUT))
    from noisebook.cli import train

    for name, (add, run, about) in (datasets.COMMANDS | report.COMMANDS).items():
        add(command(name, run, about))
    train.add(command("train", train.run, train.ABOUT))
    return top


NBK = (".nbk",)


# ---- encode, decode, roundtrip, eval ------------------------------------------------------------------------------------
def _inputs(args: argparse.Namespace, channels: int) -> "Iterator[tuple[str, Callable[[], np.ndarray]]]":
    """(name, reader) of every image asked for."""
    from noisebook.images import io as images

    if not args.images and not args.samples:
        raise ImageError("no images: name pictures or folders, or give --samples")
    for path in images.find_files(args.images):
        yield str(path), lambda path=path: images.read_image(path, channels)
    if args.samples:
        for name in images.SAMPLES:
            yield f"{name}.png", lambda name=name: images.sample(name)[:, :, :3]


def _row(name: str, **values: Any) -> dict[str, Any]:
    keys = ("psnr", "ssim", "bpp", "payload_bpp", "bytes", "nfe", "seconds", "height", "width", "error")
    return {"name": name, **dict.fromkeys(keys), **values}


def _file_row(name: str, data: bytes, container: "Container", **values: Any) -> dict[str, Any]:
    """A row with the size of a file: bits of the whole file, and of the payload alone, per original pixel."""
    pixels = container.height * container.width
    sizes = {"bpp": 8 * len(data) / pixels, "payload_bpp": 8 * len(container.payload) / pixels, "bytes": len(data)}
    return _row(name, **sizes, height=container.height, width=container.width, **values)


class _Names:
    """File names for outputs: the input's stem, made unique within one run."""

    def __init__(self, folder: Path):
        self.folder, self.taken = folder, set()

    def __call__(self, name: str) -> Path:
        stem, n = Path(name).stem, 1
        while (unique := stem if n == 1 else f"{stem}-{n}").lower() in self.taken:
            n += 1
        self.taken.add(unique.lower())
        return self.folder / unique


def _each(args: argparse.Namespace, items: Any, work: Callable[[str, Any], dict[str, Any]], spec: Any) -> int:
    """Does `work` on every item; one that fails becomes a row with its error, and the exit code says so."""
    rows, code = [], 0
    for name, item in items:
        begin = time.perf_counter()
        try:
            row = work(name, item)
            row["seconds"] = time.perf_counter() - begin
        except NoisebookError as error:
            code = code or error.code
            row = _row(name, error=f"{type(error).__name__}: {error}")
        rows.append(row)
        log(_line(row))
    if args.json:
        print(json.dumps({"images": rows, "codec": spec() if callable(spec) else spec}))
    else:
        _print_table(rows)
    return code


def _line(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"{row['name']}: {row['error']}"
    parts = [
        f"{row[k]:.{d}f} {unit}"
        for k, d, unit in (
            ("bpp", 4, "bpp"),
            ("payload_bpp", 4, "payload"),
            ("psnr", 2, "dB"),
            ("ssim", 4, "SSIM"),
            ("nfe", 0, "calls"),
            ("seconds", 1, "s"),
        )
        if row[k] is not None
    ]
    return f"{row['name']}: " + ", ".join(parts)


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = [
        ("name", "image", "{}"),
        ("bytes", "bytes", "{:d}"),
        ("bpp", "bpp", "{:.4f}"),
        ("payload_bpp", "payload", "{:.4f}"),
        ("psnr", "PSNR", "{:.2f}"),
        ("ssim", "SSIM", "{:.4f}"),
        ("nfe", "calls", "{:d}"),
        ("seconds", "seconds", "{:.2f}"),
    ]
    good = [r for r in rows if not r["error"]]
    shown = [c for c in columns if any(r[c[0]] is not None for r in good)]
    cells = [[form.format(r[key]) if r[key] is not None else "" for key, _, form in shown] for r in good]
    if len(good) > 1:
        mean = ["mean"]
        for key, _, form in shown[1:]:
            values = [r[key] for r in good if r[key] is not None]
            mean.append(form.replace("d", ".0f").format(sum(values) / len(values)))
        cells.append(mean)
    if cells:
        head = [title for _, title, _ in shown]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(shown))]
        for row in [head, *cells]:
            print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    for row in rows:
        if row["error"]:
            print(f"failed: {row['name']}: {row['error']}")


def run_encode(args: argparse.Namespace) -> int:
    from noisebook.format.container import Container
    from noisebook.runtime.atomic import write_bytes

    encode, info, channels = encoder(args)
    place = _Names(args.output)

    def work(name: str, read: Any) -> dict[str, Any]:
        data, codec = encode(read())
        target = place(name)
        write_bytes(target.with_name(target.name + ".nbk"), data)
        return _file_row(name, data, Container.from_bytes(data), nfe=codec.encode_nfe)

    return _each(args, _inputs(args, channels), work, info)


def run_roundtrip(args: argparse.Namespace) -> int:
    return _measure(args, args.output)


def run_eval(args: argparse.Namespace) -> int:
    args.embed_spec = None
    return _measure(args, None)


def _measure(args: argparse.Namespace, output: Path | None) -> int:
    """Encodes, decodes what the file says, compares; with `output` also writes the file and original | decoded."""
    import numpy as np

    from noisebook.format.container import Container
    from noisebook.images.files import decode_picture
    from noisebook.images.io import png_bytes
    from noisebook.images.metrics import psnr, ssim
    from noisebook.runtime.atomic import write_bytes

    encode, info, channels = encoder(args)
    place = _Names(output or Path())

    def work(name: str, read: Any) -> dict[str, Any]:
        pixels = read()
        data, codec = encode(pixels)
        container = Container.from_bytes(data)
        decoded = decode_picture(codec, container)
        if output is not None:
            target = place(name)
            write_bytes(target.with_name(target.name + ".nbk"), data)
            write_bytes(target.with_name(target.name + ".png"), png_bytes(np.concatenate([pixels, decoded], 1)))
        quality = {"psnr": psnr(pixels, decoded), "ssim": ssim(pixels, decoded)}
        return _file_row(name, data, container, **quality, nfe=codec.encode_nfe + codec.nfe)

    return _each(args, _inputs(args, channels), work, info)


def run_decode(args: argparse.Namespace) -> int:
    from noisebook.format.container import Container
    from noisebook.images.files import decode_picture
    from noisebook.images.io import find_files, png_bytes
    from noisebook.runtime.atomic import write_bytes

    place, prefix = _Names(args.output), None
    if not args.preset and all(getattr(args, k) is None for k in KNOBS if k != "steps"):
        prefix, args.steps = args.steps, None
    codecs: dict[bytes, Codec] = {}

    def work(name: str, path: Path) -> dict[str, Any]:
        container = Container.read(path)
        if container.codec_hash not in codecs:
            codecs[container.codec_hash] = _codec_of(args, container)
        codec = codecs[container.codec_hash]
        pixels = decode_picture(codec, container, prefix)
        target = place(name)
        write_bytes(target.with_name(target.name + ".png"), png_bytes(pixels))
        return _file_row(name, container.to_bytes(), container, nfe=codec.nfe_of(prefix))

    def info() -> Any:
        return [codec_info(c) for c in codecs.values()]

    return _each(args, ((str(f), f) for f in find_files(args.files, NBK)), work, info)


def _codec_of(args: argparse.Namespace, container: "Container") -> "Codec":
    """The codec that a file was made with, or that the options name; refused if its hash is another."""
    from noisebook import load
    from noisebook.images.files import codec_name, spec_of
    from noisebook.spec import presets

    if args.preset or any(getattr(args, k) is not None for k in KNOBS):
        codec = load_codec(args)
        if codec.spec.hash != container.codec_hash:
            made = spec_of(container)
            by = codec_name(made) if made else "an unknown codec"
            raise CodecMismatchError(
                f"the file was made by {by} (hash {container.codec_hash.hex()}), the options name "
                f"{codec_name(codec.spec)} (hash {codec.spec.hash.hex()})"
            )
        return codec
    spec = spec_of(container)
    if spec is None:
        known = ", ".join(f"{p.name} {p.spec.hash.hex()}" for p in presets.presets().values())
        raise CodecMismatchError(
            f"made by an unknown codec (hash {container.codec_hash.hex()}, preset number "
            f"{container.preset}); known: {known}; give the options it was made with"
        )
    return load(spec, backbone=args.backbone, device=device(args.device), **network(args))


# ---- inspect, verify, backbones, train ----------------------------------------------------------------------------------
def _describe_all(args: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> int:
    from noisebook.images.files import describe
    from noisebook.images.io import find_files

    rows, code = [], 0
    for path in find_files(args.files, NBK):
        try:
            rows.append(describe(path))
        except NoisebookError as error:
            code = code or error.code
            rows.append({"name": str(path), "error": f"{type(error).__name__}: {error}"})
        if not args.json:
            show(rows[-1])
    if args.json:
        print(json.dumps({"files": rows}))
    return code


def run_inspect(args: argparse.Namespace) -> int:
    def show(row: dict[str, Any]) -> None:
        print(row["name"])
        for key, value in row.items():
            if key != "name" and value is not None:
                print(f"  {key:14s} {f'{value:.4f}' if key == 'bpp' else value}")

    return _describe_all(args, show)


def run_verify(args: argparse.Namespace) -> int:
    def show(row: dict[str, Any]) -> None:
        unknown = "" if row["error"] or row["codec"] else " (checksum only: the codec is unknown here)"
        print(f"{row['name']}: {row['error'] or 'ok' + unknown}")

    sets = [path for path in args.files if "://" in path or (Path(path) / "plan.json").exists()]
    if not sets:
        return _describe_all(args, show)
    args.files, codes = [path for path in args.files if path not in sets], []
    if args.files:
        codes.append(_describe_all(args, show))
    from noisebook.cli.datasets import verify

    return max([*codes, *(verify(path, args.json) for path in sets)])


def run_backbones(args: argparse.Namespace) -> int:
    from noisebook import backbones
    from noisebook.spec import presets

    entries = []
    for name in backbones.shipped():
        weights = backbones.VIEWS.get(name, ("", name))[1]
        size = (backbones.WEIGHTS / f"{weights}.safetensors").stat().st_size if weights == name else 0
        entries.append({"name": name, "bytes": size, "view_of": None if weights == name else weights})
    codecs = [{"name": p.name, "backbone": p.spec.backbone, "about": p.about} for p in presets.presets().values()]
    if args.json:
        print(json.dumps({"backbones": entries, "presets": codecs}))
        return 0
    print("backbones")
    for entry in entries:
        size = f"{entry['bytes'] / 1024:8.0f} KiB"
        print(f"  {entry['name']:20s} {size if entry['view_of'] is None else 'a view of ' + entry['view_of']}")
    print("  and any .safetensors file of noisebook's, diffusers folder or hub id: --backbone PATH|OWNER/NAME\npresets")
    for entry in codecs:
        print(f"  {entry['name']:20s} {entry['about']} (backbone {entry['backbone']})")
    return 0


def run_calibrate(args: argparse.Namespace) -> int:
    result = calibrating.run(args)
    print(json.dumps(result) if args.json else f"written: {result['output']}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or the `code` of the first error (see `noisebook.errors`)."""
    args = parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: log(f"warning: {message}")
    try:
        return args.function(args)
    except NoisebookError as error:
        log(f"noisebook: {type(error).__name__}: {error}")
        if args.json:
            print(json.dumps({"images": [], "codec": None, "error": f"{type(error).__name__}: {error}"}))
        return error.code
    except KeyboardInterrupt:
        log("noisebook: stopped")
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
