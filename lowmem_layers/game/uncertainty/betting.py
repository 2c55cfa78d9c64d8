"""Evidence about means of bounded values, valid whatever their distribution: the capital of a gambler.

In goes one number for each cluster, x ∈ [−1, 1]. Against "the mean is at most 0" a gambler stakes the share λ of the
capital on every cluster: capital = Π (1 + λ x). If the mean is at most 0, no strategy makes money on average, and the
capital exceeds 1/α *ever* with probability at most α, whatever the distribution and whenever one looks. Shares are
fixed beforehand, and the capitals of several are averaged; so the order of the clusters does not matter.
Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting" (section 5.3 and B.6,
diversified bets); Ville 1939 for the bound.

Three things follow from that form. (1) The independent units are clusters, so x is a cluster's *sum*, and its bound is
that of an item times the size of the largest cluster of the whole run: a bound that grew with the clusters seen would
be no bound. (2) A mean over items of clusters of unequal sizes is m where the sums of (value − m) have mean 0.
(3) Several tasks are one stream: clusters of all tasks come in random order, and one of task k counts by
N / (K N_k), so that all of them together average to the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowmem_layers.game.uncertainty.errors import contributions, sum_by
from lowmem_layers.game.values.table import FloatArray, ValueTable

SHARES = np.concatenate([np.geomspace(1 / 256, 0.7, 15), [0.98]])  # λ: the best one is about mean / variance, below 1
_HALVINGS = 12


@dataclass(frozen=True, eq=False)
class Stream:
    """What all clusters of all tasks say, in the unit of the estimate.

    Shapes: `sums` (clusters, players), `sizes` (clusters,), both with the tasks' factors; `largest` (tasks,), the
    largest size that may come; `weights`, for each task (players, coalitions).
    """

    sums: FloatArray
    sizes: FloatArray
    largest: FloatArray
    weights: tuple[FloatArray, ...]

    def evidence_above(self, player: int, others: Sequence[int]) -> FloatArray:
        """Give the log evidence that a player's estimate exceeds each of the others. Shapes: (others,)."""
        bound = self._bound([each[[player]] - each[list(others)] for each in self.weights])  # (others,)
        gaps = self.sums[:, [player]] - self.sums[:, list(others)]  # (clusters, others)
        # Where the weights are the same so are the estimates.
        return log_capital(np.divide(gaps, bound, out=np.zeros(gaps.shape), where=bound > 0))

    def evidence_within(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Give the log evidence that the players' estimates lie between two bounds: the weaker of both sides.

        Shapes: (players,) each.
        """
        possible = np.max([0.5 * np.abs(each).sum(axis=1) for each in self.weights], axis=0)  # no estimate is beyond
        bound = self._bound(self.weights) + self.largest.max() * possible
        sides = []
        for sign, edge in ((1.0, low), (-1.0, high)):
            x = sign * (self.sums - self.sizes[:, None] * np.clip(edge, -possible, possible))
            x = np.divide(x, bound, out=np.zeros(x.shape), where=bound > 0)
            sides.append(np.where(np.abs(edge) > possible, np.inf, log_capital(x)))
        return np.minimum(*sides)

    def radius(self, player: int, value: float, needed: float) -> float:
        """Find the smallest half-width around `value` for which the evidence reaches `needed` on both sides."""
        alone = replace(self, sums=self.sums[:, [player]], weights=tuple(each[[player]] for each in self.weights))
        low, high = 0.0, 2.0 * float(max(0.5 * np.abs(each).sum() for each in alone.weights))
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            enough = alone.evidence_within(np.array([value - middle]), np.array([value + middle]))[0] > needed
            low, high = (low, middle) if enough else (middle, high)
        return high

    def _bound(self, weights: Sequence[FloatArray]) -> FloatArray:
        """Bound |a cluster's sum| for values within 0 and 1 and weights that add up to 0. Shapes: (questions,)."""
        each = [0.5 * size * np.abs(w).sum(axis=1) for size, w in zip(self.largest, weights, strict=True)]
        return np.max(each, axis=0)


def stream_of(tables: Sequence[ValueTable], weights: Sequence[FloatArray]) -> Stream:
    """Join the clusters of all tasks. Without a plan of the run, the items given are all there are."""
    sums, sizes, largest = [], [], []
    planned = [t.n_items if t.planned is None else t.planned.n_items for t in tables]
    for table, each, n_items in zip(tables, weights, planned, strict=True):
        factor = sum(planned) / (len(tables) * n_items)
        counts = np.bincount(table.cluster_codes)
        most = int(counts.max()) if table.planned is None else table.planned.largest_cluster
        sums.append(factor * sum_by(contributions(table, each), table.cluster_codes, len(counts)))
        sizes.append(factor * counts)
        largest.append(factor * most)
    return Stream(np.concatenate(sums), np.concatenate(sizes), np.array(largest), tuple(weights))


def log_capital(x: FloatArray) -> FloatArray:
    """Give the log of the gambler's capital, averaged over `SHARES`. Shapes: (clusters, questions) → (questions,)."""
    # (shares, questions): one share at a time keeps the memory small.
    each = np.stack([np.log1p(share * x).sum(axis=0) for share in SHARES])
    most = each.max(axis=0)
    return most + np.log(np.exp(each - most).mean(axis=0))
