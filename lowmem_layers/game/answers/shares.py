"""Shares of the total importance: negatives clipped to 0, then divided by the sum, with intervals that know the bias.

Clipping turns noise into positive values: with many sublayers near zero the sum is too large and the shares of the
leading ones too small, by far more than the sampling error. So an interval does not sit around the plug-in share. It
spans from a nearly unbiased estimate of the sum (the plug-in less its estimated bias) to one that is biased downwards
by construction (the sum of the values whose sign is confirmed by other data), each with its own sampling error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowmem_layers.game.uncertainty.deconvolution import expected_clipping_bias
from lowmem_layers.game.uncertainty.errors import Influence, joined_pieces, shared_pieces, skewness_of
from lowmem_layers.game.uncertainty.intervals import Interval, skewed_radii
from lowmem_layers.game.uncertainty.quantiles import normal_cdf, normal_density, normal_quantile, student_quantile
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
    quantile = student_quantile(0.5 + level / 2, dof)
    ends = [_ends(part, quantile) for part in parts]
    first, first_error, first_skew = _average([pair[0] for pair in ends], shared_pieces(parts))
    second, second_error, second_skew = _average([pair[1] for pair in ends], shared_pieces(parts))
    swap = first > second
    low, high = np.where(swap, second, first), np.where(swap, first, second)
    low_error, high_error = np.where(swap, second_error, first_error), np.where(swap, first_error, second_error)
    width = _imbens_manski(high - low, np.maximum(low_error, high_error), level)
    width *= quantile / normal_quantile(0.5 + level / 2)
    binary = all(part.is_binary for part in parts)
    below, _ = skewed_radii(width, np.where(swap, second_skew, first_skew), binary)
    _, above = skewed_radii(width, np.where(swap, first_skew, second_skew), binary)
    wide = Interval(low - below * low_error, high + above * high_error).clip(0.0, 1.0)
    return Interval(np.minimum(wide.low, plug_in), np.maximum(wide.high, plug_in))


@dataclass(frozen=True, eq=False)
class _End:
    ratio: FloatArray  # (players,)
    pieces: FloatArray  # (clusters, players)


def _ends(part: Influence, quantile: float) -> tuple[_End, _End]:
    # The ratios to the larger and to the smaller estimate of the sum of the clipped values.
    error = part.standard_error
    scale = np.where(error > 0, error, 1.0)
    score = np.where(error > 0, part.value / scale, np.sign(part.value) * 40.0)
    cdf, density = normal_cdf(score), normal_density(score)
    plug_in = np.maximum(part.value, 0.0).sum()
    debiased = plug_in - expected_clipping_bias(score[error > 0]) @ error[error > 0]
    confirmed = (part.value * cdf - error * density).sum()
    slope = np.where(error > 0, cdf + 2.0 * score * density, cdf)
    pairs = sorted([(debiased, 0, cdf), (confirmed, 1, slope)], key=lambda pair: -pair[0])
    (larger, _, larger_slope), (smaller, _, smaller_slope) = pairs
    return _end(part, larger, larger_slope, quantile, 0.0), _end(part, smaller, smaller_slope, quantile, 1.0)


def _end(part: Influence, total: float, slope: FloatArray, quantile: float, unknown: float) -> _End:
    total_pieces = part.pieces @ slope
    if total <= quantile * float(np.sqrt(total_pieces @ total_pieces)):
        return _End(np.full(len(part.value), unknown), np.zeros_like(part.pieces))
    ratio = part.value / total
    return _End(ratio, (part.pieces - np.outer(total_pieces, ratio)) / total)


def _average(ends: Sequence[_End], n_shared: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    # The mean over tasks with its standard error and its error's skewness.
    pieces = joined_pieces([end.pieces for end in ends], n_shared) / len(ends)
    return np.mean([end.ratio for end in ends], axis=0), np.sqrt((pieces**2).sum(axis=0)), skewness_of(pieces)


def _imbens_manski(gap: FloatArray, error: FloatArray, level: float) -> FloatArray:
    # Solve Φ(c + gap/error) − Φ(−c) = level: two-sided at gap 0, one-sided when the ends are far apart.
    scaled = np.divide(gap, error, out=np.full(gap.shape, 50.0), where=error > 0).clip(0.0, 50.0)
    low = np.full(gap.shape, normal_quantile(level))
    high = np.full(gap.shape, normal_quantile(0.5 + level / 2))
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = normal_cdf(middle + scaled) - normal_cdf(-middle) >= level
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high
