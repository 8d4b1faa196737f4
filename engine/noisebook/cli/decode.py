"""`noisebook decode`: .nbk files to pictures."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import options, precision
from noisebook.cli.inputs import NBK, files_of, refuse_unreadable
from noisebook.cli.options import KNOBS
from noisebook.cli.outputs import refuse_long
from noisebook.cli.pictures import each, targets
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.show import log
from noisebook.cli.table import file_row
from noisebook.errors import SALVAGED, CodecMismatchError
from noisebook.runtime.devices import usable_device

if TYPE_CHECKING:
    from noisebook.codec.codec import Codec
    from noisebook.format.container import Container

ABOUT = (
    "The .nbk files to PNG pictures, NAME.decoded.png. --steps N without other codec options decodes "
    "only the first N steps of each file: what the beginning of its tokens says."
)

KEPT = 4  # codecs at a time


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".nbk files, or folders of them")
    options.add_output_folder(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    add_realism(parser)
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="also decode what is left of files that are damaged or cut off; says what was wrong, and exits with code 8",
    )
    options.add_limits_of_files(parser, "pixels", "network_calls", "work")


def run(args: argparse.Namespace) -> int:
    """Decodes every file; one that fails does not stop the others."""
    from noisebook.format.container import Container, read_file
    from noisebook.images.files import decode_picture
    from noisebook.images.io import png_bytes
    from noisebook.images.salvage import opened, salvage_picture
    from noisebook.runtime.atomic import write_bytes

    inputs = files_of(args.files, NBK)
    files = targets(args, list(map(str, inputs)), ".decoded.png")
    prefix, limits, realism = None, options.limits_of(args), realism_of(args)
    if not args.preset and all(getattr(args, k) is None for k in KNOBS if k != "steps"):
        prefix, args.steps = args.steps, None
    codecs: dict[bytes, Codec] = {}
    said: dict[bytes, Any] = {}
    salvaged: list[str] = []

    def work(name: str, item: tuple[Path, Path]) -> dict[str, Any]:
        path, output = item
        refuse_unreadable(path)
        refuse_long([output])
        data = read_file(path)
        wreck = opened(data) if args.salvage else None
        container = wreck.head if wreck else Container.from_bytes(data)
        if container.codec_hash not in codecs:
            while len(codecs) >= KEPT:  # each has a network
                codecs.pop(next(iter(codecs)))
            codecs[container.codec_hash] = codec_of(args, container)
            said[container.codec_hash] = options.codec_info(codecs[container.codec_hash], realism, prefix)
        codec = codecs[container.codec_hash]
        if wreck is None:
            pixels, steps, more = decode_picture(codec, container, prefix, limits, realism), prefix, {}
        else:
            pixels, faults, steps = salvage_picture(codec, wreck, prefix, limits, realism)
            container, more = replace(container, payload=wreck.body), {"salvaged": faults or None}
            if faults:
                salvaged.append(name)
                log(f"{name}: SALVAGED, the picture is not what was encoded: {'; '.join(faults)}")
        write_bytes(output, png_bytes(pixels), replace=args.force)
        return file_row(name, data, container, nfe=codec.nfe_of(steps, realism), output=str(output), **more)

    def info() -> Any:
        return list(said.values())

    items = [(str(path), (path, output)) for path, (output,) in zip(inputs, files, strict=True)]
    code = each(args, items, work, info, blank={"salvaged": None} if args.salvage else None)
    return code or (SALVAGED if salvaged else 0)


def codec_of(args: argparse.Namespace, container: "Container") -> "Codec":
    """The codec that a file was made with, or that the options name. Raises CodecMismatchError where its hash is another."""
    from noisebook.codec.load import load
    from noisebook.images.files import codec_name, spec_of
    from noisebook.spec import presets

    if args.preset or any(getattr(args, k) is not None for k in KNOBS):
        codec, size = options.load_codec(args), (container.height, container.width)
        for alias in codec.aliases():
            if container.codec_hash in (alias.spec.hash, alias.spec_for(*size).hash):
                return alias
        made = spec_of(container)
        by = codec_name(made) if made else "an unknown codec"
        raise CodecMismatchError(
            f"the file was made by {by} (hash {container.codec_hash.hex()}), the options name "
            f"{codec_name(codec.spec)} (hash {codec.spec.hash.hex()})"
        )
    spec = spec_of(container)
    if spec is None:
        known = ", ".join(f"{p.name} {p.spec.hash.hex()}" for p in presets.presets().values())
        raise CodecMismatchError(
            f"made by an unknown codec (hash {container.codec_hash.hex()}, preset number "
            f"{container.preset}); known: {known}; give the options it was made with"
        )
    where = {"backbone": args.backbone, "device": usable_device(args.device), "realism_network": args.realism_network}
    codec = load(spec, **where, **options.network(args))
    precision.say_dtype(args, codec.backbone)
    return codec
