"""Unbiased Shapley estimates from sampled removal orders, with both kinds of noise: of the items and of the orders.

Orders come in antithetic pairs (`coalitions.permutations`). An order's walk down from the full model may be cut where
the value has reached chance within noise: the players after the cut get nothing from it (truncated sampling).
A run settles the cuts on a pilot (`first_cut`), so that all values are estimated from the same walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Order, Removed, chain
from lowmem_layers.game.uncertainty.errors import Influence, influence_of, with_coin_flip_item
from lowmem_layers.game.uncertainty.quantiles import normal_quantile
from lowmem_layers.game.values.table import FloatArray, ValueTable, missing_coalition


def at_chance(table: ValueTable, removed: Removed, chance: float, level: float = 0.95) -> bool:
    """Tell whether a coalition's value is at or below chance within noise: its lower bound does not exceed it."""
    column = table.column(removed)[:, None]
    estimate = influence_of(column, table.cluster_codes)
    floor = np.sqrt(max(chance * (1.0 - chance), 0.0) / table.n_items) if table.is_binary else 0.0
    error = max(float(estimate.standard_error[0]), floor) if table.n_clusters > 1 else 0.0
    return bool(estimate.value[0] - normal_quantile(level) * error <= chance)


def walk(table: ValueTable, order: Order, chance: float | None = None, level: float = 0.95) -> list[Removed]:
    """List the measured coalitions of an order's walk, ending with the first at chance (None: never cut).

    Raises:
        UsageError: a coalition on the way was not measured; it is named.
    """
    taken: list[Removed] = []
    for removed in chain(order):
        if removed not in table:
            raise missing_coalition(removed, table.players)
        taken.append(removed)
        if chance is not None and at_chance(table, removed, chance, level):
            break
    return taken


def first_cut(
    tables: Sequence[ValueTable], order: Order, chances: Sequence[float | None], level: float = 0.84
) -> int | None:
    """Find where an order's walk may be cut: every task at chance there and one step further; None where not measured.

    The lower bound is one standard error by default and has to hold twice, so that a walk is rarely cut by luck.
    A task without a chance level never reaches it.
    """
    before = False
    for removed in chain(order):
        if any(removed not in table for table in tables):
            return None
        now = all(c is not None and at_chance(t, removed, c, level) for t, c in zip(tables, chances, strict=True))
        if before and now:
            return len(removed) - 1
        before = now
    return len(order)


def next_coalitions(
    table: ValueTable, orders: Sequence[Order], chance: float | None = None, level: float = 0.95
) -> list[Removed]:
    """List what to measure next: for each order the first unmeasured coalition above the cut; [] when all walks end.

    Measuring these and asking again, a run reaches every cut without walking below it.
    """
    wanted: dict[Removed, None] = {}
    for order in orders:
        for removed in chain(order):
            if removed not in table:
                wanted[removed] = None
                break
            if chance is not None and at_chance(table, removed, chance, level):
                break
    return sorted(wanted, key=lambda removed: (len(removed), removed))


def marginal_contributions(
    table: ValueTable,
    orders: Sequence[Order],
    chance: float | None = None,
    level: float = 0.95,
    cuts: Sequence[int] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Average the marginal contributions once over orders, once over items; 0 for the players below a cut.

    `cuts` gives the number of players each order's walk removes at most, where that was settled before.
    Shapes: (items, players) and (orders, players). Non-finite values stay with the players whose steps touch them.

    Raises:
        UsageError: an order that is none, or a coalition that was not measured.
    """
    per_item = np.zeros((table.n_items, table.n_players))
    per_order = np.zeros((len(orders), table.n_players))
    for m, order in enumerate(orders):
        if sorted(order) != list(range(table.n_players)):
            raise UsageError(f"{order} is no order of {table.n_players} players", "name each player once")
        walked = list(_walked(table, order, chance, level, None if cuts is None else cuts[m]))
        columns = [table.column_index(removed) for removed in chain(walked)]
        with np.errstate(invalid="ignore"):
            steps = table.values[:, columns[:-1]] - table.values[:, columns[1:]]
            per_item[:, walked] += steps / len(orders)
            per_order[m, walked] = steps.mean(axis=0)
    return per_item, per_order


def _walked(table: ValueTable, order: Order, chance: float | None, level: float, cut: int | None) -> Order:
    """Take the part of an order that is walked."""
    return order[: len(walk(table, order[:cut], chance, level)) - 1]


def permutation_influence(
    table: ValueTable,
    orders: Sequence[Order],
    chance: float | None = None,
    level: float = 0.95,
    cuts: Sequence[int] | None = None,
) -> Influence:
    """Estimate Shapley values with the combined error of items and orders (in antithetic pairs).

    Each source's pieces are computed with the other held fixed; their interaction is counted in both, which errs on the
    wide side by at most its size. Fewer than 2 pairs, or 2 item clusters, leave the error unknown (nan), and
    so do walks that never reach a player: its 0 is then no measurement.
    A cut makes the estimate biased by what lies below chance; without one it is unbiased.
    Shapes: the result's pieces are (item clusters + coalitions used (accuracies only) + pairs, players); the pairs are
    what tasks walked by the same orders share.

    Raises:
        UsageError: no orders, or as in `marginal_contributions`.
    """
    of_items, flips, of_orders = permutation_pieces(table, orders, chance, level, cuts)
    both = _sum_of_errors(of_items, of_orders)
    pieces = np.concatenate([of_items.pieces, flips, of_orders.pieces])
    return replace(both, pieces=pieces, is_binary=table.is_binary, n_shared=len(of_orders.pieces))


def permutation_pieces(
    table: ValueTable,
    orders: Sequence[Order],
    chance: float | None = None,
    level: float = 0.95,
    cuts: Sequence[int] | None = None,
) -> tuple[Influence, FloatArray, Influence]:
    """Give the estimate with its error apart: of the items, of the coin-flip item (accuracies), of the orders.

    The degrees of freedom of a player that no walk reaches are nan.

    Raises:
        UsageError: no orders, or as in `marginal_contributions`.
    """
    if not orders:
        raise UsageError("no orders to average over", "draw some with permutations(n_players, n, seed)")
    per_item, per_order = marginal_contributions(table, orders, chance, level, cuts)
    items = influence_of(per_item, table.cluster_codes)
    walks = [_walked(table, order, chance, level, None if cuts is None else cuts[m]) for m, order in enumerate(orders)]
    flips = np.zeros((0, table.n_players))
    if table.is_binary and table.n_clusters > 1:
        whole = with_coin_flip_item(items, _weights(table, walks), table.n_items, table.n_clusters)
        flips = whole.pieces[len(items.pieces) :]
    reached = np.zeros(table.n_players, dtype=np.bool_)
    for walked in walks:
        reached[list(walked)] = True
    found = replace(items, dof=np.where(reached, items.dof, np.nan))
    return found, flips, influence_of(per_order, np.arange(len(orders)) // 2)


def _weights(table: ValueTable, walks: Sequence[Order]) -> FloatArray:
    # The estimate's weights over the table's coalitions. Shapes: (players, coalitions).
    weights = np.zeros((table.n_players, len(table.coalitions)))
    for walked in walks:
        columns = [table.column_index(removed) for removed in chain(walked)]
        for step, player in enumerate(walked):
            weights[player, columns[step]] += 1.0 / len(walks)
            weights[player, columns[step + 1]] -= 1.0 / len(walks)
    return weights


def _sum_of_errors(first: Influence, second: Influence) -> Influence:
    # The first estimate with the degrees of freedom of both errors' sum.
    parts = np.array([first.variance, second.variance])
    each = np.array([first.dof, second.dof])
    total = parts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(total > 0, total**2 / (parts**2 / each).sum(axis=0), each.min(axis=0))
    dof = np.where(np.isnan(each).any(axis=0), np.nan, dof)
    return replace(first, dof=dof)
