"""A look at a few items before a run of removal orders: how far down each order's walk anything is left to lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.game.estimators.permutation import first_cut
from lowmem_layers.game.players.coalitions import Removed, chain
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.items import ItemRow, rows_of
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.events import Announce, StageStarted
from lowmem_layers.tasks.metrics import item_values

PILOT_ITEMS = 32  # of each task
_FIRST_DEPTH = 4
_CHANCE_METRICS = ("acc", "acc_norm")


def settle_cuts(prepared: Prepared, game: Design, seed: int, announce: Announce) -> Design:
    """Walk every order down, twice as deep each time, until all tasks are at chance within noise; cut it there.

    A task that is not judged by accuracy has no chance level: then no order is cut.
    """
    chances = [task.chance if task.metric in _CHANCE_METRICS else None for task in prepared.tasks]
    n_players = len(game.players)
    if None in chances:
        return game.cut([n_players] * len(game.orders))
    items = _pilot_items(prepared, seed)
    known: dict[Removed, list[np.ndarray]] = {}
    cuts: list[int | None] = [None] * len(game.orders)
    depth = min(_FIRST_DEPTH, n_players)
    while None in cuts:
        walks = [order for order, cut in zip(game.orders, cuts, strict=True) if cut is None]
        wanted = {removed for order in walks for removed in chain(order, depth)}
        new = sorted(wanted - set(known), key=lambda removed: (len(removed), removed))
        announce(StageStarted(f"pilot: {len(walks)} removal orders down to {depth} removed, {len(items)} items"))
        known |= _measure(prepared, game, items, new)
        tables = _tables(prepared, game, items, known)
        for place, order in enumerate(game.orders):
            if cuts[place] is None:
                cuts[place] = first_cut(tables, order, chances)
        if depth == n_players:
            break
        depth = min(2 * depth, n_players)
    return game.cut([n_players if cut is None else cut for cut in cuts])


def _pilot_items(prepared: Prepared, seed: int) -> list[int]:
    """Draw up to `PILOT_ITEMS` items of each task."""
    rng = np.random.default_rng([seed, 1])
    chosen: list[int] = []
    for task in prepared.tasks:
        own = [index for index, item in enumerate(prepared.encoded) if item.task == task.name]
        chosen += rng.permutation(own)[:PILOT_ITEMS].tolist()
    return sorted(chosen)


def _measure(
    prepared: Prepared, game: Design, items: Sequence[int], coalitions: list[Removed]
) -> dict[Removed, list[np.ndarray]]:
    """Score the pilot's items. Shapes: (choices,) nats, a list with one entry an item for each coalition."""
    removed = coalitions if game.grouping is None else game.grouping.expand_all(coalitions)
    encoded = [prepared.encoded[index] for index in items]
    found: dict[int, np.ndarray] = {}
    for tile in prepared.engine.plan_tiles(encoded, removed):
        scores = prepared.engine.score([encoded[index] for index in tile], removed)
        found |= dict(zip(tile, scores, strict=True))
    return {
        coalition: [found[index][column] for index in range(len(items))] for column, coalition in enumerate(coalitions)
    }


def _tables(
    prepared: Prepared, game: Design, items: Sequence[int], known: dict[Removed, list[np.ndarray]]
) -> list[ValueTable]:
    """Make a table of each task's own metric."""
    rows = rows_of([prepared.encoded[index] for index in items])
    tables = []
    for task in prepared.tasks:
        places = [place for place, row in enumerate(rows) if row.task == task.name]
        values = [_values(rows[place], task.metric, [known[c][place] for c in known]) for place in places]
        clusters = np.unique([rows[place].cluster for place in places], return_inverse=True)[1]
        tables.append(ValueTable(game.names, tuple(known), np.stack(values), clusters, None, task.name))
    return tables


def _values(row: ItemRow, metric: str, scores: Sequence[np.ndarray]) -> np.ndarray:
    lengths = np.array([row.chars]), np.array([row.sizes])
    return item_values(np.stack(scores)[None], np.array([row.gold]), *lengths, metric)[0]
