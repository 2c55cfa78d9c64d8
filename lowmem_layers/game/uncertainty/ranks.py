"""Ranks, and what the data can say about them.

Rank 1 is the largest value; ties share the best rank they could have (1, 2, 2, 4), a nan value has rank nan.
"""

from __future__ import annotations

import numpy as np

from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray


def ranks(value: FloatArray) -> FloatArray:
    """Rank values: 1 + how many are strictly larger. Shapes: (..., players) → the same; nan where the value is nan."""
    larger = (value[..., None, :] > value[..., :, None]).sum(axis=-1)
    return np.where(np.isnan(value), np.nan, 1.0 + larger)


def rank_intervals(estimate: Influence, level: float, seed: int, draws: int = 1000) -> Interval[FloatArray]:
    """Bound every player's rank by comparing it with all others at once.

    A player ranks below those that are significantly larger and above those significantly smaller; the critical value
    is the `level` quantile of the largest of its N − 1 studentised differences, so each player's interval covers its
    true rank with at least `level`, also with ties (where a bootstrap of the ranks themselves fails).
    Players with nan values could be anywhere: they widen every interval by one place each and get nan themselves.
    Shapes: (players,).
    Ranks are whole numbers: where the values are well apart the interval is one rank and always right, so the measured
    coverage lies above the nominal one (benchmarks/coverage.py).
    Source: Mogstad, Romano, Shaikh, Wilhelm 2024, "Inference for ranks", marginal confidence sets, with step-down.
    """
    n_players = len(estimate.value)
    known = np.flatnonzero(np.isfinite(estimate.value) & np.isfinite(estimate.dof))
    low, high = np.full(n_players, np.nan), np.full(n_players, np.nan)
    if len(known) == 0:
        return Interval(low, high)
    larger, smaller = significant_differences(estimate, known, level, seed, draws)
    low[known] = 1.0 + larger
    high[known] = n_players - smaller
    return Interval(low, high)


def significant_differences(
    estimate: Influence, known: np.ndarray, level: float, seed: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each known player, the others significantly larger and smaller. Shapes: two arrays (known,)."""
    value, pieces = estimate.value[known], estimate.pieces[:, known]
    error = difference_errors(pieces)
    simulated = _simulate(pieces, estimate.dof[known], draws, seed)
    larger, smaller = np.zeros(len(known)), np.zeros(len(known))
    for p in range(len(known)):
        gap = value - value[p]
        rejected = _step_down(gap, error[p], np.abs(simulated - simulated[:, [p]]), level)
        larger[p] = (rejected & (gap > 0)).sum()
        smaller[p] = (rejected & (gap < 0)).sum()
    return larger, smaller


def _step_down(gap: FloatArray, error: FloatArray, simulated: FloatArray, level: float) -> np.ndarray:
    # Romano and Wolf's step-down: what is rejected no longer counts among the largest differences. Shapes: (players,).
    open_ = error > 0
    scaled = simulated[:, open_] / error[open_]
    score = np.abs(gap[open_]) / error[open_]
    rejected = np.zeros(len(score), dtype=np.bool_)
    while not rejected.all():
        critical = float(np.quantile(scaled[:, ~rejected].max(axis=1), level))
        new = ~rejected & (score > critical)
        if not new.any():
            break
        rejected |= new
    result = ~open_ & (gap != 0)
    result[open_] = rejected
    return result


def difference_errors(pieces: FloatArray) -> FloatArray:
    """Estimate the standard error of every difference. Shapes: (clusters, players) → (players, players)."""
    covariance = pieces.T @ pieces
    variance = np.diag(covariance)
    squared = np.maximum(variance[:, None] + variance[None, :] - 2.0 * covariance, 0.0)
    return np.sqrt(np.where(squared > 1e-12 * (variance[:, None] + variance[None, :]), squared, 0.0))


def _simulate(pieces: FloatArray, dof: FloatArray, draws: int, seed: int) -> FloatArray:
    # Errors of the estimates under a multivariate t with the estimated covariance. Shapes: (draws, players).
    rng = np.random.default_rng(seed)
    covariance = pieces.T @ pieces
    eigenvalue, eigenvector = np.linalg.eigh(covariance)
    root = eigenvector * np.sqrt(np.maximum(eigenvalue, 0.0))
    normal = rng.standard_normal((draws, len(covariance))) @ root.T
    smallest = float(dof.min())
    return normal / np.sqrt(rng.chisquare(smallest, draws) / smallest)[:, None]
