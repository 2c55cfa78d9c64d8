"""What a run found, computed once: one side or two, in the units of the metrics; and how a run shows itself."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.cli.summary import summarise
from lowmem_layers.findings import findings as module
from lowmem_layers.findings.findings import coalition_means
from lowmem_layers.game.answers.cornerstone import cornerstones
from lowmem_layers.game.answers.importance import estimate
from lowmem_layers.game.answers.interactions import interactions
from lowmem_layers.report.page.render import page
from lowmem_layers.report.paper import paper_figures


def measure(tmp_path, bench, tasks=("one", "three"), metrics=None, **options):
    made = bench(metrics=metrics or {})
    spec = StudySpec(tasks=tasks, **({"max_removed": 2} | options))
    return run_study(spec, tmp_path / "r", prepare=made.prepare)


def test_findings_are_those_of_the_games_functions(tmp_path, bench):
    run = measure(tmp_path, bench)
    found = run.findings
    metric, gold = found.sides
    assert [(side.value, side.words, side.unit, side.scale) for side in found.sides] == [
        ("acc", "accuracy", "points", 100.0),
        ("loglikelihood", "gold answer's log-likelihood", "nats", 1.0),
    ]
    for side, tables in ((metric, run.value_tables()), (gold, run.value_tables("loglikelihood"))):
        assert [each.task for each in side.found] == ["one", "three", "all"]
        np.testing.assert_array_equal(side.found[0].value, estimate(tables[0]).value)
        np.testing.assert_array_equal(side.overall.value, estimate(tables).value)
        np.testing.assert_array_equal(side.interactions[2].value, interactions(tables).value)
        np.testing.assert_array_equal(side.singles[1].value, [tables[1].mean((player,)) for player in range(6)])
        assert len(side.interactions) == 3
        assert [each.value[0] for each in side.full] == [table.mean() for table in tables]
    assert [(each.task, each.n_items, each.metric.name, each.chance) for each in found.tasks] == [
        ("one", 8, "acc", 0.25),
        ("three", 7, "acc", 0.25),
    ]
    assert [each.level.value[0] for each in found.tasks] == [each.value[0] for each in metric.full]
    assert [task for task, _ in found.cornerstones] == ["one", "three"]
    assert found.cornerstones[0][1].names == cornerstones(run.value_tables()[0], 0.25).names
    assert found.paper is not None
    assert found.verdict == ""


def test_findings_are_computed_once(tmp_path, bench, monkeypatch):
    run = measure(tmp_path, bench)
    calls = []
    real = module.estimates
    monkeypatch.setattr(module, "estimates", lambda *given: calls.append(1) or real(*given))
    found = run.findings
    assert run.findings is found, "remembered"
    assert len(calls) == 2, "one for each side"
    repr(run)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("asked", "sides"),
    [
        (None, ["acc", "loglikelihood"]),
        ("margin", ["acc", "margin"]),
        ("acc", ["acc", "loglikelihood"]),
        ("loglikelihood", ["acc", "loglikelihood"]),
        ("greedy", ["acc", "loglikelihood"]),  # as records of 0.1 may have it: their items lack what it needs
    ],
)
def test_the_value_that_is_asked_for_stands_beside_the_tasks_own(tmp_path, bench, asked, sides):
    run = measure(tmp_path, bench, ("one",), value=asked)
    assert [side.value for side in run.findings.sides] == sides
    np.testing.assert_array_equal(run.findings.sides[-1].tables[0].values, run.value_tables(sides[-1])[0].values)
    (title,) = [axes.get_ylabel() for axes in paper_figures([run], "loglikelihood")["figure-6-values"].axes][:1]
    assert "(nats" in title


def test_a_task_judged_by_log_likelihood_has_one_side(tmp_path, bench):
    found = measure(tmp_path, bench, ("one",), {"one": "loglikelihood"}).findings
    (side,) = found.sides
    assert (side.value, side.unit, side.scale) == ("loglikelihood", "nats", 1.0)
    assert found.tasks[0].chance is None
    assert found.tasks[0].level.value[0] < 0
    assert found.cornerstones == ()
    assert found.paper is None
    assert [line.split(":")[0] for line in found.lines] == ["top 3 by gold answer's log-likelihood"]


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (("acc_norm", "acc_norm"), ("acc_norm", "accuracy", "points", 100.0)),
        (("acc", "acc_norm"), ("acc", "accuracy", "points", 100.0)),
        (("probability", "probability"), ("probability", "probability of the gold answer", "points", 100.0)),
        (("acc", "probability"), ("metric", "each task's own metric", "points", 100.0)),
        (("margin", "loglikelihood"), ("metric", "each task's own metric", "nats", 1.0)),
        (("acc", "loglikelihood"), ("metric", "each task's own metric", "each task's own unit", 1.0)),
        (("nll_per_byte", "nll_per_byte"), ("nll_per_byte", "log-likelihood per byte", "nats per byte", 1.0)),
    ],
)
def test_tasks_of_several_metrics_are_not_shown_in_the_unit_of_one(tmp_path, bench, metrics, shown):
    """A log-likelihood among accuracies was shown a hundredfold, as points of accuracy."""
    run = measure(tmp_path, bench, metrics=dict(zip(("one", "three"), metrics, strict=True)))
    side = run.findings.sides[0]
    assert (side.value, side.words, side.unit, side.scale) == shown


def test_single_removals_have_no_interactions(tmp_path, bench):
    assert measure(tmp_path, bench, max_removed=1).findings.sides[0].interactions == ()


def test_removal_orders_have_neither_interactions_nor_cornerstones(tmp_path, bench):
    run = measure(tmp_path, bench, ("one",), max_removed=None, coalitions="permutations", permutations=4)
    found = run.findings
    assert (found.sides[0].interactions, found.cornerstones, found.paper) == ((), (), None)


def test_the_full_model_alone_has_levels_and_no_sides(tmp_path, bench):
    found = measure(tmp_path, bench, max_removed=0).findings
    assert (found.sides, found.lines, found.paper) == ((), (), None)
    assert len(found.tasks) == 2


def test_coalition_means_stay_within_what_an_accuracy_can_be(tmp_path, bench):
    table = measure(tmp_path, bench).value_tables()[0]
    means = coalition_means(table, list(table.coalitions))
    np.testing.assert_allclose(means.value, table.values.mean(axis=0))
    assert (means.ci.low >= 0).all()
    assert (means.ci.high <= 1).all()


def test_a_run_shows_itself_in_five_lines_and_a_table(tmp_path, bench):
    run = measure(tmp_path, bench)
    text = repr(run)
    lines = text.splitlines()
    assert len(lines) == 5 + 3 + 6, "a blank line, the table's name and its head; six sublayers"
    assert lines[0] == f"Run {run.folder}: done"
    assert lines[1] == "tiny, float32, quantisation none"
    assert lines[2] == "6 sublayers, 12 coalitions (windows)"
    assert lines[3] == "15 of 15 items of one, three"
    assert re.fullmatch(r"one: accuracy \S+ % \[.*\]; three: accuracy \S+ % \[.*\]", lines[4])
    assert lines[6] == "importance by gold answer's log-likelihood (all), the 6 largest"
    assert lines[8].split()[0] == run.findings.sides[1].overall.players[run.findings.sides[1].overall.order()[0]]
    assert text == str(run) == repr(open_run(run.folder))
    html = run._repr_html_()
    assert html.count("<tr>") == 7
    assert "gold answer&#x27;s" in html


def test_long_tables_are_cut_and_names_are_escaped(tmp_path, bench):
    made = bench(n_layers=9, model={"id": "<b>&\x1b[31m", "dtype": "float32"})
    run = run_study(StudySpec(tasks=("one",), max_removed=1), tmp_path / "r", prepare=made.prepare)
    assert len(repr(run).splitlines()) == 5 + 3 + 8
    assert "\x1b" not in repr(run)
    assert "&lt;b&gt;&amp;" in run._repr_html_()


def test_a_run_that_has_nothing_to_show_says_why(tmp_path, bench, engine):
    with pytest.raises(KeyboardInterrupt):
        run_study(StudySpec(tasks=("one",)), tmp_path / "r", prepare=bench(engine=engine(fail_at=0)).prepare)
    run = open_run(tmp_path / "r")
    lines = repr(run).splitlines()
    assert len(lines) == 5
    assert lines[4] == f"no findings: {run.folder}: no item of one is finished"
    assert "no item of one is finished" in run._repr_html_()
    (tmp_path / "r" / "items.parquet").write_bytes(b"")
    assert "no findings" in repr(open_run(tmp_path / "r"))


@pytest.fixture
def cut_run(tmp_path, bench, engine):
    """Give an unfinished run of two tasks; every third item of one lost tokens on the left."""

    def prepare(*arguments):
        prepared = bench(engine=engine(tile_items=4, fail_at=3)).prepare(*arguments)
        items = [
            replace(item, choices=tuple(replace(choice, n_cut=number) for number, choice in enumerate(item.choices)))
            if (item.task, int(item.id[1:]) % 3) == ("three", 0)
            else item
            for item in prepared.encoded
        ]
        return replace(prepared, encoded=tuple(items))

    with pytest.raises(KeyboardInterrupt):
        run_study(StudySpec(tasks=("one", "three"), max_removed=2), tmp_path / "r", prepare=prepare)
    return open_run(tmp_path / "r")


def test_items_that_were_cut_are_counted_recorded_and_told(cut_run, tmp_path):
    rows = cut_run.items().to_pylist()
    assert {(row["task"], row["item"], row["choice"]) for row in rows if row["n_cut"] == 1} == {
        ("three", f"q{index}", 1) for index in (0, 3, 6)
    }
    done = [row for row in cut_run.values.rows_done if row.task == "three"]
    lost = [row for row in done if any(row.n_cut)]
    assert 0 < len(lost) < len(done) < 7
    most = max(number for row in lost for number in row.n_cut)
    told = (
        f"too long for the model, and cut on the left: {len(lost)} of {len(done)} items of three (up to {most} tokens)"
    )
    assert cut_run.findings.cut == told
    assert f"T{told[1:]}." in page([(cut_run, cut_run.findings)], None, [])
    stream = io.StringIO()
    summarise(cut_run, cut_run.findings, tmp_path, Console(file=stream, width=200))
    assert told in stream.getvalue()


def test_what_is_not_known_to_be_cut_is_not_told(finished, tmp_path):
    assert finished.findings.cut == ""
    shutil.copytree(finished.folder, tmp_path / "old")
    table = pq.read_table(tmp_path / "old" / "items.parquet").drop_columns(["n_cut"]).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "old" / "items.parquet")
    old = open_run(tmp_path / "old")
    assert old.items()["n_cut"].null_count == len(old.items())
    assert old.findings.cut == ""


def test_perplexities_are_the_harness_formulas(tmp_path, bench):
    metrics = pytest.importorskip("lm_eval.api.metrics")
    sources = {
        "last": {"kind": "lm-evaluation-harness", "output_type": "loglikelihood"},
        "roll": {"kind": "lm-evaluation-harness", "output_type": "loglikelihood_rolling", "words": 20, "bytes": 90},
        "else": {"kind": "lm-evaluation-harness"},
    }

    def prepare(*arguments):
        prepared = bench().prepare(*arguments)
        tasks = [replace(task, metric="loglikelihood", source=sources[task.name]) for task in prepared.tasks]
        return replace(prepared, tasks=tuple(tasks))

    run = run_study(StudySpec(tasks=tuple(sources), max_removed=0), tmp_path / "r", prepare=prepare)
    last, roll, _ = (table.values[:, table.column_index(())].tolist() for table in run.value_tables())
    weighted = [(sum(roll), 20)]
    assert run.findings.perplexities == (
        f"last: perplexity {metrics.perplexity(last):.4f} of the continuations",
        f"roll: word perplexity {metrics.weighted_perplexity(weighted):.4f}, "
        f"byte perplexity {metrics.weighted_perplexity([(sum(roll), 90)]):.4f}, "
        f"{metrics.bits_per_byte([(sum(roll), 90)]):.4f} bits per byte",
    )
    assert run.findings.perplexities[0] in page([(run, run.findings)], None, [])
