"""The loop over tiles: score those that are not finished, write each whole or not at all, announce what was done."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lowmem_layers.errors import DamagedError
from lowmem_layers.findings.statement import judge
from lowmem_layers.game.estimators.permutation import permutation_influence
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.record.folder import finished_tiles
from lowmem_layers.record.items import ItemRow
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import scores_table, tile_file, write_table
from lowmem_layers.record.values import CollectedValues
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.events import (
    Announce,
    Noted,
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


def collect_earlier(folder: Path, manifest: Manifest, rows: Sequence[ItemRow], announce: Announce) -> CollectedValues:
    """Read the tiles of earlier calls, each once, for the metrics that findings and the statement to stop at need.

    A damaged tile is said so, and does not count as finished: it is scored again.

    Raises:
        RecordError: there are scores that are no tile of this run, or a tile may not be read.
    """

    def lost(tile: int, error: DamagedError) -> None:
        announce(Noted(f"{error.message}; its {len(manifest.plan.tiles[tile])} items are scored again"))

    tiles = finished_tiles(folder, len(manifest.plan.tiles))
    values = CollectedValues(folder, manifest, rows, tiles)
    wanted = (None, "loglikelihood", *([manifest.resolved.value] if manifest.resolved.until is not None else []))
    values.collect(*(name for name in wanted if values.allows(name)), lost=lost)
    return values


def score_tiles(
    values: CollectedValues, prepared: Prepared, announce: Announce, clock: Callable[[], float] = time.monotonic
) -> str:
    """Score every tile that is not finished yet, or as many as prove the statement to stop at; add them to `values`.

    The result states what was proven; it is empty where the run did not stop for that.

    Raises:
        RecordError: a tile cannot be written.
        EngineError: the engine's scores have the wrong shape.
    """
    folder, manifest, plan = values.folder, values.manifest, values.manifest.plan
    encoded = [[prepared.encoded[index] for index in tile] for tile in plan.tiles]
    work = [work_by_task(prepared, manifest, items) for items in encoded]  # (tiles, tasks)

    # 1) the work is announced; what is left of it
    announce(_planned(values, prepared, work))
    lost = set(finished_tiles(folder, len(plan.tiles))) - set(values.tiles)  # damaged: they do not stay in the record
    before = values.n_items - (len(plan.tiles[max(values.tiles)]) if values.tiles else 0)
    stopped = ""
    if not lost and (manifest.stopped or is_look(before, values.n_items, manifest.n_items)):
        stopped = _proven(values, announce)
    rest = [] if stopped else sorted(set(range(len(plan.tiles))) - lost - set(values.tiles))
    left = [*sorted(lost), *rest]
    if left:
        announce(StageStarted("scoring", "scoring"))

    # 2) tile by tile: score, commit, announce, and see whether the statement is proven. It is judged by the tiles in
    # the order of the plan: which of them workers finish first depends on their items, so that would be a selection.
    def begin(tile: int) -> None:
        announce(TileStarted(tile, len(encoded[tile]), work[tile]))

    in_order = manifest.resolved.until is not None
    score = prepared.score_tiles or one_by_one(prepared.engine, clock)
    for scored in score(left, encoded, plan.coalitions, begin, announce, in_order):
        start, tile = clock(), scored.tile
        table = scores_table(values.rows_of(tile), values.removed, scored.scores)
        with uninterrupted():
            write_table(tile_file(folder, tile), table, scored.made_on)
        values.add(tile, scored.scores)
        done, ahead = (values.n_items, len(values.tiles)), leaders(values)
        spent, about = scored.elapsed_s + clock() - start, (tile, len(encoded[tile]), sum(work[tile]))
        announce(TileCommitted(*about, *done, spent, ahead, standing(values), scored.worker))
        lost.discard(tile)
        before = values.n_items - len(plan.tiles[tile])
        looked = not lost and (manifest.stopped or is_look(before, values.n_items, manifest.n_items))
        if looked and (stopped := _proven(values, announce)):
            break
    return stopped


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
