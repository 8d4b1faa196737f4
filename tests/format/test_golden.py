"""The golden `.nbk` files, one for each variant of the format, decode for ever to the tokens they were made of."""

import json

import pytest

from noisebook import CodecSpec
from noisebook.format import container
from noisebook.format.container import Container, pack, unpack
from noisebook.images.files import spec_of, token_runs
from tools import golden_nbk

pytestmark = pytest.mark.quick

EXPECTED = json.loads(golden_nbk.EXPECTED.read_text())


@pytest.fixture(params=["C++", "Python"])
def parser(request, monkeypatch):
    if request.param == "Python":
        monkeypatch.setattr(container, "native", lambda: None)
    elif container.native() is None:
        pytest.skip("the C++ extension was not built")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_file_reads_for_ever(name, parser):
    """If this fails, files of users no longer read: never write the golden file anew."""
    expected, path = EXPECTED[name], golden_nbk.FOLDER / f"{name}.nbk"
    found = Container.read(path)
    assert (found.height, found.width, found.preset) == (expected["height"], expected["width"], expected["preset"])
    assert found.codec_hash.hex() == expected["hash"]
    assert found.derived == (None if expected["derived"] is None else tuple(expected["derived"]))
    assert (found.spec_json or b"").decode() == (expected["spec"] or "")
    spec = spec_of(found)
    assert spec is not None
    assert spec.hash == found.codec_hash
    runs = token_runs(spec, found.height, found.width)
    tokens = unpack(found.payload, runs)
    assert tokens.tolist() == expected["tokens"]
    assert pack(tokens, runs) == found.payload
    data = path.read_bytes()
    end = 16 if found.spec_json else len(data)  # zlib may compress a specification in another way
    assert found.to_bytes()[:end] == data[:end]


def test_every_variant_has_a_golden_file_and_the_rules_are_all_there():
    assert set(EXPECTED) == set(golden_nbk.variants())
    specs = [spec for spec, _, _ in golden_nbk.variants().values()]
    assert {spec.rule for spec in specs} == {"bins", "top", "pursuit", "poisson"}
    for name, (spec, size, derived) in golden_nbk.variants().items():
        assert EXPECTED[name]["hash"] == spec.hash.hex(), name
        if EXPECTED[name]["spec"]:
            assert CodecSpec.from_json(EXPECTED[name]["spec"]) == spec
        assert len(EXPECTED[name]["tokens"]) == sum(run.count for _, run in spec.runs_for(*size)) > 0
        assert (derived is None) == (EXPECTED[name]["derived"] is None)
