"""Choosing by one half of the items, and measuring by the other, with a dictionary in the engine's place."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.choosing import Request, choose, half_tables, is_held_out
from lowmem_layers.acting.forms import kept_layers
from lowmem_layers.acting.outcome import measure_choice
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.acting.recipes import layer_ranges, llama_quantize_line, mergekit_yaml
from lowmem_layers.errors import RecordError, UsageError
from tests.dictionary import Bench


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    bench = Bench(n_items=40)
    folder = tmp_path_factory.mktemp("acting") / "r"
    spec = StudySpec(tasks=("one", "three"), max_removed=2)
    return SimpleNamespace(run=run_study(spec, folder, prepare=bench.prepare), bench=bench)


def test_the_halves_share_no_item_and_miss_none(study):
    for task, (chosen, held) in zip(
        study.run.tasks,
        zip(*(half_tables(study.run, None, held_out=side) for side in (False, True)), strict=True),
        strict=True,
    ):
        assert not {*chosen.items} & {*held.items}
        assert len({*chosen.items} | {*held.items}) == next(d.items for d in study.run.manifest.data if d.task == task)
        assert all(is_held_out(task, item) for item in held.items)  # each item is its own cluster here


def test_the_choice_does_not_see_the_held_out_items(study, monkeypatch):
    before = choose(study.run, Request(remove=3), FORMS["zeroed"], "loglikelihood")
    tables = study.run.value_tables("loglikelihood")
    spoilt = [
        replace(t, values=np.where([[is_held_out(t.task, item)] for item in t.items], 1e6, t.values)) for t in tables
    ]
    monkeypatch.setattr(type(study.run), "value_tables", lambda *_: spoilt)
    after = choose(study.run, Request(remove=3), FORMS["zeroed"], "loglikelihood")
    assert (after.removed, after.loss) == (before.removed, before.loss)


@pytest.mark.parametrize("request_", [Request(sublayers="attn.0, ffn.2"), Request(sublayers="attn.0+ffn.2")])
def test_named_sublayers(study, request_):
    choice = choose(study.run, request_, FORMS["zeroed"], None)
    assert (choice.names, choice.removed) == (("attn.0", "ffn.2"), (0, 5))
    assert "were not removed together" in choice.unknown[0]


def test_decoder_layers_go_whole(study):
    choice = choose(study.run, Request(decoder_layers=1), FORMS["layers"], "loglikelihood")
    assert len(choice.removed) == 2
    assert choice.removed[0] % 2 == 0
    assert choice.unknown == ()  # a window of two is recorded


def test_no_more_is_lost_than_allowed(study):
    choice = choose(study.run, Request(lose_at_most=40.0), FORMS["zeroed"], "loglikelihood")
    assert choice.ci.high <= 40.0
    with pytest.raises(UsageError, match=r"even the removal of .* may cost"):
        choose(study.run, Request(lose_at_most=-1e6), FORMS["zeroed"], "loglikelihood")


@pytest.mark.parametrize(
    ("request_", "form", "words"),
    [
        (Request(remove=6), "zeroed", "6 of 6 cannot be removed"),
        (Request(remove=1), "layers", "whole decoder layers"),
        (Request(sublayers="attn.9"), "zeroed", "not one of the 6 players"),
    ],
)
def test_what_cannot_go_is_refused(study, request_, form, words):
    with pytest.raises(UsageError, match=words):
        choose(study.run, request_, FORMS[form], "loglikelihood")


@pytest.mark.parametrize("given", [{}, {"remove": 1, "decoder_layers": 1}])
def test_one_way_to_say_what_goes(given):
    with pytest.raises(UsageError, match="of four ways"):
        Request(**given)


def test_the_measurement_is_of_the_held_out_items_alone(study):
    choice = choose(study.run, Request(remove=2), FORMS["zeroed"], "loglikelihood")
    found = measure_choice(
        study.run, choice, "loglikelihood", 0, lambda _: None, prepare=study.bench.prepare
    ).to_pylist()
    assert [row["version"] for row in found[:3]] == ["full", "chosen", "random (5 choices)"]
    held = half_tables(study.run, "loglikelihood", held_out=True)
    assert {row["task"]: row["value"] for row in found if row["version"] == "full"} == pytest.approx(
        {table.task: table.mean() for table in held} | {"all": sum(table.mean() for table in held) / 2}
    )
    chosen = [row for row in found if row["version"] == "chosen"]
    assert chosen[-1]["foreseen"] == pytest.approx(choice.loss)
    assert [row["n_items"] for row in chosen] == [held[0].n_items, held[1].n_items, held[0].n_items + held[1].n_items]


def test_other_items_are_not_measured(study):
    choice = choose(study.run, Request(remove=2), FORMS["zeroed"], "loglikelihood")
    with pytest.raises(RecordError, match="not those that the tasks' data give now"):
        measure_choice(study.run, choice, None, 0, lambda _: None, prepare=Bench(n_items=39).prepare)


def test_recipes():
    assert layer_ranges([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
    assert mergekit_yaml("me/it's", [0, 2], "bfloat16") == (
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        "- sources:\n  - model: 'me/it''s'\n    layer_range: [0, 1]\n"
        "- sources:\n  - model: 'me/it''s'\n    layer_range: [2, 3]\n"
    )
    assert "--prune-layers 1,3 " in llama_quantize_line([0, 2], 4)


def test_half_a_decoder_layer_is_no_decoder_layer(study):
    players = study.bench.prepare(study.run.manifest.resolved, print).players
    programs = [SimpleNamespace(stays="")] * 3
    model = SimpleNamespace(players=players, n_layers=3, examine=lambda: programs)
    with pytest.raises(UsageError, match=r"of layer 1 ffn\.1 would stay"):
        kept_layers(model, (2,), "layers")
    assert kept_layers(model, (2, 3), "layers") == [0, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sublayers": ""}, "names nothing"),
        ({"sublayers": " , +"}, "names nothing"),
        ({"lose_at_most": float("nan")}, "nan is no loss"),
        ({"lose_at_most": float("inf")}, "inf is no loss"),
    ],
)
def test_a_request_that_says_nothing_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Request(**given)
