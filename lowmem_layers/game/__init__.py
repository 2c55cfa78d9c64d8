"""Players, coalitions, and the way from a table of values to importance with its uncertainty. Pure mathematics."""

from lowmem_layers.game.coalitions import (
    Removed,
    all_coalitions,
    chain,
    chain_coalitions,
    coalition_name,
    is_window,
    parse_coalition,
    permutations,
    random_coalitions,
    single_removals,
    windows,
)
from lowmem_layers.game.estimate import Importance, combine, estimate
from lowmem_layers.game.players import Player, parse_player, players_of
from lowmem_layers.game.ranks import ranks
from lowmem_layers.game.shares import shares
from lowmem_layers.game.table import ValueTable
from lowmem_layers.game.weights import Estimator, estimator_weights

__all__ = [
    "Estimator",
    "Importance",
    "Player",
    "Removed",
    "ValueTable",
    "all_coalitions",
    "chain",
    "chain_coalitions",
    "coalition_name",
    "combine",
    "estimate",
    "estimator_weights",
    "is_window",
    "parse_coalition",
    "parse_player",
    "permutations",
    "players_of",
    "random_coalitions",
    "ranks",
    "shares",
    "single_removals",
    "windows",
]
