"""The loop over tiles: score those that are not finished, write each whole or not at all, announce what was done."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from lowmem_layers.findings.statement import judge
from lowmem_layers.game.estimators.permutation import permutation_influence
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.record.items import no_collections
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import scores_table, tile_file, write_table
from lowmem_layers.record.values import CollectedValues
from lowmem_layers.study.contracts import Prepared, ScoredTile, Scoring
from lowmem_layers.study.earlier import SHARE, EarlierTiles
from lowmem_layers.study.events import (
    Announce,
    RunPlanned,
    StageStarted,
    Standing,
    StatementJudged,
    TaskPlanned,
    TileCommitted,
    TileStarted,
)
from lowmem_layers.study.one_by_one import one_by_one
from lowmem_layers.tasks.items import EncodedItem

LOOKS = 100  # a statement to stop at is looked at whenever the items have grown by one part in so many
_N_LEADERS = 5


def score_tiles(
    earlier: EarlierTiles, prepared: Prepared, announce: Announce, clock: Callable[[], float] = time.monotonic
) -> str:
    """Score every tile that is not finished yet, or as many as prove the statement to stop at; add them to the values.

    At the end every tile was read that an earlier call left. The result states what was proven; it is empty where the
    run did not stop for that.

    Raises:
        RecordError: a tile cannot be written, or may not be read.
        EngineError: the engine's scores have the wrong shape.
    """
    values = earlier.values
    manifest, plan = values.manifest, values.manifest.plan
    with no_collections():
        encoded = [[prepared.encoded[index] for index in tile] for tile in plan.tiles]
        work = [work_by_task(prepared, manifest, items) for items in encoded]  # (tiles, tasks)

    # 1) the work is announced; what is left of it
    announce(_planned(values, prepared, work))
    if prepared.score_tiles is not None:  # which tiles are left must be known before workers are given any
        earlier.read_all()
    scoring = _scored(earlier, prepared, encoded, work, announce, clock)
    before = values.n_items - (len(plan.tiles[max(values.tiles)]) if values.tiles else 0)
    stands = None
    while True:
        # 2) see whether the statement is proven: by every item that is finished, while no earlier one is missing
        looked = manifest.stopped or is_look(before, values.n_items, manifest.n_items)
        if looked and manifest.resolved.until is not None and not earlier.damaged:
            earlier.read_all()
            if not earlier.damaged and (stopped := _proven(values, announce)):
                return stopped
        if len(values.tiles) == len(plan.tiles):
            earlier.read_all()
            if not earlier.damaged:
                return ""

        # 3) one tile: damaged ones come first, so that they do not stay in the record
        scored, start = next(scoring), clock()
        tile = scored.tile
        _commit(earlier, scored)
        before = values.n_items - len(plan.tiles[tile])
        if stands is None or is_look(before, values.n_items, manifest.n_items):  # like a look, it takes all items in
            stands = standing(values)
        spent, done = scored.elapsed_s + clock() - start, (values.n_items, len(values.tiles))
        about = tile, len(encoded[tile]), sum(work[tile]), *done, spent, leaders(values), stands, scored.worker
        announce(TileCommitted(*about))
        earlier.read(SHARE * spent)


def _commit(earlier: EarlierTiles, scored: ScoredTile) -> None:
    """Write a tile's scores, whole or not at all, and add them to the values."""
    values = earlier.values
    table = scores_table(values.rows_of(scored.tile), values.removed, scored.scores)
    with uninterrupted():
        write_table(tile_file(values.folder, scored.tile), table, scored.made_on)
    values.add(scored.tile, scored.scores)
    earlier.damaged = [each for each in earlier.damaged if each != scored.tile]


def _scored(
    earlier: EarlierTiles,
    prepared: Prepared,
    encoded: Sequence[Sequence[EncodedItem]],
    work: Sequence[tuple[int, ...]],
    announce: Announce,
    clock: Callable[[], float],
) -> Iterator[ScoredTile]:
    """Score the tiles that are left, damaged ones first; a statement to stop at takes them in the plan's order.

    Which of them workers finish first depends on their items: to judge in that order would be a selection.
    """
    values, plan, in_order = earlier.values, earlier.values.manifest.plan, bool(earlier.values.manifest.resolved.until)
    rest = deque(sorted(set(range(len(plan.tiles))) - set(values.tiles) - set(earlier.damaged)))
    score = prepared.score_tiles or one_by_one(prepared.engine, clock)

    def begin(tile: int) -> None:
        announce(TileStarted(tile, len(encoded[tile]), work[tile]))

    def left() -> Iterator[int]:
        while True:  # which earlier tiles are damaged is seen while they are read, between new ones
            yield earlier.damaged[0] if earlier.damaged else rest.popleft()

    announce(StageStarted("scoring", "scoring"))
    # With workers every tile of an earlier call was read: no further one turns out damaged.
    tiles = left() if prepared.score_tiles is None else [*earlier.damaged, *rest]
    return score(tiles, Scoring(encoded, plan.coalitions, begin, announce, in_order))


def is_look(before: int, after: int, n_items: int) -> bool:
    """Tell whether a statement to stop at is looked at when the finished items grow from `before` to `after`.

    A look takes all items in, so looks lie as far apart as items grow by one part in `LOOKS`: together they then cost
    no more than so many looks at the end, whatever the size of tiles. The evidence holds at whatever times one looks.
    When they are follows from the counts alone: a resumed run stops where an uninterrupted one does.
    """
    return after == n_items or before == 0 or int(LOOKS * math.log(after)) > int(LOOKS * math.log(before))


def _planned(values: CollectedValues, prepared: Prepared, work: Sequence[Sequence[int]]) -> RunPlanned:
    """Say how much there is to do, and what earlier calls left finished. Shapes: `work` (tiles, tasks)."""
    folder, manifest, plan = values.folder, values.manifest, values.manifest.plan
    return RunPlanned(
        folder=str(folder),
        model=manifest.model.id,
        n_players=len(manifest.design.players),
        n_coalitions=len(plan.coalitions),
        n_items=len(prepared.encoded),
        n_tiles=len(plan.tiles),
        work_total=manifest.work,
        items_done=values.n_items,
        tiles_done=len(values.tiles),
        work_done=sum(map(sum, (work[tile] for tile in values.tiles))),
        tasks=tuple(
            TaskPlanned(
                entry.task, entry.items, sum(each[k] for each in work), sum(work[tile][k] for tile in values.tiles)
            )
            for k, entry in enumerate(manifest.data)
        ),
        players=tuple(manifest.design.names),
    )


def work_by_task(prepared: Prepared, manifest: Manifest, items: Sequence[EncodedItem]) -> tuple[int, ...]:
    """Count the work of a tile's items (multiply-adds), task by task."""
    coalitions = manifest.plan.coalitions
    if len(manifest.data) == 1:
        return (prepared.engine.work(items, coalitions),)
    parts = [[item for item in items if item.task == entry.task] for entry in manifest.data]
    return tuple(prepared.engine.work(part, coalitions) if part else 0 for part in parts)


def _proven(values: CollectedValues, announce: Announce) -> str:
    """Announce how near the statement to stop at is; state it where the finished items prove it, else nothing."""
    resolved = values.manifest.resolved
    decision = judge(values, resolved.until, resolved.value)
    if decision is None or resolved.until is None:
        return ""
    announce(StatementJudged(resolved.until, decision.holds, decision.detail))
    return decision.text if decision.holds else ""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interrupt wait until what is being written is written."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    waiting: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, lambda received, _frame: waiting.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in waiting[:1]:
        signal.raise_signal(number)


def standing(values: CollectedValues) -> Standing | None:
    """Estimate every player's importance from all finished items together; None where that needs other coalitions."""
    design = values.manifest.design
    table = values.pooled("loglikelihood")
    if design.estimator == "permutation":
        influence = permutation_influence(table, design.orders, cuts=design.cuts)
    elif len(table.coalitions) > 1:
        influence = estimate_influence(table, estimator_weights(design.estimator, table.coalitions, table.players))
    else:
        return None
    ci = mean_interval(influence, 0.95)
    return Standing(*(tuple(map(float, each)) for each in (influence.value, ci.low, ci.high)))


def leaders(values: CollectedValues) -> tuple[tuple[str, float], ...]:
    """Name the players whose single removal costs most so far; none where single removals are not measured.

    Units: nats of the gold answer, on average over items.
    """
    design, coalitions = values.manifest.design, values.manifest.plan.coalitions
    mean = values.mean("loglikelihood")  # (coalitions,)
    column = {removed: place for place, removed in enumerate(coalitions)}
    alone = [(place,) for place in range(len(design.players))]
    singles = alone if design.grouping is None else design.grouping.expand_all(alone)
    if not all(removed in column for removed in singles):
        return ()
    with np.errstate(invalid="ignore"):  # −inf − −inf: such a player is not named
        drops = mean[column[()]] - mean[[column[removed] for removed in singles]]  # (players,)
    order = [int(place) for place in np.argsort(-drops, kind="stable") if np.isfinite(drops[place])]
    return tuple((design.names[place], float(drops[place])) for place in order[:_N_LEADERS])
