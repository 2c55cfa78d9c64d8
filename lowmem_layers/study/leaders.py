"""Who is ahead while a run goes on: the estimate from the items finished so far, by gold log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.game.players.design import Design
from lowmem_layers.study.contracts import Removed


class Standing:
    """Running mean, over items, of the gold answer's log-likelihood in every coalition."""

    def __init__(self, game: Design, coalitions: Sequence[Removed]) -> None:
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
        grouping, names = self._game.grouping, self._game.names
        singles = [(place,) if grouping is None else grouping.expand((place,)) for place in range(len(names))]
        columns = [(self._column.get(removed), name) for removed, name in zip(singles, names, strict=True)]
        if full is None or n_items == 0 or any(column is None for column, _ in columns):
            return ()
        drops = [((self._sums[full] - self._sums[column]) / n_items, name) for column, name in columns]
        finite = [(drop, name) for drop, name in drops if np.isfinite(drop)]
        best = sorted(finite, key=lambda pair: -pair[0])[:count]
        return tuple((name, float(drop)) for drop, name in best)
