"""`noisebook roundtrip`: pictures to .nbk files and back, and what that costs."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.cli import judging, options
from noisebook.cli.outputs import refuse_long
from noisebook.cli.pictures import each, pictures, targets
from noisebook.cli.realism import add_realism, realism_of
from noisebook.cli.robust import add_robust
from noisebook.cli.table import file_row

if TYPE_CHECKING:
    import numpy as np

ABOUT = (
    "Images to .nbk files and back: writes NAME.nbk and NAME.compared.png, original | decoded, and prints "
    "bits per pixel, PSNR, SSIM or other metrics, network calls (NFE) and seconds."
)


def add(parser: argparse.ArgumentParser) -> None:
    options.add_images(parser)
    options.add_embed_spec(parser)
    add_robust(parser)
    options.add_output_folder(parser)
    options.add_device(parser)
    options.add_codec_options(parser)
    options.add_target_options(parser)
    add_realism(parser)
    judging.add_metric_options(parser)
    options.add_limits_of_files(parser, "pixels")


def run(args: argparse.Namespace) -> int:
    return measure(args, write=True)


def measure(args: argparse.Namespace, write: bool) -> int:
    """Encodes, decodes what the file says, compares; where it is to `write`, also writes the file and original | decoded."""
    import numpy as np

    from noisebook.format.container import Container
    from noisebook.images.files import decode_picture
    from noisebook.images.io import png_bytes
    from noisebook.runtime.atomic import write_bytes
    from noisebook.runtime.limits import Limits

    judged = judging.Judged(judging.judge_of(args), judging.asked(args))
    realism = realism_of(args)
    inputs = pictures(args)
    names = [name for name, _ in inputs]
    files = targets(args, names, ".nbk", ".compared.png") if write else [[]] * len(names)
    encode, info, channels = options.encoder(args, realism)
    own = Limits(pixels=sys.maxsize, network_calls=sys.maxsize, work=sys.maxsize)  # the file is no stranger's

    def work(name: str, item: "tuple[Callable[[int], np.ndarray], list[Path]]") -> dict[str, Any]:
        (read, paths), begin = item, time.perf_counter()
        refuse_long(paths)
        pixels = read(channels)
        data, codec, levels = encode(pixels)
        container = Container.from_bytes(data)
        decoded = decode_picture(codec, container, None, own, realism)
        for path, content in zip(paths, (data, png_bytes(np.concatenate([pixels, decoded], 1))), strict=False):
            write_bytes(path, content, replace=args.force)
        seconds = time.perf_counter() - begin  # a metric may take longer than the codec
        verdict = judged(pixels, decoded)
        facts = {
            "nfe": codec.encode_nfe + codec.nfe_of(None, realism),
            "seconds": seconds,
            "output": str(paths[0]) if paths else None,
            **levels,
        }
        return file_row(name, data, container, **verdict.values, remarks=verdict.remarks, **facts)

    items = [(name, (read, paths)) for (name, read), paths in zip(inputs, files, strict=True)]
    return each(args, items, work, info, judged)
