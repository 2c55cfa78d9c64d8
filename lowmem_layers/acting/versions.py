"""Versions of a model beside each other on the items that no choice has seen: the full one, the chosen one, others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lowmem_layers.acting.choosing import is_held_out
from lowmem_layers.errors import RecordError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.foresight import Foresight
from lowmem_layers.game.players.coalitions import Removed, coalition_name
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.game.values.table import FloatArray, ValueTable
from lowmem_layers.record.identity import fingerprint
from lowmem_layers.study.contracts import Prepare, Prepared
from lowmem_layers.study.events import Noted, StageStarted
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.tasks.metrics import item_values, metric_named

N_RANDOM = 5


@dataclass(frozen=True)
class Version:
    """One version of the model, or several whose values are averaged: a name, and what is removed in each."""

    name: str
    removals: tuple[Removed, ...]


def prepare_again(run: Run, say: Callable[[str], None], prepare: Prepare | None = None) -> Prepared:
    """Put a run's model, items and engine together once more, as they were; `prepare` is for tests."""
    if prepare is None:
        from lowmem_layers.study.prepare import prepare_study as prepare

    def tell(event: object) -> None:
        if isinstance(event, StageStarted):
            say(event.stage)
        elif isinstance(event, Noted):
            say(f"note: {event.words}")

    return prepare(run.manifest.resolved, tell, run.manifest.engine)


def random_version(units: Sequence[Removed], n_units: int, seed: int, count: int = N_RANDOM) -> Version:
    """Draw removals of as many units at random."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        places = rng.choice(len(units), n_units, replace=False)
        drawn.append(tuple(sorted(position for place in places for position in units[place])))
    return Version(f"random ({count} choices)", tuple(drawn))


def checked_items(run: Run, prepared: Prepared) -> list[EncodedItem]:
    """Take the items that were prepared, once they are seen to be the run's.

    Raises:
        RecordError: the items are no longer those that the run measured.
    """
    now = {task: fingerprint([item for item in prepared.encoded if item.task == task]) for task in run.tasks}
    if now != {entry.task: entry.fingerprint for entry in run.manifest.data}:
        raise RecordError(
            f"{run.folder}: its items are not those that the tasks' data give now", "bring the data back, or run again"
        )
    return list(prepared.encoded)


def held_out_items(run: Run, prepared: Prepared) -> list[EncodedItem]:
    """Take the items of a run that no choice has seen.

    Raises:
        RecordError: the items are no longer those that the run measured.
    """
    return [item for item in checked_items(run, prepared) if is_held_out(item.task, item.cluster)]


def measure_versions(
    run: Run,
    prepared: Prepared,
    versions: Sequence[Version],
    value: str | None,
    on_tile: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[ValueTable]:
    """Measure versions on the items that are held out: a table for each task, one column for each distinct removal."""
    coalitions = tuple(dict.fromkeys([(), *(removed for version in versions for removed in version.removals)]))
    items = held_out_items(run, prepared)
    # 1) the log-likelihoods, tile by tile
    scores: dict[int, np.ndarray] = {}
    tiles = prepared.engine.plan_tiles(items, coalitions)
    for number, tile in enumerate(tiles):
        found = prepared.engine.score([items[index] for index in tile], coalitions)
        scores |= dict(zip(tile, found, strict=True))
        on_tile(number + 1, len(tiles))
    # 2) each task's values
    tables = []
    for task in run.tasks:
        chosen = [index for index, item in enumerate(items) if item.task == task]
        metric = value or run.metric(task)
        values = [values_of(items[index], scores[index], metric) for index in chosen]
        clusters = np.unique([items[index].cluster for index in chosen], return_inverse=True)[1]
        names = tuple(items[index].id for index in chosen)
        bounded = metric_named(metric).in_unit_interval
        players, rows = run.manifest.sublayers, np.concatenate(values)
        tables.append(ValueTable(players, coalitions, rows, clusters, names, task, in_unit_interval=bounded))
    return tables


def version_table(
    tables: Sequence[ValueTable],
    versions: Sequence[Version],
    foreseen: Sequence[Foresight | None],
    level: float = 0.95,
) -> pa.Table:
    """Lay versions out: one row for each task (and their mean, `all`) and version.

    `loss` is the full model's value less the version's, item by item; `foreseen` is what the record expected of it, on
    the mean over tasks and on the items by which was chosen. Units: those of the metric.
    """
    groups = [[table] for table in tables] + ([list(tables)] if len(tables) > 1 else [])
    rows = []
    for group in groups:
        own, lost = (mean_over_tasks([_estimates(t, versions, of) for t in group]) for of in (0.0, 1.0))
        columns = measured_columns(own, lost, level)
        is_mean = len(group) == len(tables)
        for place, version in enumerate(versions):
            seen = foreseen[place] if is_mean else None
            several = len(version.removals) > 1
            removed = "" if several else coalition_name(version.removals[0], group[0].players)
            rows.append(
                {
                    "task": group[0].task if len(group) == 1 else "all",
                    "version": version.name,
                    **{name: column[place] for name, column in columns.items()},
                    "foreseen": None if seen is None else float(seen.loss.mean()),
                    "foreseen_ci_low": None if seen is None or several else float(seen.ci.low[0]),
                    "foreseen_ci_high": None if seen is None or several else float(seen.ci.high[0]),
                    "n_items": sum(table.n_items for table in group),
                    "removed": removed,
                }
            )
    return pa.Table.from_pylist(rows)


def measured_columns(own: Influence, lost: Influence, level: float) -> dict[str, FloatArray]:
    """Give the columns of what was measured: values and losses with their intervals. Shapes: (versions,)."""
    own_ci, lost_ci = mean_interval(own, level), mean_interval(lost, level)
    return {
        "value": own.value,
        "ci_low": own_ci.low,
        "ci_high": own_ci.high,
        "loss": lost.value,
        "loss_ci_low": lost_ci.low,
        "loss_ci_high": lost_ci.high,
    }


def values_of(item: EncodedItem, scores: np.ndarray, metric: str) -> FloatArray:
    """Give one item's values. Shapes: `scores` (coalitions, choices) → (1, coalitions)."""
    chars, sizes = [item.choice_chars], [item.choice_bytes]
    return item_values(scores[None], [item.gold], chars, sizes, metric)


def _estimates(table: ValueTable, versions: Sequence[Version], of_full: float) -> Influence:
    """Estimate every version's value (`of_full` 0), or its loss to the full model (1)."""
    weights = np.zeros((len(versions), len(table.coalitions)))
    for row, version in enumerate(versions):
        weights[row, table.column_index(())] += of_full
        for removed in version.removals:
            weights[row, table.column_index(removed)] += (-1.0 if of_full else 1.0) / len(version.removals)
    return estimate_influence(table, weights)
