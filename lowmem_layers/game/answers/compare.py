"""Compare two runs of the same players: 4-bit against bf16, one model against another, one task against another.

With the same items (by name, of one task) on both sides the differences are paired item by item, which removes the
items' own difficulty; otherwise the two errors are independent. Where only some items are the same, those alone are
compared if they are at least half of the smaller run; else all of both, as if none were the same (on the wide side).
Signs: A minus B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.matching import matching_rows, refuse_different_players, refuse_different_windows
from lowmem_layers.game.estimators.permutation import Order, permutation_influence, permutation_pieces
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.uncertainty.errors import (
    Influence,
    contributions,
    influence_of,
    mean_over_tasks,
    with_coin_flip_item,
)
from lowmem_layers.game.uncertainty.intervals import Interval, check_level, mean_interval
from lowmem_layers.game.uncertainty.multiplicity import Correction, adjusted, two_sided_p
from lowmem_layers.game.uncertainty.rank_correlation import Agreement, agreement
from lowmem_layers.game.values.table import FloatArray, ValueTable


@dataclass(frozen=True)
class Walks:
    """The removal orders that a run walked, and how far (empty `cuts`: to the end)."""

    orders: tuple[Order, ...]
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Comparison:
    """What differs between run A and run B.

    Shapes: arrays (players,). `difference` is A − B with its interval (each at `level`); `significant` is corrected for
    the number of players by `correction`. `paired` says whether the items were the same; `n_items` counts those used,
    of the `n_given` there were.
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
    correction: str
    level: float
    agreement: Agreement


def compare(
    a: ValueTable,
    b: ValueTable,
    estimator: Estimator = "neighbourhood",
    *,
    walks: tuple[Walks, Walks] | None = None,
    max_removed: int | None = None,
    level: float = 0.95,
    correction: Correction = "holm",
    top_k: int = 3,
    seed: int = 0,
) -> Comparison:
    """Compare two tables, by an estimator, or by the permutation estimate where the runs' `walks` are given.

    Raises:
        UsageError: different players, different largest windows, items named twice, or a missing coalition.
    """
    return compare_mean(
        [(a, b)],
        estimator,
        walks=walks,
        max_removed=max_removed,
        level=level,
        correction=correction,
        top_k=top_k,
        seed=seed,
    )


def compare_mean(
    pairs: Sequence[tuple[ValueTable, ValueTable]],
    estimator: Estimator = "neighbourhood",
    *,
    walks: tuple[Walks, Walks] | None = None,
    max_removed: int | None = None,
    level: float = 0.95,
    correction: Correction = "holm",
    top_k: int = 3,
    seed: int = 0,
) -> Comparison:
    """Compare the means over several tasks, given as pairs of tables of one task each.

    Tasks' items are independent; removal orders are the same in all tasks of a run, and so is their noise.

    Raises:
        UsageError: no pairs, or as in `compare`.
    """
    if not pairs:
        raise UsageError("no tasks to compare", "give the tables of at least one task")
    sides = [_sides(a, b, estimator, walks, max_removed) for a, b in pairs]
    name = estimator if walks is None else "permutation"
    return _compared(pairs[0][0].players, name, sides, level, correction, top_k, seed)


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
    def difference(self) -> Influence:
        binary = self.first.is_binary and self.second.is_binary
        pieces = self.first.pieces - self.second.pieces
        return Influence(self.first.value - self.second.value, pieces, self.dof, binary, self.first.n_shared)


def _compared(
    players: tuple[str, ...],
    estimator: str,
    parts: Sequence[_Sides],
    level: float,
    correction: Correction,
    top_k: int,
    seed: int,
) -> Comparison:
    check_level(level)
    both = _mean_of(parts)
    first, second, difference = both.first, both.second, both.difference
    p_adjusted = adjusted(two_sided_p(difference), correction)
    return Comparison(
        players=players,
        estimator=estimator,
        paired=both.paired,
        n_items=both.n_items,
        n_given=both.n_given,
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
        agreement=_agreement(both, level, top_k, seed),
    )


def _agreement(both: _Sides, level: float, top_k: int, seed: int) -> Agreement:
    one, two = both.first, both.second
    return agreement(one.value, two.value, one.pieces, two.pieces, both.dof, level=level, top_k=top_k, seed=seed)


def _mean_of(parts: Sequence[_Sides]) -> _Sides:
    if len(parts) == 1:
        return parts[0]
    first, second = mean_over_tasks([part.first for part in parts]), mean_over_tasks([part.second for part in parts])
    dof = mean_over_tasks([part.difference for part in parts]).dof
    n_items, n_given = _added([part.n_items for part in parts]), _added([part.n_given for part in parts])
    return _Sides(first, second, dof, n_items, n_given, all(part.paired for part in parts))


def _added(counts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(first for first, _ in counts), sum(second for _, second in counts)


def _sides(
    a: ValueTable,
    b: ValueTable,
    estimator: Estimator,
    walks: tuple[Walks, Walks] | None,
    max_removed: int | None,
) -> _Sides:
    """Estimate both tables, with error pieces that stand side by side: item by item where they are matched."""
    refuse_different_players(a, b)
    if walks is None:
        refuse_different_windows(a, b, estimator, max_removed)
    rows, given = matching_rows(a, b), (a.n_items, b.n_items)
    if rows is not None:
        a, b = a.take_items(rows[0]), b.take_items(rows[1])
    paired = rows is not None
    if walks is None:
        first, second, dof = _by_weights(a, b, estimator, max_removed, paired)
    else:
        first, second, dof = _by_orders(a, b, walks, paired)
    return _Sides(first, second, dof, (a.n_items, b.n_items), given, paired)


def _by_weights(
    a: ValueTable, b: ValueTable, estimator: Estimator, max_removed: int | None, paired: bool
) -> tuple[Influence, Influence, FloatArray]:
    flips = (a.is_binary, b.is_binary) if not paired else (a.is_binary and b.is_binary,) * 2
    parts = []
    for table, flip in zip((a, b), flips, strict=True):
        weights = estimator_weights(estimator, table.coalitions, table.players, max_removed)
        plain = influence_of(contributions(table, weights), table.cluster_codes)
        whole = with_coin_flip_item(plain, weights, table.n_items, table.n_clusters) if flip else plain
        parts.append((whole, plain.pieces, whole.pieces[len(plain.pieces) :]))
    (one, items_a, flips_a), (two, items_b, flips_b) = parts
    blocks = [(items_a, items_b, paired), (flips_a, flips_b, False)]
    if paired and a.coalitions == b.coalitions:
        # The runs' coin flips are correlated by a half: independent ones cover 99 % of small differences.
        half = (np.sqrt(0.5) * flips_a, np.sqrt(0.5) * flips_b)
        blocks[1:] = [(*half, True), (*half, False)]
    return _side_by_side(one, two, blocks, paired)


def _by_orders(
    a: ValueTable, b: ValueTable, walks: tuple[Walks, Walks], paired: bool
) -> tuple[Influence, Influence, FloatArray]:
    parts = []
    for table, walked in zip((a, b), walks, strict=True):
        cuts = walked.cuts or None
        parts.append(
            (
                permutation_influence(table, walked.orders, cuts=cuts),
                *permutation_pieces(table, walked.orders, cuts=cuts),
            )
        )
    (one, items_a, flips_a, orders_a), (two, items_b, flips_b, orders_b) = parts
    same = walks[0].orders == walks[1].orders
    blocks = [(items_a.pieces, items_b.pieces, paired), (flips_a, flips_b, False)]
    first, second, dof = _side_by_side(one, two, [*blocks, (orders_a.pieces, orders_b.pieces, same)], paired)
    n_shared = len(orders_a.pieces) if same else len(orders_a.pieces) + len(orders_b.pieces)
    return replace(first, n_shared=n_shared), replace(second, n_shared=n_shared), dof


def _side_by_side(
    one: Influence, two: Influence, blocks: Sequence[tuple[FloatArray, FloatArray, bool]], paired: bool
) -> tuple[Influence, Influence, FloatArray]:
    """Stack blocks of pieces: row by row where they belong together, padded with zeros where they are independent."""
    rows_a: list[FloatArray] = []
    rows_b: list[FloatArray] = []
    for first, second, together in blocks:
        rows_a += [first] if together else [first, np.zeros_like(second)]
        rows_b += [second] if together else [np.zeros_like(first), second]
    each = np.array([one.dof, two.dof])
    dof = each.min(axis=0) if paired else _welch(np.array([one.variance, two.variance]), each)
    return replace(one, pieces=np.concatenate(rows_a)), replace(two, pieces=np.concatenate(rows_b)), dof


def _welch(variances: FloatArray, each: FloatArray) -> FloatArray:
    # Degrees of freedom of a sum of independent errors. Shapes: (parts, players) each → (players,).
    total = variances.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(total > 0, total**2 / (variances**2 / each).sum(axis=0), each.min(axis=0))
    return np.where(np.isnan(each).any(axis=0), np.nan, dof)
