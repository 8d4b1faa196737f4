"""The options `--levels` and `--level-tries`: one schedule for all pictures of a size, or levels that suit each."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noisebook.cli.show import log
from noisebook.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec.codec import Codec
    from noisebook.images.levels import Chosen

Encode = Callable[[Any], tuple[bytes, Any, dict[str, Any]]]  # pixels -> file, codec, what its row says of levels
TRIES = (1, 3, 5, 16)
USUAL = 3


def add_levels(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--levels",
        choices=("curve", "picture"),
        default="curve",
        help="curve: all pictures of a size have the same noise levels; picture: each has those that suit it, which its "
        "file names in one byte (five with a preset); needs a curve (default: curve)",
    )
    group.add_argument(
        "--level-tries",
        type=int,
        choices=TRIES,
        help="levels picture: whole encodes that find them, the best of which is kept; 1: half an encode predicts them "
        f"(default: {USUAL})",
    )


def tries_of(args: argparse.Namespace) -> int:
    """Whole encodes that find a picture's levels; 0 for the curve's. Raises SpecError for tries of nothing."""
    if args.levels == "curve":
        if args.level_tries is not None:
            raise SpecError("--level-tries goes with --levels picture")
        return 0
    return args.level_tries or USUAL


def facts_of(chosen: "Chosen", tries: int) -> dict[str, Any]:
    """What a row of --json says of the levels that were chosen: nothing where none were."""
    from noisebook.spec.curve import SCALES

    if not tries:
        return {}
    return {"curve_scale": SCALES[chosen.scaling], "encodes": chosen.encodes, "encoder_nfe": chosen.nfe}


def of_preset(
    args: argparse.Namespace,
    codec: "Codec",
    changes: dict[str, Any],
    weights: "Callable[[np.ndarray], np.ndarray | None]",
    info_of: "Callable[[Codec], dict[str, Any]]",
) -> "tuple[Encode, Callable[[], Any]]":
    """What `options.encoder` gives of a preset with these `changes`: how its pictures are encoded, and what --json says of
    the codec: one, or, where each picture has its own levels, all that were used."""
    from noisebook.images.files import encode_picture
    from noisebook.images.preset_levels import PresetLevels
    from noisebook.spec import presets

    info, tries = info_of(codec), tries_of(args)
    if not tries:
        return lambda pixels: (encode_picture(codec, pixels, args.embed_spec, weights(pixels)), codec, {}), lambda: info
    recipe = presets.changed(presets.get(args.preset or presets.DEFAULT).recipe, **changes)
    made: dict[str, Any] = {}
    preset = PresetLevels(codec, recipe, tries, args.graphs, args.effort, args.candidates, log)

    def encode(pixels: "np.ndarray") -> "tuple[bytes, Codec, dict[str, Any]]":
        chosen = preset.chosen(pixels, weights(pixels), args.embed_spec)
        made[chosen.codec.spec.hash.hex()] = info_of(chosen.codec)
        return chosen.data, chosen.codec, facts_of(chosen, tries)

    return encode, lambda: list(made.values())
