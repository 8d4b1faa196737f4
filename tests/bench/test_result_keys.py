"""The keys of bench/results are today's names, and giving them those names has changed nothing else."""

import json

import pytest

import rename_result_keys as tool

OLD = {
    "lam": [5.0, 0.1],
    "law": "hadamard",
    "bins": 4,
    "rows": [{"decode_calls": 3, "finish": "mean"}],
    "command": "--bins 4",
}


def test_every_result_has_the_names_of_today(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rename_result_keys.py", "--check"])
    assert tool.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(("indent", "end"), [(1, "\n"), (4, "")])
def test_only_keys_change(indent, end):
    text = json.dumps(OLD, indent=indent) + end
    new = tool.rewritten(text, tool.NAMES)
    assert json.loads(new) == {
        "sigma": [5.0, 0.1],
        "codebook": "hadamard",
        "bins": 4,
        "rows": [{"decode_nfe": 3, "solver": "mean"}],
        "command": "--bins 4",
    }
    assert [line.partition(":")[2] for line in new.splitlines()] == [line.partition(":")[2] for line in text.splitlines()]
    assert tool.rewritten(new, tool.NAMES) == new


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="unknown layout"):
        tool.rewritten(json.dumps(OLD, indent=3), tool.NAMES)


def test_specifications_and_verdicts_keep_their_names():
    kept = {"spec": {"noisebook_spec": 1, "law": "hadamard"}, "verdicts": {"vocabulary": 7}}
    assert tool.renamed(kept, tool.NAMES) == kept


def test_a_row_that_is_found_by_its_settings_is_found_by_their_new_names():
    settings = {"recipe": {"lam_max": 3.0}}
    row = {tool.settings_key(settings): {"settings": settings}, "0123456789ab": {"settings": settings}}
    new = {"recipe": {"sigma_max": 3.0}}
    assert tool.renamed(row, tool.NAMES) == {tool.settings_key(new): {"settings": new}, "0123456789ab": {"settings": new}}


def test_no_value_is_lost_where_two_names_meet():
    with pytest.raises(ValueError, match="two keys become 'nfe'"):
        tool.renamed({"calls": 1, "nfe": 2}, tool.NAMES)
