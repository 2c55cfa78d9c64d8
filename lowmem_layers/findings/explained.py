"""How far sublayers, and pairs of neighbours, explain what the windows cost: a sentence for each value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.findings.words import minus
from lowmem_layers.game.answers.additive import explained
from lowmem_layers.game.values.table import ValueTable


def explained_lines(sides: Sequence[tuple[str, Sequence[ValueTable]]]) -> list[str]:
    """Say the R² of both fits by each value (its words, and the tables of the tasks); nothing where there is no fit."""
    lines = []
    for words, tables in sides:
        alone, paired = explained(tables, pairs=False), explained(tables, pairs=True)
        if alone is None or paired is None:
            continue
        if not np.isfinite([alone.ci.low, paired.ci.low, alone.predicted, paired.predicted]).all():
            continue  # a single cluster of items, or too few windows to predict any from the others
        lines.append(
            f"windows by {words}: the sum over single sublayers explains {alone.fitted:.1%} "
            f"[{alone.ci.low:.1%}, {alone.ci.high:.1%}] of what {alone.windows:,} of them cost, with pairs of "
            f"neighbours {paired.fitted:.1%} [{paired.ci.low:.1%}, {paired.ci.high:.1%}] (R²; of windows "
            f"left out of the fit {alone.predicted:.1%} and {paired.predicted:.1%})"
        )
    return [minus(line) for line in lines]
