"""Two records side by side: which sublayers differ, and how far the rankings agree."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.compare import Comparison, compare
from lowmem_layers.game.interactions import interactions
from lowmem_layers.game.weights import Estimator
from lowmem_layers.study.importance import ESTIMATORS
from lowmem_layers.study.opened import Run
from lowmem_layers.study.spec import one_of


def compare_runs(
    a: Run,
    b: Run,
    value: str | None = None,
    estimator: str = "neighbourhood",
    max_removed: int | None = None,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """Compare two runs task by task; runs of one task each are compared whatever their tasks are.

    Raises:
        UsageError: no task in common, other sublayers, or a value that one of the runs does not allow.
    """
    one_of("--estimator", estimator, ESTIMATORS)
    known: Estimator = estimator  # type: ignore[assignment]
    first = {table.task: table for table in a.value_tables(value)}
    second = {table.task: table for table in b.value_tables(value)}
    pairs = {task: (first[task], second[task]) for task in first if task in second}
    if not pairs and len(first) == len(second) == 1:
        (one, table_a), (two, table_b) = *first.items(), *second.items()
        pairs = {f"{one} / {two}": (table_a, table_b)}
    if not pairs:
        raise UsageError(
            f"the runs have no task in common: {', '.join(first)} and {', '.join(second)}",
            "compare runs of the same tasks, or two runs of one task each",
        )
    _same_value(a, b, value, list(pairs))
    return {task: compare(one, two, known, max_removed=max_removed, level=level) for task, (one, two) in pairs.items()}


def comparison_table(found: dict[str, Comparison]) -> pa.Table:
    """Lay out every sublayer's difference A − B, a row a task and sublayer."""
    return pa.concat_tables([_compared(task, one) for task, one in found.items()])


def agreement_table(found: dict[str, Comparison]) -> pa.Table:
    """Lay out how far the rankings agree, a row a task."""
    rows = [
        {
            "task": task,
            "items_a": one.n_items[0],
            "items_b": one.n_items[1],
            "paired": str(one.paired).lower(),
            "kendall": one.agreement.kendall,
            "kendall_low": one.agreement.kendall_low,
            "kendall_high": one.agreement.kendall_high,
            "spearman": one.agreement.spearman,
            "spearman_low": one.agreement.spearman_low,
            "spearman_high": one.agreement.spearman_high,
            f"top{one.agreement.top_k}": one.agreement.overlap,
            "changed": int(np.sum(one.significant)),
        }
        for task, one in found.items()
    ]
    return pa.Table.from_pylist(rows)


def interaction_table(run: Run, value: str | None = None, level: float = 0.95) -> pa.Table:
    """Lay out the interactions of neighbouring sublayers, a row a task and pair.

    Raises:
        UsageError: no windows of two or more sublayers were removed.
    """
    parts = []
    for table in run.value_tables(value):
        found = interactions(table, level=level)
        columns = {
            "task": [table.task] * len(found.value),
            "first": [found.players[place] for place in found.first],
            "second": [found.players[place] for place in found.second],
            "value": found.value,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "p_adjusted": found.p_adjusted,
            "kind": [found.kind(pair) for pair in range(len(found.value))],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _compared(task: str, one: Comparison) -> pa.Table:
    return pa.table(
        {
            "task": [task] * len(one.players),
            "sublayer": list(one.players),
            "estimator": [one.estimator] * len(one.players),
            "value_a": one.value_a,
            "value_b": one.value_b,
            "difference": one.difference,
            "ci_low": one.ci_low,
            "ci_high": one.ci_high,
            "p_adjusted": one.p_adjusted,
            "significant": [str(bool(each)).lower() for each in one.significant],
        }
    )


def _same_value(a: Run, b: Run, value: str | None, tasks: list[str]) -> None:
    for task in tasks:
        one, _, two = task.partition(" / ")
        names = value or a.metric(one), value or b.metric(two or one)
        if names[0] != names[1]:
            raise UsageError(f"A is judged by {names[0]}, B by {names[1]}", "name one value for both with --value")
