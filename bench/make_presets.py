"""Writes engine/noisebook/presets.json: the recipes below, built on the shipped backbones.

    python bench/make_presets.py

Numbers stand in files. Once a release carries one, its entry is never changed, only new ones are added.
"""

from noisebook import backbones, presets
from noisebook.presets import Preset, Recipe

# 12 steps, so 25 network calls for both ways. Tokens grow towards the low levels, where a step can use more bits; a high
# first level lets the image's mean and broad shapes in (their variance is large); the last level falls as bits grow.
PHOTO = {"steps": 12, "lam_max": 10.0, "vocabulary": 65536, "start_bins": 1, "scale_pixels": 512 * 768}
RECIPES = [
    (1, "photo", "about 0.25 bits per pixel (the default)", Recipe(**PHOTO, lam_min=0.4, bins=54.7, bins_last=1641)),
    (2, "photo-low", "about 0.1 bits per pixel", Recipe(**PHOTO, lam_min=0.55, bins=43, bins_last=516)),
    (3, "photo-high", "about 0.5 bits per pixel", Recipe(**PHOTO, lam_min=0.25, bins=109.4, bins_last=3282)),
]


def main() -> None:
    entries = []
    for number, name, about, recipe in RECIPES:
        backbone = backbones.load(recipe.backbone)
        spec = recipe.build(backbone)
        bins, start = spec.bins_for(512, 768)
        bits = 16 * (sum(bins) + start)
        print(
            f"{name:12s} {spec.hash.hex()} {len(bins)} steps, {bits / (512 * 768):.4f} payload bits per pixel at 512 x 768"
        )
        entries.append(Preset(name, number, about, recipe, spec))
    presets.PRESETS_FILE.write_text(presets.to_json(entries))


if __name__ == "__main__":
    main()
