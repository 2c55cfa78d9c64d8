"""How far two rankings of the same players agree: Kendall's tau, Spearman's rho, overlap of the top k.

Noise shuffles players of similar importance, which pulls both coefficients towards 0, or, where both runs share their
items, makes them agree by accident; a bootstrap cannot undo it (measured: its intervals hold the truth in 4–56 % of
cases with 60 players of which most are nearly tied). So an interval here spans the bootstrap and what the pairs allow
whose order is not certain in both runs: all of them agreeing, all of them disagreeing. With few items that is wide,
and that is the answer; `resolved` says how many pairs are certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.uncertainty.quantiles import student_quantile
from lowmem_layers.game.uncertainty.ranks import difference_errors, ranks
from lowmem_layers.game.values.table import FloatArray


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
    # Shapes: (draws, players) each → (draws,).
    sign_a, sign_b = (np.sign(x[:, :, None] - x[:, None, :]) for x in (a, b))
    scale = np.sqrt(np.abs(sign_a).sum(axis=(1, 2)) * np.abs(sign_b).sum(axis=(1, 2)))
    return _ratio(np.einsum("dij,dij->d", sign_a, sign_b), scale)


def _spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    # Shapes: (draws, players) each → (draws,). Mid-ranks: the mean of the best and the worst place among ties.
    first, second = ((ranks(x) + x.shape[1] + 1.0 - ranks(-x)) / 2.0 for x in (a, b))
    first, second = (x - x.mean(axis=1, keepdims=True) for x in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return _ratio((first * second).sum(axis=1), scale)


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _overlap(a: FloatArray, b: FloatArray, top_k: int) -> FloatArray:
    # Shapes: (draws, players) each → (draws,).
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
    kendall, spearman, overlap = kendall_tau(a, b), spearman_rho(a, b), top_overlap(a, b, top_k)
    if np.isnan(dof).any() or np.isnan(kendall):
        return _without_intervals(kendall, spearman, top_k, overlap)
    tail = 100.0 * (1.0 - level) / 2
    drawn = _draw(a, b, np.concatenate([pieces_a, pieces_b], axis=1), top_k, draws, seed)
    order_a, order_b = (_certain_order(x, p, dof, level) for x, p in ((a, pieces_a), (b, pieces_b)))
    certain = (order_a != 0) & (order_b != 0)
    resolved = float(certain.sum() / (len(a) * (len(a) - 1)))
    opposite = float((order_a != order_b)[certain].mean()) if certain.any() else float("nan")
    slack = 2.0 * (1.0 - level) * (1.0 - resolved)  # of nearly tied pairs, 1 − level are taken for certain by mistake
    tau_ci = _span(kendall, drawn[0], tail, _tau_bounds(order_a, order_b), slack)
    rho_ci = _span(spearman, drawn[1], tail, _rho_bounds(order_a, order_b), slack)
    overlap_ci = Interval(*np.percentile(drawn[2], [tail, 100.0 - tail]).tolist())
    return Agreement(kendall, tau_ci, spearman, rho_ci, overlap, overlap_ci, top_k, resolved, opposite)


def _without_intervals(kendall: float, spearman: float, top_k: int, overlap: int) -> Agreement:
    nan = float("nan")
    unknown = Interval(nan, nan)
    return Agreement(kendall, unknown, spearman, unknown, overlap, unknown, top_k, nan, nan)


def _span(
    estimate: float, draws: FloatArray, tail: float, bounds: tuple[float, float], slack: float
) -> Interval[float]:
    # The percentile and the basic bootstrap interval and the bounds together, within [−1, 1].
    low, high = (float(q) for q in np.percentile(draws, [tail, 100.0 - tail]))
    least, most = min(low, 2.0 * estimate - high, bounds[0] - slack), max(high, 2.0 * estimate - low, bounds[1] + slack)
    return Interval(max(-1.0, least), min(1.0, most))


def _certain_order(value: FloatArray, pieces: FloatArray, dof: FloatArray, level: float) -> FloatArray:
    # +1 where the row's player is certainly above the column's, −1 below, 0 unknown. Shapes: (players, players).
    gap = value[:, None] - value[None, :]
    radius = student_quantile(0.5 + level / 2, float(dof.min())) * difference_errors(pieces)
    return np.where(np.abs(gap) > radius, np.sign(gap), 0.0)


def _tau_bounds(order_a: FloatArray, order_b: FloatArray) -> tuple[float, float]:
    pairs = len(order_a) * (len(order_a) - 1)
    known = order_a * order_b
    unknown = pairs - np.abs(known).sum()
    return float((known.sum() - unknown) / pairs), float((known.sum() + unknown) / pairs)


def _rho_bounds(order_a: FloatArray, order_b: FloatArray) -> tuple[float, float]:
    # From the places each player may have in either run: the nearest and the farthest they can be apart.
    n = len(order_a)
    best_a, best_b = (1 + (order < 0).sum(axis=1) for order in (order_a, order_b))
    worst_a, worst_b = (n - (order > 0).sum(axis=1) for order in (order_a, order_b))
    nearest = np.maximum(0, np.maximum(best_a - worst_b, best_b - worst_a))
    farthest = np.maximum(np.abs(worst_a - best_b), np.abs(worst_b - best_a))
    scale = 6.0 / (n * (n**2 - 1.0))
    return float(1.0 - scale * (farthest**2).sum()), float(1.0 - scale * (nearest**2).sum())


def _draw(a: FloatArray, b: FloatArray, pieces: FloatArray, top_k: int, draws: int, seed: int) -> FloatArray:
    # Both coefficients and the overlap with errors of the estimated covariance, normal. Shapes: (3, draws).
    rng = np.random.default_rng(seed)
    if len(pieces) > pieces.shape[1]:
        pieces = np.asarray(np.linalg.qr(pieces, mode="r"))  # the same covariance from fewer rows
    chunks = []
    for start in range(0, draws, 25):
        noise = rng.standard_normal((min(25, draws - start), len(pieces))) @ pieces
        x, y = a + noise[:, : len(a)], b + noise[:, len(a) :]
        chunks.append(np.stack([_kendall(x, y), _spearman(x, y), _overlap(x, y, top_k)]))
    return np.concatenate(chunks, axis=1)
