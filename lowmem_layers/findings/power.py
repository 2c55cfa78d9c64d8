"""How long a run must be: the items that resolve an effect of a given size, sublayer by sublayer, by each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.importance import ESTIMATORS
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import minus
from lowmem_layers.game.answers.power import MOST_ITEMS, ItemsNeeded, items_needed
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import two_sided_p
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable
from lowmem_layers.record.spec import one_of
from lowmem_layers.tasks.metrics import VALUES, metric_named


@dataclass(frozen=True, eq=False)
class Foretold:
    """The items that one estimator needs on one task (or on the mean of several, task `all`).

    Shapes: `estimate` and `resolved` (whether its interval excludes 0 with the run's items) (players,).
    """

    task: str
    estimator: Estimator
    players: tuple[str, ...]
    n_items: int
    n_clusters: int
    estimate: FloatArray
    resolved: IntArray
    needed: ItemsNeeded

    @property
    def typical(self) -> float:
        """Give the items that the median player needs; nan where no spread is known."""
        known = self.needed.items[~np.isnan(self.needed.items)]
        return float(np.median(known)) if len(known) else float("nan")

    @property
    def worst(self) -> int:
        """Find the player that needs the most items."""
        return int(np.argmax(np.nan_to_num(self.needed.items, nan=-1.0, posinf=np.inf)))


def foretell(
    run: Run,
    value: str | None = None,
    estimator: str | None = None,
    size: float | None = None,
    level: float = 0.95,
    power: float = 0.8,
) -> list[Foretold]:
    """Foretell the items for every task and their mean, by the run's own estimator and by the ablation drop.

    `estimator` names a single one instead. `size` None is each metric's usual effect; the mean over tasks whose usual
    effects differ is then left out.

    Raises:
        UsageError: nothing was removed, removal orders (whose own noise does not shrink with items), or a bad option.
    """
    design = run.manifest.design
    name = design.estimator if estimator is None else one_of("--estimator", estimator, ESTIMATORS)
    if name == "permutation":
        raise UsageError(
            "more items do not make the noise of removal orders smaller", "foretell the drops: --estimator ablation"
        )
    tables = run.value_tables(value)
    usual = [metric_named(value or run.metric(task)).usual_effect for task in run.tasks]
    groups = [([table], each) for table, each in zip(tables, usual, strict=True)]
    if len(tables) > 1 and (size is not None or len(set(usual)) == 1):
        groups.append((tables, usual[0]))
    wanted: list[Estimator] = [name] if estimator is not None or name == "ablation" else [name, "ablation"]
    return [
        _foretold(group, each, each_size if size is None else size, level, power)
        for group, each_size in groups
        for each in wanted
    ]


def _foretold(tables: Sequence[ValueTable], estimator: Estimator, size: float, level: float, power: float) -> Foretold:
    weights = [estimator_weights(estimator, table.coalitions, table.players) for table in tables]
    now = mean_over_tasks([estimate_influence(table, each) for table, each in zip(tables, weights, strict=True)])
    return Foretold(
        task=tables[0].task if len(tables) == 1 else "all",
        estimator=estimator,
        players=tables[0].players,
        n_items=sum(table.n_items for table in tables),
        n_clusters=sum(table.n_clusters for table in tables),
        estimate=now.value,
        resolved=(two_sided_p(now) < 1.0 - level).astype(np.int64),
        needed=items_needed(tables, weights, size, level=level, power=power),
    )


def power_table(found: Sequence[Foretold]) -> pa.Table:
    """Lay out one row for each task, estimator and player. Items that are unknown, or beyond 10⁹, are null."""
    parts = []
    for each in found:
        n, needed = len(each.players), each.needed
        columns: dict[str, Any] = {
            "task": [each.task] * n,
            "sublayer": list(each.players),
            "estimator": [each.estimator] * n,
            "value": each.estimate,
            "size": [needed.size] * n,
            "items": _whole(needed.items),
            "items_low": _whole(needed.ci.low),
            "items_high": _whole(needed.ci.high),
            "items_unpaired": _whole(needed.unpaired),
            "design_effect": needed.design_effect,
            "n_items": [each.n_items] * n,
            "n_clusters": [each.n_clusters] * n,
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def power_lines(found: Sequence[Foretold]) -> list[str]:
    """Say what the median sublayer needs, and which needs the most: a line for each task and estimator."""
    lines = []
    for each in found:
        needed = each.needed
        if np.isnan(each.typical):
            lines.append(
                f"{each.task}, {each.estimator}: unknown, since {each.n_clusters} cluster of items has no spread"
            )
            continue
        typical, most = count_items(each.typical), count_items(needed.items[each.worst])
        known, ends = np.isfinite(needed.ci.low) & ~np.isnan(needed.ci.high), ""
        if known.any():  # two items do not say how well they know their own spread
            low, high = (count_items(float(np.median(end[known]))) for end in (needed.ci.low, needed.ci.high))
            ends = f" [{low}, {high}]"
        lines.append(
            f"{each.task}, {each.estimator}: {typical} items{ends} resolve an effect of {needed.size:g} for "
            f"the median sublayer, {most} for {each.players[each.worst]}, which needs the most "
            f"({100 * needed.power:.0f} % power at {100 * needed.level:g} %); this run has {each.n_items:,}, and "
            f"{int(each.resolved.sum())} of {len(each.players)} effects are resolved"
        )
    return [minus(line) for line in lines]


def value_lines(run: Run, level: float = 0.95, power: float = 0.8) -> list[str]:
    """Say what each value needs for its usual effect, by the ablation drop, task by task: a line for each task."""
    allowed = [name for name in VALUES if run.values.allows(name)]
    run.values.collect(*allowed)
    said: dict[str, list[str]] = {task: [] for task in run.tasks}
    for name in allowed:
        for each in foretell(run, name, "ablation", None, level, power):
            if each.task in said and not np.isnan(each.typical):
                said[each.task].append(
                    f"{name} {count_items(each.typical)} items for {each.needed.size:g} "
                    f"({int(each.resolved.sum())} resolved)"
                )
    return [f"{task}, drops by each value: {', '.join(parts)}" for task, parts in said.items() if parts]


def _whole(numbers: FloatArray) -> pa.Array:
    known = np.isfinite(numbers)
    return pa.array(np.where(known, numbers, 0.0).astype(np.int64), mask=~known)


def count_items(items: float) -> str:
    """Write a number of items."""
    if np.isnan(items):
        return "unknown"
    return f"{items:,.0f}" if np.isfinite(items) else f"over {MOST_ITEMS:,.0f}"
