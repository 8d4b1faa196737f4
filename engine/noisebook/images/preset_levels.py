"""A calibrated preset at levels that suit the picture: as many tokens, other levels, and a file that says which."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.format.container import OVERHEAD, packed_bits
from noisebook.format.derived import UNSCALED, Derived
from noisebook.images.files import contain, token_runs
from noisebook.images.levels import TRIES, Chosen, best_levels
from noisebook.images.targets import Aim, Target
from noisebook.rules import EFFORT
from noisebook.spec import curve as curves
from noisebook.spec.presets import Recipe
from noisebook.spec.spec import CodecSpec

DERIVED = OVERHEAD + 5  # bytes beside the payload of a file that says its levels, where the curve came with the package


class PresetLevels:
    """Files of a codec that a curve made, each with its own levels. A picture that is best off with the codec's levels
    gets the codec's file.

    recipe        what the codec was made from       level_tries, tell   as of `Aim`
    effort, candidates   of the encoder, as of `Codec`; they belong to the codec's own too

    Raises SpecError where the codec is not what the curve of its backbone makes of the recipe."""

    def __init__(
        self,
        codec: Codec,
        recipe: Recipe,
        level_tries: int = TRIES,
        graphs: bool = True,
        effort: int = EFFORT,
        candidates: int = 1,
        tell: Callable[[str], None] | None = None,
    ):
        backbone, spec = codec.backbone, codec.spec
        curve = curves.shipped_curve(backbone)
        if curve is None or not recipe.tokens or _calibrated(curve, codec, recipe) != spec:
            raise SpecError(
                "levels for each picture are those of a curve: take a calibrated preset as it is, perhaps with other steps, "
                "tokens, vocab_size or seed, or ask for --bpp, --bytes or --psnr"
            )
        calls = recipe.steps + 1 + bool(curve.condition)
        target = Target(bpp=1.0, max_nfe=calls, vocab_size=spec.vocab_size, seed=spec.seed)  # its rate is asked for nowhere
        self.codec, self.tries = codec, level_tries
        self.aim = Aim(target, backbone, curve, graphs, effort, candidates, tell, None, level_tries)

    def chosen(self, pixels: np.ndarray, weights: np.ndarray | None = None, embed: bool | None = None) -> Chosen:
        """uint8 [H, W, C] -> its file, of about as many tokens as the codec's. Raises SpecError for `embed` False where a
        file has to embed its specification."""
        height, width = pixels.shape[:2]
        spec, aim = self.codec.spec_for(height, width), self.aim
        payload = bytes(-(-packed_bits(token_runs(spec, height, width)) // 8))
        derives = aim.derived(2) is not None and not spec.resolutions
        size = len(payload) + DERIVED if derives else len(contain(spec, height, width, payload).to_bytes())
        if embed is False and not derives:
            raise SpecError("the levels of this file stand in its specification only: leave out --no-embed-spec")

        def make(scaling: int) -> tuple[Codec, Derived | None]:
            if scaling == UNSCALED:
                return self.codec, None
            tokens = aim.tokens_for_bytes(height, width, size, scaling)
            return aim.codec(height, width, tokens, scaling), aim.derived(tokens, scaling)

        return best_levels(pixels, aim.curve, make, self.tries, weights, embed, aim.tell)


def _calibrated(curve: curves.Curve, codec: Codec, recipe: Recipe) -> CodecSpec | None:
    """What the curve makes of the recipe, with the default rule, codebook and solver; None of a latent model."""
    dims = curve.channels * recipe.scale_pixels
    if not dims:
        return None
    spec = curves.spec_for(curve, dims, recipe.tokens, recipe.steps, recipe.vocab_size, recipe.seed)
    return replace(curves.with_known_levels(spec, codec.backbone, dims), scale_pixels=recipe.scale_pixels)


__all__ = ["PresetLevels"]
