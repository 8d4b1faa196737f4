"""The bench of what a user gets: our files and the classical ones beside them are compared by the same metrics."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench.quality import kodak


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3])


class Features(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.mark.parametrize("asked", [True, False])
def test_ours_and_the_classical_codecs_have_the_same_metrics(monkeypatch, tmp_path, fresh, asked):
    (tmp_path / "kodak").mkdir()
    for i in range(2):
        smooth = np.kron(fresh.integers(60, 190, (4, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / f"kodak/{i}.png")
    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    torch.jit.script(Features()).save(str(tmp_path / "features.pt"))
    written = {}
    monkeypatch.setattr(kodak, "DATA", tmp_path)
    monkeypatch.setattr(kodak, "PRESETS", ("photo-high",))
    monkeypatch.setattr(kodak, "write", lambda name, result, seed: written.update(result) or tmp_path / name)
    given = ["--lpips", str(tmp_path / "lpips.pt"), "--features", str(tmp_path / "features.pt"), "--patch", "32"]
    monkeypatch.setattr(sys, "argv", ["kodak", *(given if asked else [])])
    kodak.main()
    (run,) = written["runs"]
    assert list(run["metrics"]) == ["psnr", "ssim", *(["lpips", "frechet"] if asked else [])]
    for kind in ("JPEG", "WEBP"):
        found = run["beside"][kind]
        assert list(found["metrics"]) == (["lpips", "frechet"] if asked else [])
        for name, entry in found["metrics"].items():
            assert entry["networks"] == run["metrics"][name]["networks"]
            assert entry["pictures"] == found["images"]
        if asked and found["images"]:
            rows = [row for row in found["rows"] if row]
            assert found["metrics"]["lpips"]["value"] == pytest.approx(np.mean([row["lpips"] for row in rows]))
