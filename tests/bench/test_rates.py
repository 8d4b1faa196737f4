"""What the comparison computes with: delta rates of curves that are known, MS-SSIM, the rivals' bits, classical codecs."""

import json
import math

import numpy as np
import pytest
import torch

from common import ROOT, Shrink, random_images

classical = pytest.importorskip("bench.lib.classical", reason="needs what bench needs", exc_type=ImportError)
from bench.lib import comparison, metrics, rates, rivals  # noqa: E402
from bench.quality import rate_distortion, rate_report  # noqa: E402
from noisebook.codec.codec import Codec  # noqa: E402
from noisebook.errors import SpecError  # noqa: E402
from noisebook.format import sets as coding  # noqa: E402
from noisebook.spec import curve as calibration  # noqa: E402


def curve(fresh, n=6):
    rate = np.sort(fresh.uniform(0.01, 4, n))
    return list(zip(rate.tolist(), np.sort(fresh.uniform(20, 40, n)).tolist(), strict=True))


def test_a_curve_of_so_many_more_bits_has_that_delta_rate(fresh):
    for factor in (0.5, 0.85, 1.0, 2.0):
        some = curve(fresh)
        assert rates.bd_rate(some, [(factor * r, p) for r, p in some]) == pytest.approx(100 * (factor - 1), abs=1e-6)
        assert rates.bd_rate(some, [(r, p + 100) for r, p in some]) != rates.bd_rate(some, some) == pytest.approx(0)


def test_delta_rates_of_curves_that_share_nothing_are_none():
    assert math.isnan(rates.bd_rate([(1, 20), (2, 21)], [(1, 30), (2, 31)]))
    assert math.isnan(rates.bd_rate([(1, 20)], [(1, 20), (2, 21)]))


def test_intervals_hold_the_mean_and_narrow_with_images(fresh):
    some = [curve(fresh) for _ in range(200)]
    pairs = [(c, [(r * f, p) for r, p in c]) for c, f in zip(some, fresh.uniform(0.7, 0.9, 200), strict=True)]
    wide, narrow = rates.bd_rate_interval(pairs[:10]), rates.bd_rate_interval(pairs)
    assert narrow[1] < narrow[0] < narrow[2]
    assert narrow[0] == pytest.approx(-20, abs=2)
    assert narrow[2] - narrow[1] < wide[2] - wide[1]


def test_reading_off_a_curve_is_its_own_inverse(fresh):
    some = curve(fresh)
    middle = (some[0][0] * some[-1][0]) ** 0.5
    found = rates.at_rate(some, middle)
    assert found is not None
    assert rates.at_psnr(some, found) == pytest.approx(middle)
    assert rates.at_rate(some, 100.0) is None
    assert rates.front([(1, 10), (2, 9), (3, 11), (3, 12)]) == [0, 3]


def test_ms_ssim_falls_with_noise_and_knows_its_least_side(fresh):
    x = random_images(fresh, 2, 180, 200)
    noisy = (x.float() + 20 * torch.randn(x.shape)).clamp(0, 255).byte()
    assert torch.allclose(rates.ms_ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (rates.ms_ssim(x, noisy) < 0.99).all()
    assert rates.ms_ssim(x[..., :100], x[..., :100]).isnan().all()
    other = pytest.importorskip("pytorch_msssim")
    theirs = other.ms_ssim(x.double(), noisy.double(), data_range=255, size_average=False)
    assert torch.allclose(rates.ms_ssim(x, noisy), theirs, atol=1e-3)


@pytest.mark.parametrize("calls", [8, 25])
@pytest.mark.parametrize("bits", [256, 1024, 4096])
def test_rivals_spend_what_they_were_given_and_no_less(bits, calls):
    """In as many network calls; the default no more bits, the others no fewer (but a step's atom), so that they are not held
    down."""
    backbone = Shrink()
    sigma = np.geomspace(64, 0.01, 25)
    mse = 0.25 * sigma**2 / (0.25 + sigma**2)
    some = calibration.Curve("shrink", backbone.fingerprint, tuple(sigma.tolist()), tuple(mse.tolist()), 0.25)
    place = rivals.Place(backbone, some, 32, 32)
    x = random_images(np.random.default_rng(bits), 1, 32, 32)
    for name in ("default", "DDCM", "Turbo-DDCM"):
        codec = Codec(rivals.MAKERS[name](place, bits, calls), backbone)
        spent = 8 * codec.encode_packed(x).shape[1]
        assert codec.nfe <= calls
        if name == "default":
            assert 0.9 * bits <= spent <= bits
        else:
            assert bits <= spent <= 1.1 * bits + 16, name
    spec = rivals.turbo_on_ours(place, bits, calls)
    assert sum(coding.subset_bits(rivals.ATOMS, s.budget) for s in spec.schedule) <= bits + 15 * len(spec.schedule)
    assert Codec(rivals.diffc(place, bits, calls), backbone).nfe <= calls


REFINED = {  # steps that are refined and steps, with 25 calls: backbone -> rates; and one with 8 and with 61 calls
    ("cifar10-flow", 32, 32, 25): {0.25: (0, 15), 0.5: (0, 24), 1: (0, 24), 2: (10, 24), 4: (18, 24)},
    ("photo", 512, 768, 25): {0.5: (0, 24), 1: (4, 24)},
    ("cifar10-flow", 32, 32, 8): {0.25: (0, 7), 0.5: (1, 7)},
    ("cifar10-flow", 32, 32, 61): {2: (0, 60), 4: (11, 60)},
}


def test_the_page_says_which_steps_of_the_default_are_refined():
    for (name, height, width, calls), rows in REFINED.items():
        backbone, curve = comparison.backbone_of(name, "cpu"), comparison.curve_of(name)
        place = rivals.Place(backbone, curve, height, width)
        for bpp, expected in rows.items():
            codec = Codec(rivals.ours(place, bpp * height * width, calls), backbone)
            budgets = [step.budget for step in codec.spec.schedule]
            refined = sum(codec.rule.passes(budget, place.dims) > 0 for budget in budgets)
            assert (refined, len(budgets)) == expected, (name, calls, bpp)
    page = (ROOT / "docs/rates.md").read_text()
    assert "refine no step up to 1 bpp, 10 of 24 at 2 bpp and 18 of 24 at 4 bpp" in page
    assert "`photo` refines none up to 0.5 bpp and 4 of 24 at 1 bpp" in page
    assert "with 61 calls only 11 of 60 at 4 bpp" in page


@pytest.mark.parametrize("name", ["JPEG", "WebP"])
def test_classical_curves_rise_and_their_payloads_are_parts_of_files(name, fresh):
    pixels = random_images(fresh, 1, 64, 80)[0].permute(1, 2, 0).numpy()
    found = classical.curve(name, pixels)
    assert len(found) > 3
    for a, b in zip(found, found[1:], strict=False):
        assert a["bytes"] < b["bytes"]
        assert a["psnr"] < b["psnr"]
    for row in found:
        data, shown = classical.coded(name, pixels, row["quality"], row["variant"])
        assert len(data) == row["bytes"] > row["payload"] > 0
        assert shown.shape == pixels.shape


def test_a_row_has_the_distances_of_networks_that_are_given(tmp_path, fresh, monkeypatch):
    """Over batches of two sizes, the mean over images; a distance that is the mean absolute error is recomputed here."""

    class Distance(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean(dim=[1, 2, 3])

    torch.jit.script(Distance()).save(str(tmp_path / "dists.pt"))
    given = {"dists": metrics.GivenNetworks(tmp_path / "dists.pt", None, "cpu")}
    shown = []

    def kept(decoded: torch.Tensor) -> torch.Tensor:
        shown.append(((decoded + 1) * 127.5).round().clamp(0, 255).byte())
        return shown[-1]

    monkeypatch.setattr(rate_distortion, "to_uint8", kept)
    batches = [random_images(fresh, 3, 32, 32), random_images(fresh, 1, 32, 48)]
    row = comparison.Row("CIFAR-10", "gaussian-prior", "default", 1.0, 5)
    out = rate_distortion.measure(row, [str(i) for i in range(4)], batches, "cpu", 2, given)
    originals = [batches[0][:2], batches[0][2:], batches[1]]
    each = [float((a.float() - b.float()).abs().mean() / 127.5) * len(a) for a, b in zip(originals, shown, strict=True)]
    assert out["distances"]["dists"]["mean"] == pytest.approx(sum(each) / 4, rel=1e-5)
    assert out["distances"]["dists"]["network"].startswith("dists.pt sha256:")
    assert out["decode_nfe"] == 5


def test_the_page_leads_with_the_comparison_that_is_like_with_like():
    """Where it is not, the page names it; of Turbo-DDCM with too small a K on photographs it draws no figure."""
    results = rate_report.Results()
    assert rate_report.ahead(results).startswith("**Rule against rule**, CIFAR-10")
    for line in rate_report.bd(results).splitlines()[2:]:
        rule, _, grid, _ = line.split(" | ")[1:]
        data, name = "Kodak" if "Kodak" in line else "CIFAR-10", line.split("`")[1]
        for cell, codec in ((rule, "Turbo-DDCM on ours"), (grid, "Turbo-DDCM")):
            rows = results.rows(data, name, (codec, 25))
            small = not rows or any(r["spec"]["vocab_size"] < 2 << 20 for r in rows)
            assert (cell == "no fair figure yet") == (data == "Kodak" and small), line
    for part in rate_report.calls(results).split("\n\n"):
        assert "`photo`" not in part
        assert "Kodak" not in part or "on our levels" in part
    photo = ("Kodak", "photo", ("Turbo-DDCM", 25))
    assert results.label(*photo) == "Turbo-DDCM, published grid, K = 2^14, 25 calls"
    for found in results.rows(*photo):  # as they will be once they are measured again
        found["spec"]["vocab_size"] = 2 * rivals.atoms_of(3 * 512 * 768)
    assert results.label(*photo) == "Turbo-DDCM, published grid, 25 calls"
    assert results.fair(*photo)


def test_turbos_codebook_grows_with_the_picture():
    """As its authors advise: 2^14 at 16,384 dimensions, 2^20 for a Kodak picture; never below theirs."""
    dims = {3 * 32 * 32: 14, 16384: 14, 3 * 256 * 256: 17, 3 * 512 * 768: 20}
    assert {d: rivals.atoms_of(d) for d in dims} == {d: 1 << bits for d, bits in dims.items()}


def test_the_most_atoms_of_a_step_are_found_and_too_many_bits_refused(fresh):
    for codebook in (64, 1000, 16384):
        for bits in fresh.integers(1, int(1.4 * codebook), 8).tolist():
            m = rivals.most_atoms(codebook, bits)
            assert m == 1 or coding.subset_bits(codebook, m) <= bits
            assert coding.subset_bits(codebook, m + 1) > bits
    with pytest.raises(SpecError, match="30000 bits is more than any set of 16384 atoms"):
        rivals.most_atoms(16384, 30000)


def test_a_row_that_fails_says_why_in_the_file_the_table_and_the_exit(tmp_path, monkeypatch, capsys):
    """It is tried again by the next run, an older row keeps its figures, and the other rows are measured."""
    rows = [comparison.Row("CIFAR-10", "gaussian-prior", codec, 1.0, 5) for codec in ("default", "Turbo-DDCM")]

    def refuse(*_):
        raise SpecError("32769 of 16384 atoms cannot be chosen")

    out = tmp_path / "rates.json"
    monkeypatch.setattr(rate_distortion, "plan", lambda: rows)
    monkeypatch.setattr(rate_distortion, "cifar", lambda _: (["0"], [random_images(np.random.default_rng(0), 1, 32, 32)]))
    monkeypatch.setattr("sys.argv", ["rate_distortion", "--out", str(out), "--no-report"])
    with monkeypatch.context() as patch:
        patch.setitem(rivals.MAKERS, "Turbo-DDCM", refuse)
        with pytest.raises(SystemExit, match=r"no figures, .*: CIFAR-10, gaussian-prior, Turbo-DDCM"):
            rate_distortion.main()
    assert "32769 of 16384" in capsys.readouterr().out
    found = json.loads(out.read_text())["rows"]
    assert found[rows[1].key]["error"] == "SpecError: 32769 of 16384 atoms cannot be chosen"
    assert found[rows[0].key]["psnr"]
    monkeypatch.setattr(rate_report, "FILE", out)
    monkeypatch.setattr(rate_report, "SHOWN", [("default", 5), ("Turbo-DDCM", 5)])
    table = rate_report.psnr_table(rate_report.Results(), "CIFAR-10", "gaussian-prior")
    assert "no figure, see below" in table
    assert "5 calls, 1 bpp: SpecError: 32769 of 16384 atoms cannot be chosen" in table
    rate_distortion.main()
    assert all(map(comparison.measured, json.loads(out.read_text())["rows"].values()))
