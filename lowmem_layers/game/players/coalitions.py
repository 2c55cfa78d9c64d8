"""Coalitions, named by what is removed: windows, single removals, the walks of removal orders, random ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.player import Player

Removed = tuple[int, ...]
"""A coalition, written as the sorted positions of the players that are *removed*; `()` is the full model."""
Order = tuple[int, ...]
"""A removal order: every player's position once, the first to be removed first."""

MAX_EXACT_PLAYERS = 14  # 16,384 coalitions, as many columns in a table of values


def windows(n_players: int, max_removed: int) -> list[Removed]:
    """List the full model and every contiguous window of 1..`max_removed` sublayers, by size, then by start.

    Shapes: 1 + Σ_{k=1..L} (N − k + 1) coalitions; N = 64 and L = 4 give 251.

    Raises:
        UsageError: no players, or `max_removed` is negative or above N.
    """
    if n_players < 1:
        raise UsageError("a game needs at least one player", "check that the model has decoder layers")
    if not 0 <= max_removed <= n_players:
        raise UsageError(
            f"cannot remove windows of up to {max_removed} of {n_players} sublayers",
            f"choose a largest window between 0 and {n_players}",
        )
    sized = [tuple(range(i, i + k)) for k in range(1, max_removed + 1) for i in range(n_players - k + 1)]
    return [(), *sized]


def single_removals(n_players: int) -> list[Removed]:
    """List the full model and every removal of one sublayer."""
    return windows(n_players, 1)


def all_coalitions(n_players: int) -> list[Removed]:
    """List all 2^N coalitions by size, then lexicographically.

    Raises:
        UsageError: more than `MAX_EXACT_PLAYERS` players, or none.
    """
    if not 1 <= n_players <= MAX_EXACT_PLAYERS:
        raise UsageError(
            f"all coalitions of {n_players} players would be 2^{n_players}",
            f"choose 1 to {MAX_EXACT_PLAYERS} players, or group them, or sample permutations",
        )
    return [c for k in range(n_players + 1) for c in combinations(range(n_players), k)]


def check_coalitions(coalitions: Iterable[Removed], n_players: int) -> None:
    """Refuse what is no coalition of so many players.

    Raises:
        UsageError: not a sorted tuple of distinct positions from 0 to `n_players` − 1.
    """
    for removed in coalitions:
        increasing = all(a < b for a, b in pairwise(removed))
        if not increasing or (removed and not 0 <= removed[0] <= removed[-1] < n_players):
            raise UsageError(
                f"{removed!r} is not a coalition of {n_players} players",
                f"a coalition is a sorted tuple of distinct positions from 0 to {n_players - 1}",
            )


def is_window(removed: Removed) -> bool:
    """Tell whether a removal is contiguous (the empty one is not a window)."""
    return len(removed) > 0 and removed[-1] - removed[0] + 1 == len(removed)


def permutations(n_players: int, n_permutations: int, seed: int) -> list[Order]:
    """Draw removal orders in antithetic pairs: every second one is the one before it reversed.

    An odd count leaves the last pair without its second half.
    Source: antithetic permutation sampling, Mitchell et al. 2022, "Sampling permutations for Shapley value estimation".
    """
    if n_players < 1 or n_permutations < 1:
        raise UsageError(f"cannot draw {n_permutations} permutations of {n_players} players", "both must be at least 1")
    rng = np.random.default_rng(seed)
    orders: list[Order] = []
    while len(orders) < n_permutations:
        order = tuple(int(p) for p in rng.permutation(n_players))
        orders += [order, order[::-1]]
    return orders[:n_permutations]


def chain(order: Sequence[int], max_removed: int | None = None) -> list[Removed]:
    """Walk down from the full model, removing the players in the given order; `max_removed` truncates the walk.

    Shapes: min(N, max_removed) + 1 coalitions, the first of them ().
    """
    depth = len(order) if max_removed is None else min(max_removed, len(order))
    return [tuple(sorted(order[:k])) for k in range(depth + 1)]


def chain_coalitions(orders: Iterable[Sequence[int]], max_removed: int | None = None) -> list[Removed]:
    """List, each once and by (size, positions), the coalitions that these permutations walk through."""
    seen = {removed for order in orders for removed in chain(order, max_removed)}
    return sorted(seen, key=lambda removed: (len(removed), removed))


def random_coalitions(n_players: int, count: int, seed: int, max_removed: int | None = None) -> list[Removed]:
    """Draw distinct coalitions: a size uniform in 1..max_removed, then a uniform subset of that size.

    Fewer than `count` come back when fewer exist.
    """
    largest = n_players if max_removed is None else min(max_removed, n_players)
    rng = np.random.default_rng(seed)
    drawn: dict[Removed, None] = {}
    for _ in range(50 * count):
        size = int(rng.integers(1, largest + 1))
        drawn[tuple(sorted(int(p) for p in rng.choice(n_players, size, replace=False)))] = None
        if len(drawn) == count:
            break
    return list(drawn)


def coalition_name(removed: Removed, players: Sequence[str | Player]) -> str:
    """Name a coalition by its removed sublayers in order, joined by `+`; the full model is the empty string."""
    names = (players[position] for position in removed)
    return "+".join(p if isinstance(p, str) else p.name for p in names)


def parse_coalition(name: str, players: Sequence[str | Player]) -> Removed:
    """Read `attn.0+ffn.0` back into sorted positions.

    Raises:
        UsageError: a name that is no player of this game, or one named twice.
    """
    if not name:
        return ()
    position = {(p if isinstance(p, str) else p.name): i for i, p in enumerate(players)}
    parts = name.split("+")
    unknown = [part for part in parts if part not in position]
    if unknown:
        raise UsageError(
            f"{unknown[0]!r} is not one of the {len(position)} players", "sublayers are named like attn.0 or ffn.12"
        )
    if len(set(parts)) != len(parts):
        raise UsageError(f"{name!r} removes a sublayer twice", "name each sublayer once")
    return tuple(sorted(position[part] for part in parts))
