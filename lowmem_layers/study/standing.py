"""Who is ahead while a run goes on: the estimate from the items finished so far, by gold log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.game.players import Player
from lowmem_layers.study.contracts import Removed


class Standing:
    """Running mean, over items, of the gold answer's log-likelihood in every coalition."""

    def __init__(self, players: Sequence[Player], coalitions: Sequence[Removed]) -> None:
        self._players = tuple(players)
        self._column = {removed: column for column, removed in enumerate(coalitions)}
        self._sums = np.zeros(len(coalitions))

    def add(self, gold_scores: np.ndarray) -> None:
        """Add items.

        Shapes: `gold_scores` is (items, coalitions), nats.
        """
        self._sums += gold_scores.sum(axis=0)

    def leaders(self, count: int, n_items: int) -> tuple[tuple[str, float], ...]:
        """Name the `count` sublayers whose single removal costs most so far (nats an item)."""
        full = self._column.get(())
        singles = [(self._column.get((position,)), player) for position, player in enumerate(self._players)]
        if full is None or n_items == 0 or any(column is None for column, _ in singles):
            return ()
        drops = [((self._sums[full] - self._sums[column]) / n_items, player.name) for column, player in singles]
        finite = [(drop, name) for drop, name in drops if np.isfinite(drop)]
        best = sorted(finite, key=lambda pair: -pair[0])[:count]
        return tuple((name, float(drop)) for drop, name in best)
