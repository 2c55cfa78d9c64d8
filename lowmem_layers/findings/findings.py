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
from lowmem_layers.tasks.metrics import Metric, metric_named

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
class TaskLevel:
    """The full model's value on one task, by the task's own metric; `chance` is None where guessing has no level."""

    task: str
    n_items: int
    metric: Metric
    level: Means
    chance: float | None


@dataclass(frozen=True)
class Findings:
    """Everything that a run found, for whoever shows it.

    `sides` are importance by the task's own metric and by the gold answer's log-likelihood: one where these are the
    same, none where nothing was removed. `lines` say what matters most, `verdict` how a statement to stop at stands.
    """

    sides: tuple[Side, ...]
    tasks: tuple[TaskLevel, ...]
    lines: tuple[str, ...]
    verdict: str


def find(run: Run, level: float = 0.95) -> Findings:
    """Compute what a run found.

    Raises:
        RecordError: a file is damaged, or a task has no finished item.
    """
    from lowmem_layers.findings.statement import verdict

    tasks = []
    for table in run.value_tables():
        metric = metric_named(run.metric(table.task))
        chance = run.chance(table.task) if metric.has_chance else None
        tasks.append(TaskLevel(table.task, table.n_items, metric, coalition_means(table, [()], level), chance))
    sides: tuple[Side, ...] = ()
    if len(run.manifest.plan.coalitions) > 1:
        same = all(run.metric(task) == "loglikelihood" for task in run.tasks)
        gold = side(run, "loglikelihood", level)
        sides = (gold,) if same else (side(run, None, level), gold)
    return Findings(sides, tuple(tasks), tuple(cornerstone_lines(run, sides)) if sides else (), verdict(run))


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
        tuple(estimates(tables, run.manifest.design, level=level)),
    )


def scale_and_unit(value: str) -> tuple[float, str]:
    """Tell how a value is shown: fractions in points, all else in nats."""
    return (100.0, "points") if value in _FRACTIONS else (1.0, "nats")


def cornerstones_by_rule(run: Run, metric: Side) -> list[tuple[str, Cornerstones]]:
    """Judge every task whose metric has a chance level by the statistical rule of `game.cornerstone`.

    Its shares are those of the neighbourhood estimate (or of exact values, where those were measured), which removal
    orders alone do not give: then nothing is judged.
    """
    if run.manifest.design.estimator == "permutation":
        return []
    known: Estimator = run.manifest.design.estimator  # type: ignore[assignment]
    return [
        (table.task, cornerstones(table, run.chance(table.task), estimator=known))
        for table in metric.tables
        if run.metric(table.task) in ("acc", "acc_norm") and metric.value in ("acc", "acc_norm")
    ]


def cornerstone_lines(run: Run, sides: Sequence[Side]) -> list[str]:
    """Say which sublayers matter most: by the rule, a line a task, and the paper's top 3 by either value."""
    judged = cornerstones_by_rule(run, sides[0])
    lines = []
    for task, verdict in judged:
        n_items = next(table.n_items for table in sides[0].tables if table.task == task)
        names = ", ".join(verdict.names) or f"none certain after {n_items:,} items"
        lines.append(f"cornerstone sublayers of {task}: {names}")
    lines += [f"top {N_TOP} by {side.words}: {', '.join(top_sublayers(side.overall))}" for side in sides]
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
