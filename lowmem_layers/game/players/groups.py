"""Groups as players: attention only, FFN only, whole decoder layers, or groups of the user's own.

A grouping turns a game of sublayers into a game of groups; a table of the first that holds unions of whole groups
becomes a table of the second, and every estimator applies to it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Removed, parse_coalition
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.values.table import ValueTable

PlayersOption = Literal["sublayer", "attention", "ffn", "decoder-layer"]


@dataclass(frozen=True)
class Grouping:
    """The groups that play, in order; sublayers in no group are always present.

    Raises:
        UsageError: no groups, an empty one, names or members that occur twice.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        flat = [position for member in self.members for position in member]
        if not self.members or not all(self.members) or not all(self.names) or len(self.names) != len(self.members):
            raise UsageError(f"{len(self.members)} groups, some of them empty or unnamed", "give each group a sublayer")
        if len(set(flat)) != len(flat) or len(set(self.names)) != len(self.names):
            raise UsageError("a sublayer or a name occurs in two groups", "put every sublayer into one group at most")

    @property
    def n_groups(self) -> int:
        """Count the groups."""
        return len(self.members)

    def expand(self, removed_groups: Removed) -> Removed:
        """Name the sublayers that go when these groups go."""
        return tuple(sorted(position for group in removed_groups for position in self.members[group]))

    def expand_all(self, coalitions: Sequence[Removed]) -> list[Removed]:
        """Turn coalitions of groups into coalitions of sublayers: what the engine is asked for."""
        return [self.expand(removed) for removed in coalitions]


def group_players(players: Sequence[Player], by: PlayersOption) -> Grouping:
    """Group a model's sublayers: each on its own, only the attention or FFN/MoE ones, or decoder layer by layer.

    Raises:
        UsageError: an unknown option.
    """
    if by not in get_args(PlayersOption):
        raise UsageError(f"{by!r} is no kind of players", f"choose one of {', '.join(get_args(PlayersOption))}")
    if by == "decoder-layer":
        layers = sorted({player.layer for player in players})
        members = tuple(tuple(i for i, player in enumerate(players) if player.layer == layer) for layer in layers)
        return Grouping(tuple(f"layer.{layer}" for layer in layers), members)
    kept = [i for i, player in enumerate(players) if by == "sublayer" or player.is_attention == (by == "attention")]
    return Grouping(tuple(players[i].name for i in kept), tuple((i,) for i in kept))


def parse_groups(text: str, players: Sequence[Player]) -> Grouping:
    """Read `early=attn.0+ffn.0,late=ffn.28+ffn.29` (or, unnamed, `attn.0+ffn.0,ffn.28`).

    Raises:
        UsageError: an unknown sublayer, an empty group, one sublayer in two groups.
    """
    names: list[str] = []
    members: list[tuple[int, ...]] = []
    for part in text.split(","):
        name, equals, listed = part.strip().partition("=")
        listed = listed if equals else name
        names.append(name.strip())
        members.append(parse_coalition("+".join(member.strip() for member in listed.split("+")), players))
    return Grouping(tuple(names), tuple(members))


def grouped_table(table: ValueTable, grouping: Grouping) -> ValueTable:
    """Read a table of sublayers as a table of groups: keep the coalitions that are unions of whole groups.

    Raises:
        UsageError: a group of sublayers that the table does not have, or no coalition fits.
    """
    if max(max(member) for member in grouping.members) >= table.n_players:
        raise UsageError(f"a group reaches beyond the {table.n_players} players", "group the players of this very run")
    owner = {position: g for g, member in enumerate(grouping.members) for position in member}
    columns: list[int] = []
    coalitions: list[Removed] = []
    for column, removed in enumerate(table.coalitions):
        if any(position not in owner for position in removed):
            continue
        whole = tuple(sorted({owner[position] for position in removed}))
        if grouping.expand(whole) == removed:
            columns.append(column)
            coalitions.append(whole)
    if not columns:
        raise UsageError("no coalition of the table is made of whole groups", "measure the groups' own coalitions")
    values = np.ascontiguousarray(table.values[:, columns])
    return ValueTable(grouping.names, tuple(coalitions), values, table.clusters, table.items, table.task)
