"""What an examination found is believed for the same weights, code and device alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lowmem_layers import StudySpec
from lowmem_layers.engine import engine as engines
from lowmem_layers.model.homes.cache import clear_cache, list_cache
from lowmem_layers.study import kept_verdict
from lowmem_layers.study.events import ModelExamined
from lowmem_layers.study.prepare import prepare_study
from tests.model.conftest import save_model


class Starts:
    """Start runs of one small model, and see which of them examine it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = folder / "model"
        self.n_examined = 0
        examine = engines.examine_engine

        def counted(*given):
            self.n_examined += 1
            return examine(*given)

        monkeypatch.setattr(engines, "examine_engine", counted)

    def __call__(self, **options) -> bool:
        """Prepare a run, and tell whether the model was examined. What is recorded is the same either way."""
        heard, before = [], self.n_examined
        given = {"quant": "4bit", "dtype": "float32", "limit": 1, "max_removed": 1, "device": "cpu", **options}
        prepared = prepare_study(StudySpec(model=str(self.model), **given).resolved(), heard.append)
        (event,) = [each for each in heard if isinstance(each, ModelExamined)]
        assert event.kept == (self.n_examined == before)
        found = prepared.engine.describe()
        assert found["layout"] == "trie"
        assert (event.reason, event.sweep_gap_nats) == (found["self_test"]["reason"], found["self_test"]["sweep_gap"])
        return not event.kept


@pytest.fixture
def start(tmp_path, monkeypatch) -> Starts:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "llama")
    return Starts(tmp_path, monkeypatch)


def test_the_second_start_believes_the_first_and_nothing_else(start, tmp_path, monkeypatch):
    assert start()
    assert not start()
    # what a verdict depends on: the change, the precision, the weights, the config, the code
    assert start(change="repeat")
    assert start()  # the file holds one verdict, the last
    assert start(dtype="bfloat16")
    weights = start.model / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value * 1.01 for name, value in tensors.items()}, weights, metadata={"format": "pt"})
    assert start()
    config = json.loads((start.model / "config.json").read_text())
    (start.model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert start()
    assert not start()
    monkeypatch.setattr(kept_verdict, "code_digest", lambda: "other")
    assert start()
    # weights that the cache does not hold are examined at every start
    assert start(cache=False)
    assert start(quant="none")
    assert start(quant="none")


def test_a_damaged_file_is_as_good_as_none(start):
    assert start()
    (path,) = [entry.path for entry in list_cache() if entry.path.suffix == ".json"]
    whole = json.loads(path.read_text())
    for damaged in ("{", "null", '{"circumstances": 1}', json.dumps({**whole, "verdict": {"takes_tries": "yes"}})):
        path.write_text(damaged)
        assert start()
        assert json.loads(path.read_text()) == whole
    clear_cache()
    assert list_cache() == []
