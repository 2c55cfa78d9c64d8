"""How far two rankings of the same players agree: Kendall's tau, Spearman's rho, overlap of the top k.

Noise shuffles players of similar importance, which pulls both coefficients towards 0, or, where both runs share their
items, makes them agree by accident; a bootstrap cannot undo it (measured: its intervals hold the truth in 4–56 % of
cases with 60 players of which most are nearly tied). So an interval here spans the bootstrap and what the pairs allow
whose order is not certain in both runs: all of them agreeing, all of them disagreeing. With few items that is wide,
and that is the answer; `resolved` says how many pairs are certain.

Both coefficients are computed here, not by scipy.stats: for 1,000 draws of 60 players scipy takes 3 times (tau) and 17
times (rho) as long, and for one pair it may call a full agreement 0.9999999999999999. The tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.uncertainty.ranks import difference_errors, ranks
from lowmem_layers.game.values.table import FloatArray

_PAIRS_AT_ONCE = 640_000  # of players, over all draws that are held at once: 5 MB each array


@dataclass(frozen=True, eq=False)
class Agreement:
    """Kendall's tau-b and Spearman's rho with intervals, and how many of the top k are the same.

    nan where a ranking is all ties, holds a nan, or has fewer than 2 players; intervals nan with fewer than 2 clusters.
    `overlap_ci` are bootstrap percentiles of the count, `resolved` the share of pairs of players whose order is certain
    (each at `level`) in both runs, `opposite` the share of those that are in opposite orders (nan where none is
    certain).
    """

    kendall: float
    kendall_ci: Interval[float]
    spearman: float
    spearman_ci: Interval[float]
    overlap: int
    overlap_ci: Interval[float]
    top_k: int
    resolved: float
    opposite: float


def kendall_tau(a: FloatArray, b: FloatArray) -> float:
    """Compute Kendall's tau-b; nan for a ranking of ties only or with a nan. Shapes: (players,) each."""
    return float(_kendall(a[None], b[None])[0])


def spearman_rho(a: FloatArray, b: FloatArray) -> float:
    """Compute Spearman's rho, the correlation of mid-ranks; nan as for Kendall's tau. Shapes: (players,) each."""
    return float(_spearman(a[None], b[None])[0])


def top_overlap(a: FloatArray, b: FloatArray, top_k: int) -> int:
    """Count the players that are in both tops; of players tied at the edge the earlier in execution order is in."""
    return int(_overlap(a[None], b[None], top_k)[0])


def _kendall(a: FloatArray, b: FloatArray) -> FloatArray:
    """Compute tau-b of many pairs of rankings. Shapes: (draws, players) each → (draws,)."""
    sign_a, sign_b = (np.sign(x[:, :, None] - x[:, None, :]) for x in (a, b))  # (draws, players, players)
    scale = np.sqrt(np.abs(sign_a).sum(axis=(1, 2)) * np.abs(sign_b).sum(axis=(1, 2)))
    return _ratio(np.einsum("dij,dij->d", sign_a, sign_b), scale)


def _spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Compute rho of many pairs of rankings. Shapes: (draws, players) each → (draws,)."""
    # Mid-ranks: the mean of the best and the worst place among ties.
    first, second = ((ranks(x) + x.shape[1] + 1.0 - ranks(-x)) / 2.0 for x in (a, b))
    first, second = (x - x.mean(axis=1, keepdims=True) for x in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return _ratio((first * second).sum(axis=1), scale)


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _overlap(a: FloatArray, b: FloatArray, top_k: int) -> FloatArray:
    """Count who is in both tops, of many pairs of rankings. Shapes: (draws, players) each → (draws,)."""
    inside = []
    for x in (a, b):
        member = np.zeros(x.shape, dtype=np.bool_)
        np.put_along_axis(member, np.argsort(-x, axis=1, kind="stable")[:, :top_k], True, axis=1)
        inside.append(member)
    return (inside[0] & inside[1]).sum(axis=1).astype(np.float64)


def agreement(
    a: FloatArray,
    b: FloatArray,
    pieces_a: FloatArray,
    pieces_b: FloatArray,
    dof: FloatArray,
    *,
    level: float = 0.95,
    top_k: int = 3,
    seed: int = 0,
    draws: int = 1000,
) -> Agreement:
    """Compare two estimates whose error pieces are aligned row by row (paired items, or zeros where they are not).

    Shapes: `a`, `b`, `dof` (players,); `pieces_a`, `pieces_b` (rows, players).

    Raises:
        UsageError: shapes that do not fit.
    """
    if a.shape != b.shape or pieces_a.shape != pieces_b.shape or pieces_a.shape[1:] != a.shape:
        raise UsageError(f"rankings of {a.shape} and {b.shape} players", "compare the same players")
    n, nan = len(a), float("nan")
    kendall, spearman, overlap = kendall_tau(a, b), spearman_rho(a, b), top_overlap(a, b, top_k)
    if np.isnan(dof).any() or np.isnan(kendall):
        unknown = Interval(nan, nan)
        return Agreement(kendall, unknown, spearman, unknown, overlap, unknown, top_k, nan, nan)
    # 1) The pairs whose order is certain in both: +1 the row's player above the column's, −1 below, 0 unknown.
    orders = []
    for value, pieces in ((a, pieces_a), (b, pieces_b)):
        gap = value[:, None] - value[None, :]  # (players, players)
        radius = stdtrit(float(dof.min()), 0.5 + level / 2) * difference_errors(pieces)
        orders.append(np.where(np.abs(gap) > radius, np.sign(gap), 0.0))
    known = orders[0] * orders[1]
    resolved = float(np.abs(known).sum() / (n * (n - 1)))
    opposite = float((known < 0).sum() / np.abs(known).sum()) if resolved > 0 else nan
    # 2) What the other pairs allow: all of them agreeing, all of them disagreeing.
    agreeing = known.sum() / (n * (n - 1))
    tau_bounds = Interval(float(agreeing - (1.0 - resolved)), float(agreeing + (1.0 - resolved)))
    # Ours: of nearly tied pairs, 1 − level are taken for certain by mistake (benchmarks/coverage.py).
    slack = 2.0 * (1.0 - level) * (1.0 - resolved)
    # 3) The bootstrap beside it.
    drawn = _draw(a, b, np.concatenate([pieces_a, pieces_b], axis=1), top_k, draws, seed)  # (3, draws)
    tails = np.percentile(drawn, [50.0 * (1.0 - level), 50.0 * (1.0 + level)], axis=1).T.tolist()
    tau_ci = _span(kendall, Interval(*tails[0]), tau_bounds, slack)
    rho_ci = _span(spearman, Interval(*tails[1]), _rho_bounds(orders[0], orders[1]), slack)
    return Agreement(kendall, tau_ci, spearman, rho_ci, overlap, Interval(*tails[2]), top_k, resolved, opposite)


def _span(estimate: float, drawn: Interval[float], bounds: Interval[float], slack: float) -> Interval[float]:
    """Unite the percentile interval, the basic bootstrap interval and the bounds, within [−1, 1]."""
    low = min(drawn.low, 2.0 * estimate - drawn.high, bounds.low - slack)
    high = max(drawn.high, 2.0 * estimate - drawn.low, bounds.high + slack)
    return Interval(max(-1.0, low), min(1.0, high))


def _rho_bounds(order_a: FloatArray, order_b: FloatArray) -> Interval[float]:
    """Bound Spearman's rho by the places that each player may have: as near, and as far apart as they can be."""
    n = len(order_a)
    best_a, best_b = (1 + (order < 0).sum(axis=1) for order in (order_a, order_b))  # (players,)
    worst_a, worst_b = (n - (order > 0).sum(axis=1) for order in (order_a, order_b))
    nearest = np.maximum(0, np.maximum(best_a - worst_b, best_b - worst_a))
    farthest = np.maximum(np.abs(worst_a - best_b), np.abs(worst_b - best_a))
    scale = 6.0 / (n * (n**2 - 1.0))
    return Interval(float(1.0 - scale * (farthest**2).sum()), float(1.0 - scale * (nearest**2).sum()))


def _draw(a: FloatArray, b: FloatArray, pieces: FloatArray, top_k: int, draws: int, seed: int) -> FloatArray:
    """Draw both coefficients and the overlap, with normal errors of the estimated covariance. Shapes: (3, draws)."""
    rng = np.random.default_rng(seed)
    if len(pieces) > pieces.shape[1]:
        pieces = np.asarray(np.linalg.qr(pieces, mode="r"))  # the same covariance from fewer rows
    chunks = []
    chunk = max(1, _PAIRS_AT_ONCE // len(a) ** 2)
    for start in range(0, draws, chunk):
        noise = rng.standard_normal((min(chunk, draws - start), len(pieces))) @ pieces  # (chunk, players of both)
        x, y = a + noise[:, : len(a)], b + noise[:, len(a) :]
        chunks.append(np.stack([_kendall(x, y), _spearman(x, y), _overlap(x, y, top_k)]))
    return np.concatenate(chunks, axis=1)
