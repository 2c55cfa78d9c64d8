"""Importance of every sublayer from tables of values, with its uncertainty: the room's main function.

At the edges: a non-finite value makes nan of the estimates that use it and of all shares (their sum is unknown), and
widens the others' rank intervals by one place each; one item or one cluster has values but nan intervals; a task all
right or all wrong has value 0 everywhere, no shares, and intervals that narrow as items grow; ties share the best rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.shares import share_intervals, shares
from lowmem_layers.game.estimators.permutation import permutation_influence
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.players.coalitions import Order
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, holds_from, mean_interval
from lowmem_layers.game.uncertainty.ranks import rank_sets, ranks
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable, as_tables


@dataclass(frozen=True, eq=False)
class Importance:
    """What one estimator says about every player on one task (or on the mean of several, task `all`).

    Shapes: every array (players,), in execution order.
    Intervals are nan with fewer than 2 clusters (items, where these are not clustered).
    Units: `value` and `ablation_drop` those of the metric; `share` a fraction of the sum of the clipped values; ranks
    from 1 (ties share the best one). `top_k_decision`: 1 in the top k at `level`, −1 not in it at `level`, 0 undecided.
    `rank_together` bounds all ranks at once. `ci_holds_from`: the items from which on skewed values' intervals hold.
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
    rank_together: Interval[FloatArray]
    ci_holds_from: FloatArray

    @property
    def contradicts(self) -> NDArray[np.bool_]:
        """Tell whose estimate and drop have certainly opposite signs. Shapes: (players,)."""
        negative, positive = self.ci.high < 0, self.ci.low > 0
        return (negative & (self.ablation_ci.low > 0)) | (positive & (self.ablation_ci.high < 0))

    @property
    def unreached(self) -> NDArray[np.bool_]:
        """Tell whom no removal order reached before its cut: their 0 is no measurement. Shapes: (players,)."""
        unknown = np.isnan(self.ci.low)
        return unknown & (self.estimator == "permutation") & ~unknown.all()

    @property
    def certain_top(self) -> tuple[str, ...]:
        """Name who is certainly in the top k, all of them together, the most important first."""
        return tuple(self.players[p] for p in self.order() if self.rank_together.high[p] <= self.top_k)

    def order(self) -> list[int]:
        """List the players' positions from the most important; equal values in execution order, nan last."""
        return [int(p) for p in np.argsort(-self.value, kind="stable")]


def estimate(
    tables: ValueTable | Sequence[ValueTable],
    estimator: Estimator = "neighbourhood",
    *,
    task: str = "all",
    max_removed: int | None = None,
    level: float = 0.95,
    top_k: int = 3,
    seed: int = 0,
) -> Importance:
    """Estimate every player's importance on one task, or averaged over several (every task the same weight).

    Values and drops are averaged, ranks are those of the averages, shares are averaged after each task's own clipping
    and normalisation (as the paper does). The tasks' errors are independent.
    `task` names the mean of several tasks; one task keeps its own name. `max_removed` is L of the window estimators
    (None: as large as the tables' windows go).

    Raises:
        UsageError: no tables, tables of different players, a coalition that the estimator needs was not measured (the
            message names it), or a bad option.
    """
    listed = as_tables(tables)
    weights = [estimator_weights(estimator, t.coalitions, t.players, max_removed) for t in listed]
    values = [estimate_influence(table, each) for table, each in zip(listed, weights, strict=True)]
    drops = [estimate_influence(t, estimator_weights("ablation", t.coalitions, t.players)) for t in listed]
    return _importance(listed, estimator, task, values, drops, level, top_k, seed)


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
    listed = as_tables(tables)
    chances = list(chance) if isinstance(chance, Sequence) else [chance] * len(listed)
    values = [permutation_influence(table, orders, c, cuts=cuts) for table, c in zip(listed, chances, strict=True)]
    drops = []
    for table in listed:
        if all((p,) in table for p in range(table.n_players)):
            weights = estimator_weights("ablation", table.coalitions, table.players)
            drops.append(estimate_influence(table, weights))
        else:
            unknown = np.full(table.n_players, np.nan)
            drops.append(Influence(unknown, np.zeros((1, table.n_players)), unknown))
    return _importance(listed, "permutation", task, values, drops, level, top_k, seed)


def _importance(
    tables: list[ValueTable],
    estimator: str,
    task: str,
    values: list[Influence],
    drops: list[Influence],
    level: float,
    top_k: int,
    seed: int,
) -> Importance:
    """Put the answer together from each task's estimates and ablation drops."""
    check_level(level)
    if top_k < 1:
        raise UsageError(f"a top {top_k}", "choose a top of at least 1")
    value, drop = mean_over_tasks(values), mean_over_tasks(drops)
    sets = rank_sets(value, level, seed)
    rank_ci, n_items = sets.each, sum(table.n_items for table in tables)
    decision = np.where(rank_ci.high <= top_k, 1, np.where(rank_ci.low > top_k, -1, 0))
    return Importance(
        task=tables[0].task if len(tables) == 1 else task,
        estimator=estimator,
        players=tables[0].players,
        n_items=n_items,
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
        rank_together=sets.together,
        ci_holds_from=holds_from(value, n_items),
    )
