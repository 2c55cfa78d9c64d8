"""Importance of every sublayer from a table of values, with its uncertainty: the front door of this room.

At the edges: a non-finite value makes nan of the estimates that use it and of all shares (their sum is unknown), and
widens the others' rank intervals by one place each; one item or one cluster has values but nan intervals; a task all
right or all wrong has value 0 everywhere, no shares, and intervals that narrow as items grow; ties share the best rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.shares import share_intervals, shares
from lowmem_layers.game.estimators.permutation import Order, permutation_influence
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, mean_interval
from lowmem_layers.game.uncertainty.ranks import rank_intervals, ranks
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable


@dataclass(frozen=True, eq=False)
class Importance:
    """What one estimator says about every player on one task (or on the mean of several, task `all`).

    Shapes: every array (players,), in execution order.
    Intervals are nan with fewer than 2 clusters (items, where these are not clustered).
    Units: `value` and `ablation_drop` those of the metric; `share` a fraction of the sum of the clipped values; ranks
    from 1 (ties share the best one). `top_k_decision`: 1 in the top k at `level`, −1 not in it at `level`, 0 undecided.
    """

    task: str
    estimator: str
    players: tuple[str, ...]
    n_items: int
    n_clusters: int
    level: float
    value: FloatArray
    ci: Interval[FloatArray]
    ablation_drop: FloatArray
    ablation_ci: Interval[FloatArray]
    share: FloatArray
    share_ci: Interval[FloatArray]
    rank: FloatArray
    rank_ci: Interval[FloatArray]
    top_k: int
    top_k_decision: IntArray

    def order(self) -> list[int]:
        """List the players' positions from the most important; equal values in execution order, nan last."""
        return [int(p) for p in np.argsort(-self.value, kind="stable")]


def estimate(
    table: ValueTable,
    estimator: Estimator = "neighbourhood",
    *,
    max_removed: int | None = None,
    level: float = 0.95,
    top_k: int = 3,
    seed: int = 0,
) -> Importance:
    """Estimate every player's importance on one task.

    `max_removed` is L of the window estimators (None: as large as the table's windows go).

    Raises:
        UsageError: a coalition that the estimator needs was not measured (it is named), or a bad option.
    """
    return combine([table], estimator, task=table.task, max_removed=max_removed, level=level, top_k=top_k, seed=seed)


def combine(
    tables: Sequence[ValueTable],
    estimator: Estimator = "neighbourhood",
    *,
    task: str = "all",
    max_removed: int | None = None,
    level: float = 0.95,
    top_k: int = 3,
    seed: int = 0,
) -> Importance:
    """Average importance over tasks (every task the same weight); the tasks' errors are independent.

    Values and drops are averaged, ranks are those of the averages, shares are averaged after each task's own clipping
    and normalisation (as the paper does).

    Raises:
        UsageError: no tables, tables of different players, a missing coalition, or a bad option.
    """
    _check(tables, level, top_k)
    values = [_influence(table, estimator, max_removed) for table in tables]
    drops = [_influence(table, "ablation", None) for table in tables]
    return _importance(tables, estimator, task, values, drops, level, top_k, seed)


def estimate_permutations(
    tables: ValueTable | Sequence[ValueTable],
    orders: Sequence[Order],
    *,
    chance: float | Sequence[float] | None = None,
    cuts: Sequence[int] | None = None,
    task: str = "all",
    level: float = 0.95,
    top_k: int = 3,
    seed: int = 0,
) -> Importance:
    """Estimate Shapley values from sampled removal orders; intervals hold the noise of items and of orders.

    Several tasks share their orders, so that averaging over tasks makes the items' noise smaller, not the orders'.
    `chance` (one for all tasks, or one each) cuts a walk where it has reached chance within noise; None never cuts.
    `cuts` are walks' lengths settled before, one an order.
    Ablation drops are nan where the table lacks a single removal.

    Raises:
        UsageError: a coalition of an order was not measured, or a bad option.
    """
    listed = [tables] if isinstance(tables, ValueTable) else list(tables)
    _check(listed, level, top_k)
    chances = list(chance) if isinstance(chance, Sequence) else [chance] * len(listed)
    values = [permutation_influence(table, orders, c, cuts=cuts) for table, c in zip(listed, chances, strict=True)]
    drops = [_drops_where_measured(table) for table in listed]
    name = listed[0].task if len(listed) == 1 else task
    return _importance(listed, "permutation", name, values, drops, level, top_k, seed)


def _importance(
    tables: Sequence[ValueTable],
    estimator: str,
    task: str,
    values: list[Influence],
    drops: list[Influence],
    level: float,
    top_k: int,
    seed: int,
) -> Importance:
    value, drop = mean_over_tasks(values), mean_over_tasks(drops)
    rank_ci = rank_intervals(value, level, seed)
    decision = np.where(rank_ci.high <= top_k, 1, np.where(rank_ci.low > top_k, -1, 0))
    return Importance(
        task=task,
        estimator=estimator,
        players=tables[0].players,
        n_items=sum(table.n_items for table in tables),
        n_clusters=sum(table.n_clusters for table in tables),
        level=level,
        value=value.value,
        ci=mean_interval(value, level),
        ablation_drop=drop.value,
        ablation_ci=mean_interval(drop, level),
        share=np.mean([shares(part.value) for part in values], axis=0),
        share_ci=share_intervals(values, level),
        rank=ranks(value.value),
        rank_ci=rank_ci,
        top_k=top_k,
        top_k_decision=decision.astype(np.int64),
    )


def _drops_where_measured(table: ValueTable) -> Influence:
    if all((p,) in table for p in range(table.n_players)):
        return _influence(table, "ablation", None)
    unknown = np.full(table.n_players, np.nan)
    return Influence(unknown, np.zeros((1, table.n_players)), unknown)


def _influence(table: ValueTable, estimator: Estimator, max_removed: int | None) -> Influence:
    weights = estimator_weights(estimator, table.coalitions, table.players, max_removed)
    return estimate_influence(table, weights)


def _check(tables: Sequence[ValueTable], level: float, top_k: int) -> None:
    if not tables:
        raise UsageError("no tables to combine", "give the table of at least one task")
    for table in tables[1:]:
        if table.players != tables[0].players:
            raise UsageError(
                f"tasks {tables[0].task!r} and {table.task!r} have different players",
                "combine tasks of one model only",
            )
    check_level(level)
    if top_k < 1:
        raise UsageError(f"a top {top_k}", "choose a top of at least 1")
