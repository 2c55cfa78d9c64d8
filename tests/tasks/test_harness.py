"""Tasks of lm-evaluation-harness: its prompts and answers, taken over whole."""

from __future__ import annotations

import json
import sys

import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import load_tasks
from lowmem_layers.tasks.harness import _manager, harness_items


def test_a_missing_package_names_the_extra(monkeypatch):
    _manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(TaskError, match="needs lm-evaluation-harness") as caught:
        load_tasks(["lm_eval:hellaswag"])
    assert "lm-eval" in caught.value.hint


ROWS = [
    {"q": "Is snow cold?", "options": ["yes", "no"], "answer": 0},
    {"q": "Is fire cold?", "options": ["yes", "no"], "answer": 1},
    {"q": "Is ice cold?", "options": ["yes", "no"], "answer": 0},
]


def write_task(place, name, **changes):
    data = place / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **changes,
    }
    (place / f"{name}.yaml").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold all task files of this module: the harness' index takes seconds, so it is built once."""
    place = tmp_path_factory.mktemp("harness")
    write_task(place, "own_mc")
    write_task(place, "own_shots", num_fewshot=1)
    write_task(place, "own_gen", output_type="generate_until", doc_to_choice=None, metric_list=[{"metric": "bleu"}])
    return place


@pytest.fixture
def harness(monkeypatch, tmp_path, folder):
    """Keep the harness' own caches out of the way; it warns about itself, which is not ours to judge."""
    pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


@pytest.mark.filterwarnings("ignore")
def test_items_are_the_harness_own_requests(harness):
    items, metric, source = harness_items("own_mc", fewshot=None, limit=2, include=harness)
    assert [item.contexts for item in items] == [("Q: Is snow cold?\nA:",) * 2, ("Q: Is fire cold?\nA:",) * 2]
    assert items[0].continuations == (" yes", " no")
    assert [item.gold for item in items] == [0, 1]
    assert (items[0].id, items[0].choice_chars) == ("own_mc-0", (3, 2))
    assert metric == "acc_norm"
    assert source["fewshot"] == 0


@pytest.mark.filterwarnings("ignore")
def test_examples_are_the_harness_own_too(harness):
    items, _, source = harness_items("own_shots", fewshot=None, limit=None, include=harness)
    assert source["fewshot"] == 1
    for item, row in zip(items, ROWS, strict=True):
        assert item.contexts[0].endswith(f"\n\nQ: {row['q']}\nA:")
        assert item.contexts[0].count(row["q"]) == 1


@pytest.mark.filterwarnings("ignore")
def test_another_kind_of_task_is_refused(harness):
    with pytest.raises(TaskError, match="of kind generate_until"):
        harness_items("own_gen", fewshot=None, limit=None, include=harness)


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_gets_the_nearest_ones(harness):
    with pytest.raises(TaskError, match="no task 'hellaswagg'") as caught:
        harness_items("hellaswagg", fewshot=None, limit=None, include=harness)
    assert "hellaswag" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_data_out_of_reach_are_named(harness):
    with pytest.raises(TaskError, match="cannot load the data of hellaswag"):
        harness_items("hellaswag", fewshot=None, limit=None, include=harness)
