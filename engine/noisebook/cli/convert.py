"""`noisebook convert`: a published checkpoint to a `.safetensors` file of noisebook's."""

import argparse
from pathlib import Path

from noisebook.cli.inputs import refuse_unreadable
from noisebook.cli.options import add_force, path_of
from noisebook.cli.outputs import refuse_existing
from noisebook.cli.show import say, say_json
from noisebook.errors import BackboneError

ABOUT = "A published checkpoint, NVIDIA's EDM (.pkl) or CoD (.pt), to a .safetensors file. No code of the file's is run."


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a published .pkl of NVIDIA's EDM, or a .pt of CoD")
    parser.add_argument("-o", "--output", required=True, type=path_of, metavar="FILE", help="the .safetensors file to write")
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    """Converts by the file's ending and says what was in it. Raises BackboneError where it cannot be read or written."""
    from noisebook.backbones.cod import files as cod
    from noisebook.backbones.foreign import what_is
    from noisebook.backbones.nets import nvidia_edm

    converters = {".pkl": nvidia_edm.convert_file, ".pt": cod.convert_file, ".ckpt": cod.convert_file}
    if args.file.suffix not in converters:
        more = what_is(args.file)
        raise BackboneError(
            f"{args.file}: `convert` reads {', '.join(converters)}; the ending says which network it is{more}"
        )
    refuse_unreadable(args.file, BackboneError)
    refuse_existing([args.output], args.force, [args.file])
    about = converters[args.file.suffix](args.file, args.output, args.force)
    if args.json:
        say_json({"output": str(args.output), "about": about})
    else:
        say(f"{args.output}: {about}")
    return 0
