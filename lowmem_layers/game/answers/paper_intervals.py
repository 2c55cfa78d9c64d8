"""How well the numbers of the study's tables are known: intervals of the shares and drops of a list of sublayers.

A list that was chosen by the same items (a model's own three largest shares) looks better than it is. Its intervals
hold whichever three had been chosen: their level is corrected for the number of lists that there are (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.game.answers.shares import clipped_mean_interval, share_intervals
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import ValueTable


@dataclass(frozen=True)
class TableIntervals:
    """Intervals at 95 %: the cornerstones' share, their mean drop and that of the others, and the latter task by task.

    Shapes: `by_task` (tasks,). nan where no list or no error is known.
    """

    top_share: Interval[float]
    cornerstone_drop: Interval[float]
    other_drop: Interval[float]
    by_task: tuple[Interval[float], ...]


def table_intervals(
    tables: Sequence[ValueTable], top: NDArray[np.bool_], *, selected: bool, max_removed: int | None = None
) -> TableIntervals:
    """Bound a model's rows of tables 1, 3 and 4. Shapes: `top` (players,), the cornerstones.

    `selected`: the cornerstones were chosen by these very items.
    """
    nothing = Interval(float("nan"), float("nan"))
    if not top.any():
        return TableIntervals(nothing, nothing, nothing, (nothing,) * len(tables))
    level = 1.0 - 0.05 / (comb(len(top), int(top.sum())) if selected else 1)
    values = [
        estimate_influence(t, estimator_weights("neighbourhood", t.coalitions, t.players, max_removed)) for t in tables
    ]
    drops = [estimate_influence(t, estimator_weights("ablation", t.coalitions, t.players)) for t in tables]
    return TableIntervals(
        share_intervals(values, level, top[None].astype(np.float64)).at(0),
        clipped_mean_interval(drops, top, level),
        clipped_mean_interval(drops, ~top, level),
        tuple(clipped_mean_interval([each], ~top, level) for each in drops),
    )
