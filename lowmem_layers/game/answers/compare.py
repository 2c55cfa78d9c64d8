"""Compare two runs of the same players: 4-bit against bf16, one model against another, one task against another.

With the same items (by name, of one task) on both sides the differences are paired item by item, which removes the
items' own difficulty; otherwise the two errors are independent. Where only some items are the same, those alone are
compared if they are at least half of the smaller run; else all of both, as if none were the same (on the wide side).
Where the runs cluster the same items differently, clusters of either that share items are joined.
Signs: A minus B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.equivalence import Equivalence, equivalence
from lowmem_layers.game.answers.matching import (
    joined_clusters,
    matching_rows,
    refuse_different_players,
    refuse_different_windows,
)
from lowmem_layers.game.estimators.permutation import permutation_influence
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.players.coalitions import Order
from lowmem_layers.game.uncertainty.disattenuation import Corrected, corrected
from lowmem_layers.game.uncertainty.errors import (
    Influence,
    contributions,
    influence_of,
    mean_over_tasks,
    reach_of,
    summed_dof,
    with_coin_flip_item,
)
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, mean_interval, two_sided_p
from lowmem_layers.game.uncertainty.multiplicity import Correction, adjusted
from lowmem_layers.game.uncertainty.rank_correlation import Agreement, agreement
from lowmem_layers.game.uncertainty.score import answers_apart
from lowmem_layers.game.values.table import FloatArray, ValueTable, as_tables


@dataclass(frozen=True)
class Walks:
    """The removal orders that a run walked, and how far (empty `cuts`: each to its end)."""

    orders: tuple[Order, ...]
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Comparison:
    """What differs between run A and run B.

    Shapes: arrays (players,). `difference` is A − B with its interval `ci` (each at `level`). `significant` is
    corrected for the number of players by `correction`; no player is significant whose own interval holds 0. `paired`
    says whether the items were the same; `n_items` counts those used, of the `n_given` there were. `apart` is the
    difference with its errors.
    Unknown (nan) with fewer than 2 clusters.
    """

    players: tuple[str, ...]
    estimator: str
    paired: bool
    n_items: tuple[int, int]
    n_given: tuple[int, int]
    value_a: FloatArray
    ci_a: Interval[FloatArray]
    value_b: FloatArray
    ci_b: Interval[FloatArray]
    difference: FloatArray
    ci: Interval[FloatArray]
    p_adjusted: FloatArray
    significant: NDArray[np.bool_]
    correction: Correction
    level: float
    agreement: Agreement
    corrected: Corrected
    apart: Influence

    def equivalence(self, margin: float) -> Equivalence:
        """Say whose difference is certainly smaller than a margin, in the value's unit.

        Raises:
            UsageError: a margin that is not positive.
        """
        return equivalence(self.apart, margin, level=self.level, correction=self.correction)


def compare(
    a: ValueTable | Sequence[ValueTable],
    b: ValueTable | Sequence[ValueTable],
    estimator: Estimator = "neighbourhood",
    *,
    walks: tuple[Walks, Walks] | None = None,
    max_removed: int | None = None,
    level: float = 0.95,
    correction: Correction = "holm",
    top_k: int = 3,
    seed: int = 0,
) -> Comparison:
    """Compare two tables, or the means over several tasks, by an estimator or (with the runs' `walks`) by permutations.

    Several tasks are given as tables of A and of B, task by task. Tasks' items are independent; removal orders are the
    same in all tasks of a run, and so is their noise.

    Raises:
        UsageError: no tables, not as many of A as of B, different players or largest windows, items named twice, or a
            missing coalition.
    """
    check_level(level)
    of_a, of_b = as_tables(a), as_tables(b)
    if len(of_a) != len(of_b):
        raise UsageError(f"{len(of_a)} tasks of A, {len(of_b)} of B", "give the same tasks of both, in the same order")
    whole = _mean_of([_sides(one, two, estimator, walks, max_removed) for one, two in zip(of_a, of_b, strict=True)])
    first, second, difference = whole.first, whole.second, whole.difference
    ranked = first.value, second.value, first.pieces, second.pieces, whole.dof
    p_adjusted = adjusted(two_sided_p(difference), correction)
    return Comparison(
        players=of_a[0].players,
        estimator=estimator if walks is None else "permutation",
        paired=whole.paired,
        n_items=whole.n_items,
        n_given=whole.n_given,
        value_a=first.value,
        ci_a=mean_interval(first, level),
        value_b=second.value,
        ci_b=mean_interval(second, level),
        difference=difference.value,
        ci=mean_interval(difference, level),
        p_adjusted=p_adjusted,
        significant=p_adjusted < 1.0 - level,
        correction=correction,
        level=level,
        agreement=agreement(*ranked, level=level, top_k=top_k, seed=seed),
        corrected=corrected(first.value, second.value, *whole.noise, whole.dof, level=level, seed=seed),
        apart=difference,
    )


@dataclass(frozen=True, eq=False)
class _Sides:
    """Both estimates with pieces of error that stand side by side; `dof` are those of their difference."""

    first: Influence
    second: Influence
    dof: FloatArray
    n_items: tuple[int, int]
    n_given: tuple[int, int]
    paired: bool

    @property
    def noise(self) -> tuple[FloatArray, FloatArray]:
        """Take both estimates' pieces of error, without the coin-flip items that widen intervals of accuracies."""
        one, two = self.first.answers, self.second.answers
        if one is None or two is None:
            return self.first.pieces, self.second.pieces
        return one.pieces, two.pieces

    @property
    def difference(self) -> Influence:
        """Subtract B from A, piece by piece."""
        binary = self.first.is_binary and self.second.is_binary
        pieces = self.first.pieces - self.second.pieces
        value, (a, b) = self.first.value - self.second.value, (self.first.reach, self.second.reach)
        reach = None if a is None or b is None else a - b[::-1]
        one, two = self.first.answers, self.second.answers
        answers = None if one is None or two is None else answers_apart(one, two)
        return Influence(value, pieces, self.dof, binary, self.first.n_shared, reach, answers)


def _mean_of(parts: Sequence[_Sides]) -> _Sides:
    """Average over tasks, and count the items of all of them."""
    first = mean_over_tasks([part.first for part in parts])
    second = mean_over_tasks([part.second for part in parts])
    dof = mean_over_tasks([part.difference for part in parts]).dof
    n_items = sum(part.n_items[0] for part in parts), sum(part.n_items[1] for part in parts)
    n_given = sum(part.n_given[0] for part in parts), sum(part.n_given[1] for part in parts)
    return _Sides(first, second, dof, n_items, n_given, all(part.paired for part in parts))


def _sides(
    a: ValueTable,
    b: ValueTable,
    estimator: Estimator,
    walks: tuple[Walks, Walks] | None,
    max_removed: int | None,
) -> _Sides:
    """Estimate both tables of one task, with pieces of error side by side: item by item where they are matched."""
    # 1) The same players and windows; of the items, those that both have.
    refuse_different_players(a, b)
    if walks is None:
        refuse_different_windows(a, b, estimator, max_removed)
    rows, given = matching_rows(a, b), (a.n_items, b.n_items)
    if rows is not None:
        a, b = a.take_items(rows[0]), b.take_items(rows[1])
        clusters = joined_clusters(a.cluster_codes, b.cluster_codes)  # pieces stand side by side, cluster by cluster
        a, b = replace(a, clusters=clusters), replace(b, clusters=clusters)
    paired = rows is not None
    # 2) Both estimates. Their pieces are those of the items, of the coin-flip item, and of the removal orders.
    if walks is None:
        one = _by_weights(a, estimator, max_removed, flip=a.is_binary and (b.is_binary or not paired))
        two = _by_weights(b, estimator, max_removed, flip=b.is_binary and (a.is_binary or not paired))
    else:
        one, two = (permutation_influence(t, w.orders, cuts=w.cuts) for t, w in zip((a, b), walks, strict=True))
    items_a, flips_a, orders_a = np.split(one.pieces, [a.n_clusters, len(one.pieces) - one.n_shared])
    items_b, flips_b, orders_b = np.split(two.pieces, [b.n_clusters, len(two.pieces) - two.n_shared])
    # 3) Blocks of pieces: row by row where they belong together, padded with zeros where they are independent.
    same_orders = walks is not None and walks[0].orders == walks[1].orders
    blocks = [(items_a, items_b, paired), (flips_a, flips_b, False), (orders_a, orders_b, same_orders)]
    if walks is None and paired and a.coalitions == b.coalitions:
        # The runs' coin flips are correlated by a half: independent ones cover 99 % of small differences.
        half_a, half_b = np.sqrt(0.5) * flips_a, np.sqrt(0.5) * flips_b
        blocks[1:2] = [(half_a, half_b, True), (half_a, half_b, False)]
    rows_a, rows_b = _side_by_side(blocks)
    plain_a, plain_b = _side_by_side([blocks[0], blocks[-1]])
    # 4) The degrees of freedom of the difference.
    each = np.array([one.dof, two.dof])
    dof = each.min(axis=0) if paired else summed_dof(np.array([one.variance, two.variance]), each)
    n_shared = len(orders_a) if same_orders else len(orders_a) + len(orders_b)
    answers_a, answers_b = one.answers, two.answers
    if answers_a is not None and answers_b is not None:
        answers_a, answers_b = replace(answers_a, pieces=plain_a), replace(answers_b, pieces=plain_b)
    one = replace(one, pieces=rows_a, n_shared=n_shared, answers=answers_a)
    two = replace(two, pieces=rows_b, n_shared=n_shared, answers=answers_b)
    return _Sides(one, two, dof, (a.n_items, b.n_items), given, paired)


def _side_by_side(blocks: Sequence[tuple[FloatArray, FloatArray, bool]]) -> tuple[FloatArray, FloatArray]:
    """Stack two runs' pieces: row by row where a block's belong together, else each beside zeros."""
    rows_a: list[FloatArray] = []
    rows_b: list[FloatArray] = []
    for first, second, together in blocks:
        rows_a += [first] if together else [first, np.zeros_like(second)]
        rows_b += [second] if together else [np.zeros_like(first), second]
    return np.concatenate(rows_a), np.concatenate(rows_b)


def _by_weights(table: ValueTable, estimator: Estimator, max_removed: int | None, *, flip: bool) -> Influence:
    """Estimate with the estimator's weights, with the coin-flip item where `flip` says so."""
    weights = estimator_weights(estimator, table.coalitions, table.players, max_removed)
    estimate = influence_of(contributions(table, weights), table.cluster_codes)
    estimate = replace(estimate, reach=reach_of(table, weights))
    return with_coin_flip_item(estimate, weights, table.n_items, table.n_clusters) if flip else estimate
