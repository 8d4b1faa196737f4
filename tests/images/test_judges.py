"""Judges: each metric says what computed it, by file and SHA-256; what is refused is said in words; nothing is downloaded.

Packages and programs are stood in for; the tests at the end use the real ones where they are installed.
"""

import hashlib
import io
import math
import pickle
import re
import sys
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from common import random_images
from noisebook.errors import BackboneError, NoisebookError, SpecError
from noisebook.images.judges import networks, packages
from noisebook.images.judges.catalogue import METRICS, chosen
from noisebook.images.judges.frechet import frechet, patches
from noisebook.images.judges.judge import EQUAL, Judge
from noisebook.images.judges.words import line_of
from noisebook.images.metrics import psnr
from noisebook.runtime.pixels import from_uint8

pytestmark = pytest.mark.quick

PACKAGES = {"ms-ssim": "piq", "ssimulacra2": "ssimulacra2"}  # metrics that need no network -> what computes them


class Distance(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3], keepdim=True)


class Needs32(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.shape[3] < 32:
            raise ValueError("too small for me")
        return (a - b).abs().mean(dim=[1, 2, 3])


class Log(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).mean(dim=[1, 2, 3]).log()


class Maps(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


class Features(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = x.mean(dim=[2, 3])
        return f, 100 * f


@pytest.fixture
def program(tmp_path):
    """A function: the TorchScript file of a module."""

    def make(module, name="net.pt"):
        torch.jit.script(module).save(str(tmp_path / name))
        return tmp_path / name

    return make


@pytest.fixture
def pair(fresh):
    """A function: two pictures, uint8 [H, W, C]."""

    def make(height=40, width=48, channels=3):
        both = random_images(fresh, 2, height, width).permute(0, 2, 3, 1).numpy()[..., :channels]
        return both[0].copy(), both[1].copy()

    return make


@pytest.fixture
def package(monkeypatch):
    """A function: puts a stand-in in the place of a package."""

    def put(name, **content):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def judge(names, **files):
    given = {name: [path] if not isinstance(path, list) else path for name, path in files.items()}
    return Judge(chosen(names, given), given)


# ---- choosing -----------------------------------------------------------------------------------------------------------
def test_metrics_are_chosen_by_name_and_by_network():
    assert [m.name for m in chosen(None, [])] == ["psnr", "ssim"]
    assert [m.name for m in chosen(None, ["lpips"])] == ["psnr", "ssim", "lpips"]
    assert [m.name for m in chosen(" MS_SSIM,psnr", ["frechet"])] == ["psnr", "ms-ssim", "frechet"]
    with pytest.raises(SpecError, match="'fid' is no metric: there are psnr, ssim, ms-ssim"):
        chosen("psnr,fid", [])
    for name in ("lpips", "dists", "frechet"):
        with pytest.raises(SpecError, match=rf"needs its network: {METRICS[name].option} FILE; .*docs/metrics\.md"):
            chosen(name, [])


def test_nothing_is_given_twice_or_in_vain():
    for patch in (-1, 1):
        with pytest.raises(SpecError, match="--patch"):
            Judge(chosen(None, []), patch=patch)


# ---- networks of the user -----------------------------------------------------------------------------------------------
def test_a_program_is_named_by_its_file_and_hash(program, pair):
    path = program(Distance(), "my lpips.pt")
    a, b = pair()
    j = judge("lpips", lpips=path)
    verdict = j(a, b)
    x, y = (from_uint8(torch.from_numpy(v)) for v in (a, b))
    assert verdict.values == {"lpips": pytest.approx(float((x - y).abs().mean()), rel=1e-5)}
    assert not verdict.remarks
    entry = j.summary([verdict, verdict])["lpips"]
    assert entry["networks"] == [{"file": "my lpips.pt", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert (entry["name"], entry["better"], entry["pictures"], entry["of"]) == ("LPIPS", "lower", 2, 2)
    assert entry["value"] == pytest.approx(verdict.values["lpips"])
    line = line_of("lpips", entry)
    assert line.startswith(f"LPIPS {entry['value']:.4f} (lower is better), mean of 2 of 2 pictures, ")
    assert line.endswith(f"my lpips.pt sha256:{entry['networks'][0]['sha256']}")


def test_grey_pictures_count_as_three_channels(program, pair):
    a, b = pair(channels=1)
    both = judge("psnr,dists", dists=program(Distance()))(a, b).values
    assert both["dists"] == pytest.approx(np.abs(a.astype(float) - b).mean() / 127.5, rel=1e-5)
    assert both["psnr"] == psnr(a, b)


@pytest.mark.parametrize(
    ("module", "size", "words"),
    [
        (Needs32(), (40, 30), r"its network fails at 40 x 30 pixels: .*too small for me"),
        (Log(), (40, 40), "its value is nan"),
        (Maps(), (40, 40), r"its network gives \[1, 3, 40, 40\], not one distance a picture"),
        (Features(), (40, 40), "its network fails at 40 x 40 pixels"),
    ],
)
def test_a_network_that_gives_no_distance_is_said_and_never_a_number(program, pair, module, size, words):
    a, b = pair(*size)
    if isinstance(module, Log):
        b = np.maximum(a, b)  # a mean below 0
    verdict = judge("psnr,lpips", lpips=program(module))(a, b)
    assert verdict.values["lpips"] is None
    assert verdict.values["psnr"] == psnr(a, b)
    assert list(verdict.remarks) == ["lpips"]
    assert re.search(words, verdict.remarks["lpips"])
    assert verdict.refused


def test_equal_pictures_are_infinitely_good_and_that_is_no_refusal(pair):
    a, _ = pair()
    verdict = judge(None)(a, a)
    assert verdict.values == {"psnr": None, "ssim": 1}
    assert verdict.remarks == {"psnr": EQUAL}
    assert not verdict.refused


def test_small_pictures_are_refused_in_words(package, pair):
    package("piq", multi_scale_ssim=lambda a, b, **how: torch.ones(1))
    package("ssimulacra2", compute_ssimulacra2=lambda a, b: 1.0)
    j = judge("ssim,ms-ssim,ssimulacra2")
    small, large = j(*pair(6, 200)), j(*pair(161, 161))
    assert small.remarks == {
        "ssim": "it needs 7 pixels a side",
        "ms_ssim": "it needs 161 pixels a side",
        "ssimulacra2": "it needs 8 pixels a side",
    }
    assert not large.remarks
    assert j(*pair(161, 160)).remarks == {"ms_ssim": "it needs 161 pixels a side"}
    found = j.summary([small, large])["ms_ssim"]
    assert (found["value"], found["pictures"], found["of"], found["remark"]) == (1, 1, 2, None)
    assert j.summary([small])["ms_ssim"]["remark"] == "it needs 161 pixels a side"


# ---- files that are no networks -----------------------------------------------------------------------------------------
class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_other_files_are_refused_before_any_picture(tmp_path, program, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"features.0.weight": Evil()}))
    torch.save({"features.0.weight": Evil()}, tmp_path / "evil2.pt")
    torch.save({"features.0.weight": 3}, tmp_path / "numbers.pt")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("lpips", "dists"):
        with pytest.raises(BackboneError, match="cannot be read: No such file"):
            judge(name, **{name: tmp_path / "none.pt"})
        for file in ("a.png", "evil.pt", "evil2.pt"):
            with pytest.raises(BackboneError, match="neither a TorchScript program nor a state dict"):
                judge(name, **{name: tmp_path / file})
        with pytest.raises(BackboneError, match="no state dict: names and tensors are expected"):
            judge(name, **{name: tmp_path / "numbers.pt"})
        with pytest.raises(BackboneError, match=f"not the network of {METRICS[name].title}"):
            judge(name, **{name: tmp_path / "other.pt"})
        with pytest.raises(BackboneError, match="is in another file of the network, too"):
            judge(name, **{name: [tmp_path / "other.pt", tmp_path / "other.pt"]})
    monkeypatch.setattr(torch.jit, "load", lambda *args, **how: pytest.fail("it is no program"))
    with pytest.raises(BackboneError, match="no TorchScript program"):
        judge("frechet", frechet=tmp_path / "other.pt")
    with pytest.raises(BackboneError, match="--features: give one file"):
        judge("frechet", frechet=[program(Features()), program(Features())])


# ---- the distance of two sets -------------------------------------------------------------------------------------------
def test_patches_are_the_squares_of_a_grid(fresh):
    x = random_images(fresh, 2, 9, 7)
    found = patches(x, 3)
    assert found.shape == (2 * 3 * 2, 3, 3, 3)
    assert torch.equal(found[0], x[0, :, :3, :3])
    assert torch.equal(found[1], x[0, :, :3, 3:6])
    assert torch.equal(found[6 + 5], x[1, :, 6:9, 3:6])
    assert patches(x, 8).shape == (0, 3, 8, 8)


def test_the_distance_is_over_all_pictures_or_their_patches(program, pair):
    path = program(Features())
    pairs = [pair(64, 72), pair(32, 40), pair(40, 40)]
    for patch in (0, 32):
        j = Judge(chosen("frechet", ["frechet"]), {"frechet": [path]}, patch=patch)
        verdicts = [j(*p) for p in pairs]
        sides = [
            torch.cat([from_uint8(torch.from_numpy(p[i])).permute(2, 0, 1)[None].mean((2, 3)) for p in pairs])
            for i in (0, 1)
        ]
        entry = j.summary(verdicts)["frechet"]
        if patch:
            cut = [[patches(torch.from_numpy(p[i]).permute(2, 0, 1)[None], 32) for p in pairs] for i in (0, 1)]
            sides = [from_uint8(torch.cat(side)).mean((2, 3)) for side in cut]
        assert entry["value"] == pytest.approx(frechet(*sides), rel=1e-3, abs=1e-6)
        assert (entry["samples"], entry["features"], entry["patch"]) == (len(sides[0]), 3, patch)
        assert entry["networks"][0]["file"] == "net.pt"
        assert "frechet" not in verdicts[0].values
        assert f"{entry['samples']} {'patches of 32 pixels' if patch else 'whole pictures'}" in line_of("frechet", entry)
    assert j(*pair(20, 40)).remarks == {"frechet": "it is smaller than a patch of 32 pixels"}
    alone = Judge(chosen("frechet", ["frechet"]), {"frechet": [path]})
    assert alone.summary([alone(*pairs[0])])["frechet"]["remark"] == "it needs two pictures or more: there are 1"
    wrong = Judge(chosen("frechet", ["frechet"]), {"frechet": [program(nn.Identity(), "id.pt")]})
    assert "not features [B, D]" in wrong(*pairs[0]).remarks["frechet"]


# ---- packages and programs, stood in for --------------------------------------------------------------------------------
def test_packages_are_called_as_they_want_and_named(package, pair):
    a, b = pair(170, 180)
    seen = []

    def multi_scale_ssim(x, y, data_range, reduction):
        seen.append((x, y))
        assert (data_range, reduction, x.dtype) == (255, "none", torch.float64)
        return torch.tensor([0.25])

    def compute_ssimulacra2(x, y):
        assert all((np.asarray(Image.open(file)) == pixels).all() for file, pixels in ((x, a), (y, b)))
        return np.float64(71.5)

    package("piq", multi_scale_ssim=multi_scale_ssim)
    package("ssimulacra2", compute_ssimulacra2=compute_ssimulacra2)
    j = judge("ms-ssim,ssimulacra2")
    assert j(a, b).values == {"ms_ssim": 0.25, "ssimulacra2": 71.5}
    assert (seen[0][0][0].permute(1, 2, 0).numpy() == a).all()
    assert [entry["by"].split()[0] for entry in j.summary([]).values()] == ["piq", "ssimulacra2"]


def test_a_package_that_fails_loses_nothing_else(package, pair):
    def fails(x, y, **how):
        raise ArithmeticError("not at this size\nof pictures")

    package("piq", multi_scale_ssim=fails)
    a, b = pair(170, 180)
    verdict = judge("psnr,ms-ssim")(a, b)
    assert verdict.values == {"psnr": psnr(a, b), "ms_ssim": None}
    assert re.fullmatch(r"piq[ \d.]* fails: not at this size", verdict.remarks["ms_ssim"])
    assert verdict.refused


@pytest.mark.parametrize(("metric", "library"), [*PACKAGES.items(), ("lpips", "lpips")])
def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path, metric, library):
    monkeypatch.setitem(sys.modules, library, None)
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "alex.pt")
    with pytest.raises(BackboneError, match=rf"needs {library}: pip install 'noisebook\[metrics\]'"):
        judge(metric, **({"lpips": tmp_path / "alex.pt"} if metric == "lpips" else {}))


def test_a_package_that_does_not_load_says_why(monkeypatch, tmp_path):
    (tmp_path / "piq.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "piq", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackboneError, match=r"piq cannot be loaded \(operator torchvision::nms does not exist\)"):
        judge("ms-ssim")


def test_butteraugli_is_the_program_on_the_path(tmp_path, monkeypatch, pair):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoisebookError, match="needs the program butteraugli_main or butteraugli on the PATH"):
        judge("butteraugli")

    def install(name, *lines):
        (tmp_path / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (tmp_path / name).chmod(0o755)

    install("butteraugli", "echo 9")
    install(
        "butteraugli_main",
        f'/bin/cp "$1" {tmp_path}/1.png; /bin/cp "$2" {tmp_path}/2.png',
        "echo 1.2500000000",
        "echo 3-norm: 0.5",
    )
    a, b = pair()
    j = judge("butteraugli")
    verdict = j(a, b)
    assert verdict.values == {"butteraugli": 1.25}
    assert (np.asarray(Image.open(tmp_path / "1.png")) == a).all()
    assert (np.asarray(Image.open(tmp_path / "2.png")) == b).all()
    entry = j.summary([verdict])["butteraugli"]
    digest = hashlib.sha256((tmp_path / "butteraugli_main").read_bytes()).hexdigest()
    assert entry["networks"] == [{"file": "butteraugli_main", "sha256": digest}]
    for lines, words in (
        (["echo out of memory >&2", "exit 3"], "butteraugli_main ended with 3: out of memory"),
        (["echo usage: butteraugli_main A B"], "butteraugli_main ended with 0: usage"),
    ):
        install("butteraugli_main", *lines)
        assert words in judge("butteraugli")(a, b).remarks["butteraugli"]
    monkeypatch.setattr(packages, "SECONDS", 0.2)
    install("butteraugli_main", "while :; do :; done")
    assert "timed out" in judge("butteraugli")(a, b).remarks["butteraugli"]


def test_lpips_of_the_package_gets_the_users_trunk_and_downloads_nothing(package, tmp_path, pair, fresh):
    made = []

    class LPIPS(nn.Module):
        def __init__(self, net, version, pnet_rand, verbose):
            super().__init__()
            assert pnet_rand, "it would download"
            made.append((net, version))
            self.net = nn.Module()
            self.net.slice1 = nn.ModuleDict({"0": nn.Conv2d(3, 64, 11, 4, 2)})
            self.lin0 = nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(64, 1, 1, bias=False)})})
            self.lins = nn.ModuleList([self.lin0])

        def forward(self, a, b):
            assert not self.training
            conv = self.net.slice1["0"]
            return (conv(a) - conv(b)).abs().mean((1, 2, 3), keepdim=True)

    package("lpips", LPIPS=LPIPS)
    conv = nn.Conv2d(3, 64, 11, 4, 2)
    tensors = {f"features.0.{name}": t.detach() for name, t in conv.state_dict().items()}
    whole = {name.replace("features", "net.slice1"): t for name, t in tensors.items()} | {
        "lin0.model.1.weight": torch.ones(1, 64, 1, 1)
    }
    torch.save(tensors | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alex.pth")
    torch.save({"state_dict": tensors}, tmp_path / "nested.pth")
    save_file(tensors, tmp_path / "alex.safetensors")
    torch.save(whole, tmp_path / "whole.pth")
    a, b = pair()
    x, y = (from_uint8(torch.from_numpy(v)).permute(2, 0, 1)[None] for v in (a, b))
    with torch.no_grad():
        expected = float((conv(x) - conv(y)).abs().mean())
    for file in ("alex.pth", "nested.pth", "alex.safetensors", "whole.pth"):
        j = judge("lpips", lpips=tmp_path / file)
        assert j(a, b).values["lpips"] == pytest.approx(expected, rel=1e-4), file
        assert j.summary([])["lpips"]["by"] == f"{packages.release('lpips')}, alex"
    assert set(made) == {("alex", "0.1")}
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "part.pth")
    with pytest.raises(BackboneError, match=r"not the network of LPIPS: features\.0\.bias is missing"):
        judge("lpips", lpips=tmp_path / "part.pth")


def test_dists_of_the_package_gets_the_users_files_and_downloads_nothing(package, tmp_path, pair):
    class ContentLoss(nn.Module):
        def __init__(self, extractor, layers, weights, replace_pooling, reduction, allow_layers_weights_mismatch):
            super().__init__()
            assert (replace_pooling, reduction, allow_layers_weights_mismatch) == (True, "none", True)
            assert layers == ("3", "8", "15", "22", "29")
            assert [w.shape[1] for w in weights] == 2 * [3, 64, 128, 256, 512, 512]
            assert float(sum(w.sum() for w in weights)) == pytest.approx(1)
            self.extractor = extractor

        def forward(self, x, y):
            assert 0 <= float(x.min()) <= float(x.max()) <= 1
            return 1 - (self.extractor(x) - self.extractor(y)).abs().mean((1, 2, 3))

    class DISTS(ContentLoss):
        def __init__(self):
            raise AssertionError("it would download")

        def forward(self, x, y):
            raise AssertionError("it would scale the picture")

    def vgg16(weights):
        assert weights is None, "it would download"
        return types.SimpleNamespace(features=nn.Sequential(nn.Conv2d(3, 8, 3)))

    package("torchvision")
    package("torchvision.models", vgg16=vgg16)
    package("piq", DISTS=DISTS)
    conv = nn.Conv2d(3, 8, 3)
    state = {f"features.0.{name}": t.detach() for name, t in conv.state_dict().items()}
    own = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    torch.save(state, tmp_path / "vgg16.pth")
    torch.save(own, tmp_path / "weights.pt")
    torch.save({name.replace("features", "stage1"): t for name, t in state.items()} | own, tmp_path / "whole.pt")
    a, b = pair()
    x, y = (torch.from_numpy(v).permute(2, 0, 1)[None].float() / 255 for v in (a, b))
    with torch.no_grad():
        expected = float((conv(x) - conv(y)).abs().mean())
    for files in (["vgg16.pth", "weights.pt"], ["whole.pt"]):
        j = judge("dists", dists=[tmp_path / file for file in files])
        assert j(a, b).values["dists"] == pytest.approx(expected, rel=1e-3)
        assert [n["file"] for n in j.summary([])["dists"]["networks"]] == files
    with pytest.raises(
        BackboneError, match=r"alpha and beta of 1,475 numbers are missing: give weights\.pt of dists-pytorch"
    ):
        judge("dists", dists=tmp_path / "vgg16.pth")
    torch.save({"stage1.0.weight": state["features.0.weight"]} | own, tmp_path / "part.pt")
    with pytest.raises(BackboneError, match=r"features\.0\.bias is missing"):
        judge("dists", dists=tmp_path / "part.pt")


# ---- the real ones, where they are --------------------------------------------------------------------------------------
@pytest.fixture
def photo(data):
    with Image.open(data / "kodak/kodim03.png") as image:
        return np.asarray(image.convert("RGB").crop((200, 100, 424, 324)))


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_lpips_of_the_shared_data_ranks_what_a_jpeg_loses(data, photo):
    path = data / "weights/lpips_alex.torchscript.pt"
    if not path.exists():
        pytest.skip("no LPIPS weights")
    j = judge("lpips", lpips=path)
    found = [j(photo, other).values["lpips"] for other in (photo, jpeg(photo, 80), jpeg(photo, 30), jpeg(photo, 8))]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[1] > 0.005
    assert 0.2 < found[3] < 1
    pytest.importorskip("lpips")
    tensors = networks.read_program(path).state_dict()
    trunk = {
        f"features.{to}.{kind}": tensors[f"c.{i}.{kind}"]
        for i, to in enumerate((0, 3, 6, 8, 10))
        for kind in ("weight", "bias")
    }
    net, name = packages.lpips_network(trunk)
    x, y = (from_uint8(torch.from_numpy(v.copy()).permute(2, 0, 1)[None]) for v in (photo, jpeg(photo, 30)))
    with torch.no_grad():
        assert float(net(x, y)) == pytest.approx(found[2], abs=1e-5)
    assert name == "alex"


def test_packages_that_are_installed_rank_what_a_jpeg_loses(photo):
    there = [metric for metric, library in PACKAGES.items() if find_spec(library) is not None]
    if not there:
        pytest.skip("none of the packages of the extra `metrics` is installed")
    for metric in there:
        j, key = judge(metric), METRICS[metric].key
        found = [j(photo, other).values[key] for other in (photo, jpeg(photo, 80), jpeg(photo, 8))]
        assert found == sorted(found, reverse=True)
        assert found[0] == pytest.approx(1 if metric == "ms-ssim" else 100)
        assert not math.isnan(found[2])
