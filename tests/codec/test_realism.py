"""The realism dial: what it mixes, that nothing else changes, tiles and odd sizes, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fake_cuda
import noisebook
from common import TINY, Shrink, random_images, realism_file, tiny_backbone
from noisebook import backbones
from noisebook.backbones import realism as files
from noisebook.backbones import registry
from noisebook.backbones.checkpoint import read_checkpoint, write_checkpoint
from noisebook.backbones.realism import LazyRealism, Realism, read_realism
from noisebook.backbones.wrappers.latent import Latent
from noisebook.cli.main import main
from noisebook.codec import realism, stream, tiles
from noisebook.codec.codec import Codec
from noisebook.codec.walk import walk
from noisebook.errors import BackboneError, SpecError
from noisebook.images.files import check_decode, decode_picture, encode_picture
from noisebook.images.io import png_bytes, read_image
from noisebook.runtime.limits import Limits
from noisebook.spec.presets import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


@pytest.fixture
def path(tmp_path):
    return realism_file(tmp_path / "a.realism.safetensors", Shrink.fingerprint)


def build(backbone, path, graphs=True, **changes) -> Codec:
    base = {"steps": 4, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone, graphs, realism_network=path)


@pytest.mark.parametrize(("batch", "size"), [(1, (16, 24)), (3, (17, 41))])
@pytest.mark.parametrize("changes", [{}, {"rows": 2, "columns": 3}], ids=["one block", "blocks"])
def test_the_dial_mixes_the_mean_with_what_the_network_makes(batch, size, changes, path, shrink, fresh):
    codec, plain = build(shrink, path, **changes), build(shrink, None, **changes)
    images = random_images(fresh, batch, *size)
    tokens, mean = plain.reconstruct(images)
    shown = {r: codec.decode(tokens, size, realism=r) for r in (0, 0.5, 1)}
    assert torch.equal(shown[0], mean)
    assert torch.allclose(shown[0.5], (shown[0] + shown[1]) / 2, rtol=0, atol=1e-6)
    assert (shown[1] - mean).abs().max() > 0.01

    s = codec.stream(*size)  # the whole of it by hand: the padded state, its mean, mirrored to the network's multiple of 4
    offsets = {segment.step_index: segment for segment in s.segments}
    y, _ = walk(codec.parts, s, batch, lambda seg, _: tokens[:, offsets[seg.step_index].offset :][:, : seg.count], 4)
    guess = shrink(y, 0.2)
    bottom, right = (-n % 4 for n in y.shape[2:])
    padded = [F.pad(x, (0, right, 0, bottom), mode="reflect") for x in (guess, y)]
    with torch.no_grad():
        expected = read_realism(path).net(*padded, torch.full((batch,), codec.spec.sigma_last))
    assert torch.allclose(shown[1], expected[:, :, : size[0], : size[1]], rtol=0, atol=1e-6)

    again, predicted = codec.reconstruct(images, realism=0.5)
    assert torch.equal(again, tokens)
    assert torch.equal(predicted, shown[0.5])
    packed = codec.encode_packed(images)
    assert torch.equal(codec.decode_packed(packed, size, realism=0.5), shown[0.5])
    assert torch.equal(codec.decode_packed(packed, size, steps=2, realism=1), codec.decode(tokens, size, 2, 1))
    assert (codec.nfe_of(None, 0.5), codec.nfe_of(None), codec.nfe, codec.nfe_of(2, 1)) == (6, 5, 5, 4)
    heard = []
    codec.decode(tokens, size, realism=0.5, progress=lambda *at: heard.append(at))
    assert heard == [(n, 6) for n in range(7)]  # the realism network's call is the last


class Halves(torch.nn.Module):
    def encode(self, images):
        return F.avg_pool2d(images, 2)

    def decode(self, z):
        return F.interpolate(z, scale_factor=2)


def test_without_a_network_the_backbone_makes_the_picture_by_its_ode(shrink, fresh):
    """By hand, in float64: four Euler steps of dy/dsigma = (y - x0_hat) / sigma."""
    codec, size = build(shrink, None), (17, 41)
    tokens, mean = codec.reconstruct(random_images(fresh, 2, *size))
    s = codec.stream(*size)
    offsets = {segment.step_index: segment for segment in s.segments}
    y, _ = walk(codec.parts, s, 2, lambda seg, _: tokens[:, offsets[seg.step_index].offset :][:, : seg.count], 4)
    sigma, y = codec.spec.sigma_last, y.double()
    powers = [(sigma ** (1 / 7) + i / 3 * ((sigma / 50) ** (1 / 7) - sigma ** (1 / 7))) ** 7 for i in range(1, 3)]
    for level in [*powers[:2], sigma / 50, 0.0]:
        y = y + (level - sigma) * (y - shrink(y.float(), sigma).double()) / sigma
        sigma = level
    shown = {r: codec.decode(tokens, size, realism=r) for r in (0, 0.25, 1)}
    assert torch.equal(shown[0], mean)
    assert torch.allclose(shown[1], y.float()[:, :, : size[0], : size[1]], rtol=0, atol=1e-5)
    assert torch.allclose(shown[0.25], 0.75 * mean + 0.25 * shown[1], rtol=0, atol=1e-6)
    assert (shown[1] - mean).abs().max() > 0.01
    assert (codec.nfe_of(None, 0.5), codec.nfe_of(2, 1), codec.nfe_of(2)) == (8, 6, 3)
    assert codec.dial(1).name == "ode-4"
    calls, denoise = [], Shrink.denoise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shrink, "denoise", lambda *given: (calls.append(given[2]), denoise(*given))[1])
        codec.decode(tokens, size, realism=1)
    assert len(calls) == 8


def test_latents_and_large_pictures_are_finished_by_the_ode(shrink, fresh, monkeypatch):
    latent = Latent(Shrink(), Halves(), factor=2)
    latent.fingerprint = "b" * 64
    images = random_images(fresh, 1, 16, 24)
    codec = build(latent, None)
    tokens = codec.encode(images)
    zero, half, one = (codec.decode(tokens, (16, 24), realism=r) for r in (0, 0.5, 1))
    assert (one - zero).abs().max() > 0.01
    assert torch.allclose(half, (zero + one) / 2, rtol=0, atol=1e-6)

    monkeypatch.setattr(stream, "MOST", 1 << 14)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "OVERLAP", 16)
    codec = build(shrink, None)
    tokens = codec.encode(random_images(fresh, 1, 101, 147))
    assert codec.stream(101, 147).tiled
    zero, half, one = (codec.decode(tokens, (101, 147), realism=r) for r in (0, 0.5, 1))
    assert torch.equal(zero, codec.decode(tokens, (101, 147)))
    assert torch.allclose(half, (zero + one) / 2, rtol=0, atol=1e-6)
    euler = Recipe(steps=4, sigma_max=3, sigma_min=0.2, budget=4, vocab_size=256, solver="euler", solver_steps=4)
    assert torch.allclose(one, Codec(euler.build(shrink), shrink).decode(tokens, (101, 147)), rtol=0, atol=1e-5)


def test_a_shortened_decode_gives_the_network_the_level_where_it_ends(path, shrink, fresh, monkeypatch):
    codec, seen = build(shrink, path), []
    forward = Realism.forward
    monkeypatch.setattr(Realism, "forward", lambda self, *given: (seen.append(given[2]), forward(self, *given))[1])
    tokens = codec.encode(random_images(fresh, 1, 8, 12))
    for steps in (1, 3, 4, None):
        codec.decode(tokens, (8, 12), steps, 1.0)
    levels = [codec.spec.schedule[i].sigma_next for i in (0, 2, 3)]
    assert seen == [*levels, codec.spec.sigma_last]


def test_graphs_replay_the_dial_and_know_its_value(path, shrink, fresh, monkeypatch):
    """Also that nothing of it waits for the device."""
    fake_cuda.plain_codebook(monkeypatch)
    plain, codec = build(shrink, path, graphs=False), build(shrink, path)
    images = random_images(fresh, 2, 10, 11)
    tokens = plain.encode(images)
    expected = [plain.decode(tokens, (10, 11), realism=r) for r in (0.0, 0.5, 1.0)]
    fake_cuda.install(monkeypatch)
    for _ in range(2):
        for r, wanted in zip((0.0, 0.5, 1.0), expected, strict=True):
            assert torch.equal(codec.decode(tokens, (10, 11), realism=r), wanted)
    assert len(codec.graphs) == 3
    dial = codec.dial(0.5)
    assert dial is not None
    dial.network.to("meta")
    with torch.no_grad(), fake_cuda.no_host():
        dial(*torch.empty(2, 1, 3, 10, 11, device="meta"), 0.3, False, shrink, shrink)


def test_tiles_change_nothing_that_can_be_seen(tmp_path, monkeypatch, fresh):
    """Of a network of the default widths with random weights everywhere: seams and interior alike."""
    monkeypatch.setattr(tiles, "TILE", 96)
    monkeypatch.setattr(tiles, "OVERLAP", 32)
    network = read_realism(realism_file(tmp_path / "a.safetensors", widths=(16, 16, 16), patch=4))
    torch.manual_seed(3)
    for name, parameter in network.named_parameters():
        if "conv2.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    y = torch.from_numpy(fresh.normal(size=(1, 3, 200, 312))).float()
    mean = F.avg_pool2d(y, 5, 1, 2)
    with torch.no_grad():
        whole = realism._padded(network, mean, y, 0.3, False)
        tiled = realism._padded(network, mean, y, 0.3, True)
        monkeypatch.setattr(realism, "MARGIN", 0)
        without = realism._padded(network, mean, y, 0.3, True)
    change = (whole - mean).square().mean().sqrt()
    assert (tiled - whole).abs().max() < 0.005 * change
    assert (without - whole).abs().max() > 0.02 * change  # so tiles there were, and their margins are what hides them


def test_a_large_picture_is_finished_in_tiles(path, shrink, fresh, monkeypatch):
    monkeypatch.setattr(stream, "MOST", 1 << 14)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "OVERLAP", 16)
    codec, sizes = build(shrink, path), []
    forward = Realism.forward
    monkeypatch.setattr(Realism, "forward", lambda self, *given: (sizes.append(given[0].shape), forward(self, *given))[1])
    images = random_images(fresh, 2, 101, 147)
    tokens, half = codec.reconstruct(images, realism=0.5)
    assert codec.stream(101, 147).tiled
    shown = [codec.decode(tokens, (101, 147), realism=r) for r in (0, 0.5, 1)]
    assert len(sizes) > 8
    assert torch.equal(shown[0], codec.decode(tokens, (101, 147)))
    assert torch.equal(shown[1], half)
    assert torch.allclose(shown[1], (shown[0] + shown[2]) / 2, rtol=0, atol=1e-6)
    monkeypatch.setattr(tiles, "TILE", 512)
    assert torch.allclose(shown[2], codec.decode(tokens, (101, 147), realism=1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "channels_last": True}])
def test_the_network_computes_as_the_backbone_does(how, tmp_path):
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    path = realism_file(tmp_path / "r.safetensors")
    fast, plain = backbones.load(net, accelerated=how), backbones.load(net)
    lazy = LazyRealism(path)
    assert lazy.of(fast).net.enter.weight.dtype == torch.bfloat16
    assert lazy.of(plain).net.enter.weight.dtype == torch.float32
    assert lazy.of(fast) is lazy.of(fast)
    assert lazy.of(fast).fingerprint == lazy.of(plain).fingerprint
    mean = torch.rand(1, 3, 8, 8)
    got, wanted = (lazy.of(b)(mean, mean + 0.1, 0.1) for b in (fast, plain))
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).abs().max() < 0.05 * (wanted - mean).abs().max()


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_network_beside_its_backbone_is_found_and_is_no_backbone(tmp_path, monkeypatch, fresh):
    for name in ("gaussian-prior", "cifar10-edm", "photo"):
        shutil.copy(registry.WEIGHTS / f"{name}.safetensors", tmp_path)
    for module in (registry, files):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    before = backbones.shipped()
    prior = backbones.load("gaussian-prior")
    assert LazyRealism().of(prior) is None
    for fingerprint in ("", "0" * 64):  # of no backbone, of another
        realism_file(tmp_path / "gaussian-prior.realism.safetensors", fingerprint)
        assert LazyRealism().of(prior) is None
    realism_file(tmp_path / "gaussian-prior.realism.safetensors", prior.fingerprint)
    assert LazyRealism().of(prior).backbone == prior.fingerprint
    assert backbones.shipped() == before
    codec = noisebook.load("photo", backbone="gaussian-prior", steps=2, budget=8, vocab_size=256)
    tokens = codec.encode(random_images(fresh, 1, 16, 16))
    assert not torch.equal(codec.decode(tokens, (16, 16), realism=1), codec.decode(tokens, (16, 16)))


def refused(backbone, path, words, **changes):
    codec = build(backbone, path, **changes)
    with pytest.raises((BackboneError, SpecError), match=words) as caught:
        codec.decode(torch.zeros(1, codec.stream(8, 8).length, dtype=torch.int64), (8, 8), realism=0.5)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_what_does_not_fit_is_refused_in_a_line(path, shrink, tmp_path):
    for value in (-0.1, 1.001, float("nan"), float("inf"), "1", None, True, [0.5]):
        with pytest.raises(SpecError, match="realism is a number from 0"):
            build(shrink, path).decode(torch.zeros(1, 16, dtype=torch.int64), (8, 8), realism=value)
    for solver in ("euler", "heun", "ab2"):
        refused(shrink, path, f"realism starts from the mean, and the solver is {solver}", solver=solver)
    other = realism_file(tmp_path / "other.safetensors", "1" * 64)
    refused(shrink, other, "of another backbone .111.* than 'shrink'.*give the file that was trained for this one")
    refused(shrink, realism_file(tmp_path / "grey.safetensors", channels=1), "of 1 channels, and backbone 'shrink' has 3")
    refused(shrink, tiny_backbone(tmp_path / "net.safetensors"), "kind 'convnet' and no realism network")
    refused(shrink, tmp_path / "missing.safetensors", "missing.safetensors: no such file")
    refused(shrink, "a\0b", "no such file")
    (tmp_path / "text").write_text("text")
    refused(shrink, tmp_path / "text", "not a noisebook checkpoint")
    with pytest.raises(
        BackboneError, match="finishes the decodes of a backbone and is none: give it as --realism-network FILE"
    ):
        backbones.load(path)


def test_a_network_for_a_backbone_of_latents_is_refused(path):
    latent = Latent(Shrink(), Halves(), factor=2)
    latent.fingerprint = "b" * 64
    refused(latent, path, "works on latents, and realism networks on pixels: leave out --realism-network")


VALUES = [None, True, -1, 0, 1 << 20, 1 << 70, 0.5, "evil", [], [1 << 40], {}, [1] * 5000]


@pytest.mark.parametrize("field", ["widths", "blocks", "embedding", "patch", "channels", "fingerprint", "other"])
def test_configs_of_strangers_are_refused_in_a_line_or_make_a_network(field, path, tmp_path):
    (kind, config, tensors), said = read_checkpoint(path), []
    for value in [*VALUES, "0" * 64 + "\n"]:
        write_checkpoint(tmp_path / "b.safetensors", kind, {**config, field: value}, tensors)
        try:
            assert read_realism(tmp_path / "b.safetensors").multiple in range(1, 257)
        except BackboneError as error:
            said.append(str(error))
    assert said
    assert all(text.isprintable() and len(text) < 600 for text in said)


def test_a_network_that_would_pad_far_is_refused(tmp_path):
    path = realism_file(tmp_path / "a.safetensors", widths=(2,) * 8, patch=4)  # multiples of 512 pixels
    with pytest.raises(BackboneError, match="multiples of 512 pixels, more than 256"):
        read_realism(path)


def test_the_call_counts_against_the_limit(path, shrink, fresh):
    codec = build(shrink, path)
    check_decode(codec.spec, 8, 8, Limits(network_calls=5))
    with pytest.raises(noisebook.FormatError, match="network calls: 8, more than the limit of 5"):
        check_decode(codec.spec, 8, 8, Limits(network_calls=5), None, 0.1)


# ---- the command line -----------------------------------------------------------------------------------------------------
@pytest.fixture
def files_of(tmp_path, fresh):
    """(a picture, options of a codec, options of the dial)"""
    picture = tmp_path / "a.png"
    picture.write_bytes(png_bytes(random_images(fresh, 1, 22, 30)[0].permute(1, 2, 0).numpy()))
    net = tiny_backbone(tmp_path / "tiny.safetensors")
    dial = realism_file(tmp_path / "tiny.realism.safetensors", backbones.load(net).fingerprint)
    return picture, ["--backbone", net], ["--realism-network", dial]


def run(capsys, *argv):
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_pictures_on_the_command_line(files_of, tmp_path, capsys):
    picture, net, network = files_of
    out = tmp_path / "o"
    rows = {}
    for r in ("0", "0.5", "1"):
        how = [*net, *TINY, *network, "--realism", r]
        code, said = run(capsys, "roundtrip", picture, "-o", out / r, *how)
        assert code == 0
        assert said["codec"]["realism"] == float(r)
        assert (said["codec"]["realism_network"] is None) == (r == "0")
        (rows[r],) = said["images"]
        assert (rows[r]["nfe"], said["codec"]["decode_nfe"]) == ((9, 5) if r == "0" else (10, 6))
        code, judged = run(capsys, "eval", picture, *how)
        assert judged["images"][0]["psnr"] == rows[r]["psnr"]
        assert judged["codec"] == said["codec"]
        code, decoded = run(capsys, "decode", out / r / "a.nbk", "-o", out / r, *net, *network, "--realism", r)
        assert code == 0
        assert decoded["codec"][0]["realism"] == float(r)
        assert decoded["images"][0]["nfe"] == said["codec"]["decode_nfe"]
        both = read_image(out / r / "a.compared.png")
        assert np.array_equal(read_image(out / r / "a.decoded.png"), both[:, 30:])
    assert len({(out / r / "a.nbk").read_bytes() for r in rows}) == 1  # no bit of a file
    assert len({row["psnr"] for row in rows.values()}) == 3
    code, said = run(capsys, "decode", out / "1/a.nbk", "-o", out / "s", *net, *network, "--realism", "1", "--steps", "2")
    assert (code, said["images"][0]["nfe"]) == (0, 4)


def test_errors_on_the_command_line(files_of, tmp_path, capsys):
    picture, net, network = files_of
    eval_ = ["eval", picture, *net, *TINY]
    for options, words in (
        ([*network], "give --realism R"),
        (["--realism", "1.5", *network], "realism is a number from 0"),
        (["--realism", "nan", *network], "realism is a number from 0"),
        (["--realism", "1", "--solver", "euler", *network], "the solver is euler"),
        (["--realism", "1", "--realism-network", net[1]], "no realism network"),
    ):
        code, said = run(capsys, *eval_, *options)
        assert code in (2, 6)
        assert words in said["error"]
        assert said["images"] == []  # before anything is encoded


def test_targets_go_with_the_dial(files_of, tmp_path, capsys):
    """The file is that of realism 0, also where a quality is asked for."""
    prior = backbones.load("gaussian-prior")
    network = realism_file(tmp_path / "p.safetensors", prior.fingerprint)
    how = ["--backbone", "gaussian-prior", "--max-nfe", "4", "--psnr", "20", "--realism-network", network]
    data = []
    for r in ("0", "1"):
        code, said = run(capsys, "roundtrip", files_of[0], "-o", tmp_path / r, *how, "--realism", r)
        assert code == 0
        assert said["codec"][0]["realism"] == float(r)
        data.append((tmp_path / r / "a.nbk").read_bytes())
    assert data[0] == data[1]


def test_data_sets_on_the_command_line(files_of, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    picture, net, network = files_of
    data, out = tmp_path / "t", tmp_path / "d"
    assert main(["tokenize", str(picture), "-o", str(data), *net, *TINY, "--workers", "0"]) == 0
    capsys.readouterr()
    dial = [*net, *network, "--realism", "0.5"]
    code, said = run(capsys, "detokenize", data, "-o", out, *dial)
    assert (code, said["written"], said["realism"]) == (0, 1, 0.5)
    assert run(capsys, "roundtrip", picture, "-o", tmp_path / "o", *dial, *TINY)[0] == 0
    expected = read_image(tmp_path / "o/a.compared.png")[:, 30:]
    assert np.array_equal(read_image(out / "a.png"), expected)
    for other in (["0"], ["1"]):
        code, said = run(capsys, "detokenize", data, "-o", out, *net, *network, "--realism", *other)
        assert code == 7
        assert "another realism" in said["error"]
    code, said = run(capsys, "detokenize", data, "-o", out, *dial)
    assert (code, said["written"], said["skipped"]) == (0, 0, 1)
    code, said = run(capsys, "detokenize", data, "-o", out, *net, "--realism", "0.5")  # by the ODE: other pictures
    assert code == 7
    assert "another realism" in said["error"]
    code, said = run(capsys, "detokenize", data, "-o", tmp_path / "e", *net, "--realism", "0.5")
    assert (code, said["written"]) == (0, 1)
    assert not np.array_equal(read_image(tmp_path / "e/a.png"), expected)

    code, said = run(capsys, "report", data, "-o", tmp_path / "r.html", *dial)
    assert (code, said["realism"]) == (0, 0.5)
    page = (tmp_path / "r.html").read_text()
    assert '<th scope="row">realism of the decodes</th><td>0.5</td>' in page
    assert '<th scope="row">network calls per decode</th><td>6</td>' in page
    assert run(capsys, "report", data, "-o", tmp_path / "q.html", *net)[1]["realism"] == 0
    assert "realism" not in (tmp_path / "q.html").read_text()


def test_one_picture_in_python(path, shrink, fresh):
    codec = build(shrink, path)
    pixels = random_images(fresh, 1, 9, 13)[0].permute(1, 2, 0).numpy()
    from noisebook.format.container import Container

    file = Container.from_bytes(encode_picture(codec, pixels))
    pictures = [decode_picture(codec, file, realism=r) for r in (0, 1)]
    assert np.array_equal(pictures[0], decode_picture(codec, file))
    assert not np.array_equal(*pictures)
