"""Interactions of neighbouring sublayers: does removing both cost more or less than the two removals alone?

For a window i..j the interaction is the second-order difference at its two ends, given that what lies between is gone:

    I(i, j) = v(−{i+1..j−1}) − v(−{i..j−1}) − v(−{i+1..j}) + v(−{i..j})

Sign, as in the Shapley interaction index: negative means *redundancy* (substitutes: each covers for the other, so that
losing both costs more than the two losses added), positive means *synergy* (complements: they only work together, so
that losing the second costs little once the first is gone). A task's floor looks like synergy too: where one removal
alone brings an accuracy to chance, the second has nothing left to cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, mean_interval, two_sided_p
from lowmem_layers.game.uncertainty.multiplicity import adjusted
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable, as_tables, missing_coalition


@dataclass(frozen=True, eq=False)
class Interactions:
    """Pairwise interactions of sublayers at most L − 1 places apart.

    Shapes: every array (pairs,); `first` and `second` are positions. Intervals are each at `level`; the adjusted
    p values (Holm) hold for all pairs together, and `significant` are the pairs where they lie below 1 − `level`.
    Units: those of the metric.
    """

    players: tuple[str, ...]
    first: IntArray
    second: IntArray
    value: FloatArray
    ci: Interval[FloatArray]
    p_adjusted: FloatArray
    significant: NDArray[np.bool_]
    level: float

    def kind(self, pair: int) -> str:
        """Name a pair's interaction: redundancy, synergy, or not significant, which proves no absence of either."""
        if not self.significant[pair]:
            return "not significant"
        return "redundancy" if self.value[pair] < 0 else "synergy"


def interaction_pairs(n_players: int, max_removed: int) -> list[tuple[int, int]]:
    """List the pairs whose windows were measured: i < j ≤ i + L − 1, nearest first within each i."""
    return [(i, j) for i in range(n_players) for j in range(i + 1, min(i + max_removed, n_players))]


def interaction_weights(
    pairs: Sequence[tuple[int, int]], coalitions: Sequence[Removed], players: Sequence[str]
) -> FloatArray:
    """Give every pair's second-order difference as weights over the coalitions.

    Shapes: (pairs, coalitions).

    Raises:
        UsageError: a coalition that a pair needs was not measured.
    """
    index = {removed: column for column, removed in enumerate(coalitions)}
    weights = np.zeros((len(pairs), len(coalitions)))
    for row, (i, j) in enumerate(pairs):
        inside = tuple(range(i + 1, j))  # what lies between the two, removed in all four coalitions
        for removed, sign in ((inside, 1.0), ((i, *inside), -1.0), ((*inside, j), -1.0), ((i, *inside, j), 1.0)):
            if removed not in index:
                raise missing_coalition(removed, players)
            weights[row, index[removed]] += sign
    return weights


def interactions(
    tables: ValueTable | Sequence[ValueTable], *, max_removed: int | None = None, level: float = 0.95
) -> Interactions:
    """Estimate the interactions of neighbouring sublayers (the mean over tasks, where several tables are given).

    Raises:
        UsageError: no windows of at least 2 sublayers, or one of them missing; tables of different players.
    """
    check_level(level)
    listed = as_tables(tables)
    players = listed[0].players
    largest = largest_window(listed[0].coalitions, len(players)) if max_removed is None else max_removed
    pairs = interaction_pairs(len(players), largest)
    if not pairs:
        raise UsageError(f"windows of up to {largest} hold no pair", "measure windows of at least 2 sublayers")
    # Half a coin-flip item: with a whole one the intervals of such differences of drops cover 98–99 %.
    weights = [interaction_weights(pairs, table.coalitions, players) for table in listed]
    parts = [estimate_influence(table, each, 0.5) for table, each in zip(listed, weights, strict=True)]
    estimate = mean_over_tasks(parts)
    p_adjusted = adjusted(two_sided_p(estimate), "holm")
    return Interactions(
        players,
        np.array([i for i, _ in pairs]),
        np.array([j for _, j in pairs]),
        estimate.value,
        mean_interval(estimate, level),
        p_adjusted,
        p_adjusted < 1.0 - level,
        level,
    )
