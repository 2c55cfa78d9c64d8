"""Shares of the total importance: negatives clipped to 0, then divided by the sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.game.influence import Influence
from lowmem_layers.game.quantiles import student_quantile
from lowmem_layers.game.table import FloatArray


def shares(value: FloatArray, decimals: int | None = None) -> FloatArray:
    """Divide the clipped values by their sum; `decimals=4` rounds the values first, as the paper's code does.

    All nan where no value is positive or one is nan (a share of nothing, or of an unknown sum).
    Shapes: (..., players) → the same.
    """
    rounded = value if decimals is None else np.round(value, decimals)
    clipped = np.maximum(rounded, 0.0)
    total = clipped.sum(axis=-1, keepdims=True)
    return np.divide(clipped, total, out=np.full(clipped.shape, np.nan), where=total > 0)


def share_intervals(parts: Sequence[Influence], level: float) -> tuple[FloatArray, FloatArray]:
    """Bound the shares (averaged over tasks) by the delta method on the ratio.

    Shapes: two arrays (players,).
    """
    centre = np.mean([shares(part.value) for part in parts], axis=0)
    variance = np.zeros(len(centre))
    for part in parts:
        total = np.maximum(part.value, 0.0).sum()
        total_pieces = part.pieces[:, part.value > 0].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            pieces = (part.pieces - np.outer(total_pieces, part.value / total)) / total
        variance += np.where(np.isnan(part.dof), np.nan, (pieces**2).sum(axis=0)) / len(parts) ** 2
    dof = float(np.min([part.dof.min() for part in parts]))
    radius = student_quantile(0.5 + level / 2, dof) * np.sqrt(variance)
    return np.clip(centre - radius, 0.0, 1.0), np.clip(centre + radius, 0.0, 1.0)
