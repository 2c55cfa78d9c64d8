"""The answer in sentences: which sublayers carry the model on these tasks, and how sure the run is of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowmem_layers.findings.findings import Findings, Side
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import counted, minus, number
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.players.design import Design
from lowmem_layers.model.change import REMOVE
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.report.page.data import player_words

_MOST_NAMED = 5  # candidates for an open place; more are counted, not named
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def leading_side(findings: Findings) -> Side:
    """Choose the side with which the answer is given: the tasks' own metric, unless the log-likelihood decides more.

    What counts is how many players are certainly among the top 3, then whether any are told apart at all. On few items
    an accuracy cannot do that.
    """

    def decided(side: Side) -> tuple[int, bool]:
        return int((side.overall.top_k_decision == 1).sum()), bool(np.ptp(side.overall.value) > 0)

    return max(findings.sides, key=decided)


def answer(run: Run, findings: Findings) -> list[str]:
    """Answer in sentences: who is on top and how sure that is, what the first one's loss costs, what is not known."""
    side, design = leading_side(findings), run.manifest.design
    return [
        _who(side.overall, design),
        _cost(findings, side.overall.order()[0], run.manifest),
        _concentration(side.overall, side.words, run.manifest),
    ]


def _who(found: Importance, design: Design) -> str:
    """Name the players that are certainly among the first ones, and those that may be."""
    k, n_players = found.top_k, len(found.players)
    what = "groups" if design.grouping is not None else "sublayers"
    sure = [found.players[place] for place in found.order() if found.top_k_decision[place] == 1]
    maybe = [found.players[place] for place in found.order() if found.top_k_decision[place] == 0]
    certain = f"({100 * found.level:g} % confidence{' each' if len(sure) > 1 else ''})"
    if k == 1 or n_players <= k:
        return f"Of {n_players} {what}, {found.players[found.order()[0]]} has the largest estimate."
    top = f"the {_counted(k)} most important of the {n_players} {what}"
    if len(sure) == k:
        return f"{_listed(sure)} are {top} {certain}."
    candidates = _listed(maybe, "or") if len(maybe) <= _MOST_NAMED else (
        f"{len(maybe)} {what} may hold {'it' if k - len(sure) == 1 else 'them'}, with "
        f"{_listed(maybe[: k - len(sure)])} ahead"
    )  # fmt: skip
    if sure:
        places = "One place is" if k - len(sure) == 1 else f"{_counted(k - len(sure)).capitalize()} places are"
        return (
            f"{_listed(sure)} {'is' if len(sure) == 1 else 'are'} among {top} {certain}. {places} open: {candidates}."
        )
    return (
        f"No sublayer is certain yet to be among {top}: after {counted(found.n_items, 'item')}, {len(maybe)} {what} "
        f"may be. Ahead are {_listed([found.players[place] for place in found.order()[:k]])}."
    )


def _cost(findings: Findings, first: int, manifest: Manifest) -> str:
    """Say what removing (or changing) the first player alone costs, by the tasks' own metric."""
    side, tasks = findings.sides[0], findings.tasks
    found, digits = side.overall, 1 if side.scale == 100.0 else 2
    player = manifest.design.players[first]
    who = f"{found.players[first]} ({player_words(player)})"
    lacking = f"without {who}" if manifest.change == REMOVE else f"with {who} {manifest.change.words}"
    drop, ci = side.scale * found.ablation_drop[first], found.ablation_ci.at(first).times(side.scale)
    if not np.isfinite([drop, ci.low, ci.high]).all():
        return f"What the model loses {lacking} is not known: too few items are finished."
    level = side.scale * float(np.mean([each.level.value[0] for each in tasks]))
    change, low, high = ("falls", ci.low, ci.high) if drop >= 0 else ("rises", -ci.high, -ci.low)
    size = f"by {number(abs(drop), digits)}"
    if number(abs(drop), digits) == number(0.0, digits):  # to fall by 0.0 is no fall
        change, low, high = "changes", -ci.high, -ci.low
        size = f"by less than {number(10.0**-digits, digits)}"
    sentence = (
        f"{lacking[0].upper()}{lacking[1:]} alone, the {side.words} on {_listed([each.task for each in tasks])} "
        f"{change} {size} {side.unit} (95 % interval {number(low, digits)} to "
        f"{number(high, digits)}) from {number(level, digits)} {'%' if side.unit == 'points' else side.unit}"
    )
    chances = [each.chance for each in tasks if each.chance is not None]
    if len(chances) == len(tasks):
        sentence += f"; guessing gets {number(100 * float(np.mean(chances)), 0)} %"
    return minus(f"{sentence}{', on average over the tasks' if len(tasks) > 1 else ''}.")


def _concentration(found: Importance, words: str, manifest: Manifest) -> str:
    """Say what part the first player has in the whole, and for how many players the run cannot tell."""
    first, n_players = found.order()[0], len(found.players)
    share, ci = 100 * found.share[first], found.share_ci.at(first).times(100)
    sentences = []
    if np.isfinite([share, ci.low, ci.high]).all():
        sentences.append(
            f"Measured by the {words}, {found.players[first]} has {number(share, 1)} % of the importance of all "
            f"(95 % interval {number(ci.low, 1)} to {number(ci.high, 1)} %); an equal part would be "
            f"{number(100 / n_players, 1)} %."
        )
    unknown = int((~((found.ci.low > 0) | (found.ci.high < 0))).sum())
    done = manifest.change
    needed = "the model needs them" if done == REMOVE else f"it matters that one of them is {done.words}"
    if unknown:
        sentences.append(f"For {unknown} of {n_players} the interval holds 0: the run cannot tell whether {needed}.")
    return minus(" ".join(sentences))


def _listed(names: Sequence[str], word: str = "and") -> str:
    """Join names as a sentence does: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _counted(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)
