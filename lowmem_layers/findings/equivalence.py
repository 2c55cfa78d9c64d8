"""Whether two runs are the same within a margin: columns for the comparison's table, and a sentence a task."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lowmem_layers.findings.comparing import CORRECTIONS
from lowmem_layers.findings.words import p_value
from lowmem_layers.game.answers.compare import Comparison


def with_equivalence(table: pa.Table, found: dict[str, Comparison], margin: float) -> pa.Table:
    """Put behind a comparison's rows the margin, p against a difference of at least that size, and what follows.

    Raises:
        UsageError: a margin that is not positive.
    """
    each = [one.equivalence(margin) for one in found.values()]
    table = table.append_column("equivalent_within", pa.array([margin] * table.num_rows))
    table = table.append_column("equivalence_p_adjusted", pa.array(np.concatenate([one.p_adjusted for one in each])))
    said = [str(bool(yes)).lower() for one in each for yes in one.equivalent]
    return table.append_column("equivalent", pa.array(said))


def equivalence_lines(found: dict[str, Comparison], margin: float) -> list[str]:
    """Say what is certainly the same within the margin: all sublayers at once, or which alone; a line for each task.

    Raises:
        UsageError: a margin that is not positive.
    """
    lines = []
    for task, one in found.items():
        tested, n, level = one.equivalence(margin), len(one.players), f"{100 * one.level:g} %"
        alone = int(tested.equivalent.sum())
        if np.isnan(tested.p_all):
            said = f"unknown whether the sublayers are equivalent within {margin:g}: an estimate's error is unknown"
        elif tested.all_equivalent:
            said = f"all {n} differ by less than {margin:g} ({level}, two one-sided tests, p {p_value(tested.p_all)})"
        else:
            worst = int(np.argmax(tested.p))
            said = (
                f"not certain that all {n} differ by less than {margin:g} (least so {one.players[worst]}, "
                f"p {p_value(tested.p_all)}); {alone} certainly do ({CORRECTIONS[one.correction]}, {level})"
            )
        lines.append(f"{task}: {said}")
    return lines
