"""examples/gradio_page.py: what the page does, and that it serves this machine only and calls nobody."""

import importlib.util
import os
import re
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from common import ROOT, random_images

if importlib.util.find_spec("gradio") is None:
    pytest.skip("not run: gradio is not installed (pip install 'noisebook[demo]')", allow_module_level=True)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("gradio_page", ROOT / "examples/gradio_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(fresh) -> Image.Image:
    return Image.fromarray(random_images(fresh, 1, 48, 64)[0].permute(1, 2, 0).numpy())


class Difference(torch.nn.Module):
    """In place of LPIPS: [B, 3, H, W] twice -> [B]."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_what_it_says(example, picture):
    demo, original = example.Demo("gaussian-prior"), np.asarray(picture, float)
    found = {}
    for bpp in (1.0, 2.0):
        shown, text = demo(picture, bpp, 8, 0)
        size, rate, quality, calls = re.findall(r"([\d.,]+)(?= bytes| bits| dB| network)", text)
        error = np.square(shown - original).mean()
        assert float(quality) == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
        assert float(rate) == pytest.approx(8 * int(size) / (48 * 64), abs=1e-3)
        assert float(rate) == pytest.approx(bpp, rel=0.1)
        assert int(calls) == 9
        found[bpp] = error
    assert found[2.0] < found[1.0]
    assert "LPIPS" not in text


def test_realism_changes_the_picture_and_not_the_file(example, picture):
    demo = example.Demo("gaussian-prior")
    mean, first = demo(picture, 1.0, 8, 0)
    file = demo.last[1]
    convincing, second = demo(picture, 1.0, 8, 1.0)
    assert demo.last[1] is file
    assert not np.array_equal(mean, convincing)
    assert first.split(" · ")[0] == second.split(" · ")[0]


def test_lpips_where_its_network_is_given(example, picture, tmp_path):
    torch.jit.script(Difference()).save(str(tmp_path / "net.pt"))
    shown, text = example.Demo("gaussian-prior", str(tmp_path / "net.pt"))(picture, 1.0, 8, 0)
    value = float(re.search(r"LPIPS ([\d.]+)", text)[1])
    assert value == pytest.approx(np.abs(shown - np.asarray(picture, float)).mean() / 127.5, abs=1e-3)


def test_what_cannot_be_is_a_message(example, picture):
    demo = example.Demo("gaussian-prior")
    assert demo(None, 1.0, 8, 0) == (None, "")
    with pytest.raises(example.gr.Error, match="no file of"):
        demo(picture, 0.001, 8, 0)


def test_a_large_picture_is_made_smaller(example):
    shown, _ = example.Demo("gaussian-prior")(Image.new("RGBA", (1000, 500), (200, 30, 60, 255)), 0.3, 4, 0)
    assert shown.shape == (192, 384, 3)


def test_it_serves_this_machine_and_calls_nobody(example, picture, monkeypatch):
    """The server starts and answers, and every connection that is made meanwhile stays on this machine."""
    asked, connect, resolve = [], socket.socket.connect, socket.getaddrinfo

    def watched(self, address):
        asked.append(address[0] if isinstance(address, tuple) else "")
        return connect(self, address)

    def resolved(host, *args, **options):
        asked.append(host if isinstance(host, str) else (host or b"").decode())
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    blocks = example.page(example.Demo("gaussian-prior"))
    given = {}

    def launch(**options):
        given.update(options)
        return type(blocks).launch(blocks, **options, prevent_thread_lock=True, quiet=True, server_port=free_port())

    monkeypatch.setattr(example, "Demo", lambda **_: None)
    monkeypatch.setattr(example, "page", lambda _: type("Page", (), {"launch": staticmethod(launch)}))
    try:
        example.main()
        assert given["server_name"] == "127.0.0.1"
        assert given["share"] is False
        assert not blocks.analytics_enabled
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        import httpx

        answer = httpx.get(blocks.local_url, trust_env=False)
        assert answer.status_code == 200
        assert "noisebook" in answer.text
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?://[^\"']+)", answer.text)
        assert not [url for url in loaded if not url.startswith(blocks.local_url)]
    finally:
        blocks.close()
    assert asked
    assert set(asked) <= {"127.0.0.1", "localhost", "::1", ""}, asked


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
