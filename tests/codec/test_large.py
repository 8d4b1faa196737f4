"""Large pictures: blocks of at most 2^24 dimensions, tiles, lower resolutions. The bounds are made small here."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import noisebook
from noisebook.backbones import Backbone
from noisebook.backbones.wrappers.tiled import tile_starts
from noisebook.cli.main import main
from noisebook.codebook import Codebook, native, reference, start_noise
from noisebook.codec import stream, tiles
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.images.io import png_bytes, read_image
from noisebook.spec.spec import CodecSpec
from noisebook.spec.step import StepIndex

KINDS = [("hadamard", 64), ("independent", 64)]


def photograph(height: int, width: int, seed: int = 0, detail: float = 12.0) -> np.ndarray:
    """uint8 [H, W, 3]: broad shapes, edges and some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    out = np.zeros((height, width, 3), np.float32) + 120
    for _ in range(24):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 90)
        shade = rng.uniform(-80, 80, 3).astype(np.float32)
        out += shade / (1 + np.exp((((x - cx) ** 2 + (y - cy) ** 2 - r * r) / (2 * r)).clip(-60, 60)))[:, :, None]
    out += detail * rng.standard_normal(out.shape).astype(np.float32)
    return out.clip(0, 255).astype(np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are large above 2^14 dimensions, 5,461 pixels, and tiles have 64 pixels a side."""
    from noisebook.datasets import memory, table

    monkeypatch.setattr(stream, "MOST", 1 << 14)
    monkeypatch.setattr(memory, "LARGE_FROM", (1 << 14) // 3)
    monkeypatch.setattr(table, "LARGE_FROM", (1 << 14) // 3)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "OVERLAP", 16)
    monkeypatch.setattr(tiles, "LEAST", 16)


@pytest.mark.parametrize("size", [(1, 1), (2048, 2720), (1, 65535), (2364, 2364)])
def test_up_to_2_to_the_24_dimensions_nothing_is_cut(size: tuple[int, int]) -> None:
    codec = noisebook.load("photo", backbone="gaussian-prior")
    assert codec.spec_for(*size) is codec.spec


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((3000, 4000), (1, 3)),
        ((2400, 2400), (1, 2)),
        ((6000, 8000), (1, 9)),
        ((15000, 16667), (5, 9)),
        ((60000, 1000), (11, 1)),
    ],
)
def test_a_large_picture_is_cut_in_the_fewest_equal_blocks_and_costs_as_many_bits(size, grid) -> None:
    codec = noisebook.load("photo", dtype="float32")
    spec, found = codec.spec_for(*size), codec.stream(*size)
    assert (spec.rows, spec.columns) == grid == found.grid
    assert spec.resolutions == 2
    assert found.dims <= 1 << 24
    assert found.dims * (found.blocks - 1) < 3 * found.padded[0] * found.padded[1]
    assert -(-3 * size[0] * size[1] >> 24) <= found.blocks <= -(-3 * size[0] * size[1] >> 24) + 1
    bits = container_bits(found) / (found.height * found.width)
    assert abs(bits / 0.25 - 1) < 0.08, "the rate that the preset names, as near as at other sizes"


def container_bits(found: stream.Stream) -> int:
    return sum(run.count * (run.vocab_size.bit_length() - 1) for run in found.runs)


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
@pytest.mark.parametrize("backend", [native, reference])
def test_a_block_by_itself_has_the_codewords_of_its_number(kind: str, vocab_size: int, backend) -> None:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    residual = torch.randn(2, 5, 96, generator=generator)
    y, x0_hat = torch.randn(2, 2, 5, 96, generator=generator)
    book = Codebook(kind, vocab_size, 7)
    where = book._where(4, 96, 3)
    tokens = backend.select(residual, *where)
    for block in range(5):
        alone = book.at(block)._where(4, 96, 3)
        one = slice(block, block + 1)
        assert torch.equal(backend.select(residual[:, one].contiguous(), *alone), tokens[:, one])
        chosen = tokens[:, one].contiguous()
        assert torch.equal(backend.noise(chosen, 96, *alone), backend.noise(tokens, 96, *where)[:, one])
        moved = backend.backtrace(y[:, one].contiguous(), x0_hat[:, one].contiguous(), chosen, 0.5, 0.3, *alone)
        assert torch.equal(moved, backend.backtrace(y, x0_hat, tokens, 0.5, 0.3, *where)[:, one])
        assert torch.equal(start_noise(1, 96, 7, y.device, block)[0], start_noise(5, 96, 7, y.device)[block])


@pytest.mark.slow
def test_tiles_change_hardly_anything_and_their_seams_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 160)
    monkeypatch.setattr(tiles, "OVERLAP", 64)
    image = tensor(photograph(288, 416))
    codec = noisebook.load("photo", dtype="float32")
    whole = replace(codec.spec, columns=2, scale_pixels=2 * codec.spec.scale_pixels)
    errors = []
    for spec in (whole, codec.spec.cut(1, 2)):
        tokens, decoded = Codec(spec, codec.backbone).reconstruct(image)
        assert torch.equal(Codec(spec, codec.backbone).decode(tokens, (288, 416)), decoded)
        errors.append((decoded - (image.float() * (2 / 255) - 1)).square().mean(1)[0])
    assert 10 * abs(float(torch.log10(errors[0].mean() / errors[1].mean()))) < 0.05
    near = torch.zeros(288, 416, dtype=torch.bool)
    for edge in tile_starts(288, 160, 64)[1:]:
        near[edge : edge + 64] = True
    for edge in [*tile_starts(416, 160, 64)[1:], 208 - 32]:  # and where the blocks meet
        near[:, edge : edge + 64] = True
    change = errors[1] / errors[0].mean()
    assert float(change[near].mean()) < 1.1 * float((errors[0] / errors[0].mean())[near].mean())


def test_a_picture_without_detail_is_seen_at_lower_resolutions_and_one_with_detail_is_not() -> None:
    backbone = noisebook.load("photo", dtype="float32").backbone
    levels = [7.0, 1.9, 0.9, 0.5, 0.3]
    grain = tensor(photograph(192, 192, detail=40.0)).float() * (2 / 255) - 1
    smooth = torch.nn.functional.interpolate(tensor(photograph(48, 48, detail=0.0)).float(), (384, 384), mode="bicubic")
    found = [tiles.resolutions_for(backbone, tiles.crops_of(x), levels, 2, 255) for x in (grain, smooth * (2 / 255) - 1)]
    assert found[0][0] < 5
    assert found[1][0] == 5
    assert all(a >= b for a, b in found)


def test_the_whole_way_of_a_large_picture(small_blocks, tmp_path, capsys) -> None:
    for name, size in (("large", (97, 131)), ("small", (40, 50))):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(photograph(*size)))
    how = ["--backbone", "gaussian-prior", "--steps", "4", "--budget", "64"]
    files = [str(tmp_path / f"{name}.png") for name in ("large", "small")]
    assert main(["encode", *files, "-o", str(tmp_path / "o"), *how]) == 0
    assert main(["decode", *(str(tmp_path / f"o/{n}.nbk") for n in ("large", "small")), "-o", str(tmp_path / "o")]) == 0
    assert main(["inspect", str(tmp_path / "o/large.nbk"), "--json"]) == 0
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=4, budget=64)
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    about = about["files"][0]
    assert about["tokens"] == codec.stream(97, 131).length > codec.stream(40, 50).length
    _, expected = codec.reconstruct(tensor(read_image(files[0])))
    decoded = read_image(tmp_path / "o/large.decoded.png")
    assert np.array_equal(decoded, noisebook_pixels(expected))

    data = tmp_path / "t"
    assert main(["tokenize", *files, "-o", str(data), *how, "--workers", "0", "--mixed-sizes"]) == 0
    assert main(["verify", str(data)]) == 0
    assert main(["detokenize", str(data), "-o", str(tmp_path / "d")]) == 0
    assert np.array_equal(read_image(tmp_path / "d/large.png"), decoded)


def noisebook_pixels(images: torch.Tensor) -> np.ndarray:
    from noisebook.images.files import pixels_of

    return pixels_of(images[0])


def test_a_batch_of_large_pictures_is_coded_one_by_one(small_blocks) -> None:
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=16)
    images = torch.cat([tensor(photograph(80, 90, seed)) for seed in (1, 2)])
    tokens = codec.encode(images)
    assert torch.equal(tokens[1], codec.encode(images[1:])[0])
    assert torch.equal(codec.decode_packed(codec.encode_packed(images), (80, 90)), codec.decode(tokens, (80, 90)))
    heard = []
    codec.encode(images, progress=lambda *at: heard.append(at))
    assert heard == [(n, 6) for n in range(7)]  # a prediction of a whole picture is a call, whatever its tiles
    heard.clear()
    codec.decode(tokens, (80, 90), realism=0.5, progress=lambda *at: heard.append(at))
    assert heard == [(n, 14) for n in range(15)]
    layout = codec.layout_for(80, 90)
    assert layout.step_index[:2].tolist() == [StepIndex.RESOLUTION] * 2
    assert len(layout) == tokens.shape[1]
    assert set(layout.block.tolist()) == set(range(codec.stream(80, 90).blocks))


class Grey(Backbone):
    name, channels, fingerprint = "grey", 1, "ab" * 32

    def denoise(self, y: torch.Tensor, sigma: float, cond: Any = None) -> torch.Tensor:
        return y / (1 + sigma * sigma)


@pytest.mark.filterwarnings("ignore:quality stalls")
def test_floats_of_one_channel_in_rows_of_blocks_have_the_tokens_of_their_bytes(small_blocks) -> None:
    """Such a block lies together in the picture, which the encoder must not write to."""
    codec = noisebook.load("photo", backbone=Grey())
    image = torch.randint(0, 256, (1, 1, 6001, 5), dtype=torch.uint8)
    grid = codec.stream(6001, 5).grid
    assert grid[0] > 1 == grid[1]
    assert torch.equal(codec.encode(image * (2 / 255) - 1, range=(-1, 1)), codec.encode(image))


def test_weights_draw_tokens_to_where_they_are(small_blocks) -> None:
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=256, budget_last=256, scale_pixels=0)
    image, weights = tensor(photograph(80, 90)), torch.full((1, 1, 80, 90), 0.1)
    weights[..., :40, :] = 1.0
    errors = []
    for given in (None, weights):
        _, decoded = codec.reconstruct(image, given)
        errors.append((decoded - (image.float() * (2 / 255) - 1)).square()[:, :, :40].mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("changes", [{"rule": "poisson", "vocab_size": 256}, {"rule": "pursuit", "coefficient_bits": 3}])
def test_rules_whose_tokens_lie_apart_take_no_large_picture(small_blocks, changes) -> None:
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=8, **changes)
    with pytest.raises(SpecError, match="use rule bins"):
        codec.encode(tensor(photograph(80, 90)))
    codec.stream(60, 60)


def test_what_takes_no_large_picture_says_so(small_blocks) -> None:
    ahead = noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=16, candidates=2)
    with pytest.raises(SpecError, match="1 candidate"):
        ahead.encode(tensor(photograph(80, 90)))
    with pytest.raises(SpecError, match="choose a smaller size"):
        ahead.walk(ahead.stream(80, 90), 1, lambda *_: torch.zeros(1, 1))
    with pytest.raises(SpecError, match="use more rows and columns"):
        noisebook.load("photo", backbone="gaussian-prior", steps=3, budget=16, rows=2).encode(tensor(photograph(200, 200)))


def test_the_specification_of_a_large_picture_is_read_again_and_others_keep_their_hash() -> None:
    spec = noisebook.load("photo", dtype="float32").spec
    cut = spec.cut(1, 3)
    assert CodecSpec.from_json(cut.to_json()) == cut
    assert cut.hash != spec.hash
    assert "resolutions" not in spec.to_json()
    for text in (cut.to_json().replace('"resolutions":2', '"resolutions":9'), cut.to_json().replace(":2,", ":-1,")):
        with pytest.raises(SpecError):
            CodecSpec.from_json(text)


def test_a_file_that_the_codec_does_not_take_is_a_row_and_the_run_goes_on(small_blocks, tmp_path) -> None:
    for name, size in (("a", (40, 40)), ("b", (90, 90)), ("c", (40, 40))):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(photograph(*size)))
    how = ["--backbone", "gaussian-prior", "--steps", "2", "--rule", "poisson", "--vocab-size", "256", "--budget", "4"]
    data = tmp_path / "t"
    assert main(["tokenize", *(str(tmp_path / f"{n}.png") for n in "abc"), "-o", str(data), *how, "--workers", "0"]) == 3
    failed = json.loads((data / "ledger/000000.json").read_text())["entry"]["failed"]
    assert [row["code"] for row in failed] == ["codec"] or [row["code"] for row in failed] == ["other_size"], failed


@pytest.mark.parametrize("target", [["--bpp", "1.5"], ["--bytes", "4000"], ["--psnr", "24"]])
def test_targets_hold_for_large_pictures(small_blocks, tmp_path, capsys, target) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(photograph(120, 170)))
    how = ["--backbone", "gaussian-prior", "--max-nfe", "4", *target]
    assert main(["roundtrip", str(tmp_path / "a.png"), "-o", str(tmp_path / "o"), *how, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["images"]
    wanted = float(target[1])
    if target[0] == "--psnr":
        assert abs(row["psnr"] - wanted) < 0.5
    else:
        size = wanted if target[0] == "--bytes" else wanted * 120 * 170 / 8
        assert 0.9 * size < row["bytes"] < 1.1 * size
        assert target[0] == "--bpp" or row["bytes"] <= size
