"""How many items a run needs to resolve an effect of a given size: power, foretold from the spread of a pilot.

An effect is resolved where the interval of the estimate excludes 0. The pilot tells how much its clusters of items
vary. With g times as many items the variance is a g-th, and the radius is Student's or Hall's (of accuracies
Student's with the coin-flip item, an approximation to their score interval). The rule of thumb that this refines is
n = (z₀.₉₇₅ + z₀.₈)² σ² / size², 7.85 times the variance of one item over the square of the size.
Source: Cohen 1988, chapter 2, for the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import (
    Influence,
    contributions,
    estimate_influence,
    influence_of,
    mean_over_tasks,
)
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, skewed_radii
from lowmem_layers.game.values.table import FloatArray, ValueTable

MOST_ITEMS = 1e9
_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class ItemsNeeded:
    """The items that resolve an effect of `size` with probability `power` at confidence `level`, for every player.

    `items` are measured under all coalitions (paired). `ci` holds their number with probability `level`: the spread is
    an estimate, too. `unpaired` is the number for each coalition if every coalition had items of its own. Items are
    clustered like the pilot's; so many clustered items as `design_effect` says count as one independent item.
    Shapes: (players,) each. Whole numbers; nan where the spread is unknown, inf beyond a thousand million.
    Units: `size` that of the metric.
    """

    size: float
    power: float
    level: float
    items: FloatArray
    ci: Interval[FloatArray]
    unpaired: FloatArray
    design_effect: FloatArray


@dataclass(frozen=True, eq=False)
class _Errors:
    """The pilot's errors: variance of the items, what the intervals add to it, skewness, degrees of freedom.

    Shapes: (players,) each.
    """

    variance: FloatArray
    added: FloatArray
    skewness: FloatArray
    dof: FloatArray
    is_binary: bool


def items_needed(
    tables: Sequence[ValueTable], weights: Sequence[FloatArray], size: float, *, level: float = 0.95, power: float = 0.8
) -> ItemsNeeded:
    """Foretell the items that an estimate with these weights needs; several tasks grow in proportion.

    A positive `size` is a loss, a negative one a gain: skewed items need more on one side.
    Shapes: `weights`, for each task (players, coalitions).

    Raises:
        UsageError: a size of 0, or a level or power that is no probability.
    """
    check_level(level)
    if not np.isfinite(size) or size == 0.0:
        raise UsageError(f"an effect of size {size}", "give the size of the effect to resolve, such as 0.01")
    if not 0.5 <= power < 1.0:
        raise UsageError(f"a power of {power}", "choose one from 0.5 to below 1, such as 0.8")
    # 1) the pilot's errors, with and without what the intervals of accuracies add, and as if no items were clustered
    per_item = [contributions(table, w) for table, w in zip(tables, weights, strict=True)]  # (items, players)
    whole = mean_over_tasks([estimate_influence(table, w) for table, w in zip(tables, weights, strict=True)])
    plain = mean_over_tasks([influence_of(x, table.cluster_codes) for x, table in zip(per_item, tables, strict=True)])
    independent = mean_over_tasks([influence_of(x, np.arange(len(x))) for x in per_item]).variance
    n_items = sum(table.n_items for table in tables)
    # A difference of two accuracies changes at least so many answers, even where none changed in the pilot.
    least = abs(size) * max(0.0, 1.0 - abs(size)) / n_items if whole.is_binary else 0.0
    single = np.all([np.abs(w).sum(axis=1) == np.abs(w).max(axis=1) * 2 for w in weights], axis=0)  # (players,)
    variance = np.where(single, np.maximum(plain.variance, least), plain.variance)
    added = np.maximum(whole.variance - plain.variance, 0.0)
    paired = _Errors(variance, added, np.sign(size) * plain.skewness, whole.dof, whole.is_binary)
    # 2) the same where every coalition has items of its own: the variances of v(S) add up
    apart = sum(w**2 @ _variances(table) for table, w in zip(tables, weights, strict=True)) / len(tables) ** 2
    unpaired = _Errors(np.where(np.isfinite(variance), apart, np.nan), added, 0.0 * variance, whole.dof, True)
    # 3) the variance itself is an estimate
    factors = _factors(plain, level)
    low, high = (_items(paired, size, level, power, n_items, each) for each in (factors.low, factors.high))
    return ItemsNeeded(
        size=size,
        power=power,
        level=level,
        items=_items(paired, size, level, power, n_items),
        ci=Interval(low, high),
        unpaired=_items(unpaired, size, level, power, n_items),
        design_effect=np.divide(plain.variance, independent, out=np.ones_like(variance), where=independent > 0),
    )


def _items(
    errors: _Errors, size: float, level: float, power: float, n_items: int, factor: FloatArray | float = 1.0
) -> FloatArray:
    """Find the smallest number of items at which the effect stands clear of the interval's radius often enough.

    Shapes: `factor` of the variance, one or (players,) → (players,).
    """
    variance = errors.variance * factor
    low, high = np.full(variance.shape, np.log(2.0 / n_items)), np.full(variance.shape, np.log(MOST_ITEMS / n_items))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        growth = np.exp(middle)
        quantile = stdtrit(np.maximum(errors.dof * growth, 1.0), 0.5 + level / 2)
        radius, _ = skewed_radii(quantile, errors.skewness / np.sqrt(growth), errors.is_binary)
        # The interval's error holds what is added for few changes (a 1/n² in variance); the estimate's own does not.
        needed = radius * np.sqrt(variance / growth + errors.added / growth**2)
        enough = abs(size) >= needed + ndtri(power) * np.sqrt(variance / growth)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    items = np.ceil(n_items * np.exp(high) * (1.0 - 1e-9))
    return np.where(np.isfinite(variance), np.where(items >= MOST_ITEMS * (1.0 - 1e-6), np.inf, items), np.nan)


def _variances(table: ValueTable) -> FloatArray:
    """Estimate the variance of every coalition's mean over the items. Shapes: (coalitions,)."""
    finite = np.isfinite(table.values)
    return influence_of(np.where(finite, table.values, 0.0), table.cluster_codes).variance


def _factors(estimate: Influence, level: float) -> Interval[FloatArray]:
    """Bound how many times the variance of the items is what was estimated; nan below 5 clusters.

    Kurtosis is taken about a trimmed mean, which keeps it from being too small for long tails.
    Shapes: (players,).
    Source: Bonett 2006, "Approximate confidence interval for standard deviation of nonnormal distributions".
    """
    n = len(estimate.pieces)
    if n < 5:
        unknown = np.full(len(estimate.value), np.nan)
        return Interval(unknown, unknown)
    pieces, quantile = np.sort(estimate.pieces, axis=0), float(ndtri(0.5 + level / 2))
    cut = int(n / (2.0 * np.sqrt(n - 4.0)))
    center = pieces[cut : n - cut].mean(axis=0)
    squared = (pieces**2).sum(axis=0) ** 2
    kurtosis = np.divide(
        n * ((pieces - center) ** 4).sum(axis=0), squared, out=np.full(squared.shape, 3.0), where=squared > 0
    )
    error = np.sqrt(np.maximum(kurtosis - (n - 3.0) / n, 0.0) / (n - 1.0))
    middle = n / max(n - quantile, 1.0)
    return Interval(middle * np.exp(-quantile * error), middle * np.exp(quantile * error))
