"""Training of CoD: its loss is the formula, gradients pass the quantisation, and a run gives a tokenizer and a backbone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_kit import touching, watched

import noisebook
from common import random_images
from noisebook import backbones
from noisebook.backbones.cod.cod import CoD, network
from noisebook.backbones.cod.nets import CodConfig
from noisebook.backbones.nets.autoencoders import TinyAutoencoder
from noisebook.cli import main as cli
from noisebook.errors import BackboneError, TrainingError
from noisebook.training import cod
from noisebook.training.loop import TrainingSettings, _identity, _resume

TINY = CodConfig(hidden=64, heads=1, blocks=3, cond_blocks=2, hidden_x=8, ds=8, bits=3, width=32, cell=4)
NETWORK = ["--widths", "64", "32", "--blocks", "3", "--patch", "4", "--stride", "8", "--bits", "3"]
OPTIONS = [*NETWORK, "--sizes", "16", "--pixels", "2048", "--held-out", "8"]


def model(seed: int = 0) -> cod.CodModel:
    torch.manual_seed(seed)
    made = cod.CodModel(TINY)
    for p in made.parameters():  # also the layers that start at zero
        torch.nn.init.normal_(p, std=0.08)
    return made


def batch(fresh, count: int = 6) -> torch.Tensor:
    return random_images(fresh, count, 16, 16).float() / 127.5 - 1


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_loss_is_flow_one_step_reconstruction_and_quantisation(share, fresh):
    """Term by term, with the draws replayed; at t = 0 the error of the velocity is that of the image of one step."""
    net, x0 = model(), batch(fresh)
    torch.manual_seed(3)
    loss = cod.cod(share, 0.3, reconstruct=0.5)(net, x0, 0.0)
    torch.manual_seed(3)
    dropped = torch.rand(6) < 0.3
    assert 0 < int(dropped.sum()) < 6
    random, times, eps = torch.rand(6) < share, torch.sigmoid(torch.randn(6)), torch.randn(x0.shape)
    codec = net.net.y_embedder
    shown = x0 / 2 + 0.5
    shown[dropped] = -1
    z = codec.encoder(shown)
    e = codec.bottleneck.vectors(codec.tokens(shown))
    condition, none = codec.decoder(e), codec.unconditional(16, 16, x0)
    total = 0.0
    for i in range(6):
        t = float(times[i]) if random[i] else 0.0
        told = none if dropped[i] else condition[i : i + 1]
        x, noise = x0[i : i + 1], eps[i : i + 1]
        v = net.net(t * x + (1 - t) * noise, torch.tensor([t]), told)
        error = (v - (x - noise)).square().mean()
        if t == 0:
            assert error.item() == pytest.approx((noise + v - x).square().mean().item(), rel=1e-5)
        total += error.item() / 6
    seen = torch.nn.functional.pixel_shuffle(net.recon(condition), 4)
    quantisation = 1.25 * (z - e).square().mean()
    read_off = (seen - x0).square()[~dropped].sum() / x0.numel()  # nothing is, off the condition for none
    expected = total + 0.5 * float(read_off) + 0.25 * float(quantisation)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_condition_for_none_is_learned_as_the_others_are(fresh):
    """Of images that are all dropped, the flow's gradients pass the codec; those of the commitment are those of the code
    vectors four times over."""
    net, x0 = model(), batch(fresh)
    cod.cod(1.0, dropped=1 - 1e-9, reconstruct=0)(net, x0, 0.0).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.net.y_embedder.decoder.parameters())
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in net.recon.parameters())
    codec, seen = net.net.y_embedder, []
    net.zero_grad()
    codec.encoder.register_forward_hook(lambda _, given, out: seen.append(out) or out.retain_grad())
    net.quantised(x0 / 2 + 0.5)[1].backward()
    at_codes = torch.zeros_like(codec.bottleneck.embedding.weight)
    at_codes.index_add_(0, codec.tokens(x0 / 2 + 0.5).flatten(), -seen[0].grad.permute(0, 2, 3, 1).flatten(0, 2))
    assert torch.allclose(codec.bottleneck.embedding.weight.grad, 0.25 * at_codes, rtol=1e-3, atol=1e-8)


def test_a_model_that_is_told_nothing_is_a_plain_flow(fresh):
    """--dropped 1: the loss is that of flow matching under the condition for none, and the codec learns nothing."""
    net, x0 = model(), batch(fresh)
    torch.manual_seed(5)
    loss = cod.cod(1.0, dropped=1)(net, x0, 0.0)
    loss.backward()
    torch.manual_seed(5)
    torch.rand(6)
    times, eps = torch.sigmoid(torch.randn(6)), torch.randn(x0.shape)
    at = times[:, None, None, None]
    v = net.net(at * x0 + (1 - at) * eps, times, net.net.y_embedder.unconditional(16, 16, x0))
    assert loss.item() == pytest.approx((v - (x0 - eps)).square().mean().item(), rel=1e-5)
    assert all(p.grad is None for p in net.net.y_embedder.parameters())


class Features(torch.nn.Module):
    """Means of 2 x 2 pixels in other colours."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)[:, :1] * torch.linspace(1, 2, self.width)[None, :, None, None]


def test_features_that_are_given_lead_the_condition_and_an_early_block(tmp_path, fresh):
    torch.jit.script(Features(5)).save(tmp_path / "features.pt")
    extractor, width = cod.read_extractor(tmp_path / "features.pt", "cpu", 16)
    assert width == 5
    torch.manual_seed(0)
    net, x0 = cod.CodModel(TINY, width), batch(fresh)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.08)
    states: list[torch.Tensor] = []
    net.net.blocks[0].register_forward_hook(lambda _, given, out: states.append(out))
    torch.manual_seed(7)
    plain = cod.cod(dropped=0.4)(net, x0, 0.0)
    torch.manual_seed(7)
    aligned = cod.cod(dropped=0.4, extractor=extractor)(net, x0, 0.0)
    torch.manual_seed(7)
    kept = (torch.rand(6) >= 0.4).float()
    assert 0 < kept.sum() < 6
    codes = net.net.y_embedder.bottleneck.vectors(net.net.y_embedder.tokens(x0 / 2 + 0.5))
    condition = net.net.y_embedder.decoder(codes).flatten(2).transpose(1, 2)
    features = torch.nn.functional.interpolate(extractor(x0), (4, 4), mode="bilinear", antialias=True)  # from 8 x 8
    features = features.flatten(2).transpose(1, 2)
    expected = 0.0
    for head, state, counts in zip(net.proj, (condition, states[-1]), (kept, torch.ones(6)), strict=True):
        apart = 1 - torch.nn.functional.cosine_similarity(head(state), features, -1)
        expected += 0.5 * (apart * counts[:, None]).mean()
    assert float(aligned - plain) == pytest.approx(float(expected), rel=1e-4)
    aligned.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.proj.parameters())
    assert not [k for k in cod.tensors_of(net)[1] if k.startswith(("proj", "recon"))]
    for made, word in ((torch.nn.Flatten(), "not features"), (torch.nn.Linear(3, 3), "takes images")):
        torch.jit.script(made).save(tmp_path / "bad.pt")
        with pytest.raises(TrainingError, match=word):
            cod.read_extractor(tmp_path / "bad.pt", "cpu", 16)
    with pytest.raises(TrainingError, match="no TorchScript"):
        cod.read_extractor(tmp_path / "none.pt", "cpu", 16)


def test_what_a_state_names_is_compared_and_never_run(tmp_path, monkeypatch):
    """A saved run whose settings name a program is refused to a run that was not given it; neither is loaded."""
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("a program was loaded"))
    settings = TrainingSettings(0.1, recipe="align=evil.pt init=evil.safetensors")
    state = {"settings": _identity(settings), "spent": 0.0, "iteration": 0, "log": []}
    torch.save(state, tmp_path / "state.pt")
    with watched() as events, pytest.raises(TrainingError, match="other settings"):
        _resume(tmp_path / "state.pt", replace(settings, recipe=""), "", "cpu")
    assert not touching(events, "evil")
    assert _resume(tmp_path / "state.pt", settings, "", "cpu")["log"] == []
    torch.save({"settings": _identity(settings)}, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="no state to resume"):
        _resume(tmp_path / "state.pt", settings, "", "cpu")


def test_the_help_says_that_a_program_is_run(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "The code in the file is run: give only a file that you trust" in said


def test_gradients_pass_the_quantisation(fresh):
    net, x0 = model(), batch(fresh)
    codes, _ = net.quantised(x0 / 2 + 0.5)
    assert torch.allclose(codes, net.net.y_embedder.bottleneck.vectors(net.net.y_embedder.tokens(x0 / 2 + 0.5)), atol=1e-5)
    (codes * torch.randn(codes.shape)).sum().backward()
    assert net.net.y_embedder.encoder.conv_in.weight.grad.abs().max() > 0
    net.zero_grad()
    net.quantised(x0 / 2 + 0.5)[1].backward()
    assert net.net.y_embedder.bottleneck.embedding.weight.grad.abs().max() > 0
    net.zero_grad()
    cod.cod()(net, x0, 0.0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_model_is_a_denoiser_as_its_backbone(fresh):
    """`forward` is what validation measures, and what the checkpoint will do without a condition."""
    net = model().eval()
    backbone = CoD(network(TINY, net.net.state_dict()))
    y = torch.from_numpy(fresh.standard_normal((2, 3, 16, 16))).float()
    for sigma in (0.1, 2.0):
        assert torch.allclose(net(y, torch.full((2,), sigma)), backbone.denoise(y, sigma), atol=1e-4)


def test_a_run_learns_resumes_and_writes_a_tokenizer(tmp_path, fresh, capsys):
    images = random_images(fresh, 40, 16, 16)
    np.savez(tmp_path / "data.npz", images=images.permute(0, 2, 3, 1).numpy())
    call = ["train", "cod", str(tmp_path / "data.npz"), "-o", str(tmp_path / "run"), *OPTIONS, "--learning-rate", "2e-3"]
    minutes, log = 0.06, []
    while not log or log[-1]["iteration"] < 100 or log[-1]["minutes"] < 0.1:  # a busy machine needs more of them
        assert cli.main([*call, "--minutes", f"{minutes}", "--save-every", "0.03", "--json"]) == 0
        log, minutes = json.loads((tmp_path / "run" / "log.json").read_text()), 2 * minutes
    assert log[-1]["loss"] < log[0]["loss"]
    backbone = backbones.load(tmp_path / "run" / "model.safetensors")
    tokens = backbone.encode_condition(images[:3])
    assert tokens.shape == (3, 2, 2)
    assert tokens.max() < 8
    codec = noisebook.load(backbone=backbone, condition="only", steps=2)
    assert codec.decode(tokens.flatten(1), (16, 16)).shape == (3, 3, 16, 16)
    assert "recon.0.weight" not in dict(backbone.net.named_parameters())
    code = cli.main([*call, "--minutes", "1", "--share", "0.5"])
    assert code
    assert "other settings" in capsys.readouterr().err
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    state["settings"] = state["settings"].replace(" loss=2", "")  # of before the loss of dropped images changed
    torch.save(state, tmp_path / "run" / "state.pt")
    assert cli.main([*call, "--minutes", "9"])
    assert "other settings" in capsys.readouterr().err


def test_a_latent_model_is_trained_behind_its_autoencoder(tmp_path, fresh, capsys):
    """On latents of root mean square 1; the file knows their scale, and walks behind the same autoencoder alone."""
    torch.manual_seed(0)
    halves = TinyAutoencoder(6)
    for half in ("encoder", "decoder"):
        torch.save(getattr(halves, half).state_dict(), tmp_path / f"{half}.pth")
    images = random_images(fresh, 40, 64, 64)
    np.savez(tmp_path / "data.npz", images=images.permute(0, 2, 3, 1).numpy())
    place = f"{tmp_path / 'encoder.pth'}:{tmp_path / 'decoder.pth'}"
    call = [
        "train",
        "cod",
        str(tmp_path / "data.npz"),
        "-o",
        str(tmp_path / "run"),
        "--sizes",
        "64",
        "--pixels",
        "32768",
        "--widths",
        "64",
        "32",
        "--blocks",
        "3",
        "--stride",
        "16",
        "--held-out",
        "8",
        "--minutes",
        "0.05",
    ]
    assert cli.main([*call, "--autoencoder", place, "--latents", "6"]) == 0
    path = tmp_path / "run" / "model.safetensors"
    with pytest.raises(BackboneError, match="needs its autoencoder"):
        backbones.load(path)
    backbone = backbones.load(path, autoencoder=place)
    x = backbone.encode(images.float() / 127.5 - 1)
    assert x.shape == (40, 6, 8, 8)
    assert float(x.square().mean()) == pytest.approx(1, rel=0.1)
    codec = noisebook.load(backbone=backbone, condition="only", steps=2)
    tokens = codec.encode(images[:2])
    assert tokens.shape == (2, 16)
    assert codec.decode(tokens, (64, 64)).shape == (2, 3, 64, 64)
    net, objective = cod.CodModel(backbone.inner.net.config, 0, halves), cod.cod()
    objective(net, images[:4].float() / 127.5 - 1, 0.0).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not any(p.grad is not None for p in halves.parameters())
    for more, word in (([], "the network takes 4"), (["--latents", "6", "--sizes", "60"], "multiples of 8")):
        assert cli.main([*call[:4], str(tmp_path / "other"), *call[5:], "--autoencoder", place, *more]) > 0
        assert word in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


REFUSED = [
    (["--widths", "65"], "multiples of 64"),
    (["--share", "2"], "share and --dropped from 0 to 1"),
    (["--sizes", "20"], "multiples of 8"),
    (["--stride", "32"], "do not lead"),
    (["--network", "unet"], "network of its own"),
]


@pytest.mark.parametrize(("options", "word"), REFUSED)
def test_bad_requests_are_refused(options, word, tmp_path, fresh, capsys):
    np.savez(tmp_path / "data.npz", images=random_images(fresh, 10, 24, 24).permute(0, 2, 3, 1).numpy())
    call = ["train", "cod", str(tmp_path / "data.npz"), "-o", str(tmp_path / "run"), *OPTIONS, *options]
    assert cli.main(call) > 0
    assert word in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
