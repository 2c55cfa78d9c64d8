"""That nothing changed, as a statement with an error rate of its own: differences that are certainly small.

A difference that is not significant may be large and hidden by noise. Equivalence turns the burden round: what is to be
disproven is a difference of at least the margin X, in either direction. Both one-sided tests at α say no exactly where
the interval at level 1 − 2α lies within (−X, X), so the test is the inverse of the package's own intervals.
Source: Schuirmann 1987, two one-sided tests (TOST); Berger 1982 for all sublayers at once, where every one of them
must pass at α and nothing needs to be corrected (the intersection–union test).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from lowmem_layers.errors import UsageError
from lowmem_layers.game.uncertainty.errors import Influence
from lowmem_layers.game.uncertainty.intervals import interval_at
from lowmem_layers.game.uncertainty.multiplicity import Correction, adjusted
from lowmem_layers.game.values.table import FloatArray

_STEPS, _LEAST = 24, 12.0  # of a bisection of −log₁₀ α, from ½ to 10⁻¹²


@dataclass(frozen=True, eq=False)
class Equivalence:
    """Whose difference is certainly smaller than `margin`.

    Shapes: (players,). `p`: of each question alone; `p_adjusted` and `equivalent`, corrected for the number of players:
    what may be said of each. `p_all`: of the one statement that all of them are.
    p values are 1 where the difference itself is as large as the margin, and nan where its error is unknown.
    """

    margin: float
    p: FloatArray
    p_adjusted: FloatArray
    equivalent: NDArray[np.bool_]
    p_all: float
    all_equivalent: bool


def equivalence(difference: Influence, margin: float, *, level: float, correction: Correction) -> Equivalence:
    """Test every difference against being `margin` or more in either direction.

    Raises:
        UsageError: a margin that is not positive.
    """
    if not 0.0 < margin < np.inf:
        raise UsageError(
            f"a margin of {margin:g} proves nothing", "--equivalent-within takes a positive number in the value's unit"
        )
    # The smallest α whose interval at 1 − 2α lies within the margin; the wider the interval the smaller α.
    low, high = np.full(difference.value.shape, np.log10(2.0)), np.full(difference.value.shape, _LEAST)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        inside = _within(difference, margin, middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    p = np.where(_within(difference, margin, np.full(low.shape, _LEAST)), 0.0, 10.0**-low)
    p = np.where(np.abs(difference.value) < margin, p, 1.0)
    p = np.where(np.isfinite(difference.value) & np.isfinite(difference.dof), p, np.nan)
    p_adjusted, p_all = adjusted(p, correction), float(np.max(p, initial=0.0))
    return Equivalence(margin, p, p_adjusted, p_adjusted < 1.0 - level, p_all, p_all < 1.0 - level)


def _within(difference: Influence, margin: float, exponent: FloatArray) -> NDArray[np.bool_]:
    """Tell whose interval at level 1 − 2·10^−exponent lies within the margin. Shapes: (players,) each."""
    ci = interval_at(difference, -stdtrit(difference.dof, 10.0**-exponent))
    return (ci.low > -margin) & (ci.high < margin)
