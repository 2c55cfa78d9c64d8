"""Intervals: their type, and those of means over items (Student's t, clustered variances, mindful of skewness)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.quantiles import student_quantiles
from lowmem_layers.game.uncertainty.skewness import uncorrected_t
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
    """Refuse what is no confidence level.

    Raises:
        UsageError: not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"a confidence level of {level}", "choose one between 0 and 1, such as 0.95")


def mean_interval(estimate: Influence, level: float) -> Interval[FloatArray]:
    """Put an interval around every estimate: the span of Student's and of Hall's skewness-corrected one.

    Each alone falls 1–2 points short of a nominal 95 % on 30 skewed items; with many items they are the same
    (benchmarks/coverage.py has what was measured, and what else was tried).
    Shapes: (players,); nan with fewer than 2 clusters.
    """
    quantile = student_quantiles(0.5 + level / 2, estimate.dof)
    below, above = skewed_radii(quantile, estimate.skewness, estimate.is_binary)
    error = estimate.standard_error
    return Interval(estimate.value - below * error, estimate.value + above * error)


def skewed_radii(quantile: FloatArray, skewness: FloatArray, is_binary: bool) -> tuple[FloatArray, FloatArray]:
    """Widen a symmetric radius (in standard errors) on the side to which skewed items may hide the truth.

    Accuracies are left alone: their coin-flip item has already widened them.
    Shapes: two arrays like `quantile`: below and above the estimate.
    """
    if is_binary:
        return quantile, quantile
    below = np.maximum(quantile, uncorrected_t(quantile, skewness))
    return below, np.maximum(quantile, -uncorrected_t(-quantile, skewness))
