"""Compare two runs of the same players: 4-bit against bf16, one model against another, one task against another.

With the same items on both sides the differences are paired item by item, which removes the items' own difficulty;
otherwise the two errors are independent. Signs: A minus B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.influence import Influence, contributions, influence_of, with_coin_flip_item
from lowmem_layers.game.intervals import mean_interval
from lowmem_layers.game.multiplicity import Correction, adjusted, two_sided_p
from lowmem_layers.game.rank_correlation import Agreement, agreement
from lowmem_layers.game.table import FloatArray, ValueTable
from lowmem_layers.game.weights import Estimator, estimator_weights, largest_window


@dataclass(frozen=True, eq=False)
class Comparison:
    """What differs between run A and run B.

    Shapes: arrays (players,). `difference` is A − B with its interval (each at `level`); `significant` is corrected for
    the number of sublayers. `paired` says whether the items were the same. Unknown (nan) with fewer than 2 clusters.
    """

    players: tuple[str, ...]
    estimator: str
    paired: bool
    n_items: tuple[int, int]
    value_a: FloatArray
    value_b: FloatArray
    difference: FloatArray
    ci_low: FloatArray
    ci_high: FloatArray
    p_adjusted: FloatArray
    significant: NDArray[np.bool_]
    correction: str
    level: float
    agreement: Agreement


def compare(
    a: ValueTable,
    b: ValueTable,
    estimator: Estimator = "neighbourhood",
    *,
    max_removed: int | None = None,
    level: float = 0.95,
    correction: Correction = "holm",
    top_k: int = 3,
    seed: int = 0,
) -> Comparison:
    """Compare two tables.

    Items are the same where both tables name them and the names are the same set; they are then matched by name.

    Raises:
        UsageError: different players, different largest windows, items named twice, or a missing coalition.
    """
    _refuse_different_games(a, b, max_removed)
    weights_a = estimator_weights(estimator, a.coalitions, a.players, max_removed)
    weights_b = estimator_weights(estimator, b.coalitions, b.players, max_removed)
    matched = _matching_rows(a, b)
    first, second, pieces, dof = _aligned(a, b, matched, weights_a, weights_b)
    difference = Influence(first.value - second.value, pieces[0] - pieces[1], dof, a.is_binary and b.is_binary)
    low, high = mean_interval(difference, level)
    p_adjusted = adjusted(two_sided_p(difference), correction)
    both = agreement(first.value, second.value, pieces[0], pieces[1], dof, level=level, top_k=top_k, seed=seed)
    return Comparison(
        a.players,
        estimator,
        matched is not None,
        (a.n_items, b.n_items),
        first.value,
        second.value,
        difference.value,
        low,
        high,
        p_adjusted,
        p_adjusted < 1.0 - level,
        correction,
        level,
        both,
    )


def _aligned(
    a: ValueTable, b: ValueTable, matched: list[int] | None, weights_a: FloatArray, weights_b: FloatArray
) -> tuple[Influence, Influence, tuple[FloatArray, FloatArray], FloatArray]:
    """Estimate both tables, with error pieces that stand side by side: item by item where they are matched."""
    if matched is not None:
        first, second = _paired(a, b.take_items(matched), weights_a, weights_b)
        return first, second, (first.pieces, second.pieces), first.dof
    first, second = _one(a, weights_a), _one(b, weights_b)
    pieces = (_padded(first, len(second.pieces), before=False), _padded(second, len(first.pieces), before=True))
    return first, second, pieces, _welch(first, second)


def _refuse_different_games(a: ValueTable, b: ValueTable, max_removed: int | None) -> None:
    if a.players != b.players:
        if len(a.players) != len(b.players):
            what = f"A has {len(a.players)} players, B {len(b.players)}"
        else:
            first = next(i for i, pair in enumerate(zip(a.players, b.players, strict=True)) if pair[0] != pair[1])
            what = f"player {first} is {a.players[first]} in A and {b.players[first]} in B"
        raise UsageError(f"the runs play different games: {what}", "compare runs of models with the same sublayers")
    sizes = largest_window(a.coalitions, a.n_players), largest_window(b.coalitions, b.n_players)
    if max_removed is None and sizes[0] != sizes[1]:
        raise UsageError(
            f"A has windows of up to {sizes[0]} sublayers, B of up to {sizes[1]}",
            f"compare both with windows of up to {min(sizes)}",
        )


def _matching_rows(a: ValueTable, b: ValueTable) -> list[int] | None:
    if a.items is None or b.items is None or set(a.items) != set(b.items):
        return None
    if len(set(a.items)) != len(a.items) or len(set(b.items)) != len(b.items):
        raise UsageError("an item occurs twice in a run", "give every item its own name")
    row = {item: i for i, item in enumerate(b.items)}
    return [row[item] for item in a.items]


def _one(table: ValueTable, weights: FloatArray) -> Influence:
    estimate = influence_of(contributions(table, weights), table.cluster_codes)
    return with_coin_flip_item(estimate, weights, table.n_items, table.n_clusters) if table.is_binary else estimate


def _paired(a: ValueTable, b: ValueTable, weights_a: FloatArray, weights_b: FloatArray) -> tuple[Influence, Influence]:
    first = influence_of(contributions(a, weights_a), a.cluster_codes)
    second = influence_of(contributions(b, weights_b), a.cluster_codes)
    if not (a.is_binary and b.is_binary):
        return first, second
    # One more item of coin flips on both sides, independent of each other: block by block.
    first = with_coin_flip_item(first, weights_a, a.n_items, a.n_clusters)
    extra = len(first.pieces) - len(second.pieces)
    second_flips = with_coin_flip_item(second, weights_b, b.n_items, a.n_clusters)
    own = len(second_flips.pieces) - len(second.pieces)
    zeros_a, zeros_b = np.zeros((own, len(first.value))), np.zeros((extra, len(first.value)))
    stacked = np.concatenate([second.pieces, zeros_b, second_flips.pieces[len(second.pieces) :]])
    return (
        Influence(first.value, np.concatenate([first.pieces, zeros_a]), first.dof),
        Influence(second.value, stacked, second.dof),
    )


def _padded(estimate: Influence, rows: int, before: bool) -> FloatArray:
    zeros = np.zeros((rows, len(estimate.value)))
    return np.concatenate([zeros, estimate.pieces] if before else [estimate.pieces, zeros])


def _welch(first: Influence, second: Influence) -> FloatArray:
    variances = np.array([first.variance, second.variance])
    each = np.array([first.dof, second.dof])
    total = variances.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(total > 0, total**2 / (variances**2 / each).sum(axis=0), each.min(axis=0))
    return np.where(np.isnan(each).any(axis=0), np.nan, dof)
