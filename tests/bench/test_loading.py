"""bench/speed/loading.py: a tiny model through the whole script."""

import json

import pytest

pytest.importorskip("diffusers")

from bench.speed import loading
from noisebook.runtime import cache, hashes


def test_the_script_measures_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(cache.VARIABLE, "off")  # the script sets its own, which is undone
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    monkeypatch.setattr(hashes, "NOTED", 1)
    monkeypatch.setattr("sys.argv", ["loading.py", str(tmp_path / "out.json"), "--dry"])
    monkeypatch.setattr(loading.time, "sleep", lambda _: None)
    assert loading.main() == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["dry"]
    assert result["bytes"] > 1 << 20
    assert len(result["rows"]) == 5
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in result["rows"].values())
    assert "whole load, cached" in capsys.readouterr().out
