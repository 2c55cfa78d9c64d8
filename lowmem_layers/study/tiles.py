"""The loop over tiles: score the unfinished ones, commit each whole, announce."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lowmem_layers.findings.statement import proven
from lowmem_layers.game.values.table import FloatArray
from lowmem_layers.record.folder import finished_tiles
from lowmem_layers.record.items import rows_of
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import scores_table, tile_file, write_table
from lowmem_layers.record.values import CollectedValues
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.events import Announce, RunPlanned, StageStarted, TileCommitted, WorkDone

_N_LEADERS = 5


def score_tiles(
    folder: Path,
    manifest: Manifest,
    prepared: Prepared,
    announce: Announce,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[CollectedValues, str]:
    """Score every tile that is not on disk yet, or as many as prove the statement to stop at.

    The result is the values of all finished items, by the metrics that findings need, and what was proven: empty where
    the run did not stop for that.

    Raises:
        RecordError: a finished tile is damaged, or a tile cannot be written.
        EngineError: the engine's scores have the wrong shape.
    """
    plan, until, value = manifest.plan, manifest.resolved.until, manifest.resolved.value

    # 1) the tiles of earlier calls are read, each once
    values = CollectedValues(folder, manifest, rows_of(prepared.encoded), finished_tiles(folder, len(plan.tiles)))
    wanted = (None, "loglikelihood", *([value] if until is not None else []))
    values.collect(*(name for name in wanted if values.allows(name)))

    # 2) the work is announced: what there is, and what earlier calls left finished
    encoded = [[prepared.encoded[index] for index in tile] for tile in plan.tiles]
    work = [prepared.engine.work(items, plan.coalitions) for items in encoded]
    announce(_planned(folder, manifest, values, sum(work[tile] for tile in values.tiles)))
    left = sorted(set(range(len(plan.tiles))) - set(values.tiles))
    stopped = proven(values, until, value) if values.tiles else ""
    if left and not stopped:
        announce(StageStarted("scoring"))

    # 3) tile by tile: score, commit, announce, and see whether the statement is proven
    for tile in left if not stopped else ():
        start = clock()
        scores = prepared.engine.score(encoded[tile], plan.coalitions, lambda work: announce(WorkDone(work)))
        write_table(tile_file(folder, tile), scores_table(values.rows_of(tile), values.removed, scores))
        values.add(tile, scores)
        done, ahead = (values.n_items, len(values.tiles)), leaders(manifest, values.mean("loglikelihood"))
        announce(TileCommitted(tile, len(encoded[tile]), work[tile], *done, clock() - start, ahead))
        if stopped := proven(values, until, value):
            break
    return values, stopped


def _planned(folder: Path, manifest: Manifest, values: CollectedValues, work_done: int) -> RunPlanned:
    """Say how large the whole job is, and how much of it earlier calls left finished."""
    return RunPlanned(
        folder=str(folder),
        model=manifest.model.id,
        n_players=len(manifest.design.players),
        n_coalitions=len(manifest.plan.coalitions),
        n_items=manifest.n_items,
        n_tiles=len(manifest.plan.tiles),
        work_total=manifest.work,
        items_done=values.n_items,
        tiles_done=len(values.tiles),
        work_done=work_done,
    )


def leaders(manifest: Manifest, mean: FloatArray) -> tuple[tuple[str, float], ...]:
    """Name the players whose single removal costs most so far; none where single removals are not measured.

    Shapes: `mean` (coalitions,). Units: nats an item.
    """
    design, coalitions = manifest.design, manifest.plan.coalitions
    column = {removed: place for place, removed in enumerate(coalitions)}
    alone = [(place,) for place in range(len(design.players))]
    singles = alone if design.grouping is None else design.grouping.expand_all(alone)
    if not all(removed in column for removed in singles):
        return ()
    with np.errstate(invalid="ignore"):  # −inf − −inf: such a player is not named
        drops = mean[column[()]] - mean[[column[removed] for removed in singles]]  # (players,)
    order = [int(place) for place in np.argsort(-drops, kind="stable") if np.isfinite(drops[place])]
    return tuple((design.names[place], float(drops[place])) for place in order[:_N_LEADERS])
