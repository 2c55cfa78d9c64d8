"""Intervals of means over items: Student's t with clustered, small-sample corrected variances."""

from __future__ import annotations

from lowmem_layers.game.influence import Influence
from lowmem_layers.game.quantiles import student_quantiles
from lowmem_layers.game.table import FloatArray


def mean_interval(estimate: Influence, level: float) -> tuple[FloatArray, FloatArray]:
    """Put an interval around every estimate. Shapes: two arrays (players,); nan with fewer than 2 clusters."""
    radius = student_quantiles(0.5 + level / 2, estimate.dof) * estimate.standard_error
    return estimate.value - radius, estimate.value + radius
