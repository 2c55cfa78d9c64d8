"""Interactions of neighbouring sublayers as a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.findings import coalition_means
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.interactions import Interactions, interactions
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.tasks.metrics import metric_named


def interaction_table(run: Run, value: str | None = None, level: float = 0.95) -> pa.Table:
    """Lay out the interactions of neighbouring sublayers: one row for each task (and their mean, `all`) and pair.

    `given_removed` names what lies between the two: the interaction is that of models in which it is gone.
    `saturated` says whether one removal alone may bring a task's accuracy to chance: what then looks like synergy may
    be that the second removal has nothing left to cost.

    Raises:
        UsageError: no windows of two or more sublayers were removed, or removal orders were walked instead.
    """
    if run.manifest.design.coalitions == "permutations":
        raise UsageError(
            f"{run.folder} walked removal orders, not windows of neighbours", "run it without --coalitions permutations"
        )
    tables = run.value_tables(value)
    groups = {table.task: [table] for table in tables}
    if len(tables) > 1:
        groups["all"] = tables
    parts, floors = [], {}
    for task, group in groups.items():
        found = interactions(group, level=level)
        if task in run.tasks:
            guessed = metric_named(value or run.metric(task)).has_chance
            floors[task] = _at_floor(group[0], found, run.chance(task) if guessed else None)
        floor = floors[task] if task in floors else np.any(list(floors.values()), axis=0)  # of `all`: of any task
        columns = {
            "task": [task] * len(found.value),
            "first": [found.players[place] for place in found.first],
            "second": [found.players[place] for place in found.second],
            "value": found.value,
            "ci_low": found.ci.low,
            "ci_high": found.ci.high,
            "p_adjusted": found.p_adjusted,
            "kind": [found.kind(pair) for pair in range(len(found.value))],
            "given_removed": [
                "+".join(found.players[i + 1 : j]) for i, j in zip(found.first, found.second, strict=True)
            ],
            "saturated": [str(bool(each)).lower() for each in floor],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _at_floor(table: ValueTable, found: Interactions, chance: float | None) -> NDArray[np.bool_]:
    """Tell for which pairs a value with one of the two removed is not certainly above chance. Shapes: (pairs,)."""
    if chance is None:
        return np.zeros(len(found.value), dtype=np.bool_)
    ends = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    without_first = coalition_means(table, [tuple(range(i, j)) for i, j in ends])
    without_second = coalition_means(table, [tuple(range(i + 1, j + 1)) for i, j in ends])
    return ~((without_first.ci.low > chance) & (without_second.ci.low > chance))
