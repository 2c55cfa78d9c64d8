"""Which game a run plays: who the players are (sublayers, or groups of them), and which coalitions are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.exact import MAX_EXACT_PLAYERS
from lowmem_layers.game.estimators.permutation import Order
from lowmem_layers.game.players.coalitions import Removed, all_coalitions, chain, permutations, windows
from lowmem_layers.game.players.groups import Grouping, PlayersOption, group_players, parse_groups
from lowmem_layers.game.players.player import Player
from lowmem_layers.record.spec import PLAYERS, StudySpec, one_of

N_ORDERS = 32  # removal orders, where --permutations is not given
_NATURAL = {"windows": "neighbourhood", "permutations": "permutation", "all": "shapley"}


@dataclass(frozen=True)
class Game:
    """The players and what is measured of them.

    `grouping` is None where every sublayer plays on its own. `orders` are the removal orders of `permutations`, of
    players; `cuts` the number of players that each walk removes (empty while not settled: whole walks).
    """

    sublayers: tuple[str, ...]
    coalitions: str = "windows"
    max_removed: int = 4
    grouping: Grouping | None = None
    orders: tuple[Order, ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def players(self) -> tuple[str, ...]:
        """Name the players."""
        return self.sublayers if self.grouping is None else self.grouping.names

    @property
    def estimator(self) -> str:
        """Name the estimator that what is measured is meant for."""
        return _NATURAL[self.coalitions]

    @property
    def walks(self) -> tuple[Order, ...]:
        """Give each order as far as it is walked."""
        return tuple(order[:cut] for order, cut in zip(self.orders, self.cuts or map(len, self.orders), strict=True))

    @cached_property
    def of_players(self) -> list[Removed]:
        """List the coalitions by players; single removals are always among them where anything is removed.

        Raises:
            UsageError: more players are to be removed than there are, or too many play for all coalitions.
        """
        n_players = len(self.players)
        if self.coalitions == "windows":
            return _windows(n_players, self.max_removed, grouped=self.grouping is not None)
        if self.coalitions == "all":
            return _all(n_players)
        walked = {removed for walk in self.walks for removed in chain(walk)}
        return sorted({*windows(n_players, 1), *walked}, key=lambda removed: (len(removed), removed))

    @property
    def removed(self) -> list[Removed]:
        """List the coalitions by sublayers: what the engine is asked for."""
        return self.of_players if self.grouping is None else self.grouping.expand_all(self.of_players)

    def cut(self, cuts: Sequence[int]) -> Game:
        """Settle how far each order is walked."""
        return replace(self, cuts=tuple(cuts))


def plan_game(spec: StudySpec, players: Sequence[Player]) -> Game:
    """Read the game off a resolved spec, refusing what the model does not allow.

    Raises:
        UsageError: unknown players, a sublayer in two groups, more removed than there are, too many players.
    """
    kind = spec.coalitions or "windows"
    grouping = _grouping(spec.players or "sublayer", players)
    game = Game(tuple(player.name for player in players), kind, spec.max_removed or 0, grouping)
    if kind == "permutations":
        orders = permutations(len(game.players), spec.permutations or N_ORDERS, spec.seed or 0)
        game = replace(game, orders=tuple(orders))
    game.of_players  # noqa: B018  (refuses what cannot be)
    return game


def _grouping(text: str, players: Sequence[Player]) -> Grouping | None:
    if text == "sublayer":
        return None
    if "." not in text and "=" not in text:
        one_of("--players", text, PLAYERS)
        known: PlayersOption = text  # type: ignore[assignment]
        grouping = group_players(players, known)
    else:
        grouping = parse_groups(text, players)
    if grouping.n_groups < 2:
        raise UsageError(f"--players {text} leaves one player", "name at least two groups, joined by commas")
    return grouping


def _windows(n_players: int, max_removed: int, *, grouped: bool) -> list[Removed]:
    if max_removed > n_players:
        whose = f"the {n_players} players" if grouped else f"the model's {n_players} sublayers"
        raise UsageError(
            f"--max-removed {max_removed} is more than {whose}",
            f"--max-removed takes 0 to {n_players} here; the paper uses 4",
        )
    return windows(n_players, max_removed)


def _all(n_players: int) -> list[Removed]:
    if n_players > MAX_EXACT_PLAYERS:
        raise UsageError(
            f"--coalitions all of {n_players} players would be 2^{n_players}",
            f"form at most {MAX_EXACT_PLAYERS} groups with --players, or use --coalitions permutations",
        )
    return all_coalitions(n_players)
