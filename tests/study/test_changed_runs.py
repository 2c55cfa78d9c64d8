"""Runs in which sublayers are changed, with a real engine: what is said and counted, and that resuming is exact."""

from __future__ import annotations

import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.engine import Engine
from lowmem_layers.engine import engine as engines
from lowmem_layers.errors import RecordError
from lowmem_layers.forecast.forecast import look_at
from lowmem_layers.study.events import Noted
from lowmem_layers.study.prepare import model_spec, prepare_study
from tests.model.conftest import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed") / "model"
    save_model(folder, "gpt2")
    return str(folder)


def spec_of(model, change):
    given = {"dtype": "float32", "limit": 4, "max_removed": 1, "device": "cpu", "cache": False}
    return StudySpec(model=model, change=change, **given)


def test_a_format_that_stands_in_is_said_and_the_shelf_is_counted(model):
    heard, spec = [], spec_of(model, "quantise:q3_k").resolved()
    prepared = prepare_study(spec, heard.append)
    said = [event.words for event in heard if isinstance(event, Noted)]
    (words,) = (words for words in said if words.startswith("q3_k packs 256 numbers of a row at a time: 9 of 12"))
    assert words.endswith("matrices have rows of 64, and are rounded to q4_0, as llama-quantize does")
    shape, shelf = look_at(model_spec(spec)).shape, prepared.engine.changes.shelf
    counted = shape.with_rounding(4.5).n_bytes.shelf
    assert 0 < shelf.room_bytes < counted  # the examination has put weights there
    prepared.engine.score(prepared.encoded, [(), *((i,) for i in range(6))])
    assert 0 <= shelf.room_bytes < counted / 4, "all weights are kept, and what is counted is little more"


@pytest.mark.parametrize("change", ["quantise:q3_k", pytest.param("mean", marks=pytest.mark.slow)])
def test_a_run_that_was_interrupted_goes_on_to_the_same_scores(model, change, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "tile_work_for", lambda *_: 1)  # a tile for each item
    spec, score, left = spec_of(model, change), Engine.score, []

    def interrupted(self, *given):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return score(self, *given)

    whole = run_study(spec, tmp_path / "whole")
    left += [None] * 2
    monkeypatch.setattr(Engine, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "cut")
    assert open_run(tmp_path / "cut").manifest.status == "interrupted"
    monkeypatch.setattr(Engine, "score", score)
    run = run_study(spec, tmp_path / "cut")
    assert len(list((tmp_path / "cut" / "scores").iterdir())) == 4
    assert run.scores().equals(whole.scores())
    with pytest.raises(RecordError, match="change"):
        run_study(spec_of(model, "repeat"), tmp_path / "cut")
