"""Shares of the total importance: negatives clipped to 0, divided by the sum; with intervals that allow for the bias.

Clipping turns noise into positive values: with many sublayers near zero the sum is too large and the shares of the
leading ones too small, by far more than the sampling error. So an interval does not sit around the plug-in share. It
spans from a nearly unbiased estimate of the sum (the plug-in less its estimated bias) to one that is biased downwards
by construction (the sum of the values whose sign is confirmed by other data), each with its own sampling error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from lowmem_layers.game.uncertainty.deconvolution import expected_clipping_bias, normal_density
from lowmem_layers.game.uncertainty.errors import Influence, joined_pieces, shared_pieces, skewness_of
from lowmem_layers.game.uncertainty.intervals import Interval, skewed_radii
from lowmem_layers.game.values.table import FloatArray


def shares(value: FloatArray, decimals: int | None = None) -> FloatArray:
    """Divide the clipped values by their sum; `decimals=4` rounds the values first, as the paper's code does.

    All nan where no value is positive or one is nan (a share of nothing, or of an unknown sum).
    Shapes: (..., players) → the same.
    """
    rounded = value if decimals is None else np.round(value, decimals)
    clipped = np.maximum(rounded, 0.0)
    total = clipped.sum(axis=-1, keepdims=True)
    return np.divide(clipped, total, out=np.full(clipped.shape, np.nan), where=total > 0)


def share_intervals(parts: Sequence[Influence], level: float, groups: FloatArray | None = None) -> Interval[FloatArray]:
    """Bound the shares, averaged over tasks; extended where needed to hold the plug-in share itself.

    `groups` (groups, players) of 0 and 1: the shares of groups instead, each the sum of its members'.

    A task whose sum of values is not significantly positive could have any share: it contributes 0 to the lower and
    1 to the upper ends. Measured coverage: benchmarks/coverage.py.
    Shapes: (players,) or (groups,); nan where a task has fewer than 2 clusters, a nan value or no positive value.
    Source: Imbens and Manski 2004, section 4, for the interval between two ends that are both estimated.
    """
    plug_in = np.mean([shares(part.value) for part in parts], axis=0)
    plug_in = plug_in if groups is None else groups @ plug_in
    dof = float(np.min([part.dof for part in parts]))
    if np.isnan(plug_in).any() or np.isnan(dof):
        return Interval(np.full(len(plug_in), np.nan), np.full(len(plug_in), np.nan))
    quantile = float(stdtrit(dof, 0.5 + level / 2))
    # 1) Both ends of every task, averaged; which is the lower one differs from player to player.
    ends = [_ends(part, quantile, groups) for part in parts]
    wide = _between(ends, shared_pieces(parts), quantile, level, all(part.is_binary for part in parts)).clip(0.0, 1.0)
    return Interval(np.minimum(wide.low, plug_in), np.maximum(wide.high, plug_in))


def clipped_mean_interval(parts: Sequence[Influence], kept: NDArray[np.bool_], level: float) -> Interval[float]:
    """Bound the mean of some players' clipped values, averaged over tasks; it holds the plug-in mean itself.

    Clipping inflates this mean as it does the sum of all: the interval spans from the nearly unbiased to the confirmed
    estimate of it, as for shares. Bounds of the values bound the mean: a drop of an accuracy is at most 1.
    Shapes: `kept` (players,); nan where nobody is kept, or an estimate or its error is unknown.
    """
    some = [replace(each, value=each.value[kept], pieces=each.pieces[:, kept], dof=each.dof[kept]) for each in parts]
    dof = float(np.min([part.dof for part in some], initial=np.inf))
    if not kept.any() or not np.isfinite([*(part.value for part in some)]).all() or np.isnan(dof):
        return Interval(float("nan"), float("nan"))
    n, ends = int(kept.sum()), []
    for part in some:
        sums = _clipped_sums(part)
        pair = [_End(np.array([total / n]), (part.pieces @ slope)[:, None] / n) for total, slope in sums]
        ends.append((pair[0], pair[1]))
    quantile = float(stdtrit(dof, 0.5 + level / 2))
    wide = _between(ends, shared_pieces(some), quantile, level, all(part.is_binary for part in some))
    plug_in = float(np.mean([np.maximum(part.value, 0.0).mean() for part in some]))
    most = [np.inf if part.reach is None else float(np.maximum(part.reach[1, kept], 0.0).mean()) for part in parts]
    high = min(max(float(wide.high[0]), plug_in), float(np.mean(most)))
    return Interval(max(0.0, min(float(wide.low[0]), plug_in)), high)


def _between(
    ends: Sequence[tuple[_End, _End]], n_shared: int, quantile: float, level: float, is_binary: bool
) -> Interval[FloatArray]:
    """Span an interval from the lower of two estimates, averaged over tasks, to the higher one, with their errors."""
    one, two = (_average([pair[which] for pair in ends], n_shared) for which in (0, 1))
    swap = one[0] > two[0]
    low, low_error, low_skew = (np.where(swap, second, first) for first, second in zip(one, two, strict=True))
    high, high_error, high_skew = (np.where(swap, first, second) for first, second in zip(one, two, strict=True))
    # Radii that are one-sided where the ends are far apart, by Student's quantile, widened for skewed items.
    width = _imbens_manski(high - low, np.maximum(low_error, high_error), level)
    width *= quantile / ndtri(0.5 + level / 2)
    below, above = skewed_radii(width, low_skew, is_binary)[0], skewed_radii(width, high_skew, is_binary)[1]
    return Interval(low - below * low_error, high + above * high_error)


@dataclass(frozen=True, eq=False)
class _End:
    """One task's values over one estimate of their sum. Shapes: `ratio` (players,), `pieces` (clusters, players)."""

    ratio: FloatArray
    pieces: FloatArray


def _ends(part: Influence, quantile: float, groups: FloatArray | None) -> tuple[_End, _End]:
    """Divide the values by the larger and by the smaller estimate of the sum of the clipped values."""
    (larger, smaller), members = _clipped_sums(part), part
    if groups is not None:
        members = replace(part, value=groups @ part.value, pieces=part.pieces @ groups.T)
    ends = []
    for (total, slope), unknown in ((larger, 0.0), (smaller, 1.0)):
        ends.append(_end(members, total, part.pieces @ slope, quantile, unknown))
    return ends[0], ends[1]


def _clipped_sums(part: Influence) -> tuple[tuple[float, FloatArray], tuple[float, FloatArray]]:
    """Estimate the sum of the clipped values twice, the larger one first, each with its slopes.

    Shapes: slopes (players,): how the estimate changes with each value (the delta method needs them).
    """
    error = part.standard_error
    score = np.sign(part.value) * 40.0  # without any error the sign is certain
    score = np.divide(part.value, error, out=score, where=error > 0)
    cdf, density = ndtr(score), normal_density(score)
    plug_in = np.maximum(part.value, 0.0).sum()
    debiased = plug_in - expected_clipping_bias(score[error > 0]) @ error[error > 0]
    confirmed = (part.value * cdf - error * density).sum()
    debiased_slope, confirmed_slope = cdf, np.where(error > 0, cdf + 2.0 * score * density, cdf)
    first, second = (debiased, debiased_slope), (confirmed, confirmed_slope)
    return (first, second) if debiased >= confirmed else (second, first)


def _end(part: Influence, total: float, total_pieces: FloatArray, quantile: float, unknown: float) -> _End:
    """Divide by an estimate of the sum; `unknown` where that is not significantly positive.

    Shapes: `total_pieces` (clusters,), the pieces of the sum's error.
    """
    if total <= quantile * float(np.sqrt(total_pieces @ total_pieces)):
        return _End(np.full(len(part.value), unknown), np.zeros_like(part.pieces))
    ratio = part.value / total
    return _End(ratio, (part.pieces - np.outer(total_pieces, ratio)) / total)


def _average(ends: Sequence[_End], n_shared: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average over tasks; give the mean, its standard error and its error's skewness. Shapes: (players,) each."""
    pieces = joined_pieces([end.pieces for end in ends], n_shared) / len(ends)
    return np.mean([end.ratio for end in ends], axis=0), np.sqrt((pieces**2).sum(axis=0)), skewness_of(pieces)


def _imbens_manski(gap: FloatArray, error: FloatArray, level: float) -> FloatArray:
    """Solve Φ(c + gap/error) − Φ(−c) = level for c: two-sided at gap 0, one-sided when the ends are far apart."""
    scaled = np.divide(gap, error, out=np.full(gap.shape, 50.0), where=error > 0).clip(0.0, 50.0)
    low = np.full(gap.shape, ndtri(level))
    high = np.full(gap.shape, ndtri(0.5 + level / 2))
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = ndtr(middle + scaled) - ndtr(-middle) >= level
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high
