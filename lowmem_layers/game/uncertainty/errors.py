"""From per-item contributions to an estimate and its influence function: the independent pieces of its error.

An estimate is a mean over items, so its error is a sum of one piece for each cluster of items. Intervals, shares, ranks
and comparisons need nothing else: the pieces give variances, covariances between sublayers, and sums over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.score import Answers, answers_of
from lowmem_layers.game.values.table import FloatArray, IntArray, ValueTable

_ROUNDING = 1e-12  # of the largest contribution: what is no farther apart differs by the order of additions only


@dataclass(frozen=True, eq=False)
class Influence:
    """Estimates with the pieces of their error.

    Shapes: `value` (players,); `pieces` (clusters, players), summing to zero: the variance is Σ pieces², a covariance
    Σ pieces · pieces; `dof` (players,), the degrees of freedom of the variances, nan for fewer than 2 clusters.
    `is_binary`: the values were 0 or 1 and the pieces hold the coin-flip item (`with_coin_flip_item`).
    `n_shared` counts the last pieces: those of errors that tasks share (their removal orders), row by row.
    `reach` (2, players): the least and the most that an estimate of bounded values can be; None without bounds.
    `answers`: what score intervals of accuracies need.
    """

    value: FloatArray
    pieces: FloatArray
    dof: FloatArray
    is_binary: bool = False
    n_shared: int = 0
    reach: FloatArray | None = None
    answers: Answers | None = None

    @property
    def variance(self) -> FloatArray:
        """Estimate each estimate's variance; nan where fewer than 2 clusters leave it unknown. Shapes: (players,)."""
        return np.where(np.isnan(self.dof), np.nan, np.einsum("gp,gp->p", self.pieces, self.pieces))

    @property
    def standard_error(self) -> FloatArray:
        """Take the root of the variance. Shapes: (players,)."""
        return np.sqrt(self.variance)

    @property
    def skewness(self) -> FloatArray:
        """Estimate the skewness of each estimate's error (an item's skewness over √items). Shapes: (players,)."""
        return skewness_of(self.pieces)


def skewness_of(pieces: FloatArray) -> FloatArray:
    """Estimate the skewness of sums of independent pieces; 0 where they do not vary. Shapes: (pieces, ...) → (...)."""
    spread = (pieces**2).sum(axis=0) ** 1.5
    return np.divide((pieces**3).sum(axis=0), spread, out=np.zeros(pieces.shape[1:]), where=spread > 0)


def contributions(table: ValueTable, weights: FloatArray) -> FloatArray:
    """Apply an estimator's weights to every item's values.

    A player whose estimate touches a non-finite value gets nan, all others are untouched by it.
    Shapes: `weights` (players, coalitions); returns (items, players).
    """
    finite = np.isfinite(table.values)
    values = np.where(finite, table.values, 0.0)
    if np.abs(weights.sum(axis=1)).max(initial=0.0) < 1e-9:
        values = values - values[:, :1]  # differences: what is constant then gives exactly 0, not a rounding error
    result = values @ weights.T
    if not finite.all():
        result[:, (weights[:, ~finite.all(axis=0)] != 0).any(axis=1)] = np.nan
    return result


def influence_of(per_item: FloatArray, clusters: IntArray) -> Influence:
    """Average over items and split the error over clusters, with the CR2 small-sample correction.

    Each cluster's sum of residuals is divided by √(1 − its share of the items), which makes the variance unbiased for
    independent items; the degrees of freedom are Bell and McCaffrey's for an intercept (G − 1 for equal clusters).
    Shapes: `per_item` (items, players), `clusters` (items,) codes 0..G−1.
    Source: Bell and McCaffrey 2002; Imbens and Kolesár 2016, section III.
    """
    n_items, n_players = per_item.shape
    sizes = np.bincount(clusters).astype(np.float64)
    value = tied(per_item.mean(axis=0), np.abs(per_item).max(initial=0.0, where=np.isfinite(per_item)))
    if len(sizes) < 2:
        return Influence(value, np.zeros((len(sizes), n_players)), np.full(n_players, np.nan))
    residual_sums = sum_by(per_item - value, clusters, len(sizes))  # (clusters, players)
    leverage = sizes / n_items
    pieces = residual_sums / (n_items * np.sqrt(1.0 - leverage))[:, None]
    return Influence(value, pieces, np.full(n_players, degrees_of_freedom(sizes)))


def tied(value: FloatArray, scale: float) -> FloatArray:
    """Make values equal that differ by rounding only: to the one nearest 0 among them.

    Sevenths of accuracies add up to the same number in one order and to its neighbour in another; ranks and signs must
    not hang on that. `scale` is the size of what was added up. Shapes: (players,) → the same; nan stays nan.
    """
    order = np.argsort(value, kind="stable")  # nan last
    with np.errstate(invalid="ignore"):
        gap = np.diff(value[order])
    result = value.copy()
    if ((gap > 0) & (gap <= _ROUNDING * scale)).any():
        # Neighbours in order that are no farther apart than rounding form one group.
        for group in np.split(order, np.flatnonzero(~(gap <= _ROUNDING * scale)) + 1):
            result[group] = value[group][np.abs(value[group]).argmin()]
    return result


def with_coin_flip_item(
    estimate: Influence, weights: FloatArray, n_items: int, n_clusters: int, items: float = 1.0
) -> Influence:
    """Add to the errors what one more item would, whose values under all coalitions are independent coin flips.

    For values that are only 0 or 1 (accuracy): when no item, or a handful, changes its answer, the spread of the sample
    says that the drop is exactly known, and plain intervals cover as little as 60 %. One such item (one average
    cluster's worth of them) in the variance restores the coverage; its part, 1/(4 n), vanishes as items grow.
    `items` counts such items: half a one for differences of drops (interactions), where a whole one covers 98–99 %.
    Intervals and p values of one estimate do without it, by what `answers` holds; differences of ranks, shares and
    correlations need covariances.
    Shapes: `weights` (players, coalitions).
    Source: Agresti and Min 2005 (pseudo-observations for differences of matched proportions), at half their weight and
    without moving the estimate; chosen by measurement, see benchmarks/coverage.py.
    """
    used = weights[:, (weights != 0).any(axis=0)]  # (players, coalitions that matter)
    extra = 0.5 * np.sqrt(items * n_items / n_clusters) / n_items * used.T
    answers = answers_of(estimate.pieces, estimate.value, weights, items)
    return replace(estimate, pieces=np.concatenate([estimate.pieces, extra]), is_binary=True, answers=answers)


def estimate_influence(table: ValueTable, weights: FloatArray, coin_flip_items: float = 1.0) -> Influence:
    """Estimate with these weights over all items of a table, errors clustered as the table says.

    Shapes: `weights` (players, coalitions).
    """
    estimate = influence_of(contributions(table, weights), table.cluster_codes)
    estimate = replace(estimate, reach=reach_of(table, weights))
    if not table.is_binary:
        return estimate
    return with_coin_flip_item(estimate, weights, table.n_items, table.n_clusters, coin_flip_items)


def reach_of(table: ValueTable, weights: FloatArray) -> FloatArray | None:
    """Bound what weighted means of values within 0 and 1 can be: the sums of the negative and of the positive weights.

    Shapes: `weights` (players, coalitions); returns (2, players), or None for values without bounds.
    """
    if not table.is_bounded:
        return None
    return np.array([np.minimum(weights, 0.0).sum(axis=1), np.maximum(weights, 0.0).sum(axis=1)])


def sum_by(rows: FloatArray, codes: IntArray, n_groups: int) -> FloatArray:
    """Sum rows that share a code. Shapes: (rows, players) → (groups, players)."""
    if n_groups == len(rows) and np.array_equal(codes, np.arange(n_groups)):  # every row its own group
        return rows
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(n_groups))
    return np.add.reduceat(rows[order], starts, axis=0)


def degrees_of_freedom(sizes: FloatArray) -> float:
    """Count Bell and McCaffrey's degrees of freedom of a mean's clustered variance.

    The smaller of the answers for independent and for identical items within a cluster (their working model is not
    known); both are G − 1 for equal sizes. Shapes: `sizes` (clusters,).
    """
    share = sizes / sizes.sum()
    scaled = share / np.sqrt(1.0 - share)
    independent = _satterthwaite(share, scaled, share)
    identical = _satterthwaite(share, scaled, share**2)
    return min(independent, identical)


def _satterthwaite(share: FloatArray, scaled: FloatArray, noise: FloatArray) -> float:
    """Give tr² / tr(square) of the covariance of the pieces a_g = (e_g − share_g Σ e) / √(1 − share_g).

    e_g is the sum of a cluster's residuals, with variance `noise`. Shapes: (clusters,) each.
    """
    root = np.sqrt(1.0 - share)
    total = noise.sum()
    diagonal = (noise - 2 * share * noise + share**2 * total) / (1.0 - share)
    # Off the diagonal: (share_g share_h total − share_g noise_h − share_h noise_g) / (root_g root_h).
    a, b = scaled, noise / root
    square = total**2 * (a @ a) ** 2 + 2 * (a @ a) * (b @ b) + 2 * (a @ b) ** 2 - 4 * total * (a @ a) * (a @ b)
    own = (total * a * a - 2 * a * b) ** 2
    return float(diagonal.sum() ** 2 / (diagonal @ diagonal + square - own.sum()))


def summed_dof(variances: FloatArray, dof: FloatArray) -> FloatArray:
    """Give the degrees of freedom of a sum of independent errors: (Σv)² / Σ(v²/ν).

    Where nothing varies they are the fewest of any part; nan where one of the parts is unknown.
    Shapes: (parts, players) each → (players,).
    Source: Welch 1947; Satterthwaite 1946.
    """
    total = variances.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        summed = np.where(total > 0, total**2 / (variances**2 / dof).sum(axis=0), dof.min(axis=0))
    return np.where(np.isnan(dof).any(axis=0), np.nan, summed)


def mean_over_tasks(parts: Sequence[Influence]) -> Influence:
    """Average tasks whose items are independent.

    Where tasks share errors (`n_shared`), the degrees of freedom are the fewest of any task, on the wide side.

    Raises:
        UsageError: no tasks, or different numbers of players.
    """
    if not parts or len({len(part.value) for part in parts}) != 1:
        raise UsageError(
            f"cannot average {len(parts)} tasks of {sorted({len(part.value) for part in parts})} players",
            "average at least one task, all of the same players",
        )
    if len(parts) == 1:
        return parts[0]
    n_shared, each = shared_pieces(parts), np.array([part.dof for part in parts])  # (tasks, players)
    dof = each.min(axis=0) if n_shared else summed_dof(np.array([part.variance for part in parts]), each)
    pieces = joined_pieces([part.pieces for part in parts], n_shared) / len(parts)
    values = np.array([part.value for part in parts])
    value = tied(values.mean(axis=0), np.abs(values).max(initial=0.0, where=np.isfinite(values)))
    reaches = [part.reach for part in parts if part.reach is not None]
    reach = np.mean(reaches, axis=0) if len(reaches) == len(parts) else None
    answers = _mean_answers([part.answers for part in parts], n_shared)
    return Influence(value, pieces, dof, all(part.is_binary for part in parts), n_shared, reach, answers)


def _mean_answers(parts: Sequence[Answers | None], n_shared: int) -> Answers | None:
    """Put the contributions of all tasks side by side; None where a task's values are no accuracies."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Answers(
        joined_pieces([part.pieces for part in known], n_shared) / len(known),
        down=np.max([part.down for part in known], axis=0) / len(known),
        up=np.max([part.up for part in known], axis=0) / len(known),
    )


def shared_pieces(parts: Sequence[Influence]) -> int:
    """Count the last pieces that all tasks share.

    Raises:
        UsageError: tasks share different numbers of them.
    """
    counts = {part.n_shared for part in parts}
    if len(counts) != 1:
        raise UsageError(f"tasks share {sorted(counts)} pieces of error", "average tasks of the same removal orders")
    return counts.pop()


def joined_pieces(pieces: Sequence[FloatArray], n_shared: int) -> FloatArray:
    """Take the pieces of a sum over tasks: each task's own one below the other, those that are shared added up.

    Shapes: (pieces, players) each; returns (own pieces of all + n_shared, players).
    """
    if n_shared == 0:
        return np.concatenate(pieces)
    return np.concatenate([*(each[:-n_shared] for each in pieces), sum(each[-n_shared:] for each in pieces)])
