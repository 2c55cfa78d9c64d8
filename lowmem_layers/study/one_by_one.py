"""Scoring tiles one after another with the engine of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lowmem_layers.study.contracts import Engine, ScoredTile, ScoreTiles, Scoring
from lowmem_layers.study.events import Noted, WorkDone


def one_by_one(engine: Engine, clock: Callable[[], float] = time.monotonic) -> ScoreTiles:
    """Make the function that scores tiles in their order; the work is announced while it is done."""

    def score_tiles(tiles: Iterable[int], of: Scoring) -> Iterator[ScoredTile]:
        for tile in tiles:
            start = clock()
            of.begin(tile)
            before = len(engine.describe().get("narrowed", ()))
            scores = engine.score(of.items[tile], of.coalitions, lambda amount: of.announce(WorkDone(amount)))
            for each in engine.describe().get("narrowed", ())[before:]:
                of.announce(shortage_note(each, "all tiles after it"))
            yield ScoredTile(tile, scores, clock() - start)

    return score_tiles


def shortage_note(narrowed: Mapping[str, Any], which: str) -> Noted:
    """Say where memory ran out, and `which` tiles are computed in smaller chunks from then on."""
    return Noted(
        f"out of memory in the tile of {narrowed['task']} {narrowed['first_item']}: computed again in chunks of "
        f"{narrowed['chunk_tokens']} tokens and {narrowed['head_rows']} rows of logits, as are {which}; "
        "the last bits of their numbers may differ"
    )
