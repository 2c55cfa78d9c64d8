"""Cornerstone sublayers by a stated rule, beside the paper's "top 3".

A sublayer is a cornerstone of a task where, at the stated level,

1. *share*: its share of the total importance is certainly more than `factor` times the even share 1/N, and
2. *collapse*: with it alone removed the value is certainly not above chance by more than `tolerance`: the upper end of
   v(−i) − chance's one-sided interval lies at or below `tolerance` × (v(N) − chance).

The second is an equivalence test: too few items cannot pass it, so missing evidence never makes a cornerstone. Both are
Bonferroni-corrected over the sublayers, so that any false one has probability at most 1 − level for each condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.shares import share_intervals, shares
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.values.table import FloatArray, ValueTable


@dataclass(frozen=True, eq=False)
class Cornerstones:
    """The verdict on every sublayer.

    Shapes: arrays (players,). `remaining` is what is left above chance after removing it, as a fraction of what the
    full model has: (v(−i) − chance)/(v(N) − chance), with the upper end of its one-sided interval.
    """

    players: tuple[str, ...]
    share: FloatArray
    share_low: FloatArray
    remaining: FloatArray
    remaining_high: FloatArray
    is_cornerstone: NDArray[np.bool_]
    rule: str

    @property
    def names(self) -> tuple[str, ...]:
        """Name the cornerstones, in execution order."""
        return tuple(name for name, yes in zip(self.players, self.is_cornerstone, strict=True) if yes)


def cornerstones(
    table: ValueTable,
    chance: float,
    *,
    estimator: Estimator = "neighbourhood",
    max_removed: int | None = None,
    factor: float = 2.0,
    tolerance: float = 0.25,
    level: float = 0.95,
) -> Cornerstones:
    """Judge every sublayer by the rule above, on a metric whose chance value is known (accuracies).

    A full model that is itself not certainly above chance has no cornerstones: nothing can collapse.

    Raises:
        UsageError: a coalition is missing, or options out of range.
    """
    if not (0.0 <= tolerance < 1.0 and factor > 0.0 and 0.0 < level < 1.0):
        raise UsageError(
            f"factor {factor}, tolerance {tolerance}, level {level}", "use factor > 0, 0 ≤ tolerance < 1, 0 < level < 1"
        )
    n = table.n_players
    strict = 1.0 - 2.0 * (1.0 - level) / n  # two-sided level whose one side is Bonferroni's
    value = estimate_influence(table, estimator_weights(estimator, table.coalitions, table.players, max_removed))
    share_low = share_intervals([value], strict).low
    remaining, high = _remaining(table, chance, strict)
    # An unknown end (nan) compares as false: what is not known is no cornerstone.
    with np.errstate(invalid="ignore"):
        is_cornerstone = (share_low > factor / n) & (high <= tolerance)
    rule = (
        f"share certainly above {factor:g}/{n} and at most {100 * tolerance:.0f} % of the margin over chance left, "
        f"at {100 * level:g} % over all {n} sublayers"
    )
    return Cornerstones(table.players, shares(value.value), share_low, remaining, high, is_cornerstone, rule)


def _remaining(table: ValueTable, chance: float, level: float) -> tuple[FloatArray, FloatArray]:
    """Estimate what is left above chance, (v(−i) − c)/(v(N) − c), with the upper end of Fieller's interval.

    The end is where (v(−i) − c) − r (v(N) − c) becomes certainly negative. Shapes: two arrays (players,); nan where the
    full model is not certainly above chance.
    Source: Fieller 1954.
    """
    n = table.n_players
    # 1) The means of the full model and of every single removal, with their errors.
    weights = np.zeros((n + 1, len(table.coalitions)))
    columns = [table.column_index(removed) for removed in [(), *((p,) for p in range(n))]]
    weights[np.arange(n + 1), columns] = 1.0
    estimate = estimate_influence(table, weights)
    margin = estimate.value - chance
    quantile = stdtrit(estimate.dof, 0.5 + level / 2)  # (1 + players,)
    if not margin[0] > quantile[0] * estimate.standard_error[0]:
        return np.full(n, np.nan), np.full(n, np.nan)
    # 2) The larger root r of a r² − 2 b r + c = 0.
    full, single = estimate.pieces[:, 0], estimate.pieces[:, 1:]  # (pieces,), (pieces, players)
    squared = quantile[1:] ** 2
    a = margin[0] ** 2 - squared * (full @ full)
    b = margin[0] * margin[1:] - squared * (full @ single)
    c = margin[1:] ** 2 - squared * (single**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        high = np.where(a > 0, (b + np.sqrt(np.maximum(b**2 - a * c, 0.0))) / a, np.nan)
    return margin[1:] / margin[0], high
