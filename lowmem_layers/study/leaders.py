"""Who is ahead while a run goes on: the estimate from the items finished so far, by gold log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.record.design import Game
from lowmem_layers.study.contracts import Removed


class Standing:
    """Running mean, over items, of the gold answer's log-likelihood in every coalition."""

    def __init__(self, game: Game, coalitions: Sequence[Removed]) -> None:
        self._game = game
        self._column = {removed: column for column, removed in enumerate(coalitions)}
        self._sums = np.zeros(len(coalitions))

    def add(self, gold_scores: np.ndarray) -> None:
        """Add items.

        Shapes: `gold_scores` is (items, coalitions), nats.
        """
        self._sums += gold_scores.sum(axis=0)

    def leaders(self, count: int, n_items: int) -> tuple[tuple[str, float], ...]:
        """Name the `count` players whose single removal costs most so far (nats an item)."""
        full = self._column.get(())
        grouping = self._game.grouping
        members = [(place,) for place in range(len(self._game.players))] if grouping is None else grouping.members
        singles = [(self._column.get(tuple(m)), name) for m, name in zip(members, self._game.players, strict=True)]
        if full is None or n_items == 0 or any(column is None for column, _ in singles):
            return ()
        drops = [((self._sums[full] - self._sums[column]) / n_items, name) for column, name in singles]
        finite = [(drop, name) for drop, name in drops if np.isfinite(drop)]
        best = sorted(finite, key=lambda pair: -pair[0])[:count]
        return tuple((name, float(drop)) for drop, name in best)
