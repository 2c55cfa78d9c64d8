"""Stopping early: the run ends when the statement is proven, and resuming changes nothing about that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.statement import verdict

SPEC = StudySpec(tasks=("one",), max_removed=1, until="top=1", value="loglikelihood")


@pytest.fixture
def clear(bench, engine):
    """Make a bench on which removing ffn.0 costs 9 nats and the others next to nothing."""

    def make(**options):
        made = bench(engine=engine(tile_items=20, **options), n_items=200)

        def block(item, coalitions):
            rng = np.random.default_rng(item.choices[0].tokens[1])
            noise = rng.normal(size=(len(coalitions), len(item.choices)))
            cost = np.array([9.0 * (1 in removed) for removed in coalitions])
            return -5 - cost[:, None] + 0.3 * noise

        made.engine._block = block
        return made

    return make


def test_the_run_stops_when_the_statement_holds(tmp_path, clear):
    made = clear()
    run = run_study(SPEC, tmp_path / "r", prepare=made.prepare)
    assert run.manifest.status == "done"
    assert "ffn.0" in run.manifest.stopped
    assert 30 <= run.n_items_done < 200
    said = (
        f"the top 1 is ffn.0 (95 % at any time of looking, {run.n_items_done} of 200 items; if no rare items lose far"
    )
    assert run.manifest.stopped.startswith(said)
    assert run.manifest.stopped.endswith("the largest 1 % of the items carry 3 % of ffn.0's size)")
    assert verdict(run) == f"stopped early: {run.manifest.stopped}"
    assert not run.is_unfinished
    tiles = run.manifest.plan.tiles
    assert sorted(index for tile in tiles for index in tile) == list(range(200))
    assert max(tiles[0]) > 60, "items come in random order"


def test_resuming_stops_at_the_same_tile(tmp_path, clear):
    whole = run_study(SPEC, tmp_path / "w", prepare=clear().prepare)
    with pytest.raises(KeyboardInterrupt):
        run_study(SPEC, tmp_path / "r", prepare=clear(fail_at=1).prepare)
    assert open_run(tmp_path / "r").is_unfinished
    again = clear()
    run = run_study(SPEC, tmp_path / "r", prepare=again.prepare)
    assert run.scores().equals(whole.scores())
    done = len(again.engine.scored)
    run_study(SPEC, tmp_path / "r", prepare=again.prepare)
    assert len(again.engine.scored) == done, "a stopped run stays stopped"


def test_what_the_last_items_prove_is_not_called_early(tmp_path, clear):
    made = clear()
    made.n_items = 40
    run = run_study(SPEC, tmp_path / "r", prepare=made.prepare)
    assert run.n_items_done == 40
    assert verdict(run) == f"certain with the last items: {run.manifest.stopped}"


def test_what_is_never_proven_takes_all_items(tmp_path, clear):
    run = run_study(replace(SPEC, until="ci=0.0001"), tmp_path / "r", prepare=clear().prepare)
    assert (run.n_items_done, run.manifest.stopped) == (200, "")
    assert verdict(run).startswith("ci=0.0001 is not certain after 200 of 200 items: ±0.")
    assert verdict(run_study(replace(SPEC, until=None), tmp_path / "p", prepare=clear().prepare)) == ""


@pytest.mark.parametrize(("until", "max_removed"), [("top=6", 1), ("top3", 0), ("soon", 1)])
def test_statements_that_cannot_be_decided(tmp_path, clear, until, max_removed):
    with pytest.raises(UsageError):
        run_study(replace(SPEC, until=until, max_removed=max_removed), tmp_path / "r", prepare=clear().prepare)
    assert not (tmp_path / "r").exists()


def test_a_runs_tables_say_what_bounds_their_values(tmp_path, clear):
    run = run_study(replace(SPEC, value="probability"), tmp_path / "r", prepare=clear(fail_at=None).prepare)
    table = run.value_tables("probability")[0]
    assert table.is_bounded
    assert not run.value_tables("loglikelihood")[0].is_bounded
    assert (table.planned.n_items, table.planned.largest_cluster) == (200, 1), "those of the run, not those scored"
    assert "rare items" not in run.manifest.stopped
