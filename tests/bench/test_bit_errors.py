"""What wrong bits cost: the damage is what it says, every codec has its rows, and the tables say them."""

import argparse
import json

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs what bench needs", exc_type=ImportError)
import noisebook
from bench.lib import page
from bench.reliability import bit_errors
from common import random_images
from noisebook.images.judges.catalogue import chosen
from noisebook.images.judges.judge import Judge


def test_only_the_payload_is_damaged(fresh):
    sent = bit_errors.Sent(bytes(range(200)), 20, 190, lambda data: None)
    assert sent.damaged(0, fresh) == sent.data
    assert sent.damaged(1, fresh) == sent.data[:20] + bytes(b ^ 255 for b in sent.data[20:190]) + sent.data[190:]
    longer = bit_errors.Sent(bytes(100_000), 10, 99_990, lambda data: None).damaged(0.01, fresh)
    wrong = np.unpackbits(np.frombuffer(longer, np.uint8)).mean()
    assert wrong == pytest.approx(0.01, rel=0.1)
    assert not any(longer[:10] + longer[-10:])


@pytest.mark.filterwarnings("ignore:quality stalls")
def test_every_codec_has_its_rows_and_the_tables_say_them(fresh, tmp_path, monkeypatch):
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=3, tokens=60_000, dtype="float32")
    pixels = random_images(fresh, 1, 64, 64)[0].permute(1, 2, 0).numpy()
    args = argparse.Namespace(rates=[1e-3, 0.3], lost=[0.1], trials=2, speed=10, crop=0, out=tmp_path / "bit_errors.json")
    bit_errors.measure(codec, Judge(chosen("psnr", {})), {"a": pixels}, args)
    result = json.loads(args.out.read_text())
    found = {(row["codec"], row["what"], row["value"]): row for row in result["rows"]}
    names = (bit_errors.OURS, bit_errors.SETS, bit_errors.SINGLE)
    for name in names:
        whole, few, many = (found[name, *key] for key in (("whole", 0), ("bits", 1e-3), ("bits", 0.3)))
        assert whole["psnr"] >= few["psnr"] - 0.5
        assert whole["psnr"] > many["psnr"]
    sizes = [found[name, "whole", 0]["bytes"] for name in names]
    assert max(sizes) < 1.1 * min(sizes), sizes
    assert found[names[1], "whole", 0]["psnr"] > found[names[2], "whole", 0]["psnr"]  # indices one by one are fewer
    assert found[names[0], "whole", 0]["psnr"] > found[names[0], "lost", 0.1]["psnr"]
    half, steps = (next(row for row in result["rows"] if row["what"] == what) for what in ("half", "steps"))
    assert abs(half["psnr"] - steps["psnr"]) < 3
    bit_errors.measure(codec, Judge(chosen("psnr", {})), {"a": pixels}, args)  # nothing is left to do
    assert json.loads(args.out.read_text()) == result
    args.rates = [1e-3]
    with pytest.raises(SystemExit, match="other rates"):
        bit_errors.measure(codec, Judge(chosen("psnr", {})), {"a": pixels}, args)
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    loss = found[names[0], "whole", 0]["psnr"] - half["psnr"]
    assert f"| the second half missing | {loss:.2f} ({loss:.2f}) |" in bit_errors.lost_table()
    assert "| codec | bytes | 0.001 | 0.3 |" in bit_errors.bits_table()
    assert ("opened" in bit_errors.bits_table()) == any(not row["opened"] for row in result["rows"])


def test_what_does_not_open_is_counted():
    assert bit_errors.pillow(b"no picture", (1, 1, 3)) is None
    assert bit_errors.cell(([1.0, 3.0], [0.1], 2, 4)) == "2.00 (3.00), +0.100; 2 of 4 opened"
    assert bit_errors.cell(([], [], 0, 4)) == "0 of 4 opened"
