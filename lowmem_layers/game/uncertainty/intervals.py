"""Intervals of means over items, and the p values that agree with them: Student's t, mindful of skewed items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.special import stdtr, stdtrit

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.score import score_at_zero, score_ends
from lowmem_layers.game.uncertainty.skewness import corrected_t, uncorrected_t
from lowmem_layers.game.values.table import FloatArray

Bound = TypeVar("Bound", float, FloatArray)


@dataclass(frozen=True, eq=False)
class Interval(Generic[Bound]):
    """The two ends of an interval, or of one interval for each player (pair, coalition).

    Shapes: two numbers, or two arrays of the same shape; nan where an end is unknown. Units: those of what is bounded.
    """

    low: Bound
    high: Bound

    def times(self, factor: float) -> Interval[Bound]:
        """Change the unit: multiply both ends by a positive factor."""
        return Interval(self.low * factor, self.high * factor)

    def at(self, place: int) -> Interval[float]:
        """Take the interval of one player (pair, coalition)."""
        return Interval(float(np.asarray(self.low)[place]), float(np.asarray(self.high)[place]))

    def clip(self, low: float, high: float) -> Interval[Bound]:
        """Cut both ends off at the bounds of what is possible."""
        ends: tuple[Any, Any] = np.clip(self.low, low, high), np.clip(self.high, low, high)
        return Interval(*ends)


def check_level(level: float) -> None:
    """Refuse a number that is no confidence level.

    Raises:
        UsageError: not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"a confidence level of {level}", "choose one between 0 and 1, such as 0.95")


def mean_interval(estimate: Influence, level: float) -> Interval[FloatArray]:
    """Put an interval around every estimate: the union of Student's and of Hall's skewness-corrected one.

    Each alone falls 1–2 points short of a nominal 95 % on 30 skewed items; with many items they are the same
    (benchmarks/coverage.py has what was measured, and what else was tried). Accuracies get score intervals.
    No end lies beyond what the estimate can be: a drop of an accuracy is at most 1.
    Shapes: (players,); nan with fewer than 2 clusters.
    """
    return interval_at(estimate, stdtrit(estimate.dof, 0.5 + level / 2))


def interval_at(estimate: Influence, quantile: FloatArray) -> Interval[FloatArray]:
    """Put the interval of a two-sided quantile of Student's t around every estimate. Shapes: (players,)."""
    if estimate.answers is not None:
        interval = Interval(*score_ends(estimate.answers, estimate.value, quantile))
    else:
        below, above = skewed_radii(quantile, estimate.skewness, estimate.is_binary)
        error = estimate.standard_error
        interval = Interval(estimate.value - below * error, estimate.value + above * error)
    if estimate.reach is None:
        return interval
    least, most = estimate.reach
    return Interval(np.maximum(interval.low, least), np.minimum(interval.high, most))


def holds_from(estimate: Influence, n_items: int) -> FloatArray:
    """Say from how many items on the intervals of skewed values hold, going by the skewness of those that are there.

    From 30 items on, and from where the error's skewness (an item's over √items) is at most 0.3: measured on eleven
    distributions, the intervals then cover at least 93 %, but for log-normal items with σ of 1.5 and more, whose
    samples mostly hide their tail (benchmarks/README.md). Rare large losses that no item shows are not in any skewness.
    Shapes: (players,); nan for accuracies, whose score intervals need no such number, and where the error is unknown.
    Source: the form n ≥ c · skewness² is Cochran's (1977, section 2.15), where c is 25 for plain normal intervals.
    """
    if estimate.is_binary:
        return np.full(estimate.value.shape, np.nan)
    needed = np.ceil(n_items * (estimate.skewness / 0.3) ** 2)
    return np.where(np.isfinite(estimate.standard_error), np.maximum(needed, 30.0), np.nan)


def skewed_radii(quantile: FloatArray, skewness: FloatArray, is_binary: bool) -> tuple[FloatArray, FloatArray]:
    """Widen a symmetric radius (in standard errors) on the side to which skewed items may hide the truth.

    Accuracies are left alone: their coin-flip item has already widened them.
    Shapes: two arrays like `quantile`: below and above the estimate.
    """
    if is_binary:
        return quantile, quantile
    below = np.maximum(quantile, uncorrected_t(quantile, skewness))
    return below, np.maximum(quantile, -uncorrected_t(-quantile, skewness))


def two_sided_p(estimate: Influence) -> FloatArray:
    """Test every estimate against 0: p is the smallest α at which 0 lies outside `mean_interval` at level 1 − α.

    The interval is a union, so 0 is outside where both of its parts exclude 0: the smaller one of Student's t and of
    Hall's corrected t decides. For accuracies it is the score test's.
    Shapes: (players,); nan where the estimate or its error is unknown.
    """
    value, error = estimate.value, estimate.standard_error
    varies = error > 0
    t = np.divide(value, error, out=np.zeros(value.shape), where=varies)
    statistic = np.abs(t)
    if estimate.answers is not None:
        statistic = score_at_zero(estimate.answers, value)
    elif not estimate.is_binary:
        # `corrected_t` increases with t, so comparing it with the quantile is comparing t with the interval's radius.
        hall = np.sign(t) * corrected_t(t, estimate.skewness)
        statistic = np.clip(hall, 0.0, statistic)
    p = 2.0 * stdtr(estimate.dof, -statistic)
    p = np.where(varies, p, np.where(value == 0, 1.0, 0.0))  # without any spread the interval is one point
    return np.where(np.isfinite(value) & np.isfinite(error), p, np.nan)
