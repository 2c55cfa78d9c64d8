"""The design of a run: who plays (sublayers, or groups of them), and which coalitions are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from lowmem_layers.game.players.coalitions import Order, Removed, all_coalitions, chain, windows
from lowmem_layers.game.players.groups import Group, Grouping
from lowmem_layers.game.players.player import Player

CoalitionsKind = Literal["windows", "permutations", "all"]
OwnEstimator = Literal["neighbourhood", "permutation", "shapley"]

_OWN_ESTIMATOR: dict[CoalitionsKind, OwnEstimator] = {
    "windows": "neighbourhood",
    "permutations": "permutation",
    "all": "shapley",
}


@dataclass(frozen=True)
class Design:
    """The players, and the coalitions of them that are measured.

    `grouping` is None where every sublayer plays on its own. `max_removed` is the largest window. `orders` are the
    removal orders of `permutations`, by players; `cuts` the number of players that each order's walk removes (empty
    while this is not settled: then every walk is whole).
    """

    sublayers: tuple[Player, ...]
    coalitions: CoalitionsKind = "windows"
    max_removed: int = 4
    grouping: Grouping | None = None
    orders: tuple[Order, ...] = ()
    cuts: tuple[int, ...] = ()

    @cached_property
    def players(self) -> tuple[Player | Group, ...]:
        """List the players in execution order: sublayers, or groups of them.

        A group of one member that bears its sublayer's own name is that sublayer, as with `--players attention`.
        """
        if self.grouping is None:
            return self.sublayers
        alone = {Group(sublayer.name, (place,)): sublayer for place, sublayer in enumerate(self.sublayers)}
        return tuple(alone.get(group, group) for group in self.grouping.groups)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name the players."""
        return tuple(player.name for player in self.players)

    @property
    def estimator(self) -> OwnEstimator:
        """Name the estimator for which these coalitions are measured."""
        return _OWN_ESTIMATOR[self.coalitions]

    @property
    def walks(self) -> tuple[Order, ...]:
        """Give the part of each removal order that is walked."""
        return tuple(order[:cut] for order, cut in zip(self.orders, self.cuts or map(len, self.orders), strict=True))

    @cached_property
    def of_players(self) -> list[Removed]:
        """List the coalitions by players; removal orders are measured together with all single removals.

        Raises:
            UsageError: more players are to be removed than there are, or too many play for all coalitions.
        """
        n_players = len(self.players)
        if self.coalitions == "windows":
            return windows(n_players, self.max_removed)
        if self.coalitions == "all":
            return all_coalitions(n_players)
        walked = {removed for walk in self.walks for removed in chain(walk)}
        return sorted({*windows(n_players, 1), *walked}, key=lambda removed: (len(removed), removed))

    @property
    def removed(self) -> list[Removed]:
        """List the coalitions by sublayers: what the engine is asked for."""
        return self.of_players if self.grouping is None else self.grouping.expand_all(self.of_players)

    def cut(self, cuts: Sequence[int]) -> Design:
        """Settle how far each removal order is walked."""
        return replace(self, cuts=tuple(cuts))
