"""Which items drive an estimate: what it would be without each of them, and how much of it the largest few carry.

An estimate is the mean of its items' contributions, so leaving items out has a closed form, exact and not a first-order
approximation: without a group g of n_g of the n items the estimate moves by (n_g θ − s_g) / (n − n_g), where θ is the
estimate and s_g the sum of the group's contributions.
Source: Efron 1982, "The jackknife, the bootstrap and other resampling plans", for the jackknife's influence values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import contributions, sum_by
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable

LARGEST = 0.01  # the share of units that counts as "the largest few"


@dataclass(frozen=True, eq=False)
class Drivers:
    """What each unit (an item, or a cluster of items) does to every estimate.

    `sizes` counts the items of a unit, `sums` adds up their contributions; `without` is the estimate with the unit left
    out (nan where no item would be left).
    Shapes: `value` (players,); `sizes` (units,); `sums`, `without` (units, players).
    """

    value: FloatArray
    sizes: IntArray
    sums: FloatArray
    without: FloatArray

    @property
    def n_largest(self) -> int:
        """Count the units that are 1 % of all, rounded up."""
        return ceil(LARGEST * len(self.sizes))

    def order(self, player: int) -> IntArray:
        """List the units by how far one estimate moves without them, the farthest first."""
        moved = np.abs(np.nan_to_num(self.without[:, player] - self.value[player]))
        return np.argsort(-moved, kind="stable")

    def largest(self) -> tuple[FloatArray, FloatArray]:
        """Give the share of every estimate that the largest 1 % of units carry, and the estimate without these.

        The largest are those that push the estimate farthest in its own direction. The share may exceed 1: the others
        then point the other way. It is nan for an estimate of 0, or one that is unknown.
        Shapes: two of (players,).
        """
        sign = np.where(self.value < 0, -1.0, 1.0)
        # Items that all contribute θ push nowhere: what counts is how far a unit's sum lies above its size's due.
        push = sign * (self.sums - self.sizes[:, None] * self.value)  # (units, players)
        top = np.argsort(-push, axis=0, kind="stable")[: self.n_largest]  # (largest, players)
        held, count = np.take_along_axis(self.sums, top, axis=0).sum(axis=0), self.sizes[top].sum(axis=0)
        total, n_items = self.sums.sum(axis=0), int(self.sizes.sum())
        share = np.divide(held, total, out=np.full(total.shape, np.nan), where=self.value != 0)
        left = np.divide(total - held, n_items - count, out=np.full(total.shape, np.nan), where=count < n_items)
        return share, left


def drivers(table: ValueTable, weights: FloatArray, *, by_cluster: bool = False) -> Drivers:
    """Leave out each item, or each cluster of items, of an estimate with these weights.

    Shapes: `weights` (players, coalitions).

    Raises:
        UsageError: a single item.
    """
    if table.n_items < 2:
        raise UsageError("a single item drives everything", "measure at least two items")
    per_item = contributions(table, weights)  # (items, players)
    codes = table.cluster_codes if by_cluster else np.arange(table.n_items)
    sizes = np.bincount(codes)
    value, sums = per_item.mean(axis=0), sum_by(per_item, codes, len(sizes))
    rest = (table.n_items - sizes)[:, None]
    without = np.divide(table.n_items * value - sums, rest, out=np.full(sums.shape, np.nan), where=rest > 0)
    return Drivers(value, sizes, sums, without)
