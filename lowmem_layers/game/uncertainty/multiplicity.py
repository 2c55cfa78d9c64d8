"""Many questions at once: p values adjusted by Holm, or by Benjamini and Hochberg."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.values.table import FloatArray

Correction = Literal["holm", "bh"]


def adjusted(p_values: FloatArray, correction: Correction = "holm") -> FloatArray:
    """Adjust p values for their number: `holm` bounds the chance of any false claim, `bh` the share of false claims.

    Unknown (nan) p values stay nan and still count as questions asked.
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
        # Step down: the smallest is multiplied by n, the next by n − 1, …, and none may fall below one before it.
        stepped = np.maximum.accumulate(ranked * (n - np.arange(n)))
    else:
        # Step up: the i-th smallest is multiplied by n/i, and none may exceed one behind it.
        scaled = ranked * n / np.arange(1, n + 1)
        known = int(np.isfinite(ranked).sum())
        stepped = scaled.copy()
        stepped[:known] = np.minimum.accumulate(scaled[:known][::-1])[::-1]
    result = np.empty(n)
    result[order] = np.minimum(stepped, 1.0)
    return result
