"""Games other than windows of sublayers: groups as players, removal orders, all coalitions; through a whole run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import RecordError, UsageError
from lowmem_layers.findings.statement import judge
from lowmem_layers.game import all_coalitions, chain_coalitions, estimate, estimate_permutations, windows
from lowmem_layers.game.players.player import players_of
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.pilot import settle_cuts

PLAYERS = players_of(["ffn", "moe", "ffn"])


def game_of(**options):
    return plan_design(StudySpec(**options).resolved(), PLAYERS)


def test_sublayers_by_default():
    game = game_of(max_removed=2)
    assert game.names == ("attn.0", "ffn.0", "attn.1", "moe.1", "attn.2", "ffn.2")
    assert game.removed == windows(6, 2)
    assert game.estimator == "neighbourhood"


@pytest.mark.parametrize(
    ("players", "names", "single"),
    [
        ("attention", ("attn.0", "attn.1", "attn.2"), (2,)),
        ("ffn", ("ffn.0", "moe.1", "ffn.2"), (3,)),
        ("decoder-layer", ("layer.0", "layer.1", "layer.2"), (2, 3)),
        ("a=attn.0+ffn.0,b=ffn.2", ("a", "b"), (5,)),
    ],
)
def test_groups_as_players(players, names, single):
    game = game_of(players=players, max_removed=2)
    assert game.names == names
    assert game.removed[2] == single
    assert len(game.removed) == len(windows(len(names), 2))


def test_orders_always_come_with_single_removals():
    game = game_of(coalitions="permutations", permutations=2)
    assert set(windows(6, 1)) < set(game.removed)
    assert set(chain_coalitions(game.orders)) < set(game.removed)
    short = game.cut([2, 0])
    assert set(short.removed) == {*windows(6, 1), tuple(sorted(game.orders[0][:2]))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"players": "atention"}, "did you mean attention"),
        ({"players": "a=attn.0,b=attn.9"}, "attn.9"),
        ({"players": "a=attn.0,b=attn.0"}, "two groups"),
        ({"players": "attn.0+ffn.0"}, "one player"),
        ({"players": "attention", "max_removed": 4}, "more than the 3 players"),
        ({"max_removed": 7}, "6 sublayers"),
        ({"coalitions": "everything"}, "windows, permutations, all"),
        ({"permutations": 4}, "--coalitions permutations"),
        ({"coalitions": "permutations", "permutations": 1}, "too small"),
        ({"coalitions": "all", "max_removed": 2}, "--max-removed"),
        ({"coalitions": "permutations", "until": "top3"}, "--until"),
    ],
)
def test_games_that_cannot_be_played_are_refused(options, said):
    with pytest.raises(UsageError) as caught:
        game_of(**options)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_all_coalitions_of_too_many_players():
    with pytest.raises(UsageError, match="2\\^16"):
        plan_design(StudySpec(coalitions="all").resolved(), players_of(["ffn"] * 8))


def test_a_run_of_groups_is_a_game_of_groups(tmp_path, bench):
    spec = StudySpec(tasks=("one", "three"), players="decoder-layer", max_removed=2)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    assert set(run.scores().column("removed").to_pylist()) == {
        "", "attn.0+ffn.0", "attn.1+ffn.1", "attn.2+ffn.2", "attn.0+ffn.0+attn.1+ffn.1", "attn.1+ffn.1+attn.2+ffn.2",
    }  # fmt: skip
    table = run.importance().to_pydict()
    assert table["sublayer"][:3] == ["layer.0", "layer.1", "layer.2"]
    assert open_run(run.folder).manifest.design == run.manifest.design
    full, without = (run.value_tables()[0].mean(removed) for removed in ((), (0,)))
    assert table["ablation_drop"][0] == pytest.approx(full - without)


def test_a_folder_of_other_groups_is_refused(tmp_path, bench):
    run_study(StudySpec(tasks=("one",), players="attention", max_removed=1), tmp_path / "r", prepare=bench().prepare)
    with pytest.raises(RecordError, match="players"):
        run_study(StudySpec(tasks=("one",), players="ffn", max_removed=1), tmp_path / "r", prepare=bench().prepare)


def test_plain_runs_are_recorded_as_before(tmp_path, bench, spec):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    stored = json.loads((run.folder / "run.json").read_text())
    assert not {"groups", "orders", "cuts"} & set(stored)
    assert not {"players", "coalitions", "permutations"} & set(stored["identity"])


def test_exact_values_from_all_coalitions(tmp_path, bench):
    spec = StudySpec(tasks=("one",), players="attention", coalitions="all")
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    assert run.value_tables()[0].coalitions == tuple(all_coalitions(3))
    found = run.importance("loglikelihood").to_pydict()
    assert set(found["estimator"]) == {"shapley"}
    np.testing.assert_allclose(found["value"], estimate(run.value_tables("loglikelihood")[0], "shapley").value)
    assert set(run.importance(estimator="neighbourhood").column("estimator").to_pylist()) == {"neighbourhood"}
    decision = judge(run.values, "top=1", None)
    assert decision is not None
    assert not decision.holds


def test_removal_orders_are_estimated_with_the_recorded_cuts(tmp_path, bench):
    spec = StudySpec(tasks=("one", "three"), coalitions="permutations", permutations=4)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    game = run.manifest.design
    assert len(game.orders) == len(game.cuts) == 4
    stored = open_run(run.folder)
    assert stored.manifest.design == game
    found = stored.importance("probability").to_pydict()
    assert set(found["estimator"]) == {"permutation"}
    tables = stored.value_tables("probability")
    expected = estimate_permutations(tables[0], game.orders, cuts=game.cuts)
    np.testing.assert_allclose(found["value"][: len(expected.value)], expected.value)
    for order, cut in zip(game.orders, game.cuts, strict=True):
        walked = [tuple(sorted(order[:depth])) for depth in range(cut + 1)]
        assert set(walked) <= set(tables[0].coalitions)


def test_an_interrupted_run_of_orders_goes_on_without_another_pilot(tmp_path, bench, engine):
    spec = StudySpec(tasks=("one",), coalitions="permutations", permutations=4)
    whole = run_study(spec, tmp_path / "w", prepare=bench().prepare)
    pilot = bench()
    pilot.prepare(spec.resolved(), lambda _: None)
    calls = len(whole.manifest.plan.tiles)
    n_pilot = len(pilot_calls(bench, spec))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=n_pilot + 1)).prepare)
    second = bench()
    run = run_study(spec, tmp_path / "r", prepare=second.prepare)
    assert len(second.engine.scored) == calls - 1
    assert run.manifest.design == whole.manifest.design
    assert run.scores().equals(whole.scores())


def pilot_calls(bench, spec):
    """Count the engine's calls of the pilot alone."""
    made = bench()
    prepared = made.prepare(spec.resolved(), lambda _: None)
    settle_cuts(prepared, plan_design(spec.resolved(), prepared.players), 0, lambda _: None)
    return made.engine.scored


def test_the_estimators_that_were_not_measured_are_named(tmp_path, bench, spec):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    with pytest.raises(UsageError) as caught:
        run.importance(estimator="permutation")
    assert "--coalitions permutations" in caught.value.hint
    with pytest.raises(UsageError, match=r"attn\.0"):
        run.importance(estimator="shapley")


def test_walks_end_where_everything_is_at_chance(tmp_path, bench):
    """Accuracies of the dictionary's games lie at chance from the start, or fall to it."""
    made = bench(n_layers=6, n_items=8)
    spec = StudySpec(tasks=("one",), coalitions="permutations", permutations=6).resolved()
    prepared = made.prepare(spec, lambda _: None)
    heard = []
    game = settle_cuts(prepared, plan_design(spec, prepared.players), 0, heard.append)
    assert all(0 <= cut <= 12 for cut in game.cuts)
    assert min(game.cuts) < 12
    assert "pilot: 6 removal orders down to 4 removed" in heard[0].stage
