"""What must be known before a run's numbers are read: chance, contradictions, and intervals that may not hold yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.findings.words import counted, minus
from lowmem_layers.game.answers.importance import Importance

_MOST_NAMED = 5


def cautions(
    levels: Sequence[tuple[str, float, float | None]], found: Sequence[tuple[str, str, float, Importance]]
) -> tuple[str, ...]:
    """Say in sentences what limits the numbers, the gravest first.

    `levels` are each task's name, the lower end of the full model's level, and chance (None: there is none); `found`
    is the importance over all tasks, behind the words for its value, its unit, and the scale that gives the unit.
    """
    return tuple(
        minus(line)
        for line in (
            chance_words(levels),
            *(_contradictions(*each) for each in found),
            *(_too_few(words, each) for words, _, _, each in found),
        )
        if line
    )


def chance_words(levels: Sequence[tuple[str, float, float | None]]) -> str:
    """Name the tasks on which the full model may be guessing: there, accuracy has nothing to lose."""
    tasks = [task for task, low, chance in levels if chance is not None and not low > chance]
    if not tasks:
        return ""
    return (
        f"the full model is not certainly above chance on {', '.join(tasks)}: differences of accuracy there "
        "say little about what a sublayer is worth"
    )


def _contradictions(words: str, unit: str, scale: float, found: Importance) -> str:
    """Name the sublayers whose estimate and drop have certainly opposite signs."""
    places = [place for place in found.order() if found.contradicts[place]]
    if not places:
        return ""
    value, drop = scale * found.value, scale * found.ablation_drop
    named = ", ".join(
        f"{found.players[p]} (estimate {value[p]:.2f} {unit}, drop {drop[p]:.2f} {unit})" for p in places[:_MOST_NAMED]
    )
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return (
        f"by {words}, estimate and drop have opposite signs for {named}{more}: most windows start from "
        "models that lack a neighbour already, and a collapsed model has nothing to lose"
    )


def _too_few(words: str, found: Importance) -> str:
    """Say for how many sublayers the items are too few for their skewness, and how many items are enough."""
    needed = found.ci_holds_from
    short = np.flatnonzero(np.isfinite(needed) & (needed > found.n_items))
    if len(short) == 0:
        return ""
    worst = short[np.argmax(needed[short])]
    least, most = int(needed[short].min()), int(needed[worst])
    ends = f"{least:,} to {most:,} items on (the most for {found.players[worst]})" if least < most else f"{most:,} on"
    return (
        f"by {words}, the intervals of {len(short)} of {len(found.players)} sublayers may be too short after "
        f"{counted(found.n_items, 'item')}: going by their skewness they hold from {ends}"
    )
