"""Correlations of two runs' true importances: those of the estimates, corrected for measurement error.

Noise pulls the correlation of two estimates towards 0, and towards 1 where both runs share their items and with them a
part of their noise. Both are undone by halves: the items are split at random; estimates from different halves have
independent errors, also across runs. So the correlation of A's half with B's *other* half over the root of the
correlations of each run's own two halves is that of the true importances (Spearman 1904, in its split-half form):

    ρ = ½ (cor(a₁, b₂) + cor(a₂, b₁)) / √(cor(a₁, a₂) · cor(b₁, b₂))

No item is read again: a half's estimate is θ ± Σ ε_g p_g, with the pieces p_g of the error and random signs ε. Averaged
over all splits, Pearson's form needs no splits: the covariances of the estimates less those of their errors. It is not
Kendall's τ that noise shrinks by a factor, but sin(πτ/2), which is Pearson's ρ of normal values: so the ratio is that
of sines, and is turned back (ours; without it τ is overcorrected, by measurement). The interval is Fieller's for a
ratio, with the jackknife's covariance of both parts; it widens to [−1, 1] where the halves of a run do not agree with
each other.
Source: Spearman 1904, "The proof and measurement of association"; Greiner 1909 for τ = (2/π) arcsin ρ; Fieller 1954;
Efron 1982 for the jackknife.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.uncertainty.ranks import ranks
from lowmem_layers.game.values.table import FloatArray

_SPLITS, _BLOCKS = 30, 40
# Ours: the jackknife's errors are too small by a tenth on real records, where estimates stand farther apart than the
# truths and ranks react less to errors than they would; for Kendall's also since importances are not normal. Chosen by
# measurement (benchmarks/correlations.py). In the order Pearson, Spearman, Kendall.
_WIDENED = (1.15, 1.15, 1.3)


@dataclass(frozen=True, eq=False)
class Corrected:
    """Pearson's, Spearman's and Kendall's correlation of the true importances, with intervals.

    nan where the importances of a run do not differ by more than their noise; intervals then are [−1, 1]. All nan where
    an estimate or its error is unknown.
    """

    pearson: float
    pearson_ci: Interval[float]
    spearman: float
    spearman_ci: Interval[float]
    kendall: float
    kendall_ci: Interval[float]


def corrected(
    a: FloatArray,
    b: FloatArray,
    pieces_a: FloatArray,
    pieces_b: FloatArray,
    dof: FloatArray,
    *,
    level: float,
    seed: int = 0,
) -> Corrected:
    """Correct two estimates whose pieces of error are aligned row by row (paired items, or zeros where they are not).

    Shapes: `a`, `b`, `dof` (players,); `pieces_a`, `pieces_b` (rows, players).
    """
    nan, unknown = float("nan"), Interval(float("nan"), float("nan"))
    known = bool(np.isfinite([a, b, dof]).all()) and len(pieces_a) > 1 and len(a) > 2
    if not known or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Corrected(nan, unknown, nan, unknown, nan, unknown)
    # 1) blocks of rows, which the jackknife leaves out one by one
    rng = np.random.default_rng(seed)
    n_blocks = min(_BLOCKS, len(pieces_a))
    block = rng.permutation(np.arange(len(pieces_a)) % n_blocks)
    signs = rng.choice([-1.0, 1.0], (_SPLITS, len(pieces_a)))
    # 2) both parts of the ratio, with all rows and without each block
    whole = _parts(a, b, pieces_a, pieces_b, signs)
    grow = n_blocks / (n_blocks - 1.0)
    without = []
    for left_out in range(n_blocks):
        kept = block != left_out
        moved_a, moved_b = (x - np.sqrt(grow) * p[~kept].sum(axis=0) for x, p in ((a, pieces_a), (b, pieces_b)))
        without.append(_parts(moved_a, moved_b, grow * pieces_a[kept], grow * pieces_b[kept], signs[:, kept]))
    spread = np.array(without) - np.mean(without, axis=0)  # (blocks, 3 coefficients, 2 parts)
    covariance = np.einsum("bcp,bcq->cpq", spread, spread) / grow  # (3 coefficients, 2, 2)
    # 3) the ratios, and the values that they may have
    quantile = float(stdtrit(n_blocks - 1, 0.5 + level / 2))
    pearson, spearman, sine = (_ratio(w, c, k * quantile) for w, c, k in zip(whole, covariance, _WIDENED, strict=True))
    tau, low, high = (2.0 / np.pi * np.arcsin([sine[0], sine[1].low, sine[1].high])).tolist()
    return Corrected(*pearson, *spearman, tau, Interval(low, high))


def _parts(a: FloatArray, b: FloatArray, pieces_a: FloatArray, pieces_b: FloatArray, signs: FloatArray) -> FloatArray:
    """Give numerator and denominator of all three coefficients. Shapes: (3 coefficients, 2 parts)."""
    # Pearson: covariances of the estimates less those of their errors
    x, y = a - a.mean(), b - b.mean()
    p, q = pieces_a - pieces_a.mean(axis=1, keepdims=True), pieces_b - pieces_b.mean(axis=1, keepdims=True)
    between, own_a, own_b = x @ y - (p * q).sum(), x @ x - (p * p).sum(), y @ y - (q * q).sum()
    scale = np.sqrt((x @ x) * (y @ y))
    pearson = between / scale, np.sqrt(max(own_a, 0.0) * max(own_b, 0.0)) / scale
    # the others: halves
    noise_a, noise_b = signs @ pieces_a, signs @ pieces_b  # (splits, players)
    halves = np.stack([a + noise_a, a - noise_a, b + noise_b, b - noise_b])
    one_a, two_a, one_b, two_b = _centred_ranks(halves)
    across = 0.5 * ((one_a * two_b).sum(axis=1) + (two_a * one_b).sum(axis=1)).mean()
    own_a, own_b = (one_a * two_a).sum(axis=1).mean(), (one_b * two_b).sum(axis=1).mean()
    spearman = across, np.sqrt(max(own_a, 0.0) * max(own_b, 0.0))
    # Kendall: which of each two players is above, in each half
    one_a, two_a, one_b, two_b = halves[..., :, None] > halves[..., None, :]  # (splits, players, players) each
    crossed = 0.5 * (_kendall(one_a, two_b) + _kendall(two_a, one_b))
    across, own_a, own_b = np.sin(0.5 * np.pi * np.array([crossed, _kendall(one_a, two_a), _kendall(one_b, two_b)]))
    return np.array([pearson, spearman, (across, np.sqrt(max(own_a, 0.0) * max(own_b, 0.0)))])


def _kendall(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Give τ-b over all splits together. Shapes: (splits, players, players), true where the row's player is above."""
    pairs = np.sqrt(float(np.count_nonzero(one)) * np.count_nonzero(other))
    agreeing = np.count_nonzero(one & other) - np.count_nonzero(one & other.swapaxes(1, 2))
    return agreeing / pairs if pairs > 0 else 0.0


def _centred_ranks(values: FloatArray) -> FloatArray:
    """Give mid-ranks less their mean, of length 1. Shapes: (..., players) → the same."""
    order = values.argsort(axis=-1)
    if (np.diff(np.take_along_axis(values, order, axis=-1)) == 0).any():
        middle = 0.5 * (ranks(-values) - ranks(values))
    else:  # the same without ties, in a fifth of the time
        middle, n = np.empty(values.shape), values.shape[-1]
        np.put_along_axis(middle, order, np.broadcast_to(np.arange(n) - 0.5 * (n - 1), values.shape), axis=-1)
    return middle / np.maximum(np.sqrt((middle**2).sum(axis=-1, keepdims=True)), 1e-300)


def _ratio(parts: FloatArray, covariance: FloatArray, quantile: float) -> tuple[float, Interval[float]]:
    """Divide, and give Fieller's interval: all ρ within [−1, 1] at which part − ρ whole is 0 within its error.

    Shapes: `parts` (2,): part and whole; `covariance` (2, 2).
    """
    part, whole = float(parts[0]), float(parts[1])
    errors = quantile**2 * covariance
    square, line, rest = whole**2 - errors[1, 1], part * whole - errors[0, 1], part**2 - errors[0, 0]
    if whole <= 0:
        return float("nan"), Interval(-1.0, 1.0)
    if square <= 0:  # the denominator itself may be 0
        return float(np.clip(part / whole, -1.0, 1.0)), Interval(-1.0, 1.0)
    half = np.sqrt(max(float(line**2 - square * rest), 0.0))
    low, middle, high = (
        float(np.clip(x, -1.0, 1.0)) for x in ((line - half) / square, part / whole, (line + half) / square)
    )
    return middle, Interval(min(low, middle), max(high, middle))
