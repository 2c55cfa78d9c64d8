"""Two more routes to exact Shapley values, against which the package's own, the subset formula, is tested."""

from __future__ import annotations

from itertools import permutations as all_orders
from math import factorial

import numpy as np

from lowmem_layers.game.players.coalitions import chain
from lowmem_layers.game.values.table import FloatArray, ValueTable


def shapley_by_orders(table: ValueTable) -> FloatArray:
    """Average the marginal contributions over all N! removal orders.

    A second route to `shapley_terms`, sharing none of its weights. Shapes: (players,).
    """
    n = table.n_players
    means = {removed: table.mean(removed) for order in all_orders(range(n)) for removed in chain(order)}
    total = np.zeros(n)
    for order in all_orders(range(n)):
        walk = [means[removed] for removed in chain(order)]
        total[list(order)] += -np.diff(walk)
    return total / factorial(n)


def shapley_by_layers(table: ValueTable) -> FloatArray:
    """Propagate every removal order at once over the lattice of subsets.

    The number of orders through a coalition is the number of ways to reach it times the number of ways to leave it,
    both counted by dynamic programming rather than by a factorial formula. Shapes: (players,).
    """
    n = table.n_players
    members = [[p for p in range(n) if mask >> p & 1] for mask in range(2**n)]
    values = [table.mean(tuple(m)) for m in members]
    ways_in, ways_out = [0] * 2**n, [0] * 2**n
    ways_in[0] = ways_out[-1] = 1
    for mask in range(1, 2**n):
        ways_in[mask] = sum(ways_in[mask ^ 1 << p] for p in members[mask])
        rest = 2**n - 1 - mask
        ways_out[rest] = sum(ways_out[rest | 1 << p] for p in members[mask])
    shapley = np.zeros(n)
    for mask in range(1, 2**n):
        for p in members[mask]:
            shapley[p] += ways_in[mask ^ 1 << p] * ways_out[mask] / ways_out[0] * (values[mask ^ 1 << p] - values[mask])
    return shapley
