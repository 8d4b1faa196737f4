"""Writes engine/noisebook/spec/presets.json: the recipes below, built on the shipped backbones.

    python tools/make_presets.py

Numbers stand in files. Once a release carries one, its entry is never changed, only new ones are added.
"""

import argparse

from noisebook import backbones
from noisebook.spec import presets
from noisebook.spec.presets import Preset, Recipe

# 12 steps, so 25 network calls for both ways; start, levels and budgets as the backbone's curve says. A backbone without a
# curve gets the levels and budgets of the presets of before, which a person chose: a high first level lets the image's mean
# and broad shapes in (their variance is large), the last one falls as bits grow, and tokens grow towards it.
PHOTO = {"steps": 12, "sigma_max": 10.0, "vocab_size": 65536, "start_budget": 1, "scale_pixels": 512 * 768}
LOW = {**PHOTO, "sigma_min": 0.55, "budget": 43, "budget_last": 516}
MIDDLE = {**PHOTO, "sigma_min": 0.4, "budget": 54.7, "budget_last": 1641}
HIGH = {**PHOTO, "sigma_min": 0.25, "budget": 109.4, "budget_last": 3282}
NEW, OLD = "photo-2", "photo"  # backbones
SMALLER = "of before the backbone photo-2, for its files; a smaller network"
BEFORE = "of version 0.1.0, for its files; not calibrated"
RECIPES = [
    (7, "photo", "about 0.25 bits per pixel (the default)", Recipe(NEW, **MIDDLE, tokens=6150)),
    (8, "photo-low", "about 0.1 bits per pixel", Recipe(NEW, **LOW, tokens=2450)),
    (9, "photo-high", "about 0.5 bits per pixel", Recipe(NEW, **HIGH, tokens=12305)),
    (4, "photo-v2", f"the photo {SMALLER}", Recipe(OLD, **MIDDLE, tokens=6150)),
    (5, "photo-low-v2", f"the photo-low {SMALLER}", Recipe(OLD, **LOW, tokens=2450)),
    (6, "photo-high-v2", f"the photo-high {SMALLER}", Recipe(OLD, **HIGH, tokens=12305)),
    (1, "photo-v1", f"the photo {BEFORE}", Recipe(OLD, **MIDDLE)),
    (2, "photo-low-v1", f"the photo-low {BEFORE}", Recipe(OLD, **LOW)),
    (3, "photo-high-v1", f"the photo-high {BEFORE}", Recipe(OLD, **HIGH)),
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    entries = []
    for number, name, about, recipe in RECIPES:
        backbone = backbones.load(recipe.backbone)
        spec = recipe.build(backbone)
        budgets, start = spec.budgets_for(512, 768)
        bits = 16 * (sum(budgets) + start)
        print(
            f"{name:12s} {spec.hash.hex()} {len(budgets)} steps, "
            f"{bits / (512 * 768):.4f} payload bits per pixel at 512 x 768"
        )
        entries.append(Preset(name, number, about, recipe, spec))
    presets.PRESETS_FILE.write_text(presets.to_json(entries))


if __name__ == "__main__":
    main()
