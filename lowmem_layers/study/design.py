"""From the specification of a run to its design: who plays, and which coalitions are measured."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import MAX_EXACT_PLAYERS, permutations
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.players.groups import group_players, parse_groups
from lowmem_layers.game.players.player import Player
from lowmem_layers.record.spec import PLAYERS, Specification, one_of


def plan_design(specification: Specification, players: Sequence[Player]) -> Design:
    """Make the design that a specification asks of a model with these sublayers; refuse one that is not possible.

    Raises:
        UsageError: unknown players, a sublayer in two groups, more removed than there are, too many players.
    """
    # 1) who plays
    kind, who, grouping = specification.coalitions, specification.players, None
    if "." in who or "=" in who:
        grouping = parse_groups(who, players)
    elif (known := one_of("--players", who, PLAYERS)) != "sublayer":
        grouping = group_players(players, known)
    if grouping is not None and len(grouping.groups) < 2:
        raise UsageError(f"--players {who} leaves one player", "name at least two groups, joined by commas")
    n_players = len(players) if grouping is None else len(grouping.groups)

    # 2) what is removed together
    if kind == "windows" and specification.max_removed > n_players:
        whose = f"the model's {n_players} sublayers" if grouping is None else f"the {n_players} players"
        raise UsageError(
            f"--max-removed {specification.max_removed} is more than {whose}",
            f"--max-removed takes 0 to {n_players} here; the paper uses 4",
        )
    if kind == "all" and n_players > MAX_EXACT_PLAYERS:
        raise UsageError(
            f"--coalitions all of {n_players} players would be 2^{n_players}",
            f"form at most {MAX_EXACT_PLAYERS} groups with --players, or use --coalitions permutations",
        )
    n_orders = specification.permutations
    orders = [] if n_orders is None else permutations(n_players, n_orders, specification.seed)
    return Design(tuple(players), kind, specification.max_removed, grouping, tuple(orders))
