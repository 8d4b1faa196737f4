"""A page in the browser: drop a picture, move rate, steps and realism, and see bytes, PSNR and LPIPS.

    pip install '.[demo]'
    python examples/gradio_page.py
    python examples/gradio_page.py LPIPS_NETWORK

It is served to this machine only, at http://127.0.0.1:7860, and asks nobody else for anything. LPIPS needs a network, which
you give as a file: docs/metrics.md. Pictures are made smaller, so that a CPU answers soon.
"""

import os
import sys
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: gradio would call home

import gradio as gr
import numpy as np
from PIL import Image

from noisebook import NoisebookError, backbones
from noisebook.format.container import Container
from noisebook.images.files import decode_picture
from noisebook.images.judges.catalogue import chosen
from noisebook.images.judges.judge import Judge
from noisebook.images.targets import Aim, Target, curve_of

SIDE = 384  # pixels of the longer side, at most


class Demo:
    """What the page does, without the page."""

    def __init__(self, backbone: str = "photo-2", lpips: str | None = None):
        networks = {} if lpips is None else {"lpips": [Path(lpips)]}
        self.judge = Judge(chosen("psnr", networks), networks)
        self.model = backbones.load(backbone)
        self.curve = curve_of(self.model)
        self.last: tuple = (None, None)  # what was encoded, and the file: realism changes the decode only

    def __call__(self, picture: Image.Image | None, bpp: float, steps: int, realism: float) -> tuple[np.ndarray | None, str]:
        """-> (uint8 [H, W, 3], what it cost). Raises what gradio shows as a message."""
        if picture is None:
            return None, ""
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE))  # never makes one larger
        pixels = np.asarray(picture)
        key = (pixels.tobytes(), pixels.shape, bpp, steps)
        try:
            if self.last[0] != key:
                target = Target(bpp=bpp, max_nfe=int(steps) + 1)  # the last call makes the picture of the last state
                self.last = key, Aim(target, self.model, self.curve).file(pixels)
            data, codec = self.last[1]
            shown = decode_picture(codec, Container.from_bytes(data), realism=realism)
        except NoisebookError as error:
            raise gr.Error(str(error)) from error
        values = self.judge(pixels, shown).values
        lines = [f"{len(data):,} bytes", f"{8 * len(data) / pixels[:, :, 0].size:.3f} bits per pixel"]
        lines += [f"{m.title} {m.shown(values[m.key])}" for m in self.judge.metrics if values[m.key] is not None]
        return shown, " · ".join([*lines, f"{codec.nfe_of(None, realism)} network calls to decode"])


def page(demo: Demo) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False, title="noisebook") as blocks:
        gr.Markdown(
            "# noisebook\nMore bits and more steps bring the picture nearer. Realism makes it sharper, and less near."
        )
        with gr.Row():
            given = gr.Image(type="pil", label="picture", sources=["upload", "clipboard"])
            shown = gr.Image(label="decoded", format="png", buttons=["download", "fullscreen"])
        cost = gr.Markdown()
        bpp = gr.Slider(0.05, 2, 0.3, step=0.05, label="rate, bits per pixel")
        steps = gr.Slider(4, 48, 16, step=1, label="steps")
        realism = gr.Slider(0, 1, 0, step=0.1, label="realism")
        events = [given.change, bpp.release, steps.release, realism.release]
        gr.on(events, demo, [given, bpp, steps, realism], [shown, cost], trigger_mode="always_last", concurrency_limit=1)
    return blocks


def main(lpips: str | None = None) -> None:
    page(Demo(lpips=lpips)).launch(server_name="127.0.0.1", share=False, ssr_mode=False, run_history=False, footer_links=[])


if __name__ == "__main__":
    main(*sys.argv[1:])
