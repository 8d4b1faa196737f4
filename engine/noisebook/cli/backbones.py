"""`noisebook backbones`: what comes with the package."""

import argparse

from noisebook.cli.show import say, say_json

ABOUT = "The backbones and presets that come with the package."


def add(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    from noisebook.backbones.registry import ABOUT_SHIPPED, VIEWS, WEIGHTS, shipped
    from noisebook.spec import presets

    entries = []
    for name in shipped():
        weights = VIEWS.get(name, ("", name))[1]
        size = (WEIGHTS / f"{weights}.safetensors").stat().st_size if weights == name else 0
        view_of = None if weights == name else weights
        entries.append({"name": name, "bytes": size, "view_of": view_of, "about": ABOUT_SHIPPED[name]})
    codecs = [{"name": p.name, "backbone": p.spec.backbone, "about": p.about} for p in presets.presets().values()]
    if args.json:
        say_json({"backbones": entries, "presets": codecs})
        return 0
    say("backbones")
    for entry in entries:
        size = f"{entry['bytes'] / 1024:.0f} KiB" if entry["view_of"] is None else f"a view of {entry['view_of']}"
        say(f"  {entry['name']:20s} {entry['about']} ({size})")
    say("  and any .safetensors file of noisebook's, diffusers folder or hub id: --backbone PATH|OWNER/NAME")
    say("  and a function of your own that gives one: --backbone MODULE:FACTORY")
    say("presets")
    for entry in codecs:
        say(f"  {entry['name']:20s} {entry['about']} (backbone {entry['backbone']})")
    return 0
