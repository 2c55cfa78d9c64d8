"""Groups as players: attention only, FFN only, whole decoder layers, or groups that the user names.

With a grouping, groups of sublayers play instead of sublayers. A table of sublayers that holds removals of whole groups
becomes a table of groups, and every estimator applies to it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Removed, parse_coalition
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.values.table import ValueTable

PlayersOption = Literal["sublayer", "attention", "ffn", "decoder-layer"]


@dataclass(frozen=True)
class Group:
    """Several sublayers that are removed together: a name, and the sublayers' positions in execution order."""

    name: str
    members: tuple[int, ...]
    is_group: ClassVar[bool] = True


@dataclass(frozen=True)
class Grouping:
    """The groups that play, in order; sublayers in no group are always present.

    Raises:
        UsageError: no groups, an empty or unnamed one, names or members that occur twice.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if not self.groups or not all(group.name and group.members for group in self.groups):
            raise UsageError(f"{len(self.groups)} groups, some of them empty or unnamed", "give each group a sublayer")
        flat = [position for group in self.groups for position in group.members]
        if len(set(flat)) != len(flat) or len(set(self.names)) != len(self.groups):
            raise UsageError("a sublayer or a name occurs in two groups", "put every sublayer into one group at most")

    @property
    def names(self) -> tuple[str, ...]:
        """Name the groups."""
        return tuple(group.name for group in self.groups)

    def expand(self, removed_groups: Removed) -> Removed:
        """Name the sublayers that are removed when these groups are removed."""
        return tuple(sorted(position for place in removed_groups for position in self.groups[place].members))

    def expand_all(self, coalitions: Sequence[Removed]) -> list[Removed]:
        """Turn coalitions of groups into coalitions of sublayers: what the engine is asked for."""
        return [self.expand(removed) for removed in coalitions]


def group_players(players: Sequence[Player], by: PlayersOption) -> Grouping:
    """Group a model's sublayers: each on its own, only attention and mixers, only FFN/MoE, or by decoder layer.

    Raises:
        UsageError: an unknown option.
    """
    if by not in get_args(PlayersOption):
        raise UsageError(f"{by!r} is no kind of players", f"choose one of {', '.join(get_args(PlayersOption))}")
    if by == "decoder-layer":
        layers = sorted({player.layer for player in players})
        members = [tuple(i for i, player in enumerate(players) if player.layer == layer) for layer in layers]
        return Grouping(tuple(Group(f"layer.{layer}", m) for layer, m in zip(layers, members, strict=True)))
    kept = [i for i, player in enumerate(players) if by == "sublayer" or player.is_attention == (by == "attention")]
    return Grouping(tuple(Group(players[i].name, (i,)) for i in kept))


def parse_groups(text: str, players: Sequence[Player]) -> Grouping:
    """Read `early=attn.0+ffn.0,late=ffn.28+ffn.29` (or, unnamed, `attn.0+ffn.0,ffn.28`).

    Raises:
        UsageError: an unknown sublayer, an empty group, one sublayer in two groups.
    """
    groups: list[Group] = []
    for part in text.split(","):
        name, equals, listed = part.strip().partition("=")
        listed = listed if equals else name
        members = parse_coalition("+".join(member.strip() for member in listed.split("+")), players)
        groups.append(Group(name.strip(), members))
    return Grouping(tuple(groups))


def grouped_table(table: ValueTable, grouping: Grouping) -> ValueTable:
    """Read a table of sublayers as a table of groups: keep the coalitions that remove whole groups.

    Raises:
        UsageError: a group of sublayers that the table does not have, or no coalition fits.
    """
    owner = {position: place for place, group in enumerate(grouping.groups) for position in group.members}
    if max(owner) >= table.n_players:
        raise UsageError(f"a group reaches beyond the {table.n_players} players", "group the players of this very run")
    columns: list[int] = []
    coalitions: list[Removed] = []
    for column, removed in enumerate(table.coalitions):
        if any(position not in owner for position in removed):
            continue
        whole = tuple(sorted({owner[position] for position in removed}))
        if grouping.expand(whole) == removed:  # else a part of a group is removed, and the rest of it is not
            columns.append(column)
            coalitions.append(whole)
    if not columns:
        raise UsageError("no coalition of the table is made of whole groups", "measure the groups' own coalitions")
    values = np.ascontiguousarray(table.values[:, columns])  # (items, coalitions of groups)
    return replace(table, players=grouping.names, coalitions=tuple(coalitions), values=values)
