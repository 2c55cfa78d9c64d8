"""Estimators that are linear in v, as weights: importance of player i = Σ_S W[i, S] · v(S).

Every row sums to zero (a null player gets 0); applied per item, a row gives the item's contribution to the estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.exact import shapley_terms
from lowmem_layers.game.estimators.terms import Term, ablation_terms, neighbourhood_terms, stratified_terms
from lowmem_layers.game.players.coalitions import Removed, is_window
from lowmem_layers.game.values.table import FloatArray, missing_coalition

Estimator = Literal["neighbourhood", "stratified", "ablation", "shapley"]


def weight_matrix(terms: Sequence[Iterable[Term]], coalitions: Sequence[Removed], players: Sequence[str]) -> FloatArray:
    """Collect each player's terms into one row of weights over the table's coalitions.

    Shapes: (players, coalitions).

    Raises:
        UsageError: a coalition that a term needs is absent; the message names it.
    """
    index = {removed: c for c, removed in enumerate(coalitions)}
    weights = np.zeros((len(terms), len(coalitions)))
    for row, player_terms in enumerate(terms):
        for before, after, weight in player_terms:
            for removed, sign in ((before, 1.0), (after, -1.0)):
                if removed not in index:
                    raise missing_coalition(removed, players)
                weights[row, index[removed]] += sign * weight
    return weights


def largest_window(coalitions: Iterable[Removed], n_players: int) -> int:
    """Read L off a table: the last size up to which at least half of every size's windows were measured.

    Half, not all: a table with a single hole then lacks that window by name; it is not silently used with a smaller L.
    """
    found = [0] * (n_players + 1)
    for removed in coalitions:
        if is_window(removed):
            found[len(removed)] += 1
    size = 0
    while size < n_players and 2 * found[size + 1] >= n_players - size:
        size += 1
    return size


def estimator_weights(
    estimator: Estimator, coalitions: Sequence[Removed], players: Sequence[str], max_removed: int | None = None
) -> FloatArray:
    """Build an estimator's weights over a table's coalitions.

    `max_removed` is L for the window estimators; None reads it off the coalitions (`largest_window`).
    Shapes: (players, coalitions).

    Raises:
        UsageError: unknown estimator, L out of range, or a coalition it needs is absent.
    """
    n = len(players)
    if estimator == "ablation":
        return weight_matrix([ablation_terms(i) for i in range(n)], coalitions, players)
    if estimator == "shapley":
        return weight_matrix([shapley_terms(i, n) for i in range(n)], coalitions, players)
    if estimator not in get_args(Estimator):
        raise UsageError(f"{estimator!r} is not an estimator", f"choose one of {', '.join(get_args(Estimator))}")
    largest = largest_window(coalitions, n) if max_removed is None else max_removed
    if not 1 <= largest <= n:
        if max_removed is None:
            raise missing_coalition((0,), players)
        raise UsageError(f"windows of 1 to {largest} of {n} sublayers", f"choose a largest window between 1 and {n}")
    terms = neighbourhood_terms if estimator == "neighbourhood" else stratified_terms
    return weight_matrix([terms(i, n, largest) for i in range(n)], coalitions, players)
