"""Players, coalitions, and the way from a table of values to importance with its uncertainty. Pure mathematics."""

from lowmem_layers.game.answers.compare import Comparison, compare
from lowmem_layers.game.answers.cornerstone import Cornerstones, cornerstones
from lowmem_layers.game.answers.importance import Importance, estimate, estimate_permutations
from lowmem_layers.game.answers.interactions import Interactions, interactions
from lowmem_layers.game.answers.paper_tables import PaperTables, paper_tables
from lowmem_layers.game.answers.shares import shares
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.players.coalitions import (
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
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.players.groups import Group, Grouping, group_players, grouped_table, parse_groups
from lowmem_layers.game.players.player import Player, parse_player, players_of
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.uncertainty.rank_correlation import Agreement, kendall_tau, spearman_rho
from lowmem_layers.game.uncertainty.ranks import ranks
from lowmem_layers.game.uncertainty.stopping import Statement, StopDecision, decide, item_order, parse_statement
from lowmem_layers.game.values.shapiq_game import to_shapiq
from lowmem_layers.game.values.table import ValueTable

__all__ = [
    "Agreement",
    "Comparison",
    "Cornerstones",
    "Design",
    "Estimator",
    "Group",
    "Grouping",
    "Importance",
    "Interactions",
    "Interval",
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
