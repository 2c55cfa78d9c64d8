"""Many questions at once: p-values of estimates, and their adjustment by Holm or by Benjamini and Hochberg."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.quantiles import student_cdf
from lowmem_layers.game.values.table import FloatArray

Correction = Literal["holm", "bh"]


def two_sided_p(estimate: Influence) -> FloatArray:
    """Test every estimate against 0 by Student's t.

    1 where the estimate is exactly 0 without any spread, 0 where it is not 0 without any spread, nan where unknown.
    Shapes: (players,).
    """
    error = estimate.standard_error
    result = np.full(len(error), np.nan)
    for p, (value, spread, dof) in enumerate(zip(estimate.value, error, estimate.dof, strict=True)):
        if np.isfinite(value) and spread > 0:
            result[p] = 2.0 * student_cdf(-abs(value) / spread, float(dof))
        elif np.isfinite(value) and spread == 0:
            result[p] = 1.0 if value == 0 else 0.0
    return result


def adjusted(p_values: FloatArray, correction: Correction = "holm") -> FloatArray:
    """Adjust p-values for their number: `holm` bounds the chance of any false claim, `bh` the share of false claims.

    Unknown (nan) p-values stay nan and still count as questions asked.
    Shapes: (questions,).
    Source: Holm 1979; Benjamini and Hochberg 1995.

    Raises:
        UsageError: an unknown correction.
    """
    if correction not in ("holm", "bh"):
        raise UsageError(f"{correction!r} is no correction", "choose holm or bh")
    n = len(p_values)
    order = np.argsort(p_values, kind="stable")  # nan last
    ranked = p_values[order]
    if correction == "holm":
        stepped = np.maximum.accumulate(ranked * (n - np.arange(n)))
    else:
        scaled = ranked * n / np.arange(1, n + 1)
        known = int(np.isfinite(ranked).sum())
        stepped = scaled.copy()
        stepped[:known] = np.minimum.accumulate(scaled[:known][::-1])[::-1]
    result = np.empty(n)
    result[order] = np.minimum(stepped, 1.0)
    return result
