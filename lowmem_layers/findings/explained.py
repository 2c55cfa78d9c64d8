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
            continue  # too few items, or too few windows to predict any from the others
        lines.append(
            f"windows by {words}: the sum over single sublayers explains {100 * alone.fitted:.1f} % "
            f"[{100 * alone.ci.low:.1f} %, {100 * alone.ci.high:.1f} %] of what {alone.windows:,} of them cost, "
            f"with pairs of neighbours {100 * paired.fitted:.1f} % [{100 * paired.ci.low:.1f} %, "
            f"{100 * paired.ci.high:.1f} %] (R², corrected for the items' noise; with it, of windows left out of the "
            f"fit, {100 * alone.predicted:.1f} % and {100 * paired.predicted:.1f} %)"
        )
    return [minus(line) for line in lines]
