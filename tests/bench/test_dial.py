"""What the dial trades: the same tokens decoded in several ways, and the table of it."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="needs what bench needs", exc_type=ImportError)
import noisebook
from bench.lib import page
from bench.quality import dial
from common import realism_file
from noisebook.images.judges.catalogue import chosen
from noisebook.images.judges.judge import Judge
from noisebook.images.metrics import psnr


def test_all_rows_are_decodes_of_the_same_tokens(fresh, tmp_path):
    network = realism_file(tmp_path / "r.safetensors")
    codec = noisebook.load("photo", steps=2, tokens=200, dtype="float32", realism_network=network)
    picture = fresh.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    rows = dial.measure(codec, Judge(chosen("psnr", {})), {"a": picture}, [0.0, 0.5])
    assert [row["decode"] for row in rows] == ["realism 0", "realism 0.5", *(f"ODE, {n} steps" for n in (2, 3, 6, 10))]
    tokens = codec.encode(torch.from_numpy(picture).permute(2, 0, 1)[None])
    for row, realism in zip(rows, (0.0, 0.5), strict=False):
        value = psnr(picture, dial.pixels_of(codec.decode(tokens, (32, 48), realism=realism)[0]))
        assert row["metrics"]["psnr"]["value"] == row["images"][0]["psnr"] == pytest.approx(value, abs=1e-9)
    values = {row["metrics"]["psnr"]["value"] for row in rows}
    assert len(values) == 6


def test_the_table_says_the_measured_values(tmp_path, monkeypatch):
    networks = [{"file": "alex.pth", "sha256": "ab" * 32}]
    entries = {
        "psnr": {"name": "PSNR", "unit": "dB", "value": 27.456, "networks": []},
        "lpips": {"name": "LPIPS", "unit": "", "value": 0.20149, "networks": networks},
    }
    result = {"about": "2 pictures", "device": "a CPU", "threads": 1, "versions": {}, "date": "today", "command": "python"}
    result["runs"] = [{"preset": "photo", "rows": [{"decode": "realism 1", "metrics": entries}]}]
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "dial.json").write_text(json.dumps(result))
    table = dial.dial_table()
    assert "| preset | decode | PSNR | LPIPS |" in table
    assert "| photo | realism 1 | 27.46 dB | 0.201 |" in table
    assert "alex.pth (abababababab...)" in table
