"""Interactions of neighbouring sublayers as a table."""

from __future__ import annotations

import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.interactions import interactions


def interaction_table(run: Run, value: str | None = None, level: float = 0.95) -> pa.Table:
    """Lay out the interactions of neighbouring sublayers: one row for each task (and their mean, `all`) and pair.

    `given_removed` names what lies between the two: the interaction is that of models in which it is gone.

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
    parts = []
    for task, group in groups.items():
        found = interactions(group, level=level)
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
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
