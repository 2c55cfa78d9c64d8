"""What a run found, computed once and handed to whoever shows it: page, summary, tables, notebook.

In goes a run; out come the full model's level on every task, importance by the tasks' own metric and by the gold
answer's log-likelihood, interactions, cornerstones, the paper's tables, and what a statement to stop at has proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowmem_layers.findings.cautions import cautions, chance_words
from lowmem_layers.findings.explained import explained_lines
from lowmem_layers.findings.importance import N_TOP, estimates
from lowmem_layers.findings.paper import refusal, tables_of
from lowmem_layers.findings.perplexity import perplexity_lines
from lowmem_layers.findings.statement import verdict
from lowmem_layers.findings.words import counted
from lowmem_layers.game.answers.cornerstone import Cornerstones, cornerstones
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.answers.interactions import Interactions, interactions
from lowmem_layers.game.answers.paper_tables import PaperTables
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import Interval, mean_interval
from lowmem_layers.game.values.table import FloatArray, ValueTable
from lowmem_layers.model.change import REMOVE
from lowmem_layers.record.items import ItemRow
from lowmem_layers.tasks.metrics import Metric, metric_named

if TYPE_CHECKING:
    from lowmem_layers.findings.run import Run


@dataclass(frozen=True, eq=False)
class Means:
    """v(S) of some coalitions, with intervals. Shapes: (coalitions,) each."""

    value: FloatArray
    ci: Interval[FloatArray]


@dataclass(frozen=True, eq=False)
class Side:
    """Importance by one value: each task's own metric, or the gold answer's log-likelihood.

    `value` names the side in file names, `words` in sentences, `short` in narrow columns. Times `scale`, differences
    are shown in `unit`: 100 and points for fractions, 1 for everything else, and where the tasks' metrics have no
    common unit.

    Shapes: `tables`, `full` and `singles` have one entry for each task: the values, the full model's mean, and the
    means with one player removed (players,). `found` and `interactions` have one more, for the mean over tasks, where
    there are several tasks. `interactions` is empty where no two neighbours were removed together, or only by chance.
    """

    value: str
    words: str
    short: str
    unit: str
    scale: float
    tables: tuple[ValueTable, ...]
    found: tuple[Importance, ...]
    full: tuple[Means, ...]
    singles: tuple[Means, ...]
    interactions: tuple[Interactions, ...]

    @property
    def overall(self) -> Importance:
        """Take the mean over tasks, or the only task."""
        return self.found[-1]


@dataclass(frozen=True, eq=False)
class TaskLevel:
    """The full model's value on one task, by the task's own metric; `chance` is None where guessing has no level."""

    task: str
    n_items: int
    metric: Metric
    level: Means
    chance: float | None


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a run found, for whoever shows it.

    `sides` are importance by the task's own metric and by the value that the run asks for, else by the gold answer's
    log-likelihood: one where these are the same, none where nothing was removed. `cornerstones` has the verdict on each
    task whose metric has a chance level. `paper` holds the paper's tables 1 to 4, where the run is one of their kind.
    `lines` say what matters most, `cautions` what must be known before any number is read, `verdict` what a statement
    to stop at has proven, `cut` which items were too long for the model, `perplexities` those of the harness' tasks
    that have one.
    """

    sides: tuple[Side, ...]
    tasks: tuple[TaskLevel, ...]
    cornerstones: tuple[tuple[str, Cornerstones], ...]
    paper: PaperTables | None
    lines: tuple[str, ...]
    verdict: str
    cut: str
    cautions: tuple[str, ...] = ()
    perplexities: tuple[str, ...] = ()


def compute_findings(run: Run) -> Findings:
    """Compute what a run found, reading every tile once.

    Raises:
        RecordError: a file is damaged, or a task has no finished item.
        UsageError: a task's own metric compares choices, and its items have only one.
    """
    # 1) every value that is needed below, in one pass over the tiles
    manifest = run.manifest
    asked = manifest.resolved.value
    if asked is None or not run.values.allows(asked):  # 0.1 let a run ask for what its items lack
        asked = "loglikelihood"
    run.values.collect(None, "loglikelihood", asked)

    # 2) importance by either value: by one where they are the same, by none where nothing was removed
    metrics = [metric_named(run.metric(task)) for task in run.tasks]
    names = {metric.name for metric in metrics}
    sides: tuple[Side, ...] = ()
    if len(manifest.plan.coalitions) > 1:
        other = "loglikelihood" if names == {asked} else asked
        sides = (side(run, None),) if names == {other} else (side(run, None), side(run, other))

    # 3) the full model on every task
    own = run.value_tables()
    levels = sides[0].full if sides else tuple(coalition_means(table, [()]) for table in own)
    tasks = tuple(
        TaskLevel(table.task, table.n_items, metric, level, run.chance(table.task) if metric.has_chance else None)
        for table, metric, level in zip(own, metrics, levels, strict=True)
    )

    # 4) cornerstones by the rule, which is about removals, and whose shares removal orders alone do not give
    estimator = manifest.design.estimator
    judged: tuple[tuple[str, Cornerstones], ...] = ()
    if sides and estimator != "permutation" and manifest.change == REMOVE:
        judged = tuple(
            (each.task, cornerstones(table, each.chance, estimator=estimator))
            for each, table in zip(tasks, own, strict=True)
            if each.chance is not None
        )
    paper = tables_of([run]) if sides and refusal(run) is None else None
    fits = [(side.words, side.tables) for side in sides] if manifest.design.coalitions == "windows" else []
    lines = (*cornerstone_lines(judged, tasks, sides), *explained_lines(fits))
    found = [(side.words, side.unit, side.scale, side.overall) for side in sides]
    careful = cautions([(each.task, each.level.ci.low[0], each.chance) for each in tasks], found)
    cut, perplexities = cut_line(run.values.rows_done), perplexity_lines(run)
    return Findings(sides, tasks, judged, paper, lines, verdict(run), cut, careful, perplexities)


def side(run: Run, value: str | None) -> Side:
    """Compute importance by one value; None means each task's own metric.

    Raises:
        UsageError: an unknown value, or one that a task does not allow.
    """
    tables, design = run.value_tables(value), run.manifest.design
    metrics = [metric_named(value or run.metric(task)) for task in run.tasks]
    first, names = metrics[0], {metric.name for metric in metrics}
    # How the side is called and in which unit it is shown, where the tasks have one metric, accuracies, or neither
    called, words, short = first.name, first.words, first.short
    unit, scale = first.unit, first.scale
    if value is None and len(tables) > 1 and all(metric.has_chance for metric in metrics):
        called, words = (called if len(names) == 1 else "acc"), "accuracy"
    elif len(names) > 1:
        called, words, short = "metric", "each task's own metric", "metric"
        if len({metric.unit for metric in metrics}) > 1:
            unit, scale = "each task's own unit", 1.0
    # Removal orders hold windows of neighbours, too, but only by chance.
    paired = design.coalitions != "permutations" and largest_window(tables[0].coalitions, tables[0].n_players) >= 2
    groups = [[table] for table in tables] + ([tables] if len(tables) > 1 else [])
    alone = [(player,) for player in range(tables[0].n_players)]
    return Side(
        value=called,
        words=words,
        short=short,
        unit=unit,
        scale=scale,
        tables=tuple(tables),
        found=tuple(estimates(tables, design)),
        full=tuple(coalition_means(table, [()]) for table in tables),
        singles=tuple(coalition_means(table, alone) for table in tables),
        interactions=tuple(interactions(group) for group in groups) if paired else (),
    )


def cornerstone_lines(
    judged: Sequence[tuple[str, Cornerstones]], tasks: Sequence[TaskLevel], sides: Sequence[Side]
) -> list[str]:
    """Say which sublayers matter most: by the rule, for each task, and the paper's top 3, for each side."""
    after = {each.task: f"none certain after {counted(each.n_items, 'item')}" for each in tasks}
    lines = [f"cornerstone sublayers of {task}: {', '.join(found.names) or after[task]}" for task, found in judged]
    for side in sides:
        sure = ", ".join(side.overall.certain_top)
        lines.append(
            f"top {N_TOP} by {side.words}: {', '.join(top_sublayers(side.overall))} "
            f"({f'certain at {100 * side.overall.level:g} % together: {sure}' if sure else 'none of them certain'})"
        )
    return lines + [f"(rule: {found.rule})" for _, found in judged[:1]]


def cut_line(rows: Sequence[ItemRow]) -> str:
    """Say in one line which tasks have items that were too long for the model; empty where there are none."""
    told = []
    for task in dict.fromkeys(row.task for row in rows):
        most = [max(lost or 0 for lost in row.n_cut) for row in rows if row.task == task]  # (items of the task,)
        n_cut = sum(lost > 0 for lost in most)
        if n_cut:
            told.append(f"{n_cut:,} of {len(most):,} items of {task} (up to {max(most):,} tokens)")
    return f"too long for the model, and cut on the left: {', '.join(told)}" if told else ""


def top_sublayers(found: Importance, count: int = N_TOP) -> list[str]:
    """Name the sublayers with the largest estimates, the paper's choice of cornerstones; none that is not measured."""
    measured = np.isfinite(found.value) & ~found.unreached
    order = [position for position in found.order() if measured[position]]
    return [found.players[position] for position in order[:count]]


def chance_line(run: Run, value: str | None = None) -> str:
    """Say on which tasks the full model is not certainly above chance; nothing where `value` is no accuracy."""
    levels = [
        (table.task, coalition_means(table, [()]).ci.low[0], run.chance(table.task))
        for table in run.value_tables(value)
        if metric_named(value or run.metric(table.task)).has_chance
    ]
    return chance_words(levels)


def coalition_means(table: ValueTable, coalitions: Sequence[Removed], level: float = 0.95) -> Means:
    """Average v(S) over items, with clustered intervals."""
    weights = np.zeros((len(coalitions), len(table.coalitions)))  # each row takes one coalition's column
    weights[np.arange(len(coalitions)), [table.column_index(removed) for removed in coalitions]] = 1.0
    influence = estimate_influence(table, weights)
    return Means(influence.value, mean_interval(influence, level))
