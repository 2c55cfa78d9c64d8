"""From the options of a run to its design: who plays, and which coalitions are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import MAX_EXACT_PLAYERS, permutations
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.players.groups import Grouping, PlayersOption, group_players, parse_groups
from lowmem_layers.game.players.player import Player
from lowmem_layers.record.spec import PLAYERS, StudySpec, one_of

N_ORDERS = 32  # removal orders, where --permutations is not given


def plan_game(spec: StudySpec, players: Sequence[Player]) -> Design:
    """Read the design off a resolved spec, and refuse what the model does not allow.

    Raises:
        UsageError: unknown players, a sublayer in two groups, more removed than there are, too many players.
    """
    kind, grouping = spec.coalitions or "windows", _grouping(spec.players or "sublayer", players)
    design = Design(tuple(players), kind, spec.max_removed or 0, grouping)  # type: ignore[arg-type]
    n_players = len(design.players)
    if kind == "windows" and design.max_removed > n_players:
        whose = f"the model's {n_players} sublayers" if grouping is None else f"the {n_players} players"
        raise UsageError(
            f"--max-removed {design.max_removed} is more than {whose}",
            f"--max-removed takes 0 to {n_players} here; the paper uses 4",
        )
    if kind == "all" and n_players > MAX_EXACT_PLAYERS:
        raise UsageError(
            f"--coalitions all of {n_players} players would be 2^{n_players}",
            f"form at most {MAX_EXACT_PLAYERS} groups with --players, or use --coalitions permutations",
        )
    if kind == "permutations":
        orders = permutations(n_players, spec.permutations or N_ORDERS, spec.seed or 0)
        design = replace(design, orders=tuple(orders))
    return design


def _grouping(text: str, players: Sequence[Player]) -> Grouping | None:
    if text == "sublayer":
        return None
    if "." not in text and "=" not in text:
        one_of("--players", text, PLAYERS)
        known: PlayersOption = text  # type: ignore[assignment]
        grouping = group_players(players, known)
    else:
        grouping = parse_groups(text, players)
    if len(grouping.groups) < 2:
        raise UsageError(f"--players {text} leaves one player", "name at least two groups, joined by commas")
    return grouping
