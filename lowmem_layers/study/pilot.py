"""A pilot before a run of removal orders: after how many removals is the model at chance level?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.findings.words import counted
from lowmem_layers.game.estimators.permutation import first_cut
from lowmem_layers.game.players.coalitions import Removed, chain
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.items import rows_of
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.events import Announce, StageStarted
from lowmem_layers.tasks.metrics import item_values, metric_named

PILOT_ITEMS = 32  # of each task
_FIRST_DEPTH = 4


def settle_cuts(prepared: Prepared, design: Design, seed: int, announce: Announce) -> Design:
    """Remove more and more players along each order until all tasks are at chance within noise; cut the order there.

    Where a task's metric has no chance level, no order is cut.
    """
    n_players = len(design.players)
    chances = [task.chance if metric_named(task.metric).has_chance else None for task in prepared.tasks]
    if None in chances:
        return design.cut([n_players] * len(design.orders))
    # 1) the pilot's items: a few of each task, drawn by the run's seed
    rng = np.random.default_rng([seed, 1])
    items: list[int] = []
    for task in prepared.tasks:
        own = [index for index, item in enumerate(prepared.encoded) if item.task == task.name]
        items += rng.permutation(own)[:PILOT_ITEMS].tolist()
    items.sort()
    # 2) deeper and deeper, along the orders that are not cut yet
    known: dict[Removed, list[np.ndarray]] = {}
    cuts: list[int | None] = [None] * len(design.orders)
    depth = min(_FIRST_DEPTH, n_players)
    while None in cuts:
        walks = [order for order, cut in zip(design.orders, cuts, strict=True) if cut is None]
        wanted = {removed for order in walks for removed in chain(order, depth)}
        new = sorted(wanted - set(known), key=lambda removed: (len(removed), removed))
        walked = f"{counted(len(walks), 'removal order')} down to {depth} removed"
        announce(StageStarted(f"pilot: {walked}, {counted(len(items), 'item')}"))
        known |= _measure(prepared, design, items, new)
        tables = _tables(prepared, design, items, known)
        for place, order in enumerate(design.orders):
            if cuts[place] is None:
                cuts[place] = first_cut(tables, order, chances)
        if depth == n_players:
            break
        depth = min(2 * depth, n_players)
    return design.cut([n_players if cut is None else cut for cut in cuts])


def _measure(
    prepared: Prepared, design: Design, items: Sequence[int], coalitions: list[Removed]
) -> dict[Removed, list[np.ndarray]]:
    """Score the pilot's items. Shapes: for each coalition, a list of arrays (choices,), nats, one for each item."""
    removed = coalitions if design.grouping is None else design.grouping.expand_all(coalitions)
    encoded = [prepared.encoded[index] for index in items]
    found: dict[int, np.ndarray] = {}  # by item: (coalitions, choices)
    for tile in prepared.engine.plan_tiles(encoded, removed):
        scores = prepared.engine.score([encoded[index] for index in tile], removed)
        found |= dict(zip(tile, scores, strict=True))
    return {
        coalition: [found[index][column] for index in range(len(items))] for column, coalition in enumerate(coalitions)
    }


def _tables(
    prepared: Prepared, design: Design, items: Sequence[int], known: dict[Removed, list[np.ndarray]]
) -> list[ValueTable]:
    """Make a table of each task's own metric."""
    rows = rows_of([prepared.encoded[index] for index in items])
    tables = []
    for task in prepared.tasks:
        own = [(place, row) for place, row in enumerate(rows) if row.task == task.name]
        values = []
        for place, row in own:
            scores = np.stack([known[coalition][place] for coalition in known])[None]  # (1, coalitions, choices)
            values.append(item_values(scores, [row.gold], [row.chars], [row.sizes], task.metric)[0])
        clusters = np.unique([row.cluster for _, row in own], return_inverse=True)[1]
        tables.append(ValueTable(design.names, tuple(known), np.stack(values), clusters, None, task.name))
    return tables
