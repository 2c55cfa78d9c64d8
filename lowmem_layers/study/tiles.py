"""The loop over tiles: score the unfinished ones, commit each whole, announce."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lowmem_layers.findings.run import Run
from lowmem_layers.findings.statement import proven
from lowmem_layers.game.players.coalitions import coalition_name
from lowmem_layers.record.folder import finished_tiles
from lowmem_layers.record.items import ItemRow, rows_of
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import read_tile, scores_table, tile_file, write_table
from lowmem_layers.record.tile_plan import TilePlan
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.events import Announce, RunPlanned, StageStarted, TileCommitted, WorkDone
from lowmem_layers.study.leaders import Standing

_N_LEADERS = 5


def score_tiles(
    folder: Path,
    manifest: Manifest,
    prepared: Prepared,
    announce: Announce,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Score every tile that is not on disk yet, or those until what is asked is proven; state what was proven.

    Raises:
        RecordError: a finished tile is damaged, or a tile cannot be written.
        EngineError: the engine's scores have the wrong shape.
    """
    plan = manifest.plan
    rows = rows_of(prepared.encoded)
    removed = [coalition_name(coalition, prepared.players) for coalition in plan.coalitions]
    standing = Standing(manifest.design, plan.coalitions)
    finished = finished_tiles(folder, len(plan.tiles))
    for tile in finished:
        kept = [rows[index] for index in plan.tiles[tile]]
        standing.add(_gold_scores(kept, read_tile(tile_file(folder, tile), kept, removed)))
    announce(_planned(folder, manifest, prepared, finished))
    until, value = manifest.resolved.until, manifest.resolved.value
    stopped = proven(Run(folder, manifest), until, value) if finished else ""
    if stopped or len(finished) == len(plan.tiles):
        return stopped
    announce(StageStarted("scoring"))
    items_done, tiles_done = sum(len(plan.tiles[tile]) for tile in finished), len(finished)
    for tile in sorted(set(range(len(plan.tiles))) - set(finished)):
        start = clock()
        chosen = [rows[index] for index in plan.tiles[tile]]
        scores = _score(prepared, plan.tiles[tile], plan.coalitions, announce)
        write_table(tile_file(folder, tile), scores_table(chosen, removed, scores))
        standing.add(_gold_scores(chosen, scores))
        items_done, tiles_done = items_done + len(chosen), tiles_done + 1
        leaders = standing.leaders(_N_LEADERS, items_done)
        work = _work(prepared, plan, tile)
        announce(TileCommitted(tile, len(chosen), work, items_done, tiles_done, clock() - start, leaders))
        if stopped := proven(Run(folder, manifest), until, value):
            break
    return stopped


def _score(
    prepared: Prepared, tile: Sequence[int], coalitions: Sequence[tuple[int, ...]], announce: Announce
) -> list[np.ndarray]:
    items = [prepared.encoded[index] for index in tile]
    return prepared.engine.score(items, coalitions, lambda work: announce(WorkDone(work)))


def _work(prepared: Prepared, plan: TilePlan, tile: int) -> int:
    return prepared.engine.work([prepared.encoded[index] for index in plan.tiles[tile]], plan.coalitions)


def _gold_scores(rows: Sequence[ItemRow], scores: Sequence[np.ndarray]) -> np.ndarray:
    """Take the gold choice. Shapes: (items, coalitions)."""
    return np.stack([block[:, row.gold] for row, block in zip(rows, scores, strict=True)])


def _planned(folder: Path, manifest: Manifest, prepared: Prepared, finished: Sequence[int]) -> RunPlanned:
    plan = manifest.plan
    return RunPlanned(
        folder=str(folder),
        model=manifest.model.id,
        n_players=len(manifest.design.players),
        n_coalitions=len(plan.coalitions),
        n_items=len(prepared.encoded),
        n_tiles=len(plan.tiles),
        work_total=manifest.work,
        items_done=sum(len(plan.tiles[tile]) for tile in finished),
        tiles_done=len(finished),
        work_done=sum(_work(prepared, plan, tile) for tile in finished),
    )
