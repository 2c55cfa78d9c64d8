"""Exact Shapley values of up to 14 players, by the subset formula."""

from __future__ import annotations

from itertools import combinations
from math import comb

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.terms import Term
from lowmem_layers.game.players.coalitions import MAX_EXACT_PLAYERS


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
