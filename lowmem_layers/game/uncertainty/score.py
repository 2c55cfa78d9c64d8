"""Score intervals of accuracies: how far from the estimate a truth may lie, judged by the spread that it would have.

An estimate of accuracies is a mean of contributions, most of them 0. Where few items change their answer, the spread of
the sample says little about the spread under another truth: with none of 100 items broken, 3 % may be. So a truth θ is
tested with the variance that the most likely distribution of mean θ has (Tango's score interval, for contributions
of more than three sizes). That distribution weighs the observed contributions anew, and may hold one that was not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowmem_layers.game.values.table import FloatArray

_STEPS = 40  # of a bisection: to 2⁻³⁹ of the way
_ROUNDING = 1e-12
_LAST = 1.0 - 1e-12  # a weight of 1/0 is a limit, not a number


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of accuracies beside an estimate's error: contributions of clusters, and what an unseen one adds.

    Shapes: `pieces` (clusters, players), those of the error without any coin-flip item; `down` and `up` (players,), at
    least 0: the pieces of a negative and of a positive contribution that was not seen.
    """

    pieces: FloatArray
    down: FloatArray
    up: FloatArray


def answers_of(pieces: FloatArray, value: FloatArray, weights: FloatArray, items: float) -> Answers:
    """Take one task's contributions, and guess from their sizes how large an unseen one is.

    It is as large as those seen are on average (weighed by their squares), with one more among them: an item that
    changes under all coalitions, of the weight of `items` coin-flip items (chosen by measurement, see
    benchmarks/small_effects.py). So where nothing was seen it is 1.
    Shapes: `pieces` (clusters, players), `value` (players,), `weights` (players, coalitions).
    """
    doubt = 0.25 * items * (weights**2).sum(axis=1)
    size = np.abs(_contributions(pieces, value))  # (clusters, players)
    typical = ((size**3).sum(axis=0) + doubt) / np.maximum((size**2).sum(axis=0) + doubt, np.finfo(float).tiny)
    least, most = np.minimum(weights, 0.0).sum(axis=1), np.maximum(weights, 0.0).sum(axis=1)
    down, up = np.minimum(typical, -least) / len(pieces), np.minimum(typical, most) / len(pieces)
    return Answers(pieces, down, up)


def answers_apart(first: Answers, second: Answers) -> Answers:
    """Subtract a second run's contributions from a first one's, piece by piece."""
    return Answers(
        first.pieces - second.pieces,
        down=np.maximum(first.down, second.up),
        up=np.maximum(first.up, second.down),
    )


def score_ends(answers: Answers, value: FloatArray, quantile: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Find the smallest and the largest truth that lies within `quantile` of its own standard errors.

    Shapes: (players,) each; nan where `value` or `quantile` is.
    Source: Tango 1998 (paired proportions; a contribution is then −1, 0 or 1 and the ends are his); Wilson 1927.
    """
    # Both directions at once: downwards is upwards with everything mirrored.
    sign = np.repeat([-1.0, 1.0], len(value))
    family, twice = _Family.towards(answers, value, sign), np.tile(quantile, 2)
    low, high = np.zeros(twice.shape), np.full(twice.shape, 2.0)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        mean, variance = family.at(middle)
        outside = (mean - family.value) ** 2 > twice**2 * variance + _ROUNDING**2
        low, high = np.where(outside, low, middle), np.where(outside, middle, high)
    ends = np.where(np.isfinite(np.tile(value, 2) * twice), sign * family.at(high)[0], np.nan)
    return ends[: len(value)], ends[len(value) :]


def score_at_zero(answers: Answers, value: FloatArray) -> FloatArray:
    """Count the standard errors between an estimate and a truth of 0, by the spread under 0 (McNemar's for drops).

    0 lies outside of `score_ends` where the quantile is smaller. Shapes: (players,).
    Source: McNemar 1947.
    """
    family = _Family.towards(answers, value, np.where(value > 0, -1.0, 1.0))
    low, high = np.zeros(value.shape), np.full(value.shape, 2.0)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        beyond = family.at(middle)[0] >= 0.0
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    error = np.sqrt(family.at(high)[1])
    beyond_all = np.where(value == 0, 0.0, np.inf)
    return np.divide(np.abs(value), error, out=beyond_all, where=error > 0)


def _contributions(pieces: FloatArray, value: FloatArray) -> FloatArray:
    """Rebuild what each cluster contributes from its piece of the error, a residual over √(G (G − 1))."""
    n = len(pieces)
    return value + np.sqrt(n * (n - 1.0)) * pieces


def _counted(contributions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Find the sizes that a player's contributions have, and how often each; accuracies have few of them.

    Sizes that rounding alone tells apart are one. Shapes: (clusters, players) → twice (sizes, players), where a player
    with fewer sizes than others is filled up with sizes that occur 0 times.
    """
    rows = np.sort(contributions, axis=0)
    differs = np.diff(rows, axis=0) > _ROUNDING * np.abs(rows).max(axis=0)
    place = np.concatenate([np.zeros_like(rows[:1], dtype=np.intp), differs.cumsum(axis=0)])  # (clusters, players)
    n_sizes, n_players = int(place.max(initial=0)) + 1, rows.shape[1]
    sizes = np.repeat(rows[:1], n_sizes, axis=0)
    sizes[place, np.arange(n_players)] = rows
    counts = np.bincount((place * n_players + np.arange(n_players)).ravel(), minlength=n_sizes * n_players)
    return sizes, counts.reshape(sizes.shape).astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Family:
    """The most likely distributions whose means lie beyond the estimate, from the sample's own (0) to the extreme (2).

    Up to 1, contributions weigh 1/((1 − s) + s u/ū), where u is how far they lie below the largest possible one. From
    1 to 2 a part of all items makes that largest one, which no item has made.
    Shapes: `powers` (3, sizes, players), the sizes that were seen to the power of 0, 1 and 2; `counts` and `below`
    (sizes, players), how often each was seen, and its u/ū; `value` and `largest` (players,).
    Source: empirical likelihood, Owen 2001, section 2.9, with an end of the range as one more possible value.
    """

    powers: FloatArray
    counts: FloatArray
    below: FloatArray
    value: FloatArray
    largest: FloatArray
    n_clusters: int

    @classmethod
    def towards(cls, answers: Answers, value: FloatArray, sign: FloatArray) -> _Family:
        """Look upwards (`sign` 1) or downwards (−1, everything mirrored); with two signs a player, once for each."""
        times, n = len(sign) // max(1, len(value)), len(answers.pieces)
        sizes, counts = (np.tile(x, (1, times)) for x in _counted(_contributions(answers.pieces, value)))
        seen = sign * sizes
        unseen = n * np.where(sign > 0, np.tile(answers.up, times), np.tile(answers.down, times))
        largest = np.maximum(seen.max(axis=0), unseen)
        below = largest - seen  # (sizes, players)
        scale = (counts * below).sum(axis=0) / n
        powers = np.stack([np.ones_like(seen), seen, seen**2])
        return cls(powers, counts, below / np.where(scale > 0, scale, 1.0), sign * np.tile(value, times), largest, n)

    def at(self, place: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Give the mean of one distribution for each player, and the variance that an estimate of it has."""
        s, added = np.minimum(place, _LAST), np.maximum(place - 1.0, 0.0)
        weight = self.counts / ((1.0 - s) + s * self.below)
        total, mean, square = (weight * self.powers).sum(axis=1)  # (players,) each
        mean, square = mean / total, square / total
        mean, square = mean + added * (self.largest - mean), square + added * (self.largest**2 - square)
        return mean, np.maximum(square - mean**2, 0.0) / max(self.n_clusters - 1, 1)
