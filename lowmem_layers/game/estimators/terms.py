"""The marginal contributions an estimator averages: which pairs of coalitions, with which weight."""

from __future__ import annotations

from lowmem_layers.game.players.coalitions import Removed

Term = tuple[Removed, Removed, float]
"""What is removed before a player goes, what is removed after, and a weight: weight × (v(before) − v(after))."""


def ablation_terms(player: int) -> list[Term]:
    """List the one term of the ablation drop, v(N) − v(N∖{i})."""
    return [((), (player,), 1.0)]


def neighbourhood_terms(player: int, n_players: int, max_removed: int) -> list[Term]:
    """List the terms of the paper's estimate: the plain mean over the windows that begin or end with the player.

    Shapes: 1 + 2(L − 1) terms for an inner player, L for the first and the last.
    Source: Zhang, Dong, Kawaguchi 2024, section 3, in the form of the authors' public code.
    """
    pairs = [((), (player,)), *_edge_pairs(player, n_players, max_removed)]
    return [(before, after, 1.0 / len(pairs)) for before, after in pairs]


def stratified_terms(player: int, n_players: int, max_removed: int) -> list[Term]:
    """List the terms of the stratified form: the mean within each window size, then the mean over the sizes."""
    pairs = [((), (player,)), *_edge_pairs(player, n_players, max_removed)]
    by_size: dict[int, int] = {}
    for _, after in pairs:
        by_size[len(after)] = by_size.get(len(after), 0) + 1
    return [(before, after, 1.0 / (len(by_size) * by_size[len(after)])) for before, after in pairs]


def _edge_pairs(player: int, n_players: int, max_removed: int) -> list[tuple[Removed, Removed]]:
    """List the windows of two or more that begin or end with the player: without it, with it."""
    pairs: list[tuple[Removed, Removed]] = []
    for size in range(2, max_removed + 1):
        as_first = tuple(range(player, player + size))
        as_last = tuple(range(player - size + 1, player + 1))
        if as_first[-1] < n_players:
            pairs.append((as_first[1:], as_first))
        if as_last[0] >= 0:
            pairs.append((as_last[:-1], as_last))
    return pairs
