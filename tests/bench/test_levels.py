"""What levels of its own bring a picture: the rows beside their control, and the table of them."""

import json

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs what bench needs", exc_type=ImportError)
from bench.findings import levels_per_picture as bench
from bench.lib import page
from noisebook import backbones

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


def test_gains_stand_beside_luck_at_no_fewer_calls(fresh, monkeypatch):
    monkeypatch.setattr(bench, "TRIES", (1, 2))
    picture = fresh.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    row = bench.row_of(bench.Rate(backbones.load("gaussian-prior"), 1.0, 4), picture)
    one, two = row["ways"]
    assert (one["tries"], one["encoder_nfe"], two["encoder_nfe"]) == (1, 2 + 1 + 4, 2 * 5)
    assert (one["seeds"], two["seeds"]) == (2, 2), "calls of the control are rounded up"
    assert two["gain"] >= 0
    assert one["luck"] == two["luck"] >= 0
    assert abs(two["bytes"] - row["bytes"]) <= 3
    assert row["bytes"] == pytest.approx(24 * 32 / 8, abs=3)


def test_the_table_says_the_measured_values(tmp_path, monkeypatch):
    way = {"tries": 3, "scale": 0.5, "bytes": 9, "encoder_nfe": 39, "seeds": 3}
    ways = [[{**way, "gain": 0.25, "luck": 0.02}], [{**way, "gain": 0.5, "luck": 0.04}]]
    rows = [{"image": str(i), "bpp": 0.25, "psnr": 30.0, "bytes": 9, "ways": w} for i, w in enumerate(ways)]
    result = {"about": "2 pictures", "device": "a CPU", "threads": 1, "versions": {}, "date": "today", "command": "python"}
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "levels_per_picture.json").write_text(json.dumps(result | {"tries": [3], "rates": [0.25], "rows": rows}))
    table = bench.levels_table()
    assert "| 3 | 0.25 bpp | 39 | +0.38 dB | +0.25, +0.50 | 3 | +0.03 dB |" in table
    assert "2 pictures. " in table
