"""`noisebook decode`: .nbk files to pictures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import options, precision
from noisebook.cli.inputs import NBK, files_of, refuse_unreadable
from noisebook.cli.options import KNOBS
from noisebook.cli.outputs import refuse_long
from noisebook.cli.pictures import each, targets
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.table import file_row
from noisebook.errors import CodecMismatchError
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
    options.add_limits_of_files(parser, "pixels", "network_calls", "work")


def run(args: argparse.Namespace) -> int:
    """Decodes every file; one that fails does not stop the others."""
    from noisebook.format.container import Container
    from noisebook.images.files import decode_picture
    from noisebook.images.io import png_bytes
    from noisebook.runtime.atomic import write_bytes

    inputs = files_of(args.files, NBK)
    files = targets(args, list(map(str, inputs)), ".decoded.png")
    prefix, limits, realism = None, options.limits_of(args), realism_of(args)
    if not args.preset and all(getattr(args, k) is None for k in KNOBS if k != "steps"):
        prefix, args.steps = args.steps, None
    codecs: dict[bytes, Codec] = {}
    said: dict[bytes, Any] = {}

    def work(name: str, item: tuple[Path, Path]) -> dict[str, Any]:
        path, output = item
        refuse_unreadable(path)
        refuse_long([output])
        container = Container.read(path)
        if container.codec_hash not in codecs:
            while len(codecs) >= KEPT:  # each has a network
                codecs.pop(next(iter(codecs)))
            codecs[container.codec_hash] = codec_of(args, container)
            said[container.codec_hash] = options.codec_info(codecs[container.codec_hash], realism, prefix)
        codec = codecs[container.codec_hash]
        pixels = decode_picture(codec, container, prefix, limits, realism)
        write_bytes(output, png_bytes(pixels), replace=args.force)
        return file_row(name, container.to_bytes(), container, nfe=codec.nfe_of(prefix, realism), output=str(output))

    def info() -> Any:
        return list(said.values())

    return each(args, [(str(path), (path, output)) for path, (output,) in zip(inputs, files, strict=True)], work, info)


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
