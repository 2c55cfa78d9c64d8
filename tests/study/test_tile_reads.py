"""Every tile is read once a command at most, and what a run carries in memory is what its files hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.cli.summary import summarise
from lowmem_layers.record import scores
from lowmem_layers.report import write_report
from lowmem_layers.study import tiles
from lowmem_layers.study.events import Noted, TileStarted
from tests.dictionary import DictionaryEngine


@pytest.fixture
def reads(monkeypatch):
    """Count how often each tile is read. Figures are made and not drawn: what they show was read before."""
    count: Counter[str] = Counter()
    real = scores.read_table

    def counting(path, *hint, **options):
        count[str(path)] += 1
        return real(path, *hint, **options)

    monkeypatch.setattr(scores, "read_table", counting)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: path.write_text("<svg></svg>"))
    return count


def of_tiles(reads, folder):
    return [reads[str(path)] for path in sorted((folder / "scores").iterdir())]


def conclude(run):
    """Write the report and print the summary, as the command does at the end of a run."""
    summarise(run, run.findings, write_report(run, formats=("svg",)), Console(file=StringIO()))


def test_a_fresh_run_reads_no_tile(tmp_path, bench, spec, reads):
    conclude(run_study(spec, tmp_path / "r", prepare=bench().prepare))
    assert of_tiles(reads, tmp_path / "r") == [0] * 5


def test_a_resumed_run_reads_each_earlier_tile_once(tmp_path, bench, engine, spec, reads):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    conclude(run_study(spec, tmp_path / "r", prepare=bench().prepare))
    assert of_tiles(reads, tmp_path / "r") == [1, 1, 0, 0, 0]


def test_a_complete_run_reads_each_tile_once(tmp_path, bench, spec, reads):
    made = bench()
    run_study(spec, tmp_path / "r", prepare=made.prepare)
    tasks = made.prepare(spec.resolved(), lambda _: None).tasks
    conclude(run_study(spec, tmp_path / "r", prepare=made.prepare, read=lambda _: tasks))
    assert of_tiles(reads, tmp_path / "r") == [1] * 5


@pytest.mark.parametrize("command", [("report",), ("importance", "--value", "margin"), ("scores",), ("interactions",)])
def test_a_command_about_one_run_reads_each_tile_once(tmp_path, bench, spec, reads, command, capsys):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    assert run_command_line([command[0], str(tmp_path / "r"), *command[1:]]) == 0
    assert of_tiles(reads, tmp_path / "r") == [1] * 5


def test_comparing_reads_each_tile_of_both_runs_once(tmp_path, bench, engine, spec, reads, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        run_study(spec, tmp_path / name, prepare=bench(engine=engine(seed=seed)).prepare)
    figure = tmp_path / "compared.svg"
    assert run_command_line(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--figure", str(figure)]) == 0
    assert of_tiles(reads, tmp_path / "a") == of_tiles(reads, tmp_path / "b") == [1] * 5


def test_a_run_that_may_stop_decides_from_memory(tmp_path, bench, engine, reads):
    spec = StudySpec(tasks=("one",), max_removed=1, until="ci=0.0001", value="loglikelihood")
    made = bench(engine=engine(fail_at=40), n_items=240)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=made.prepare)
    run = run_study(spec, tmp_path / "r", prepare=bench(n_items=240).prepare)
    assert len(run.manifest.plan.tiles) == 80
    assert of_tiles(reads, tmp_path / "r") == [1] * 40 + [0] * 40
    conclude(run)
    assert sum(of_tiles(reads, tmp_path / "r")) == 40


@pytest.mark.parametrize("options", [{}, {"players": "decoder-layer"}, {"players": "attention", "until": "top=1"}])
def test_what_a_run_carries_is_what_its_files_hold(tmp_path, bench, engine, spec, options):
    """Values that are not finite, tasks that share a tile, items that are out of order, an interrupted call before."""
    asked = replace(spec, **options)
    poison = {"q1": float("nan"), "q2": float("-inf")}
    with pytest.raises(KeyboardInterrupt):
        run_study(asked, tmp_path / "r", prepare=bench(engine=engine(fail_at=2, poison=poison)).prepare)
    run = run_study(asked, tmp_path / "r", prepare=bench(engine=engine(poison=poison)).prepare)
    again = open_run(run.folder)
    for value in (None, "loglikelihood", "acc_norm", "margin", "probability", "nll_per_byte"):
        for one, other in zip(run.value_tables(value), again.value_tables(value), strict=True):
            np.testing.assert_array_equal(one.values, other.values)
            np.testing.assert_array_equal(one.cluster_codes, other.cluster_codes)
            assert (one.task, one.items, one.coalitions) == (other.task, other.items, other.coalitions)
    assert run.items().equals(again.items())
    for name in run.scores().column_names:  # column by column, since a table with NaN does not equal itself
        np.testing.assert_array_equal(run.scores()[name].to_numpy(), again.scores()[name].to_numpy())
    assert (run.n_items_done, run.is_unfinished) == (again.n_items_done, again.is_unfinished)


def test_values_that_were_computed_are_remembered(tmp_path, bench, spec, reads):
    run = open_run(run_study(spec, tmp_path / "r", prepare=bench().prepare).folder)
    run.values.collect(None, "loglikelihood")
    assert of_tiles(reads, run.folder) == [1] * 5, "two values, one pass"
    assert run.value_tables() is run.value_tables()
    run.value_tables("acc")  # the tasks' own metric
    assert of_tiles(reads, run.folder) == [1] * 5
    run.value_tables("margin")
    assert of_tiles(reads, run.folder) == [2] * 5


@pytest.mark.parametrize("until", [None, "ci=0.0001"])
def test_very_many_earlier_tiles_are_read_between_new_ones(tmp_path, bench, engine, reads, until):
    """By a clock on which one read takes all the time there is: the next tile is scored before the last is read.

    A damaged one among them is found before its numbers are used, said so and scored again.
    """
    spec = StudySpec(tasks=("one",), max_removed=2, until=until, value="loglikelihood")
    made = {"n_items": 45}
    whole = run_study(spec, tmp_path / "whole", prepare=bench(**made).prepare)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=12), **made).prepare)
    path = tmp_path / "r" / "scores" / "tile-00009.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    events, at = [], iter(range(0, 10**6, 100))
    run = run_study(
        spec, tmp_path / "r", prepare=bench(**made).prepare, announce=events.append, clock=lambda: float(next(at))
    )
    words = [event.words for event in events if isinstance(event, Noted)]
    scored = [event.tile for event in events if isinstance(event, TileStarted)]
    assert len(words) == 1
    assert "3 items are scored again" in words[0]
    if until is None:
        assert scored == [12, 13, 14, 9]
        assert of_tiles(reads, run.folder) == [1] * 12 + [0] * 3
    else:
        assert scored[0] == 9, "the first look at the statement comes before any tile, and takes every earlier one in"
    for one, other in zip(whole.value_tables(), run.value_tables(), strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_importance_as_it_forms_is_not_formed_anew_at_each_tile(tmp_path, bench, monkeypatch):
    """It takes every item in: at each of n tiles that would be n² items."""
    formed = []
    monkeypatch.setattr(tiles, "LOOKS", 10)
    monkeypatch.setattr(tiles, "standing", lambda values: formed.append(values.n_items) or ())
    spec = StudySpec(tasks=("one",), max_removed=1)
    run_study(spec, tmp_path / "r", prepare=bench(engine=DictionaryEngine(tile_items=1), n_items=60).prepare)
    assert 20 < len(formed) < 40
    assert formed[-1] == 60
