"""The record as a game of the shapiq library (optional extra `shapiq`), imported only when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.values.table import ValueTable


def to_shapiq(table: ValueTable) -> Any:
    """Turn a table's means into a `shapiq.Game`; asking it for a coalition that was not measured is refused by name.

    shapiq names coalitions by who is present (rows of booleans), this package by who is removed.

    Raises:
        UsageError: shapiq is not installed; later, from the game itself, a coalition that was not measured.
    """
    try:
        import shapiq
    except ImportError as error:
        raise UsageError("shapiq is not installed", "install it with: pip install 'lowmem-layers[shapiq]'") from error
    n_players = table.n_players

    class RecordedGame(shapiq.Game):
        """A game whose values were measured beforehand."""

        def __init__(self) -> None:
            without_all = tuple(range(n_players))
            baseline = table.mean(without_all) if without_all in table else 0.0
            super().__init__(
                n_players,
                normalize=False,
                normalization_value=baseline,
                player_names=list(table.players),
            )

        def value_function(self, coalitions: np.ndarray) -> np.ndarray:
            """Look the coalitions up. Shapes: (coalitions, players) booleans → (coalitions,)."""
            rows = np.atleast_2d(coalitions)
            return np.array([table.mean(tuple(int(p) for p in np.flatnonzero(~row))) for row in rows.astype(bool)])

    return RecordedGame()
