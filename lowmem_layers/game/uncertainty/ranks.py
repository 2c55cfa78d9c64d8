"""Ranks, and what the data can say about them.

Rank 1 is the largest value; ties share the best rank they could have (1, 2, 2, 4), a nan value has rank nan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray


def ranks(value: FloatArray) -> FloatArray:
    """Rank values: 1 + how many are strictly larger. Shapes: (..., players) → the same; nan where the value is nan."""
    larger = (value[..., None, :] > value[..., :, None]).sum(axis=-1)
    return np.where(np.isnan(value), np.nan, 1.0 + larger)


@dataclass(frozen=True, eq=False)
class RankSets:
    """Bounds of all ranks: each player's own at the level, and bounds that hold for all players together."""

    each: Interval[FloatArray]
    together: Interval[FloatArray]


def rank_sets(estimate: Influence, level: float, seed: int, draws: int = 1000) -> RankSets:
    """Bound every player's rank by comparing it with all others at once.

    A player ranks below those that are significantly larger and above those significantly smaller; the critical value
    is the `level` quantile of the largest of its N − 1 studentised differences, so each player's interval covers its
    true rank with at least `level`, also with ties (where a bootstrap of the ranks themselves fails).
    Players with nan values could be anywhere: they widen every interval by one place each and get nan themselves.
    `together`: the critical value is that of the largest of all pairs' differences, so that with probability `level` no
    player's true rank lies outside.
    Shapes: (players,).
    Ranks are whole numbers: where the values are well apart the interval is one rank and always right, so the measured
    coverage lies above the nominal one (benchmarks/coverage.py).
    Source: Mogstad, Romano, Shaikh, Wilhelm 2024, "Inference for ranks", marginal and simultaneous confidence sets,
    with step-down.
    """
    n_players = len(estimate.value)
    known = np.flatnonzero(np.isfinite(estimate.value) & np.isfinite(estimate.dof))
    unknown = np.full(n_players, np.nan)
    sets = RankSets(Interval(unknown, unknown.copy()), Interval(unknown.copy(), unknown.copy()))
    if len(known) == 0:
        return sets
    value, pieces = estimate.value[known], estimate.pieces[:, known]
    # 1) Draw errors of the estimates: a multivariate t with the estimated covariance.
    rng = np.random.default_rng(seed)
    eigenvalue, eigenvector = np.linalg.eigh(pieces.T @ pieces)
    root = eigenvector * np.sqrt(np.maximum(eigenvalue, 0.0))
    normal = rng.standard_normal((draws, len(known))) @ root.T  # (draws, known)
    dof = float(estimate.dof[known].min())
    simulated = normal / np.sqrt(rng.chisquare(dof, draws) / dof)[:, None]
    # 2) Compare each player with all others.
    error = difference_errors(pieces)  # (known, known)
    for place, player in enumerate(known):
        gap = value - value[place]
        differs = _step_down(gap, error[place], np.abs(simulated - simulated[:, [place]]), level)
        sets.each.low[player] = 1.0 + (differs & (gap > 0)).sum()
        sets.each.high[player] = n_players - (differs & (gap < 0)).sum()
    # 3) Compare all pairs; here row p, column q tells whether q is larger.
    gaps = value[None, :] - value[:, None]
    differs = _pairs_step_down(gaps, error, simulated, level)
    sets.together.low[known] = 1.0 + (differs & (gaps > 0)).sum(axis=1)
    sets.together.high[known] = n_players - (differs & (gaps < 0)).sum(axis=1)
    return sets


def _pairs_step_down(gaps: FloatArray, error: FloatArray, simulated: FloatArray, level: float) -> NDArray[np.bool_]:
    """Tell which differences of all pairs are significant together, by the same step-down.

    Row by row, since all pairs of all draws would not fit into a laptop's memory.
    Shapes: `gaps`, `error` (players, players), `simulated` (draws, players) → (players, players).
    """
    varies = error > 0
    scale = np.where(varies, error, 1.0)
    score = np.where(varies, np.abs(gaps) / scale, 0.0)
    rejected = np.zeros(gaps.shape, dtype=np.bool_)
    while True:
        largest = np.zeros(len(simulated))
        for row in range(len(gaps) - 1):
            kept = np.flatnonzero((varies & ~rejected)[row, row + 1 :]) + row + 1
            if len(kept):
                apart = np.abs(simulated[:, kept] - simulated[:, [row]]) / scale[row, kept]  # (draws, kept)
                largest = np.maximum(largest, apart.max(axis=1))
        new = varies & ~rejected & (score > np.quantile(largest, level))
        if not new.any():
            return rejected | (~varies & (gaps != 0))
        rejected |= new


def _step_down(gap: FloatArray, error: FloatArray, simulated: FloatArray, level: float) -> NDArray[np.bool_]:
    """Tell which of one player's differences are significant together, by Romano and Wolf's step-down.

    A difference that was rejected no longer counts among the largest of the simulated ones, so the next critical value
    is smaller. Shapes: `gap`, `error` (players,), `simulated` (draws, players) → (players,).
    """
    varies = error > 0  # a difference without any error is certain, whichever way it points
    scaled = simulated[:, varies] / error[varies]
    score = np.abs(gap[varies]) / error[varies]
    rejected = np.zeros(len(score), dtype=np.bool_)
    while not rejected.all():
        critical = float(np.quantile(scaled[:, ~rejected].max(axis=1), level))
        new = ~rejected & (score > critical)
        if not new.any():
            break
        rejected |= new
    result = ~varies & (gap != 0)
    result[varies] = rejected
    return result


def difference_errors(pieces: FloatArray) -> FloatArray:
    """Estimate the standard error of every difference. Shapes: (pieces, players) → (players, players)."""
    covariance = pieces.T @ pieces
    variance = np.diag(covariance)
    total = variance[:, None] + variance[None, :]
    squared = np.maximum(total - 2.0 * covariance, 0.0)
    return np.sqrt(np.where(squared > 1e-12 * total, squared, 0.0))  # less is rounding: the two move together
