"""Unbiased Shapley estimates from sampled removal orders, with both kinds of noise: of the items and of the orders.

Orders come in antithetic pairs (`coalitions.permutations`). An order's walk down from the full model may be cut where
the value has reached chance within noise: the players after the cut get nothing from it (truncated sampling).
A run settles the cuts on a pilot (`first_cut`), so that all values are estimated from the same walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Order, Removed, chain
from lowmem_layers.game.uncertainty.errors import Influence, influence_of, summed_dof, with_coin_flip_item
from lowmem_layers.game.values.table import ValueTable


def at_chance(table: ValueTable, removed: Removed, chance: float, level: float = 0.95) -> bool:
    """Tell whether a coalition's value is at or below chance within noise: its lower bound does not exceed it."""
    estimate = influence_of(table.column(removed)[:, None], table.cluster_codes)
    # A sample that is all right or all wrong shows no spread: at chance its spread would still be √(c (1 − c)).
    floor = np.sqrt(max(chance * (1.0 - chance), 0.0) / table.n_items) if table.is_binary else 0.0
    error = max(float(estimate.standard_error[0]), floor) if table.n_clusters > 1 else 0.0
    return bool(estimate.value[0] - ndtri(level) * error <= chance)


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


def walked_orders(
    table: ValueTable,
    orders: Sequence[Order],
    chance: float | None = None,
    level: float = 0.95,
    cuts: Sequence[int] | None = None,
) -> list[Order]:
    """Take the part of each order that is walked: down to its cut, or to the first coalition at chance.

    `cuts` gives the number of players that each order's walk removes at most, where that was settled before; `chance`
    None never cuts.

    Raises:
        UsageError: no orders, an order that does not name each player once, or a coalition that was not measured.
    """
    if not orders:
        raise UsageError("no orders to average over", "draw some with permutations(n_players, n, seed)")
    walks: list[Order] = []
    for order, cut in zip(orders, cuts or [None] * len(orders), strict=True):
        if sorted(order) != list(range(table.n_players)):
            raise UsageError(f"{order} is no order of {table.n_players} players", "name each player once")
        depth = 0
        for removed in chain(order[:cut]):
            table.column_index(removed)  # refuses one that was not measured, by its name
            depth = len(removed)
            if chance is not None and at_chance(table, removed, chance, level):
                break
        walks.append(order[:depth])
    return walks


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
        UsageError: as in `walked_orders`.
    """
    walks = walked_orders(table, orders, chance, level, cuts)
    # 1) The marginal contributions along all walks; non-finite values stay with the players whose steps touch them.
    per_item = np.zeros((table.n_items, table.n_players))
    per_order = np.zeros((len(walks), table.n_players))
    weights = np.zeros((table.n_players, len(table.coalitions)))
    for m, walk in enumerate(walks):
        columns = [table.column_index(removed) for removed in chain(walk)]  # one more than there are steps
        players = list(walk)
        with np.errstate(invalid="ignore"):
            steps = table.values[:, columns[:-1]] - table.values[:, columns[1:]]  # (items, steps)
            per_item[:, players] += steps / len(walks)
            per_order[m, players] = steps.mean(axis=0)
        weights[players, columns[:-1]] += 1.0 / len(walks)
        weights[players, columns[1:]] -= 1.0 / len(walks)
    # 2) The error of the items, with the coin-flip item for accuracies, and the error of the orders.
    of_items = influence_of(per_item, table.cluster_codes)
    of_orders = influence_of(per_order, np.arange(len(walks)) // 2)
    if table.is_binary and table.n_clusters > 1:
        of_items = with_coin_flip_item(of_items, weights, table.n_items, table.n_clusters)
    variances = np.array([of_items.variance, of_orders.variance])
    reached = (weights != 0).any(axis=1)
    dof = np.where(reached, summed_dof(variances, np.array([of_items.dof, of_orders.dof])), np.nan)
    pieces, answers = np.concatenate([of_items.pieces, of_orders.pieces]), of_items.answers
    if answers is not None:
        answers = replace(answers, pieces=np.concatenate([answers.pieces, of_orders.pieces]))
    reach = np.array([-1.0, 1.0])[:, None].repeat(table.n_players, axis=1) if table.is_bounded else None
    return Influence(of_items.value, pieces, dof, table.is_binary, len(of_orders.pieces), reach, answers)
