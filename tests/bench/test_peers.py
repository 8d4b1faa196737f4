"""The rivals' steps written from their papers: what they choose, that the engine agrees, and that the bench sees it."""

import ast
import json
import math

import numpy as np
import pytest
import torch

from common import ROOT, Shrink, random_images

pytest.importorskip("scipy", reason="needs what bench needs", exc_type=ImportError)
from bench.lib import ground, page, peers, rivals, walk_errors
from bench.quality import diffc, peers_page
from bench.quality import peers as bench
from noisebook.codebook import start_noise
from noisebook.codec.codec import Codec
from noisebook.spec.curve import Curve

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def place(side: int) -> rivals.Place:
    backbone, sigma = Shrink(), np.geomspace(64, 0.01, 25)
    mse = 0.25 * sigma**2 / (0.25 + sigma**2)
    return rivals.Place(backbone, Curve("shrink", backbone.fingerprint, (*sigma,), (*mse,), 0.25), side, side)


def gaussian(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


# ---- the steps ----------------------------------------------------------------------------------------------------------
def test_the_steps_import_nothing_of_the_engine():
    names = set()
    for node in ast.walk(ast.parse((ROOT / "bench/lib/peers.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module}
    assert {n.split(".")[0] for n in names} <= {"math", "zlib", "collections", "dataclasses", "numpy", "torch"}


def test_posterior_and_ddim_lead_where_the_engine_goes(fresh):
    """With the engine's tokens the papers' walk gives its pictures: coded steps and steps without bits."""
    at, x = place(16), random_images(fresh, 2, 16, 16)
    spec = rivals.turbo(at, 20, 7)
    assert {step.budget > 0 for step in spec.schedule} == {True, False}
    codec = Codec(spec, at.backbone)
    _, wanted = codec.reconstruct(x)

    def choose(residual, i, _):
        tokens = codec.rule.select(residual[:, None], spec.schedule[i].budget, i, 0.0, 1.0)
        return codec.rule.noise(tokens, (1, at.dims), spec.schedule[i].budget, i)[:, 0], ()

    start = start_noise(1, at.dims, 0, CPU).view(1, 3, 16, 16)
    first = spec.schedule[0].sigma
    start = start * first / math.sqrt(1 + first**2)  # the papers' x is normal there, the engine's y is sigma times that
    coded = [step.budget > 0 for step in spec.schedule]
    shown, _ = peers.walk(at.backbone, x.float() / 127.5 - 1, start, peers.turbo_grid(6), coded, choose)
    assert torch.allclose(shown, wanted, atol=1e-4)


def test_turbo_sums_the_largest_and_in_law_it_is_the_same():
    r, book = gaussian(300, 40), peers.atoms(64, 40, (7,), CPU)
    scores = book.scores(r)
    best = scores.abs().argsort(1, descending=True)[:, :5]
    atoms = torch.cat([part for _, part in book.parts()])
    wanted = (atoms[best] * scores.gather(1, best).sign()[..., None]).sum(1)
    z = peers.turbo(r, 64, 5, (7,), True)
    assert torch.allclose(z, wanted / wanted.std(1, keepdim=True), atol=1e-5)
    gains = [
        float((peers.turbo(r, 64, 5, (seed,), drawn) * peers.direction(r)).sum(1).mean())
        for drawn in (True, False)
        for seed in range(10)
    ]
    assert sum(gains[:10]) == pytest.approx(sum(gains[10:]), rel=0.03)


def test_atoms_that_come_in_parts_are_those_that_are_held(monkeypatch):
    r, numbers = gaussian(3, 16), torch.tensor([[0, 9], [31, 5], [12, 12]])
    monkeypatch.setattr(peers, "PART", 160)
    split = peers.Atoms(32, 16, (1,), CPU)
    held = peers.Held(32, 16, (1,), CPU)
    assert len(list(split.parts())) == 4
    for a, b in zip(split.best(r), held.best(r), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(split.best(r)[0], split.scores(r).argmax(1))
    atoms = torch.cat([part for _, part in split.parts()])
    weights = gaussian(3, 2, 5)
    assert torch.allclose(split.mixed(numbers, weights), (atoms[numbers] * weights[..., None]).sum(1), atol=1e-5)
    assert type(peers.atoms(32, 16, (1,), CPU)) is peers.Atoms
    assert type(peers.atoms(10, 16, (1,), CPU)) is peers.Held


def test_pursuit_finds_what_trying_all_mixtures_finds():
    r, book = gaussian(4, 24), peers.atoms(12, 24, (3,), CPU)
    atoms = torch.cat([part for _, part in book.parts()])
    for i in range(4):
        z = atoms[(atoms @ r[i]).argmax()]
        for _ in range(2):
            tried = [z] + [
                mixed / mixed.std() for k in range(12) for g in (1, 2) if len(mixed := mixture(z, atoms[k], g / 3)) == 24
            ]
            z = max(tried, key=lambda some: float(some @ r[i]))
        assert torch.allclose(peers.pursuit(r, 12, 3, 2, (3,))[i], z, atol=1e-4)


def mixture(z: torch.Tensor, atom: torch.Tensor, g: float) -> torch.Tensor:
    return math.sqrt(g) * z + math.sqrt(1 - g) * atom


def test_chunks_and_code_lengths_are_the_published_ones():
    assert peers.chunk_bits(14, 16, 2) == [16]
    assert peers.chunk_bits(42.5, 16, 2) == [13, 13, 13, 12]  # ceil(43 / 14) = 4 chunks share 43 + 8
    assert peers.chunk_bits(0.0, 16, 2) == [3]
    assert sum(peers.chunk_bits(40, 12, 6)) == 40 + 6 * 7
    labels = peers.chunk_labels([13, 13, 12], 100, 5)
    assert np.bincount(labels).tolist() == [34, 34, 32]
    assert (labels == peers.chunk_labels([13, 13, 12], 100, 5)).all()
    with pytest.raises(ValueError, match="some of them empty"):
        peers.chunk_labels([3] * 12, 10, 0)
    length = peers.zipf_bits(np.arange(64), 64, 4.0)
    assert np.exp2(-length).sum() == pytest.approx(1)
    assert length[0] < length[-1]


@pytest.mark.parametrize("padding", [2, 4])
def test_diffc_in_law_is_diffc_drawn(padding):
    """Share of mu delivered and bits agree; padding delivers more of it."""
    mu = gaussian(400, 48)
    mu = mu * math.sqrt(2 * math.log(2) * 9) / mu.norm(dim=1, keepdim=True)  # 9 bits, in one chunk or two
    found = []
    for drawn in (True, False):
        steps = [peers.DiffC([9.0], 8, padding, seed, drawn).step(mu, 0) for seed in range(4)]
        share = sum(float((z * mu).sum(1).mean() / mu.square().sum(1).mean()) for z, _ in steps) / 4
        found.append((share, sum(np.mean(bits) for _, bits in steps) / 4))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.03)
    assert found[0][1] == pytest.approx(found[1][1], rel=0.03)
    assert 0.7 < found[1][0] < 1.02


def test_each_pictures_own_divergence_is_its_budget():
    mu = gaussian(2, 48) * torch.tensor([[0.2], [0.6]])
    z, bits = peers.DiffC(None, 8, 3, 0, drawn=False).step(mu, 0)
    assert z.shape == mu.shape
    assert bits[1] > 2 * bits[0]


# ---- their walks --------------------------------------------------------------------------------------------------------
def test_on_ideal_states_the_ratio_is_one():
    x0, backbone = 0.5 * gaussian(64, 192, 4).view(64, 3, 8, 8), Shrink()
    with walk_errors.Watched(backbone, x0) as watched:
        for sigma in (3.0, 1.0, 0.3):
            backbone(x0 + sigma * gaussian(64, 192, 9).view_as(x0), sigma)
    assert [sigma for sigma, _ in watched.ratios()] == [3.0, 1.0, 0.3]
    assert all(ratio == pytest.approx(1, abs=0.06) for _, ratio in watched.ratios())
    backbone(x0, 1.0)
    assert len(watched.calls) == 3, "nothing is noted once it is closed"
    assert walk_errors.typical([(3, 9.0), (1, 2.0), (0.5, 8.0)]) == pytest.approx(4)


@pytest.mark.parametrize("name", [n for n in bench.PEERS if n != "DDCM, matching pursuit"])
def test_a_row_holds_both_sides_against_each_other(name, fresh):
    row = bench.Row("CIFAR-10", "shrink", name, 0 if bench.PEERS[name].single else 1.0, 6)
    found = bench.measure(row, random_images(fresh, 3, 8, 8), place(8), 2, name.startswith("gDDCM"), 2)
    assert json.loads(json.dumps(found)) | {"difference": 0} == json.loads(json.dumps(found)) | {"difference": 0}
    assert found["engine"]["walk_error"] > 0
    if bench.PEERS[name].walk is None:
        assert "peer_side" not in found
        return
    assert found["atoms"] == ("drawn" if name.startswith("gDDCM") else "in law")
    assert found["peer_side"]["bits"] == pytest.approx(found["engine"]["bits"], abs=24)
    assert abs(found["difference"][0]) < 1.5
    levels = [[sigma for sigma, _ in found[side]["walk_errors"]] for side in ("engine", "peer_side")]
    assert levels[0] == levels[1]


def test_pursuit_beside_the_engines(fresh, monkeypatch):
    monkeypatch.setattr(rivals, "ATOMS", 256)
    row = bench.Row("CIFAR-10", "shrink", "DDCM, matching pursuit", 1.2, 4)
    found = bench.measure(row, random_images(fresh, 4, 8, 8), place(8), 2, False, 4)
    assert found["atoms"] == "drawn"
    assert max(found["budget"]) > 1
    assert abs(found["difference"][0]) < 1.5


@pytest.mark.parametrize(
    ("difference", "same", "verdict"),
    [
        ((0.03, 0.05), True, "parity"),
        ((-0.05, 0.08), True, "parity of the means; the interval is wider"),
        ((-0.11, 0.01), True, "differs"),
        ((0.0, 0.01), False, "other bits"),
    ],
)
def test_verdicts(difference, same, verdict):
    assert peers_page.verdict(difference, same) == verdict
    side = {"psnr": [30.0, 1.0], "bits": 1024, "walk_error": 1.2, "seconds": 1}
    rows = {"it": {"engine": side, "peer_side": side, "difference": difference, "verdict": verdict}}
    assert bool(peers_page.broken(rows)) == (verdict in ("differs", "other bits"))


def test_the_page_is_what_the_results_say():
    for tables in (peers_page.TABLES, diffc.TABLES):
        page.fill(peers_page.PAGE, tables, check=True)
    if peers_page.TABLES:
        assert not peers_page.broken(page.load("peers")["rows"]), "a row that is no parity is an issue, not a result"


def test_no_parity_ends_the_script_and_an_error_is_a_row(tmp_path, monkeypatch, capsys):
    out = tmp_path / "peers.json"
    rows = [bench.Row("CIFAR-10", "shrink", name, 1.0, 4) for name in ("Turbo-DDCM, its grid", "DDCM, matching pursuit")]
    monkeypatch.setattr(bench, "plan", lambda: rows)
    monkeypatch.setattr(ground, "pictures", lambda *_: random_images(np.random.default_rng(0), 1, 8, 8))
    monkeypatch.setattr(ground, "backbone_of", lambda *_: place(8).backbone)
    monkeypatch.setattr(ground, "curve_of", lambda _: place(8).curve)
    monkeypatch.setattr(bench, "TOLERANCE", -1.0)
    monkeypatch.setattr(peers_page, "TOLERANCE", -1.0)
    monkeypatch.setattr(bench.rivals, "ddcm", None)
    monkeypatch.setitem(bench.PEERS, rows[1].peer, bench.Peer(lambda *_: 1 // 0, bench.ddcm))
    monkeypatch.setattr("sys.argv", ["peers", "--out", str(out), "--seeds", "1", "--in-law"])
    with pytest.raises(SystemExit, match=r"no parity[^$]*its grid.*differs") as ended:
        bench.main()
    assert f"{rows[1].key}: ZeroDivisionError" in str(ended.value)
    found = json.loads(out.read_text())["rows"]
    assert found[rows[1].key]["error"].startswith("ZeroDivisionError")
    assert "ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    table = peers_page.parity_table()
    assert "**differs**" in table
    assert f"No figure: {rows[1].key}: ZeroDivisionError" in table
    assert "Turbo-DDCM, its grid" in peers_page.walk_table()


# ---- DiffC at its best --------------------------------------------------------------------------------------------------
def test_diffc_rows_meet_the_payload_with_any_chunk_and_budget(fresh):
    images, at = random_images(fresh, 6, 16, 16), place(16)
    found = {}
    for budgets, chunk, padding in ((diffc.OURS, 0, 0), (diffc.OTHER, 10, 2), (diffc.OWN, 10, 4)):
        row = diffc.Row("CIFAR-10", budgets, chunk, padding, 2.0)
        found[budgets] = diffc.measure(row, at, images)
        assert found[budgets]["mean_bpp"] == pytest.approx(2.0, rel=0.05)
    assert len(set(found[diffc.OTHER]["bits_of_images"])) > 1
    assert found[diffc.OWN]["divergence_over_curve"] > 0


def test_tables_of_diffc_choose_the_best_setting_and_say_it(tmp_path, monkeypatch):
    def row(budgets, chunk, padding, bpp, dbs):
        return {
            **{"data": "CIFAR-10", "budgets": budgets, "chunk": chunk, "padding": padding, "bpp": bpp, "images": 3},
            **{"mean_bpp": bpp, "psnr": [float(np.mean(dbs)), 0.1], "psnr_of_images": diffc.packed(torch.tensor(dbs))},
            **{"bits_of_images": [int(1024 * bpp)] * 3, "divergence_over_curve": 1.5, "walk_error": 1.4},
        }

    rows = {}
    for bpp, base in ((1.0, 30.0), (2.0, 33.0), (4.0, 36.0)):
        for budgets, chunk, padding, more in (
            (diffc.OURS, 0, 0, 1.0),
            (diffc.OTHER, 16, 2, 0.0),
            (diffc.OTHER, 20, 3, 0.5),
            (diffc.OWN, 16, 2, 0.7),
        ):
            dbs = [base + more, base + more + 1, base + more - 1]
            rows[f"{budgets} {chunk} {bpp}"] = row(budgets, chunk, padding, bpp, dbs)
    rows["bad"] = {**rows.pop("own 16 4.0"), "error": "ValueError: chunks"}
    del rows["bad"]["psnr"]
    provenance = {"device": "a CPU", "threads": 1, "versions": {}, "date": "today", "command": "python"}
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "diffc.json").write_text(json.dumps({**provenance, "rows": rows}))
    table = diffc.diffc_table()
    assert "1 bpp, 3 images | 31.00 | 30.00 (16, 2; walk error 1.40, divergence +50 %) | 30.50 (20, 3;" in table
    assert "divergence +50 %), best of 2 |" in table
    assert "No figure: bad: ValueError: chunks" in table
    bits = [float(part.split(" %")[0]) for part in table.split("CIFAR-10 | ")[1].split(" | ")[:3]]
    assert bits[0] < bits[1] < 0, "against a better DiffC the lead is smaller"
    assert bits[2] == pytest.approx(100 * (2 ** (-0.3 / 3) - 1), abs=0.5)
    assert ", 3 images, 2 rates" in table
