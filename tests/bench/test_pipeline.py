"""bench/speed/pipeline.py: what is compared with what, on a few pictures in this process."""

import itertools
import json

import pytest
import torch

pytest.importorskip("pyarrow")

import noisebook
from bench.lib import page
from bench.lib.cases import FLOW, prepare
from bench.speed import pipeline
from noisebook.datasets.sources import enumerate_inputs

COUNT, BATCH = 40, 8


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("files"), pipeline.KINDS["CIFAR-10, PNG"], COUNT)


@pytest.mark.parametrize("kind", pipeline.INPUTS)
def test_rival_and_pipeline_see_every_picture(tmp_path, places, kind, monkeypatch):
    monkeypatch.setattr(pipeline, "find_spec", lambda _: None)  # the loader that takes its place
    given = torch.cat(list(pipeline.rival(kind, places[kind], BATCH, 0, "png")))
    assert given.shape == (COUNT, 32, 32, 3)
    coded = []
    encode = pipeline.Stub.encode
    monkeypatch.setattr(pipeline.Stub, "encode", lambda self, x: coded.append(x.clone()) or encode(self, x))
    codec, source = noisebook.load(**FLOW), enumerate_inputs([str(places[kind])])
    assert pipeline.pipeline(codec, 1e-4, source, tmp_path / "out", BATCH, 0, 32) < 1e4
    mine = torch.cat(coded).permute(0, 2, 3, 1)
    assert len(mine) == COUNT
    assert sorted(x.numpy().tobytes() for x in mine) == sorted(x.numpy().tobytes() for x in given)
    found = pipeline.stages(source, places[kind], kind, 8)
    assert ("reading" in found) == (kind != "parquet")
    assert min(found.values()) >= 0


def test_webdataset_gives_the_same(places):
    pytest.importorskip("webdataset")
    given = torch.cat(list(pipeline.rival("tar", places["tar"], BATCH, 0, "png")))
    assert given.shape == (COUNT, 32, 32, 3)


def test_a_rate_counts_from_the_first_batch(monkeypatch):
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(clock))
    assert pipeline.drained([torch.zeros(5)] * 4) == 15 / 2


def test_the_tables_show_what_was_measured(tmp_path, monkeypatch):
    assert "Not measured yet" in pipeline.table() or "| --- |" in pipeline.table()
    stages = {"listing": 1.0, "decoding": 20.04}
    row = {
        "name": "a",
        "input": "tar",
        "rival": 100.4,
        "rival_is": "webdataset",
        "free": 95.0,
        "free_ratio": 0.95,
        "rounds": 3,
    }
    row |= {"half_ratio": 0.949, "free_ratios": [0.9, 1.0], "half_ratios": [0.93, 1.0], "workers": 2, "stages": stages}
    whole = {"device": "a CPU", "threads": 1, "cores": 2, "versions": {}, "date": "today", "command": "c", "load": 0.1}
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "pipeline.json").write_text(json.dumps({**whole, "rows": [row]}))
    assert "| a | tar | 100 (webdataset) | 95 | 0.950 (0.90 to 1.00) | 0.9: reached |" in pipeline.table()
    assert "| 0.949 (0.93 to 1.00) | 0.95: not reached |" in pipeline.table()
    assert "| a | tar | 1.0 | 20.0 |" in pipeline.stage_table()
    old = {**row, "stages": {"listing": 3.0}}
    (tmp_path / "pipeline_before.json").write_text(json.dumps({**whole, "rows": [old]}))
    assert "| a | tar | 3.0 -> 1.0 | 20.0 |" in pipeline.stage_table()
