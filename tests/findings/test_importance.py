"""Importance from a record: the columns that others rely on, and values that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowmem_layers import open_run, run_study
from lowmem_layers.errors import RecordError, UsageError
from lowmem_layers.findings.findings import top_sublayers
from lowmem_layers.findings.importance import UNREACHED, as_table
from lowmem_layers.findings.paper import tables_of
from lowmem_layers.game.answers.importance import estimate_permutations
from lowmem_layers.game.values.table import ValueTable

COLUMNS = [
    "task",
    "sublayer",
    "estimator",
    "value",
    "ci_low",
    "ci_high",
    "ablation_drop",
    "ablation_ci_low",
    "ablation_ci_high",
    "rank",
]


def test_columns_and_rows(tmp_path, bench, spec):
    table = run_study(spec, tmp_path / "r", prepare=bench().prepare).importance()
    assert set(COLUMNS) <= set(table.column_names)
    assert table["task"].to_pylist() == ["one"] * 6 + ["three"] * 6 + ["all"] * 6
    assert table["sublayer"].to_pylist()[:6] == ["attn.0", "ffn.0", "attn.1", "ffn.1", "attn.2", "ffn.2"]
    assert set(table["estimator"].to_pylist()) == {"neighbourhood"}


def test_one_task_has_no_mean(tmp_path, bench, spec):
    run = run_study(replace(spec, tasks=("one",)), tmp_path / "r", prepare=bench().prepare)
    assert set(run.importance()["task"].to_pylist()) == {"one"}


def test_the_ablation_drop_is_the_scores_own(tmp_path, bench, spec):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    rows = [row for row in run.scores().to_pylist() if row["gold"] and row["task"] == "one"]
    mean = {r: np.mean([row["loglikelihood"] for row in rows if row["removed"] == r]) for r in ("", "ffn.1")}
    found = run.importance("loglikelihood").to_pylist()[3]
    assert found["sublayer"] == "ffn.1"
    assert found["ablation_drop"] == pytest.approx(mean[""] - mean["ffn.1"])


@pytest.mark.parametrize("value", ["acc", "acc_norm", "loglikelihood", "margin", "probability"])
def test_every_value_comes_from_the_record(tmp_path, bench, spec, value):
    table = run_study(spec, tmp_path / "r", prepare=bench().prepare).importance(value)
    assert np.isfinite(table["value"].to_numpy()).all()


def test_an_unfinished_run_speaks_for_its_finished_items(tmp_path, bench, engine, spec):
    with pytest.raises(KeyboardInterrupt):
        run_study(replace(spec, tasks=("one",)), tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    run = open_run(tmp_path / "r")
    assert run.n_items_done == 6
    assert set(run.importance()["n_items"].to_pylist()) == {6}


def test_a_run_without_a_finished_tile(tmp_path, bench, engine, spec):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=0)).prepare)
    assert len(open_run(tmp_path / "r").scores()) == 0
    with pytest.raises(RecordError, match="no item of one is finished"):
        open_run(tmp_path / "r").importance()


def test_unknown_names_and_missing_coalitions(tmp_path, bench, spec):
    run = run_study(replace(spec, max_removed=0), tmp_path / "r", prepare=bench().prepare)
    with pytest.raises(UsageError, match="not measured"):
        run.importance()
    with pytest.raises(UsageError, match="estimator"):
        run.importance(estimator="neighborhood")
    with pytest.raises(UsageError, match="value"):
        run.importance(value="accuracy")


def test_the_authors_code_stands_beside_accuracies(tmp_path, bench, spec):
    run = run_study(replace(spec, max_removed=4), tmp_path / "r", prepare=bench(n_items=67).prepare)
    rows = run.importance().to_pylist()
    share, value = (np.array([row[f"{name}_as_code"] for row in rows]).reshape(3, 6) for name in ("share", "value"))
    top = sorted(np.argsort(-share[2], kind="stable")[:3])
    assert share[2][top].sum() == pytest.approx(tables_of([run], as_code=True).table1[0].top_share)
    # By hand, the first sublayer's: windows that begin with it, of up to 3, means without a sublayer rounded first.
    for task, table in enumerate(run.value_tables()):
        means = table.values.mean(axis=0)
        kept = {removed: np.round(mean, 4) for removed, mean in zip(table.coalitions, means, strict=True)}
        kept[()] = means[table.column_index(())]
        by_hand = np.mean([kept[()] - kept[0,], kept[1,] - kept[0, 1], kept[1, 2] - kept[0, 1, 2]])
        assert value[task][0] == pytest.approx(by_hand, abs=1e-15)
    np.testing.assert_allclose(value[2], value[:2].mean(axis=0), atol=1e-15)
    assert not np.allclose(value[0], [row["value"] for row in rows[:6]]), "the run's own windows go up to 4"


def test_other_values_and_smaller_windows_have_no_such_column(tmp_path, bench, spec):
    three = run_study(replace(spec, max_removed=3), tmp_path / "r", prepare=bench().prepare)
    assert three.importance("loglikelihood")["value_as_code"].null_count == 18
    assert three.importance()["value_as_code"].null_count == 0
    two = run_study(spec, tmp_path / "two", prepare=bench().prepare)
    assert two.importance()["share_as_code"].null_count == 18
    with pytest.raises(UsageError, match="has windows of up to 2 sublayers") as refused:
        tables_of([two], as_code=True)
    assert "--max-removed 3" in refused.value.hint


def test_whom_no_removal_order_reached_has_no_estimate():
    """Their 0 stood in the table, and their names in the top 3, above sublayers that were measured below 0."""
    players = ("attn.0", "ffn.0", "attn.1", "ffn.1")
    orders = [(0, 1, 2, 3), (1, 0, 3, 2)]
    rng = np.random.default_rng(0)
    coalitions = ((), (0,), (0, 1), (1,))
    table = ValueTable(players, coalitions, np.array([0.0, 1.0, 2.0, 1.5]) + 0.1 * rng.normal(size=(40, 4)))
    found = estimate_permutations(table, [*orders, *orders], cuts=[1, 1, 1, 1])
    assert found.unreached.tolist() == [False, False, True, True]
    assert top_sublayers(found) == ["attn.0", "ffn.0"], "below 0, but measured"
    notes = as_table([found]).column("note").to_pylist()
    assert [note == UNREACHED for note in notes] == [False, False, True, True]
