"""The pages in a browser: nothing is cut off on a phone, and a wide table scrolls in a box of its own."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
QUIET += ["--disable-component-update", "--disable-sync", "--virtual-time-budget=8000", "--dump-dom"]
# Says how wide the page is, and what sticks out of it; a frame has any width, a window of the browser has not.
PROBE = """<script>const page = document.documentElement, width = page.clientWidth;
const out = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide") && !e.closest("pre")
  && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 60));
const boxes = [...document.querySelectorAll(".wide")].map(e => e.scrollWidth - e.clientWidth);
parent.postMessage([page.scrollWidth - width, Math.max(...boxes), ...out].join("|"), "*")</script>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


def measured(page, width: int, folder) -> list[str]:
    """(pixels that the page is too wide, that a table scrolls by, elements that stick out), of a frame that wide."""
    (folder / "inner.html").write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    frame = f'<iframe src="inner.html" style="border: 0; width: {width}px; height: 900px"></iframe>'
    listen = '<script>addEventListener("message", event => document.title = event.data)</script>'
    (folder / "outer.html").write_text(f"<title></title>{listen}{frame}")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'browser'}", f"file://{folder / 'outer.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (said,) = re.findall("<title>(.+?)</title>", done.stdout)
    return html.unescape(said).split("|")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{kind: page} of two pictures and of two data sets, with long names."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("pages")
    net, rng = tiny_backbone(folder / "tiny.safetensors"), np.random.default_rng(0)
    (folder / "in").mkdir()
    for i, x in enumerate(random_images(rng, 2, 16, 24)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"in/a_name_without_any_space_in_it_{i}.png")
    inputs = str(folder / "in")
    assert main(["roundtrip", inputs, "-o", str(folder / "out"), "--backbone", net, *TINY]) == 0
    sets = [str(folder / f"a_data_set_with_a_name_that_is_long_{i}") for i in range(2)]
    for name in sets:
        assert main(["tokenize", inputs, "-o", name, "--backbone", net, *TINY, "--workers", "0"]) == 0
    for kind, names in (("pictures", [str(folder / "out")]), ("sets", sets)):
        call = ["report", *names, "-o", str(folder / f"{kind}.html"), "--backbone", net, "--inputs", inputs]
        assert main(call) == 0
    return {kind: folder / f"{kind}.html" for kind in ("pictures", "sets")}


@pytest.mark.parametrize("width", [400, 800, 1400])
@pytest.mark.parametrize("kind", ["pictures", "sets"])
def test_nothing_is_cut_off(kind, width, pages, tmp_path):
    too_wide, scrolled, *sticking_out = measured(pages[kind], width, tmp_path)
    assert too_wide == "0"
    assert not sticking_out
    assert (int(scrolled) > 0) == (width == 400)


def test_the_measure_sees_what_is_too_wide(pages, tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text(pages["sets"].read_text().replace("<h2>Speed</h2>", '<h2 style="width: 500px">Speed</h2>'))
    too_wide, _, *sticking_out = measured(wide, 400, tmp_path)
    assert int(too_wide) > 0
    assert any("Speed" in element for element in sticking_out)
