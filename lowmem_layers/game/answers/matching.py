"""Whether two runs can be compared: the same players, the same windows, and which of their items are the same."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.weights import Estimator, largest_window
from lowmem_layers.game.values.table import IntArray, ValueTable


def refuse_different_players(a: ValueTable, b: ValueTable) -> None:
    """Refuse tables of different players, and name the first difference.

    Raises:
        UsageError: the players differ.
    """
    if a.players == b.players:
        return
    what = f"A has {len(a.players)} players, B {len(b.players)}"
    if len(a.players) == len(b.players):
        first = next(i for i, pair in enumerate(zip(a.players, b.players, strict=True)) if pair[0] != pair[1])
        what = f"player {first} is {a.players[first]} in A and {b.players[first]} in B"
    raise UsageError(f"the runs have different players: {what}", "compare runs of models with the same sublayers")


def refuse_different_windows(a: ValueTable, b: ValueTable, estimator: Estimator, max_removed: int | None) -> None:
    """Refuse window estimates of different largest windows.

    Raises:
        UsageError: the largest windows differ and none was asked for.
    """
    sizes = largest_window(a.coalitions, a.n_players), largest_window(b.coalitions, b.n_players)
    if estimator in ("neighbourhood", "stratified") and max_removed is None and sizes[0] != sizes[1]:
        raise UsageError(
            f"A has windows of up to {sizes[0]} sublayers, B of up to {sizes[1]}",
            f"compare both with --max-removed {min(sizes)}" if min(sizes) else "remove windows in both runs",
        )


def matching_rows(a: ValueTable, b: ValueTable) -> tuple[list[int], list[int]] | None:
    """Find the rows of the items that are the same, in A's order; None where too few are.

    Raises:
        UsageError: an item occurs twice.
    """
    if a.items is None or b.items is None or a.task != b.task:
        return None
    if len(set(a.items)) != len(a.items) or len(set(b.items)) != len(b.items):
        raise UsageError("an item occurs twice in a run", "give every item its own name")
    row = {item: place for place, item in enumerate(b.items)}
    common = [(place, row[item]) for place, item in enumerate(a.items) if item in row]
    if 2 * len(common) < min(a.n_items, b.n_items):
        return None
    return [first for first, _ in common], [second for _, second in common]


def joined_clusters(a: IntArray, b: IntArray) -> IntArray:
    """Join two clusterings of the same items: what either of them holds together stays together.

    Items that share a cluster by a chain of clusters of A and B get one, so that clusters are independent by both
    runs' labels. Where both partitions are the same, A's codes are given back. Shapes: (items,) each.
    """
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    edges = coo_array((np.ones(len(a)), (a, n_a + b)), shape=(n_a + n_b, n_a + n_b))
    n_joined, label = connected_components(edges, directed=False)  # a node for each cluster of A and of B
    return a if n_joined == n_a else np.unique(label[a], return_inverse=True)[1].astype(np.int64)
