"""Games with closed-form Shapley values: the truth that estimators are tested against.

A game's players are numbered 0..N−1; `value` takes the players *present*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.values.table import FloatArray, ValueTable


@dataclass(frozen=True, eq=False)
class ClosedFormGame:
    """A game with its exact Shapley values. Shapes: `shapley` (players,)."""

    name: str
    n_players: int
    value: Callable[[frozenset[int]], float]
    shapley: FloatArray

    def table(self, coalitions: Sequence[Removed]) -> ValueTable:
        """Measure these coalitions, as one item without noise."""
        everyone = frozenset(range(self.n_players))
        values = np.array([[self.value(everyone - set(removed)) for removed in coalitions]])
        return ValueTable(
            tuple(f"player.{p}" for p in range(self.n_players)), tuple(coalitions), values, task=self.name
        )


def additive_game(worths: Sequence[float]) -> ClosedFormGame:
    """Every player adds its own worth: v(S) = Σ worths; the Shapley value is the worth."""
    return ClosedFormGame("additive", len(worths), lambda s: float(sum(worths[p] for p in s)), np.array(worths, float))


def majority_game(n_players: int, quota: int | None = None) -> ClosedFormGame:
    """More than half (or `quota`) of the players win 1; by symmetry everyone's value is 1/N."""
    needed = n_players // 2 + 1 if quota is None else quota
    return ClosedFormGame("majority", n_players, lambda s: float(len(s) >= needed), np.full(n_players, 1 / n_players))


def unanimity_game(n_players: int, carrier: Sequence[int]) -> ClosedFormGame:
    """The carrier's members together win 1, nobody wins without all of them: each is worth 1/|carrier|."""
    needed = frozenset(carrier)
    shapley = np.array([1 / len(needed) if p in needed else 0.0 for p in range(n_players)])
    return ClosedFormGame("unanimity", n_players, lambda s: float(needed <= s), shapley)


def airport_game(costs: Sequence[float]) -> ClosedFormGame:
    """A runway costs what its largest aeroplane needs: v(S) = max cost; each extra length is shared by who needs it.

    Source: Littlechild and Owen 1973.
    """
    order = np.argsort(costs, kind="stable")
    steps = np.diff(np.concatenate([[0.0], np.asarray(costs, float)[order]]))
    shapley = np.empty(len(costs))
    shapley[order] = np.cumsum(steps / np.arange(len(costs), 0, -1))
    return ClosedFormGame("airport", len(costs), lambda s: float(max((costs[p] for p in s), default=0.0)), shapley)


def gloves_game(n_left: int, n_right: int) -> ClosedFormGame:
    """Only pairs are worth something: v(S) = min(left gloves, right gloves), players 0..n_left−1 hold left ones.

    A left glove adds a pair where more right ones than left ones come before it in a random order; its value is the
    probability of that.
    Source: Shapley and Shubik 1969; here as a sum of hypergeometric probabilities.
    """
    n = n_left + n_right
    left = 0.0
    for before in range(n):  # the glove's place among the n is uniform, those before it are a random draw of the others
        ways = sum(
            comb(n_left - 1, lefts) * comb(n_right, before - lefts)
            for lefts in range(min(n_left - 1, before) + 1)
            if lefts < before - lefts <= n_right
        )
        left += ways / comb(n - 1, before) / n
    right = (min(n_left, n_right) - n_left * left) / n_right  # efficiency: all values add up to v(N)
    shapley = np.array([left] * n_left + [right] * n_right)

    def value(present: frozenset[int]) -> float:
        left = sum(p < n_left for p in present)
        return float(min(left, len(present) - left))

    return ClosedFormGame("gloves", n_left + n_right, value, shapley)
