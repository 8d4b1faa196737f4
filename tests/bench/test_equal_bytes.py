"""Ours and other codecs at equal bytes: the search for a rival's largest file, rows that are kept, tables, pictures, blind
pairs."""

import json
import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("scipy", reason="needs what bench needs", exc_type=ImportError)
from bench.lib import equal_bytes, equal_tables, rate_plot, record
from bench.quality import blind, codecs, pictures


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3])


class Steps(equal_bytes.Rival):
    """A rival without an encoder: `settings` has the size of each step by variant; PSNR rises with size, more for `b`."""

    def coded(self, pixels, step, variant):
        self.settings["calls"].append((variant, step))
        size = self.settings[variant][step]
        off = round(100 / (1 + step) ** 0.5) - (variant == "b")
        return bytes(size), (pixels + np.uint8(max(off, 1))).astype(np.uint8)


def test_the_largest_file_that_fits_is_found_in_few_tries_and_the_better_variant_kept(fresh):
    pixels = np.zeros((8, 8, 3), np.uint8)
    sizes = {v: np.cumsum(fresh.integers(1, 60, 101)).tolist() for v in "ab"}
    rival = Steps("WebP", "", 101, lambda step: (step, {}), ("a", "b"), {**sizes, "calls": []})
    tried = equal_bytes.Tried()
    for limit in (*sorted(fresh.integers(sizes["a"][0], 3000, 6).tolist()), 10**6):
        file, _ = equal_bytes.largest(rival, pixels, limit, tried)
        best = {v: max((s for s, n in enumerate(sizes[v]) if n <= limit), default=-1) for v in "ab"}
        assert file is not None
        assert file.step == best[file.variant]
        assert len(file.data) <= limit
        other = "b" if file.variant == "a" else "a"
        if best[other] >= 0:
            mine, theirs = (rival.coded(pixels, best[v], v)[1].max() for v in (file.variant, other))
            assert mine <= theirs
    for (_variant, _step), (data, _) in tried.files.items():
        assert data
    assert len(tried.files) < 2 * 60
    file, least = equal_bytes.largest(rival, pixels, 0)
    assert file is None
    assert least == min(sizes["a"][0], sizes["b"][0])


def test_a_guess_finds_the_same_file_and_a_good_one_in_fewer_tries(fresh):
    pixels = np.zeros((8, 8, 3), np.uint8)
    sizes = (20 * 1.05 ** np.arange(192) + fresh.integers(0, 2, 192)).astype(int).tolist()
    for limit in (sizes[0] - 1, *fresh.integers(sizes[0], sizes[-1], 20).tolist(), sizes[-1]):
        best = max((s for s, n in enumerate(sizes) if n <= limit), default=None)
        for guess in (None, 0, 191, int(fresh.integers(192)), best or 0, max((best or 0) - 3, 0)):
            rival = Steps("WebP", "", 192, lambda step: (step, {}), ("a",), {"a": sizes, "calls": []})
            file, _ = equal_bytes.largest(rival, pixels, limit, equal_bytes.Tried(guess=guess))
            assert (file and file.step) == best
            assert len(rival.settings["calls"]) <= (7 if guess is not None and abs(guess - (best or 0)) <= 3 else 14)


def test_vvc_goes_from_one_qp_to_the_next_in_thirds():
    quality = equal_bytes.rivals()["VVC for PSNR"].quality
    assert [quality(step) for step in range(4)] == [(63, {"weight": w}) for w in (1.0, 0.9, 0.8)] + [(62, {"weight": 1.0})]


@pytest.fixture
def kodak(monkeypatch, tmp_path, fresh):
    """Two pictures of 64 x 64 and a network of LPIPS that is none; gives the options that name it."""
    (tmp_path / "kodak").mkdir()
    for i in range(2):
        pixels = np.kron(fresh.integers(40, 200, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"kodak/kodim{i:02d}.png")
    torch.jit.script(Distance()).save(str(tmp_path / "lpips.pt"))
    for module in (record, blind, pictures):
        monkeypatch.setattr(module, "DATA", tmp_path)
    return ["--metrics", "psnr", "--lpips", str(tmp_path / "lpips.pt"), "--backbone", "gaussian-prior", "--nfe", "4"]


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["codecs", *map(str, argv)])
    codecs.main()


def test_rows_are_measured_once_and_a_second_call_adds_what_is_missing(monkeypatch, tmp_path, kodak, capsys):
    out = tmp_path / "codecs.json"
    base = [*kodak, "--out", out, "--rates", "0.3", "4", "--codecs", "WebP"]
    run(monkeypatch, *base, "--images", "kodim00")
    run(monkeypatch, *base)
    result = json.loads(out.read_text())
    rows = {(r["image"], r["asked"], r["codec"]): r for r in result["rows"]}
    assert len(rows) == len(result["rows"]) == 2 * 2 * 2
    for (image, asked, codec), row in rows.items():
        ours = rows[image, asked, "noisebook, realism 0"]
        assert row["limit"] == ours["bytes"]
        assert abs(ours["bpp"] / asked - 1) < 0.12
        if row["bytes"] is None:
            assert row["least"] > row["limit"]
        else:
            assert row["bytes"] <= row["limit"]
            assert row["lpips"] >= 0
            assert math.isfinite(row["psnr"])
        assert codec in result["codecs"]
    assert result["metrics"]["lpips"]["networks"][0]["file"] == "lpips.pt"
    assert result["means"]["4"]["noisebook, realism 0"]["pictures"] == 2
    assert len(result["commands"]) == 2
    capsys.readouterr()

    def none(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(equal_bytes.Ours, "file", none)
    run(monkeypatch, *base)
    assert json.loads(out.read_text())["rows"] == result["rows"]
    with pytest.raises(AssertionError, match="measured again"):
        run(monkeypatch, *base, "--again", "WebP")
    with pytest.raises(SystemExit, match="other ours"):
        run(monkeypatch, *base[:-5], "--nfe", "3", *base[-5:])


def test_a_codec_that_is_not_installed_is_named_and_has_no_rows(monkeypatch, tmp_path, kodak, capsys):
    monkeypatch.setattr(equal_bytes.Rival, "version", property(lambda _: None))
    run(monkeypatch, *kodak, "--out", tmp_path / "x.json", "--rates", "1", "--codecs", "VVC for PSNR", "--images", "kodim01")
    result = json.loads((tmp_path / "x.json").read_text())
    assert "no encoder found" in result["absent"]["VVC for PSNR"]
    assert "no encoder found" in capsys.readouterr().out
    assert {row["codec"] for row in result["rows"]} == {"noisebook, realism 0"}


def test_realism_is_asked_of_the_decoder_only_where_it_is_given(monkeypatch, tmp_path, kodak):
    calls = []

    def decode(codec, container, realism):
        calls.append(realism)
        return np.full((container.height, container.width, 3), round(255 * realism), np.uint8)

    monkeypatch.setattr(equal_bytes, "decode_picture", decode)
    run(monkeypatch, *kodak, "--out", tmp_path / "x.json", "--rates", "1", "--codecs", "--realism", "1", "0.5")
    assert calls == [0.0, 1.0, 0.5] * 2
    asked = [realism for realism in calls if realism]
    assert asked == [1.0, 0.5] * 2
    assert list(json.loads((tmp_path / "x.json").read_text())["codecs"]) == [
        f"noisebook, realism {r}" for r in ("0", "0.5", "1")
    ]


# ---- tables -------------------------------------------------------------------------------------------------------------
A, B, WEBP, AVIF = "noisebook, realism 0", "noisebook, realism 1", "WebP", "AVIF for the eye"
MADE_UP = {  # codec -> rate -> (PSNR, LPIPS) of two pictures
    A: {0.1: [(30, 0.3), (20, 0.5)], 1: [(40, 0.1), (30, 0.2)]},
    B: {0.1: [(29, 0.2), (19, 0.4)], 1: [(39, 0.05), (29, 0.1)]},
    AVIF: {0.1: [(31, 0.25), (20.5, 0.56)], 1: [(39.5, 0.09), (29.5, 0.3)]},
    WEBP: {0.1: [(29.5, 0.35), None], 1: [None, None]},
}


@pytest.fixture
def made_up(monkeypatch):
    rows = []
    for codec, rates in MADE_UP.items():
        for asked, values in rates.items():
            for image, value in zip("xy", values, strict=True):
                row = {"image": image, "asked": asked, "codec": codec, "limit": 100, "bytes": value and 99}
                rows.append(row | (dict(zip(("psnr", "lpips"), value, strict=True), bpp=asked) if value else {"least": 200}))
    network = {"file": "alex.pt", "sha256": "ab" * 32}
    result = {
        "device": "a CPU",
        "threads": 1,
        "versions": {"noisebook": "0"},
        "date": "2026-01-01",
        "command": "c",
        "about": "2 pictures",
        "metrics": {
            "psnr": {"name": "PSNR", "by": None, "networks": []},
            "lpips": {"name": "LPIPS", "by": "TorchScript", "networks": [network]},
        },
        "codecs": {name: {"about": "what", "version": "1"} for name in MADE_UP},
        "absent": {"VVC for PSNR": "no encoder found"},
        "rows": rows,
    }
    monkeypatch.setattr(equal_tables, "load", lambda name: result)
    return result


def cells(text, begin):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {begin}")]


def test_the_best_is_bold_whoever_has_it_and_missing_files_are_counted(made_up):
    text = equal_tables.equal_bytes_table()
    assert cells(text, AVIF)[0] == [AVIF, "**25.75**", "34.50"]
    assert cells(text, A)[0] == [A, "25.00", "**35.00**"]
    assert cells(text, B)[1] == [B, "**0.3000**", "**0.0750**"]
    assert cells(text, WEBP)[0] == [WEBP, "29.50 (1 pictures; noisebook **30.00** / 29.00)", "no file so small (2 of 2)"]
    assert "VVC for PSNR was not measured: no encoder found" in text
    assert "alex.pt sha256:abab" in text


def test_what_was_not_measured_is_not_called_too_large(made_up):
    made_up["rows"] = [row for row in made_up["rows"] if (row["codec"], row["asked"]) != (WEBP, 1)]
    assert cells(equal_tables.equal_bytes_table(), WEBP)[0][2] == "not measured"


def test_bits_that_rivals_leave_unused_are_said(made_up):
    for row in made_up["rows"]:
        if row["codec"] == WEBP and row["bytes"]:
            row["bpp"] = 0.08
    assert "up to 20 % fewer bits" in equal_tables.equal_bytes_table()
    assert "up to 20 % fewer bits" in equal_tables.short()


def test_wins_and_losses_are_counted_alike(made_up):
    text = equal_tables.equal_wins()
    half = "2 of 4 pictures"
    assert cells(text, f"{A} against {AVIF}")[0][1:] == [f"1 of 2 rates (1), {half}", f"2 of 2 rates (0.1, 1), {half}"]
    one = "1 of 1 rates (0.1), 1 of 1 pictures"
    assert cells(text, f"{B} against {WEBP}")[0][1:] == ["0 of 1 rates, 0 of 1 pictures", one]
    assert f"**{A}** wins 5 and loses 1 of 6 comparisons of means. By metric: PSNR 2 won, 1 lost, LPIPS 3 won, 0" in text
    assert "By rate: 0.1 bpp 3 won, 1 lost, 1 bpp 2 won, 0 lost." in text


def test_the_readme_has_the_picture_and_the_same_sentences(made_up):
    text = equal_tables.short()
    assert "](docs/images/codecs.svg)" in text
    assert equal_tables.sentences(equal_tables.Comparison(made_up)) in text


def test_a_codec_has_a_point_where_it_has_a_file_for_every_picture(made_up):
    comparison = equal_tables.Comparison(made_up)
    assert rate_plot.points(comparison, AVIF, "psnr") == [(0.1, 25.75), (1, 34.5)]
    assert rate_plot.points(comparison, WEBP, "psnr") == []
    picture = ElementTree.fromstring(rate_plot.drawn(made_up))
    svg = "{http://www.w3.org/2000/svg}"
    lines = [path for path in picture.iter(f"{svg}path") if path.get("d").count("L") == 1]  # between two points
    assert len(lines) == 2 * len([A, B, AVIF])
    assert {AVIF, WEBP} <= {text.text for text in picture.iter(f"{svg}text")}  # the key names all codecs


# ---- pictures and blind pairs -------------------------------------------------------------------------------------------
def test_the_worst_picture_is_that_of_the_result(made_up):
    comparison = equal_tables.Comparison(made_up)
    assert pictures.worst_of(comparison, 0.1, 0) == ("y", 0.5)
    with pytest.raises(SystemExit, match="no LPIPS"):
        pictures.worst_of(comparison, 0.7, 0)


def test_a_picture_of_the_docs_fits_into_its_bytes(tmp_path, fresh):
    noise = fresh.integers(0, 256, (48, 64, 3), np.uint8)
    picture = pictures.sheet([[(noise, "a"), (noise, "b")], [(noise, "c")]])
    assert picture.size == (2 * 64 + pictures.GAP, 2 * (48 + pictures.BAR) + pictures.GAP)
    assert pictures.save(picture, tmp_path / "a.webp", 10**6) == 92
    least = (tmp_path / "a.webp").stat().st_size
    assert pictures.save(picture, tmp_path / "b.webp", least - 1) < 92
    assert (tmp_path / "b.webp").stat().st_size < least
    with pytest.raises(SystemExit, match="does not fit"):
        pictures.save(picture, tmp_path / "c.webp", 10)


def test_ours_and_avif_stand_beside_each_other_at_equal_bytes(fresh):
    if equal_bytes.rivals()["AVIF for the eye"].version is None:
        pytest.skip("this Pillow has no AVIF")
    pixels = np.kron(fresh.integers(40, 200, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    ours = equal_bytes.Ours("gaussian-prior", nfe=4)
    (decoded, entry), (_, other) = pictures.beside(ours, pixels, 4, [0.0], 10)
    assert decoded.shape == pixels.shape
    assert other["codec"] == pictures.RIVAL
    assert other["bpp"] <= entry["bpp"]
    none, what = pictures.beside(ours, pixels, 0.2, [0.0], 10)[-1]  # AVIF's header by itself is more
    assert (none == 255).all()
    assert pictures.label_of(what, "AVIF") == "AVIF: no file so small"


def test_blind_pairs_hide_what_they_are_and_their_key_finds_it_again(monkeypatch, tmp_path, kodak):
    shade = {A: 10, B: 20, blind.RIVAL: 30}
    flat = {name: np.full((8, 8, 3), value, np.uint8) for name, value in shade.items()}
    monkeypatch.setattr(blind, "decodes", lambda *_: flat)
    ours, images = equal_bytes.Ours("gaussian-prior"), sorted((tmp_path / "kodak").iterdir())
    with pytest.raises(SystemExit, match="must not lie"):
        blind.make(tmp_path / "out", tmp_path / "out/key.json", ours, images, [0.1, 0.25], 0, 10)
    rows = blind.make(tmp_path / "out", tmp_path / "key.json", ours, images, [0.1, 0.25], 0, 10)
    assert len(rows) == 2 * 2 * len(blind.MATCHES)
    for i, row in enumerate(rows, 1):
        sheet = np.asarray(Image.open(tmp_path / f"out/pair_{i:02d}.png"))
        assert (sheet[0, 0, 0], sheet[0, -1, 0]) == (shade[row["left"]], shade[row["right"]])
    assert {row["left"] for row in rows} == set(shade)
    assert "noisebook" not in (tmp_path / "out/index.html").read_text()
    right = ["left" if row["left"] == B else "right" for row in rows]
    right[0] = "same"
    found = blind.score(rows, right)
    total = [entry for entry in found if entry["bpp"] is None]
    assert sum(entry["won"] for entry in total) == len(rows) - 1
    assert sum(entry["same"] for entry in total) == 1
    assert {entry["share"] for entry in total} == {1.0}
    full = next(entry for entry in total if entry["won"] == 4)
    assert full["interval"] == pytest.approx([0.025**0.25, 1.0])  # Clopper and Pearson: (alpha / 2)^(1 / n)
    assert "4 won, 0 lost, 0 the same; preferred in 100%" in blind.line_of(full)
    with pytest.raises(SystemExit, match="answers are needed"):
        blind.score(rows, right[1:])
    with pytest.raises(SystemExit, match="answers are needed"):
        blind.score(rows, ["middle", *right[1:]])
