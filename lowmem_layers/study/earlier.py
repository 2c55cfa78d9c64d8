"""The tiles of earlier calls: read little by little, so that a run with very many of them goes on at once.

A number is used after its tile was read and found sound, never before. Until then a tile counts as finished; one that
turns out to be damaged is said so, and is scored again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lowmem_layers.errors import DamagedError
from lowmem_layers.record.values import CollectedValues
from lowmem_layers.study.events import Announce, Noted, StageStarted

FIRST_S = 0.2  # so long tiles are read before the first new one is scored: a hundred or so, often all
SHARE = 0.05  # and so much of the time that a new tile takes, after it
_WORTH_SAYING = 500  # tiles, which take about a second


class EarlierTiles:
    """Reads what is on disk into `values`, for the metrics that findings and the statement to stop at need.

    `damaged` lists the tiles that have to be scored again; whoever does it takes them from the list.
    """

    def __init__(
        self, values: CollectedValues, announce: Announce, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.values, self.announce, self.clock = values, announce, clock
        self.damaged: list[int] = []
        resolved = values.manifest.resolved
        wanted = (None, "loglikelihood", *([resolved.value] if resolved.value is not None else []))
        self._wanted = [name for name in wanted if values.allows(name)]

    def read(self, at_most_s: float = FIRST_S) -> None:
        """Read for so long; at least one tile, where one is left.

        Raises:
            RecordError: a tile may not be read.
        """
        ends = None

        def enough() -> bool:
            nonlocal ends
            if ends is None:  # before the first tile
                ends = self.clock() + at_most_s
                return False
            return self.clock() > ends

        self.values.collect(*self._wanted, lost=self._lost, enough=enough)

    def read_all(self) -> None:
        """Read what is left.

        Raises:
            RecordError: a tile may not be read.
        """
        if self.values.n_unread > _WORTH_SAYING:
            self.announce(StageStarted(f"reading {self.values.n_unread:,} tiles of earlier calls"))
        self.values.collect(*self._wanted, lost=self._lost)

    def _lost(self, tile: int, error: DamagedError) -> None:
        n_items = len(self.values.manifest.plan.tiles[tile])
        self.announce(Noted(f"{error.message}; its {n_items} items are scored again"))
        self.damaged.append(tile)
