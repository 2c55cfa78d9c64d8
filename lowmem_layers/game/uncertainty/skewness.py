"""Hall's transformation: what skewed items do to a t statistic, and how to undo it.

With right-skewed items a sample that misses the large ones has a mean that is too low and looks too precise: t has a
long left tail. The transformation is a cubic, monotone in t, that removes this to first order; its inverse is closed.
"""

from __future__ import annotations

import numpy as np

from lowmem_layers.game.values.table import FloatArray

CAUTION = 1.5  # samples that mislead also understate their skewness; chosen by measurement (benchmarks/stopping.py)


def corrected_t(t: FloatArray, skewness: FloatArray) -> FloatArray:
    """Transform a t statistic so that it is closer to Student's t; it increases with t.

    `skewness` is the error's own (an item's over √n). Shapes: any, the same.
    Source: Hall 1992, "On the removal of skewness by transformation", g₁: t + a t²/3 + a² t³/27 + a/6.
    """
    return t + skewness * t**2 / 3.0 + skewness**2 * t**3 / 27.0 + skewness / 6.0


def uncorrected_t(corrected: FloatArray, skewness: FloatArray) -> FloatArray:
    """Invert `corrected_t`: (3/a)·(∛(1 + a(x − a/6)) − 1), and x itself where a is 0. Shapes: any, the same."""
    a = np.where(skewness == 0, 1.0, skewness)
    z = a * (corrected - a / 6.0)
    # expm1 and log1p keep the digits that ∛(1 + z) − 1 loses where z is small; they end at z = −1.
    root = np.where(z > -0.5, np.expm1(np.log1p(np.maximum(z, -0.5)) / 3.0), np.cbrt(1.0 + z) - 1.0)
    return np.where(skewness == 0, corrected, 3.0 / a * root)


def cautious_t(t: FloatArray, skewness: FloatArray) -> FloatArray:
    """Lower a positive t statistic where left-skewed items make it too large; never raise it.

    A t that is large for its skewness (from 9/|a| on) is left as it is: items that hide a truth of 0 do not give one.
    Holding it down instead, at the correction's flat part (t = 3/|a|), makes wrong statements no rarer, and hides
    differences of 19 standard errors (benchmarks/README.md).
    Shapes: any, the same; `t` ≥ 0.
    """
    return np.clip(corrected_t(t, np.minimum(CAUTION * skewness, 0.0)), 0.0, t)


def incautious_t(target: FloatArray, skewness: FloatArray) -> FloatArray:
    """Find the t statistic whose `cautious_t` reaches a target. Shapes: any, the same; `target` ≥ 0."""
    return np.maximum(target, uncorrected_t(target, np.minimum(CAUTION * skewness, 0.0)))
