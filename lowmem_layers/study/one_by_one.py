"""Scoring tiles one after another with the engine of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.study.contracts import Engine, ScoredTile, ScoreTiles
from lowmem_layers.study.events import Announce, Noted, WorkDone
from lowmem_layers.tasks.items import EncodedItem


def one_by_one(engine: Engine, clock: Callable[[], float] = time.monotonic) -> ScoreTiles:
    """Make the function that scores tiles in their order; the work is announced while it is done."""

    def score_tiles(
        tiles: Sequence[int],
        items: Sequence[Sequence[EncodedItem]],
        coalitions: Sequence[Removed],
        begin: Callable[[int], None],
        announce: Announce,
        in_order: bool,
        /,
    ) -> Iterator[ScoredTile]:
        for tile in tiles:
            start = clock()
            begin(tile)
            before = len(engine.describe().get("narrowed", ()))
            scores = engine.score(items[tile], coalitions, lambda amount: announce(WorkDone(amount)))
            for each in engine.describe().get("narrowed", ())[before:]:
                text = (
                    f"out of memory in the tile of {each['task']} {each['first_item']}: computed again in chunks of "
                    f"{each['chunk_tokens']} tokens, as are all tiles after it; the last bits of their numbers may "
                    "differ"
                )
                announce(Noted(text))
            yield ScoredTile(tile, scores, clock() - start)

    return score_tiles
