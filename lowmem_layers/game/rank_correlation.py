"""How far two rankings of the same players agree: Kendall's tau, Spearman's rho, overlap of the top k.

Noise shuffles players of similar importance and so pulls both coefficients towards 0. The intervals are basic bootstrap
ones (2·estimate − bootstrap quantiles), which push back by the pull that the bootstrap itself shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.ranks import ranks
from lowmem_layers.game.table import FloatArray


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b and Spearman's rho with intervals, and how many of the top k are the same.

    nan where a ranking is all ties, holds a nan, or has fewer than 2 players; intervals nan with fewer than 2 clusters.
    `overlap_low` and `overlap_high` are bootstrap percentiles of the count.
    """

    kendall: float
    kendall_low: float
    kendall_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    top_k: int
    overlap: int
    overlap_low: float
    overlap_high: float


def kendall_tau(a: FloatArray, b: FloatArray) -> float:
    """Compute Kendall's tau-b (ties corrected). Shapes: (players,) each."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    sign_a, sign_b = (np.sign(x[:, None] - x[None, :]) for x in (a, b))
    scale = float(np.sqrt(np.abs(sign_a).sum() * np.abs(sign_b).sum()))
    return float((sign_a * sign_b).sum() / scale) if scale > 0 else float("nan")


def spearman_rho(a: FloatArray, b: FloatArray) -> float:
    """Compute Spearman's rho: the correlation of mid-ranks. Shapes: (players,) each."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    rank_a, rank_b = (_mid_ranks(x) for x in (a, b))
    rank_a, rank_b = rank_a - rank_a.mean(), rank_b - rank_b.mean()
    scale = float(np.sqrt((rank_a @ rank_a) * (rank_b @ rank_b)))
    return float(rank_a @ rank_b) / scale if scale > 0 else float("nan")


def top_overlap(a: FloatArray, b: FloatArray, top_k: int) -> int:
    """Count the players that are in both tops; of players tied at the edge the earlier in execution order is in."""
    tops = [set(np.argsort(-x, kind="stable")[:top_k].tolist()) for x in (a, b)]
    return len(tops[0] & tops[1])


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
    unknown = float("nan")
    if np.isnan(dof).any() or np.isnan(kendall):
        return Agreement(kendall, unknown, unknown, spearman, unknown, unknown, top_k, overlap, unknown, unknown)
    noise = _errors(np.concatenate([pieces_a, pieces_b], axis=1), draws, seed)
    n = len(a)
    draws_of = [(a + row[:n], b + row[n:]) for row in noise]
    tail = 100.0 * (1.0 - level) / 2
    taus = np.percentile([kendall_tau(x, y) for x, y in draws_of], [100 - tail, tail])
    rhos = np.percentile([spearman_rho(x, y) for x, y in draws_of], [100 - tail, tail])
    overlaps = np.percentile([top_overlap(x, y, top_k) for x, y in draws_of], [tail, 100 - tail])
    tau_low, tau_high = np.clip(2.0 * kendall - taus, -1.0, 1.0)
    rho_low, rho_high = np.clip(2.0 * spearman - rhos, -1.0, 1.0)
    return Agreement(
        kendall,
        float(tau_low),
        float(tau_high),
        spearman,
        float(rho_low),
        float(rho_high),
        top_k,
        overlap,
        float(overlaps[0]),
        float(overlaps[1]),
    )


def _mid_ranks(x: FloatArray) -> FloatArray:
    return (ranks(x) + len(x) + 1.0 - ranks(-x)) / 2.0


def _errors(pieces: FloatArray, draws: int, seed: int) -> FloatArray:
    # Errors with the estimated covariance, normal. Shapes: (rows, columns) → (draws, columns).
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.standard_normal((min(50, draws - d), len(pieces))) @ pieces for d in range(0, draws, 50)]
    )
