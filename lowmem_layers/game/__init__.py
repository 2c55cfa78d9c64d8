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
from lowmem_layers.game.compare import Comparison, compare
from lowmem_layers.game.cornerstone import Cornerstones, cornerstones
from lowmem_layers.game.estimate import Importance, combine, estimate, estimate_permutations
from lowmem_layers.game.groups import Grouping, group_players, grouped_table, parse_groups
from lowmem_layers.game.interactions import Interactions, interactions
from lowmem_layers.game.paper_tables import PaperTables, paper_tables
from lowmem_layers.game.permutation import next_coalitions
from lowmem_layers.game.players import Player, parse_player, players_of
from lowmem_layers.game.rank_correlation import Agreement, kendall_tau, spearman_rho
from lowmem_layers.game.ranks import ranks
from lowmem_layers.game.shapiq_game import to_shapiq
from lowmem_layers.game.shares import shares
from lowmem_layers.game.stopping import Statement, StopDecision, decide, item_order, parse_statement
from lowmem_layers.game.table import ValueTable
from lowmem_layers.game.weights import Estimator, estimator_weights

__all__ = [
    "Agreement",
    "Comparison",
    "Cornerstones",
    "Estimator",
    "Grouping",
    "Importance",
    "Interactions",
    "PaperTables",
    "Player",
    "Removed",
    "Statement",
    "StopDecision",
    "ValueTable",
    "all_coalitions",
    "chain",
    "chain_coalitions",
    "coalition_name",
    "combine",
    "compare",
    "cornerstones",
    "decide",
    "estimate",
    "estimate_permutations",
    "estimator_weights",
    "group_players",
    "grouped_table",
    "interactions",
    "is_window",
    "item_order",
    "kendall_tau",
    "next_coalitions",
    "paper_tables",
    "parse_coalition",
    "parse_groups",
    "parse_player",
    "parse_statement",
    "permutations",
    "players_of",
    "random_coalitions",
    "ranks",
    "shares",
    "single_removals",
    "spearman_rho",
    "to_shapiq",
    "windows",
]
