"""What a run found: importance by the task's metric and by the gold answer's log-likelihood, and the cornerstones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowmem_layers.findings.importance import estimates
from lowmem_layers.game.answers.cornerstone import Cornerstones, cornerstones
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.estimators.weights import Estimator
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import Interval, mean_interval
from lowmem_layers.game.values.table import FloatArray, ValueTable

if TYPE_CHECKING:
    from lowmem_layers.findings.run import Run

METRIC_WORDS = {
    "acc": "accuracy",
    "acc_norm": "accuracy (length-normalised)",
    "loglikelihood": "gold answer's log-likelihood",
    "margin": "margin over the best other choice",
    "probability": "probability of the gold answer",
    "nll_per_byte": "log-likelihood per byte",
}
_FRACTIONS = frozenset({"acc", "acc_norm", "probability"})
N_TOP = 3


@dataclass(frozen=True)
class Means:
    """v(S) of some coalitions, with intervals. Shapes: (coalitions,) each."""

    value: FloatArray
    ci: Interval[FloatArray]


@dataclass(frozen=True)
class Side:
    """Importance by one value.

    Shapes: `found` has an entry a task, then one for their mean where there are several; `tables` an entry a task.
    `scale` turns values into the unit shown: 100 for fractions (points), 1 for nats.
    """

    value: str
    words: str
    unit: str
    scale: float
    tables: tuple[ValueTable, ...]
    found: tuple[Importance, ...]

    @property
    def overall(self) -> Importance:
        """Take the mean over tasks, or the only task."""
        return self.found[-1]


@dataclass(frozen=True)
class Findings:
    """Both sides of a run: by the task's own metric, and by the gold answer's log-likelihood."""

    metric: Side
    gold: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Give both, the metric first."""
        return self.metric, self.gold


def find(run: Run, level: float = 0.95) -> Findings | None:
    """Compute what a run found; None where no sublayer was removed.

    Raises:
        RecordError: a file is damaged, or a task has no finished item.
    """
    if len(run.manifest.plan.coalitions) < 2:
        return None
    return Findings(side(run, None, level), side(run, "loglikelihood", level))


def side(run: Run, value: str | None, level: float = 0.95) -> Side:
    """Compute importance by one value; None means each task's own metric.

    Raises:
        UsageError: an unknown value, or one that a task does not allow.
    """
    tables = tuple(run.value_tables(value))
    names = {value or run.metric(task) for task in run.tasks}
    name = names.pop() if len(names) == 1 else "acc"
    scale, unit = scale_and_unit(name)
    words = METRIC_WORDS[name] if value or len(run.tasks) == 1 or name not in _FRACTIONS else "accuracy"
    return Side(
        name,
        words,
        unit,
        scale,
        tables,
        tuple(estimates(tables, run.manifest.game, level=level)),
    )


def scale_and_unit(value: str) -> tuple[float, str]:
    """Tell how a value is shown: fractions in points, all else in nats."""
    return (100.0, "points") if value in _FRACTIONS else (1.0, "nats")


def cornerstones_by_rule(run: Run, metric: Side) -> list[tuple[str, Cornerstones]]:
    """Judge every task whose metric has a chance level by the statistical rule of `game.cornerstone`.

    Its shares are those of the neighbourhood estimate (or of exact values, where those were measured), which removal
    orders alone do not give: then nothing is judged.
    """
    if run.manifest.game.estimator == "permutation":
        return []
    known: Estimator = run.manifest.game.estimator  # type: ignore[assignment]
    return [
        (table.task, cornerstones(table, run.chance(table.task), estimator=known))
        for table in metric.tables
        if run.metric(table.task) in ("acc", "acc_norm") and metric.value in ("acc", "acc_norm")
    ]


def cornerstone_lines(run: Run, findings: Findings) -> list[str]:
    """Say which sublayers matter most: by the rule, a line a task, and the paper's top 3 by either value."""
    judged = cornerstones_by_rule(run, findings.metric)
    lines = []
    for task, verdict in judged:
        n_items = next(table.n_items for table in findings.metric.tables if table.task == task)
        names = ", ".join(verdict.names) or f"none certain after {n_items:,} items"
        lines.append(f"cornerstone sublayers of {task}: {names}")
    lines += [
        f"top {N_TOP} by {side.words}: {', '.join(top_sublayers(side.overall))}"
        for side in dict.fromkeys(findings.sides)
    ]
    return lines + [f"(rule: {verdict.rule})" for _, verdict in judged[:1]]


def top_sublayers(found: Importance, count: int = N_TOP) -> list[str]:
    """Name the sublayers with the largest estimates, the paper's choice of cornerstones."""
    order = [position for position in found.order() if np.isfinite(found.value[position])]
    return [found.players[position] for position in order[:count]]


def coalition_means(table: ValueTable, coalitions: Sequence[Removed], level: float = 0.95) -> Means:
    """Average v(S) over items, with clustered intervals (of accuracies: within 0 and 1)."""
    weights = np.zeros((len(coalitions), len(table.coalitions)))
    weights[np.arange(len(coalitions)), [table.column_index(removed) for removed in coalitions]] = 1.0
    influence = estimate_influence(table, weights)
    ci = mean_interval(influence, level)
    return Means(influence.value, ci.clip(0.0, 1.0) if table.is_binary else ci)
