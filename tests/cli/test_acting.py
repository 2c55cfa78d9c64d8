"""`prune`: a choice in sentences on stderr, what it cost as data on stdout."""

from __future__ import annotations

import json

import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.cli.acting import _FORMS
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.study import prepare
from tests.dictionary import Bench


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Give the folder of a finished run without a model."""
    bench = Bench(n_items=30)
    monkeypatch.setattr(prepare, "prepare_study", bench.prepare)
    run_study(StudySpec(tasks=("one",), max_removed=2), tmp_path / "r", prepare=bench.prepare)
    return tmp_path / "r"


def test_a_choice_is_measured_beside_the_full_model_and_random_ones(folder, capfd):
    assert run_command_line(["prune", str(folder), "--remove", "2", "--format", "json"]) == 0
    out, err = capfd.readouterr()
    rows = json.loads(out)
    assert [row["version"] for row in rows] == ["full", "chosen", "random (5 choices)"]
    assert f"removed: {rows[1]['removed'].replace('+', ', ')}" in err
    assert "expected loss: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 of four ways to say what goes are given"),
        (["--remove", "2", "--form", "gone"], "--form 'gone' is not known"),
        (["--remove", "2", "--form", "layers"], "--form layers removes whole decoder layers"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, words, message, capfd):
    assert run_command_line(["prune", str(folder), *words]) == 2
    assert message in capfd.readouterr().err


def test_the_command_knows_every_form():
    assert tuple(FORMS) == _FORMS
