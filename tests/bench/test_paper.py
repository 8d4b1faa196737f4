"""The paper's experiments: the metrics are what they say, the forced walk misses its level by what is claimed, the script
runs from end to end, and docs/paper.md is what the results make of it."""

import json
import math
import re

import numpy as np
import pytest
import torch

from bench.lib import metrics, per_image, priors, trials
from bench.lib.rows import LOG, Row, ends, key, resolved
from bench.paper import claims, plots, report, results, run, sections, walks
from common import ROOT, Shrink, random_images
from noisebook.backbones import Backbone
from noisebook.codec.codec import Codec
from noisebook.codec.walk import walk
from noisebook.images.metrics import psnr, ssim
from noisebook.runtime.pixels import from_uint8, to_uint8
from noisebook.spec.presets import Recipe


# ---- metrics ------------------------------------------------------------------------------------------------------------
def test_frechet_distance_of_gaussians_in_closed_form(fresh):
    """Samples whitened to an exact mean and covariance: commuting covariances have |m|^2 + sum (sqrt a - sqrt b)^2."""
    d, n = 6, 40
    q = np.linalg.qr(fresh.normal(size=(d, d)))[0]
    variances, means, samples = fresh.random((2, d)) * 3, fresh.normal(size=(2, d)), []
    variances[1, 0] = 0  # a singular covariance too
    for v, mean in zip(variances, means, strict=True):
        x = fresh.normal(size=(n, d))
        x -= x.mean(0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # unit covariance
        samples.append(torch.from_numpy(x * np.sqrt(v) @ q.T + mean))
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(variances[0]) - np.sqrt(variances[1])).sum()
    assert metrics.frechet(*samples) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(samples[0], samples[0]) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute(fresh):
    """tr (A B)^1/2 from the eigenvalues of the unsymmetric product, another way to the same figure."""
    a, b = (torch.from_numpy(fresh.normal(size=(50, 4)) @ fresh.normal(size=(4, 4))) for _ in range(2))
    cov_a, cov_b = (np.cov(x.numpy().T) for x in (a, b))
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(cov_a + cov_b) - 2 * cross
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_intervals_hold_the_mean_as_often_as_they_say(fresh):
    held = 0
    for _ in range(400):
        mean, half = metrics.interval(fresh.normal(3, 2, 100))
        held += abs(mean - 3) <= half
    assert 0.90 < held / 400 < 0.985, "95 % within five standard errors"
    assert metrics.interval([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(1.959964 * math.sqrt(5 / 3) / 2))


def test_psnr_and_ssim_are_those_of_the_package(fresh):
    a = random_images(fresh, 3, 20, 24)
    b = to_uint8(from_uint8(a) + 0.1 * torch.from_numpy(fresh.normal(size=a.shape).astype(np.float32)))
    for i, (x, y) in enumerate(zip(a.permute(0, 2, 3, 1).numpy(), b.permute(0, 2, 3, 1).numpy(), strict=True)):
        assert float(metrics.psnr(a, b)[i]) == pytest.approx(psnr(x, y), abs=1e-9)
        assert float(metrics.ssim(a, b)[i]) == pytest.approx(ssim(x, y), abs=1e-9)
    assert torch.equal(to_uint8(from_uint8(a)), a)
    assert metrics.psnr(a, a).tolist() == [99.0] * 3


def test_line_and_its_r2(fresh):
    x = np.arange(5.0)
    assert metrics.line(x, 3 - 2 * x) == pytest.approx((-2, 3, 1))
    noisy = fresh.normal(size=5)
    assert metrics.line(x, noisy)[2] == pytest.approx(np.corrcoef(x, noisy)[0, 1] ** 2)


def test_neighbours_share_what_was_put_into_them(fresh):
    """Blocks that share one Gaussian with weight w: correlation w^2, and Gaussian signs agree as arcsine says."""
    w, rows, columns = 0.8, 2, 3
    shared, own = fresh.normal(size=(20000, 1)), fresh.normal(size=(20000, rows * columns))
    means = torch.from_numpy(w * shared + math.sqrt(1 - w * w) * own)
    found = metrics.neighbours(means, rows, columns)
    agree = 0.5 + math.asin(w * w) / math.pi
    entropy = -agree * math.log2(agree) - (1 - agree) * math.log2(1 - agree)
    assert found["correlation"] == pytest.approx(w * w, abs=0.03)
    assert found["information"] == pytest.approx(1 - entropy, abs=0.02)
    assert found["shuffled"] < 1e-3
    grid = means.reshape(-1, rows, columns).clone()
    grid[:, :, 1] = torch.from_numpy(fresh.normal(size=(20000, rows)))  # columns 0 and 2 are no neighbours
    one_row = metrics.neighbours(grid[:, :1].reshape(-1, columns), 1, columns)
    assert abs(one_row["correlation"]) < 0.05


def test_cifar_fd_uses_a_network_that_knows_cifar(data):
    with np.load(data / "cifar10_test5k.npz") as archive:
        images = torch.from_numpy(archive["images"][:250]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(archive["labels"][:250]).long()
    net = metrics.resnet56(data / "weights/resnet56-4bfd9763.th")
    with torch.no_grad():
        right = (net(images).argmax(1) == labels).double().mean()
    assert 0.87 < float(right) < 0.99, "93.4 % of all test images"


def test_networks_that_a_user_gives_are_named_by_their_hash(tmp_path, fresh):
    class Distance(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean(dim=[1, 2, 3], keepdim=True)

    class Features(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            f = x.mean(dim=[2, 3])
            return f, 100 * f

    for name, module in (("lpips", Distance()), ("features", Features())):
        torch.jit.script(module).save(str(tmp_path / f"{name}.pt"))
    given = metrics.GivenNetworks(tmp_path / "lpips.pt", tmp_path / "features.pt", "cpu")
    a, b = random_images(fresh, 6, 8, 8), random_images(fresh, 6, 8, 8)
    out = given(a, b)
    x, y = from_uint8(a), from_uint8(b)
    assert out["lpips"] == pytest.approx(float((x - y).abs().mean()), rel=1e-5)
    assert out["frechet"] == pytest.approx(metrics.frechet(x.mean((2, 3)), y.mean((2, 3))), rel=1e-5)
    assert 1 <= out["inception_score"] <= 3
    assert set(out) == {"lpips", "frechet", "inception_score"}, "features of any network are not an Inception's"
    assert re.fullmatch(r"lpips\.pt sha256:[0-9a-f]{64}", given.about()["lpips"])
    assert re.fullmatch(r"features\.pt sha256:[0-9a-f]{64}", given.about()["frechet"])


def test_inception_score_by_hand():
    sure = 1000 * torch.eye(4)
    assert metrics.inception_score(sure) == pytest.approx(4)  # every class once, no doubt
    assert metrics.inception_score(torch.zeros(5, 4)) == pytest.approx(1)


# ---- the forced walk ----------------------------------------------------------------------------------------------------
class Oracle(Backbone):
    """Knows the image."""

    name, fingerprint = "oracle", "0" * 64

    def __init__(self, x0: torch.Tensor):
        super().__init__()
        self.x0 = x0

    def denoise(self, y, sigma, cond=None):
        return self.x0.expand_as(y)


def test_forced_ddcm_is_noisier_than_the_network_is_told(fresh):
    """By 1 + sum (1 - r^2) in variance for a perfect prediction, where the codec's own walk is at its level."""
    image = random_images(fresh, 1, 32, 32)
    x0 = from_uint8(image)
    recipe = Recipe(
        steps=12,
        sigma_max=3.0,
        sigma_min=0.2,
        vocab_size=256,
        start_budget=1,
        start_vocab_size=256,
        seed=int(fresh.integers(1 << 32)),
    )
    oracle = Oracle(x0 + 1e-3 * torch.from_numpy(fresh.normal(size=x0.shape).astype(np.float32)))  # no residual is zero
    codec = Codec(recipe.build(oracle), oracle, graphs=False)
    _, _, y = walks.forced(codec, image)
    claimed = walks.excess(codec.spec.schedule)
    r = (0.2 / 3.0) ** (1 / 12)
    assert claimed == pytest.approx(1 + 12 * (1 - r * r))
    assert float((y - x0).square().mean()) / 0.2**2 == pytest.approx(claimed, rel=0.25)
    stream = codec.stream(32, 32)

    def choose(segment, x0_hat):
        return codec.start_rule.book.select(stream.views(x0) - x0_hat, segment.budget, segment.step_index).flatten(1)

    own, _ = walk(codec.parts, stream, 1, choose, len(codec.spec.schedule))
    assert float((own - x0).square().mean()) / 0.2**2 == pytest.approx(1, rel=0.25)


# ---- rows ---------------------------------------------------------------------------------------------------------------
def test_rows_have_the_bits_that_they_are_compared_at():
    for row in sections.plan():
        choice = row.choices[0] if row.choices else {}
        recipe = Recipe(**row.with_choice(choice)["recipe"])
        spec = recipe.build(Shrink())
        side = 256 if row.data == "photos" else 32
        layout = Codec(spec, Shrink()).layout_for(side, side)
        if row.section in ("p", "families", "forced", "start", "finish"):
            assert layout.bits == 512, row.label
        if row.section == "rates":
            assert layout.bits / 1024 == float(row.label.split(", ")[1].split()[0])
        if row.section == "n":
            assert len(layout) == int(row.label.split("N = ")[1])
        if row.section == "photo" and "V" not in row.label:
            assert layout.bits / 65536 == 0.25
        if row.label.startswith("512 bits"):
            assert layout.bits == 512
    blocks = {label: label for label, _ in results.AT_EQUAL_BITS}
    assert blocks.keys() <= {row.label for row in sections.blocks()}


def test_every_row_that_the_report_names_is_planned():
    planned = {(row.section, row.label) for row in sections.plan()}
    named = [("forced", pair) for pair in results.FORCED] + [("start", pair) for pair in results.STARTS]
    named += [("finish", pair) for pair in results.ENDINGS]
    named += [("blocks", pair) for pair in results.AT_EQUAL_CALLS + results.AT_EQUAL_BITS]
    for name, pair in named:
        assert {(name, label) for label in pair} <= planned
    assert {(name, label) for name, label in report.REFERENCES.items() if label} <= planned
    for network in sections.NETWORKS:
        assert ("families", f"{network}, {results.LOG}") in planned
        assert ("families", f"{network}, {results.FIXED}") in planned
    assert len(planned) == len(sections.plan()), "a label is used twice in a section"


def test_the_best_choice_is_taken_once_all_are_tried():
    row = Row("p", "a row", "photo", LOG, ends(0.1, 0.2, 0.3))
    names = [key(trial) for _, trial in row.tuning()]
    assert resolved(row, dict(zip(names[:2], (20.0, 21.0), strict=True))) is None
    found = resolved(row, dict(zip(names, (20.0, 21.0, 20.5), strict=True)))
    assert found is not None
    assert found["recipe"] == {**LOG, "sigma_min": 0.2}


# ---- the script ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    path = tmp_path_factory.mktemp("paper") / "paper.json"
    assert run.main(["--dry", "--out", str(path)]) == 0
    return path


def test_dry_run_measures_every_row_and_goes_on_where_it_was(dry, capsys, monkeypatch):
    result = json.loads(dry.read_text())
    found = results.Results(result)
    planned = [row for row in sections.plan(True) if not row.long]
    assert set(found.by_label) >= {(row.section, row.label) for row in planned}
    assert len(result["rows"]) > 50
    measured = []
    monkeypatch.setattr(trials.Bench, "measure", lambda self, wanted: measured.append(wanted))
    assert run.main(["--dry", "--out", str(dry)]) == 0
    assert not measured
    row = found.by_label["p", "fixed level, p = 0"]
    assert row["psnr"] == pytest.approx(metrics.interval(per_image.unpacked(row["psnr_of_images"])), abs=0.006)
    with pytest.raises(SystemExit, match="of other images"):
        run.main(["--dry", "--images", "3", "--out", str(dry)])


@pytest.mark.slow
def test_the_end_point_of_a_gaussian_is_where_small_steps_of_its_ode_lead(fresh):
    """dy / dsigma = (y - x0_hat) / sigma, by Euler in ln sigma; and unlike the mean it has the images' own variance."""
    prior = priors.small_gaussian()
    y = torch.from_numpy(fresh.normal(size=(400, 3, 16, 16))).float() * 2 + prior.mean.view(3, 16, 16)
    end, x = priors.EndPoint(prior)(y, 2.0), y.double()
    levels = np.geomspace(2.0, 1e-3, 2000)
    for sigma, lower in zip(levels, levels[1:], strict=False):
        x = x + (lower - sigma) / sigma * (x - prior(x.float(), sigma).double())
    assert float((end - x).abs().mean()) < 0.01
    signal = (
        prior.mean
        + torch.from_numpy(fresh.normal(size=(400, len(prior.mean)))).float() * prior.variances.sqrt() @ prior.vectors.T
    )
    noisy = signal.view(400, 3, 16, 16) + 2 * torch.from_numpy(fresh.normal(size=(400, 3, 16, 16))).float()
    assert float(priors.EndPoint(prior)(noisy, 2.0).var(0).sum() / prior.variances.sum()) == pytest.approx(1, abs=0.15)


def test_tables_of_a_dry_run(dry):
    found = results.Results(json.loads(dry.read_text()))
    page = (ROOT / "docs/paper.md").read_text()
    text = report.render(page, found)
    for name in sections.SECTIONS:
        part = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        assert part.count("\n|") >= len([r for r in sections.SECTIONS[name]() if not r.long]) + 2, name
    claimed = text.split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
    assert "not measured yet" not in claimed.replace(claims.distances(found), "")
    a, b = (found.by_label["start", label] for label in results.STARTS[0])
    difference = per_image.unpacked(a["psnr_of_images"]) - per_image.unpacked(b["psnr_of_images"])
    shown = f"{difference.mean():+.2f} ± {1.959964 * difference.std(ddof=1) / 2:.2f} dB"
    assert shown in text.split("<!-- start -->")[1].split("<!-- /start -->")[0]


def test_plots_are_drawn(dry, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "PLOTS", tmp_path)
    assert plots.draw(results.Results(json.loads(dry.read_text()))) == list(plots.DRAWN)
    assert all("<svg" in (tmp_path / f"paper-{name}.svg").read_text() for name in plots.DRAWN)


def test_a_dry_run_is_no_result(dry, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["--report", "--out", str(dry)])
    assert stop.value.code == 2
    assert "dry run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pair", "least", "word"),
    [((1.0, 0.5), 0, "yes"), ((-1.0, 0.5), 0, "no"), ((0.4, 0.5), 0, "no difference seen"), ((2.4, 0.3), 2, "yes")],
)
def test_verdicts_follow_from_the_intervals(pair, least, word):
    assert claims.verdict(pair, least) == word


def test_the_page_is_what_the_results_say(capsys):
    assert run.main(["--report", "--check"]) == 0, capsys.readouterr().err
    page = (ROOT / "docs/paper.md").read_text()
    assert all(f"<!-- {name} -->" in page for name in report.TABLES)
