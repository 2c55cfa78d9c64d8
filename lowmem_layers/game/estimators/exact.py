"""Exact Shapley values of up to 14 players, by two routes: the subset formula and all removal orders."""

from __future__ import annotations

from itertools import combinations
from itertools import permutations as all_orders
from math import comb, factorial

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.terms import Term
from lowmem_layers.game.players.coalitions import MAX_EXACT_PLAYERS, chain
from lowmem_layers.game.values.table import FloatArray, ValueTable


def shapley_terms(player: int, n_players: int) -> list[Term]:
    """List the 2^(N−1) marginal contributions of a player with weights |R|!(N−|R|−1)!/N!, R the players removed before.

    Source: Shapley 1953. The weight is symmetric in present and removed, so coalitions may be named by what is removed.

    Raises:
        UsageError: more than 14 players.
    """
    if n_players > MAX_EXACT_PLAYERS:
        raise UsageError(
            f"exact Shapley values of {n_players} players need 2^{n_players} coalitions",
            f"choose at most {MAX_EXACT_PLAYERS} players, group them, or sample permutations",
        )
    others = [p for p in range(n_players) if p != player]
    terms: list[Term] = []
    for size in range(n_players):
        weight = 1.0 / (n_players * comb(n_players - 1, size))
        terms += [(r, tuple(sorted((*r, player))), weight) for r in combinations(others, size)]
    return terms


def shapley_by_orders(table: ValueTable) -> FloatArray:
    """Average the marginal contributions over all N! removal orders (at most 8 players).

    A second route to `shapley_terms`, sharing none of its weights. Shapes: (players,).
    """
    n = table.n_players
    if n > 8:
        raise UsageError(f"{factorial(n)} removal orders of {n} players", "use the subset formula above 8 players")
    means = {removed: table.mean(removed) for order in all_orders(range(n)) for removed in chain(order)}
    total = np.zeros(n)
    for order in all_orders(range(n)):
        walk = [means[removed] for removed in chain(order)]
        total[list(order)] += -np.diff(walk)
    return total / factorial(n)


def shapley_by_layers(table: ValueTable) -> FloatArray:
    """Propagate every removal order at once over the lattice of subsets (at most 14 players).

    The number of orders through a coalition is the number of ways to reach it times the number of ways to leave it,
    both counted by dynamic programming rather than by a factorial formula. Shapes: (players,).
    """
    n = table.n_players
    if n > MAX_EXACT_PLAYERS:
        raise UsageError(f"exact Shapley values of {n} players", f"choose at most {MAX_EXACT_PLAYERS}")
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
