"""Shares of the total importance: negatives clipped to 0, divided by the sum; with intervals that allow for the bias.

Clipping turns noise into positive values: with many sublayers near zero the sum is too large and the shares of the
leading ones too small, by far more than the sampling error. So an interval does not sit around the plug-in share. It
spans from a nearly unbiased estimate of the sum (the plug-in less its estimated bias) to one that is biased downwards
by construction (the sum of the values whose sign is confirmed by other data), each with its own sampling error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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


def share_intervals(parts: Sequence[Influence], level: float) -> Interval[FloatArray]:
    """Bound the shares, averaged over tasks; extended where needed to hold the plug-in share itself.

    A task whose sum of values is not significantly positive could have any share: it contributes 0 to the lower and
    1 to the upper ends. Measured coverage: benchmarks/coverage.py.
    Shapes: (players,); nan where a task has fewer than 2 clusters, a nan value or no positive value.
    Source: Imbens and Manski 2004, section 4, for the interval between two ends that are both estimated.
    """
    n_players = len(parts[0].value)
    plug_in = np.mean([shares(part.value) for part in parts], axis=0)
    dof = float(np.min([part.dof for part in parts]))
    if np.isnan(plug_in).any() or np.isnan(dof):
        return Interval(np.full(n_players, np.nan), np.full(n_players, np.nan))
    quantile = float(stdtrit(dof, 0.5 + level / 2))
    # 1) Both ends of every task, averaged; which is the lower one differs from player to player.
    ends = [_ends(part, quantile) for part in parts]
    one, two = (_average([pair[which] for pair in ends], shared_pieces(parts)) for which in (0, 1))
    swap = one[0] > two[0]
    low, low_error, low_skew = (np.where(swap, second, first) for first, second in zip(one, two, strict=True))
    high, high_error, high_skew = (np.where(swap, first, second) for first, second in zip(one, two, strict=True))
    # 2) Radii that are one-sided where the ends are far apart, by Student's quantile, widened for skewed items.
    width = _imbens_manski(high - low, np.maximum(low_error, high_error), level)
    width *= quantile / ndtri(0.5 + level / 2)
    binary = all(part.is_binary for part in parts)
    below, above = skewed_radii(width, low_skew, binary)[0], skewed_radii(width, high_skew, binary)[1]
    wide = Interval(low - below * low_error, high + above * high_error).clip(0.0, 1.0)
    return Interval(np.minimum(wide.low, plug_in), np.maximum(wide.high, plug_in))


@dataclass(frozen=True, eq=False)
class _End:
    """One task's values over one estimate of their sum. Shapes: `ratio` (players,), `pieces` (clusters, players)."""

    ratio: FloatArray
    pieces: FloatArray


def _ends(part: Influence, quantile: float) -> tuple[_End, _End]:
    """Divide the values by the larger and by the smaller estimate of the sum of the clipped values."""
    error = part.standard_error
    score = np.sign(part.value) * 40.0  # without any error the sign is certain
    score = np.divide(part.value, error, out=score, where=error > 0)
    cdf, density = ndtr(score), normal_density(score)
    plug_in = np.maximum(part.value, 0.0).sum()
    debiased = plug_in - expected_clipping_bias(score[error > 0]) @ error[error > 0]
    confirmed = (part.value * cdf - error * density).sum()
    # How each estimate of the sum changes with each value: the delta method needs the slopes.
    debiased_slope, confirmed_slope = cdf, np.where(error > 0, cdf + 2.0 * score * density, cdf)
    first, second = (debiased, debiased_slope), (confirmed, confirmed_slope)
    larger, smaller = (first, second) if debiased >= confirmed else (second, first)
    return _end(part, *larger, quantile, 0.0), _end(part, *smaller, quantile, 1.0)


def _end(part: Influence, total: float, slope: FloatArray, quantile: float, unknown: float) -> _End:
    """Divide by an estimate of the sum; `unknown` where that is not significantly positive."""
    total_pieces = part.pieces @ slope  # (clusters,)
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
