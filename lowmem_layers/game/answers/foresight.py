"""What removing many sublayers at once is expected to cost, from the coalitions that were measured.

Removed players that stand side by side form a chain. A chain that was measured has its own value. A longer one is put
together link by link, each link's cost taken with the L − 1 players before it removed (L: the largest window):

    loss(i..j) = [v(∅) − v(i..i+L−1)] + Σ_{k=i+L..j} [v(k−L+1..k−1) − v(k−L+1..k)]

where v(S) is the value with S removed. This is exact where players farther apart than L − 1 places do not interact.
Chains that do not touch are added up: what they do to each other was not measured. Source: the chain rule, cut off as
in a Markov chain of order L − 1; for L = 1 it is the sum of the single losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import Interval, mean_interval
from lowmem_layers.game.values.table import FloatArray, ValueTable, as_tables, missing_coalition


@dataclass(frozen=True, eq=False)
class Foresight:
    """Growing removals and what each is expected to cost, on the mean over tasks.

    Shapes: `removed` has one entry a step, each holding the one before it; `loss` and `ci` (steps,).
    Units: those of the metric; positive is a loss.
    """

    removed: tuple[Removed, ...]
    loss: FloatArray
    ci: Interval[FloatArray]


def chains(removed: Removed) -> list[Removed]:
    """Cut a removal into its chains of neighbours."""
    breaks = [0, *(place + 1 for place, (a, b) in enumerate(pairwise(removed)) if b != a + 1), len(removed)]
    return [removed[a:b] for a, b in pairwise(breaks) if a < b]


def loss_weights(
    removals: Sequence[Removed], coalitions: Sequence[Removed], players: Sequence[str], largest: int
) -> FloatArray:
    """Give the expected loss of each removal as weights over the measured coalitions.

    `largest` is the largest window L. Shapes: (removals, coalitions).

    Raises:
        UsageError: a single removal or a window that is needed was not measured.
    """
    index = {coalition: column for column, coalition in enumerate(coalitions)}
    weights = np.zeros((len(removals), len(coalitions)))
    for row, removed in enumerate(removals):
        # 1) the pairs of coalitions whose difference is a link's cost
        links: list[tuple[Removed, Removed]] = []
        for chain in [removed] if removed in index else chains(removed):
            start = len(chain) if chain in index else max(1, largest)
            links.append(((), chain[:start]))
            links += [(chain[k - largest + 1 : k], chain[k - largest + 1 : k + 1]) for k in range(start, len(chain))]
        # 2) added up
        for before, after in links:
            for coalition, sign in ((before, 1.0), (after, -1.0)):
                if coalition not in index:
                    raise missing_coalition(coalition, players)
                weights[row, index[coalition]] += sign
    return weights


def foresee(tables: ValueTable | Sequence[ValueTable], removals: Sequence[Removed], level: float = 0.95) -> Foresight:
    """Estimate what each of these removals costs, with intervals over items; the mean over tasks, where several.

    Raises:
        UsageError: a coalition that is needed was not measured.
    """
    listed = as_tables(tables)
    parts = []
    for table in listed:
        weights = loss_weights(removals, table.coalitions, table.players, _largest(table))
        parts.append(estimate_influence(table, weights))
    estimate = mean_over_tasks(parts)
    return Foresight(tuple(removals), estimate.value, mean_interval(estimate, level))


def choose_greedily(
    tables: ValueTable | Sequence[ValueTable],
    units: Sequence[Removed],
    steps: int,
    kept: int = 0,
    level: float = 0.95,
) -> list[Removed]:
    """Take unit after unit, each time the one with which the whole removal costs least, at the worst.

    "At the worst" is the upper end of the expected loss's interval. By the expected loss itself, the units whose loss
    is known least would go first: of many noisy numbers the smallest is too small (measured: benchmarks/acting.py).

    `units` are what is removed as one: single players, or the players of a decoder layer; no two overlap. `kept` is how
    many of them must stay. Shapes: one removal a step, each holding the one before it.

    Raises:
        UsageError: there are not so many units, or their removals were not measured.
    """
    if not 0 < steps <= len(units) - kept:
        raise UsageError(
            f"{steps} of {len(units)} cannot be removed", f"choose a number from 1 to {max(1, len(units) - kept)}"
        )
    left, chosen = list(range(len(units))), ()
    path: list[Removed] = []
    for _ in range(steps):
        candidates = [tuple(sorted((*chosen, *units[unit]))) for unit in left]
        bounds = foresee(tables, candidates, level).ci.high  # (candidates,)
        bounds = np.where(np.isnan(bounds), np.inf, np.round(bounds, 12))  # unknown: taken last
        best = int(np.argmin(bounds))  # ties: the first in execution order
        chosen = candidates[best]
        left.pop(best)
        path.append(chosen)
    return path


def unknown_to(tables: ValueTable | Sequence[ValueTable], removed: Removed) -> list[str]:
    """Say what of a removal the measured coalitions cannot tell, in sentences; nothing where it was measured itself."""
    table = as_tables(tables)[0]
    if removed in table:
        return []
    largest, parts = _largest(table), chains(removed)
    lines = []
    if len(parts) > 1:
        lines.append(
            f"{len(parts)} groups of neighbours are removed that were not removed together in this run: what they do "
            "to each other is not in the expected loss"
        )
    longest = max(map(len, parts))
    if any(part not in table for part in parts):
        lines.append(
            f"up to {longest} neighbours are removed, and windows of at most {largest} were measured: what players "
            f"{largest} or more places apart do to each other is not in the expected loss"
        )
    return lines


def _largest(table: ValueTable) -> int:
    return max(1, largest_window(table.coalitions, table.n_players))
