"""Score intervals of accuracies: Tango's for paired proportions, Wilson's for one, and their exact coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binom, norm

from lowmem_layers.game import ValueTable, compare, estimate, windows
from lowmem_layers.game.uncertainty.errors import influence_of, with_coin_flip_item
from lowmem_layers.game.uncertainty.intervals import mean_interval, two_sided_p
from lowmem_layers.game.uncertainty.score import Answers, score_at_zero, score_ends

DROP = np.array([[1.0, -1.0]])
Z = norm.ppf(0.975)


def influence(rows, weights=DROP):
    n = len(rows)
    return with_coin_flip_item(influence_of(rows, np.arange(n)), np.repeat(weights, rows.shape[1], axis=0), n, n)


def drops(n, lost, gained):
    return np.repeat([1.0, -1.0, 0.0], [lost, gained, n - lost - gained])[:, None]


def tango(n, lost, gained):
    """Solve Tango's equation with his closed form of the constrained estimate (Statistics in Medicine 17, 1998)."""

    def beyond(delta):
        b = -lost - gained + (2 * n - lost + gained) * delta
        q = (np.sqrt(b**2 + 8 * n * gained * delta * (1 - delta)) - b) / (4 * n)
        return (lost - gained - n * delta) ** 2 - Z**2 * n * (2 * q + delta * (1 - delta))

    middle = (lost - gained) / n
    return [brentq(beyond, end, middle) if beyond(middle) < 0 else middle for end in (-1 + 1e-9, 1 - 1e-9)]


@pytest.mark.parametrize(("n", "lost", "gained"), [(21, 7, 1), (44, 9, 0), (100, 3, 2), (100, 20, 1), (50, 30, 15)])
def test_the_interval_of_a_drop_is_tangos(n, lost, gained):
    found = influence(drops(n, lost, gained))
    ends = score_ends(found.answers, found.value, np.array([Z * np.sqrt((n - 1) / n)]))  # his variance divides by n
    np.testing.assert_allclose(np.ravel(ends), tango(n, lost, gained), atol=1e-8)
    mcnemar = abs(lost - gained) / np.sqrt(lost + gained)
    assert score_at_zero(found.answers, found.value)[0] == pytest.approx(mcnemar * np.sqrt((n - 1) / n), rel=1e-6)


@pytest.mark.parametrize("right", [0, 1, 17, 29, 30])
def test_the_interval_of_an_accuracy_is_wilsons(right):
    found = influence(np.repeat([1.0, 0.0], [right, 30 - right])[:, None], np.array([[1.0]]))
    low, high = np.ravel(score_ends(found.answers, found.value, np.array([Z * np.sqrt(29 / 30)])))
    wilson = binomtest_wilson(right, 30)
    np.testing.assert_allclose([low, high], wilson, atol=1e-8)


def binomtest_wilson(right, n):
    middle, half = (right + Z**2 / 2), Z * np.sqrt(right * (n - right) / n + Z**2 / 4)
    return [(middle - half) / (n + Z**2), (middle + half) / (n + Z**2)]


@pytest.mark.parametrize("n", [100, 232])
def test_small_effects_on_a_model_that_is_always_right_are_covered(n):
    """An item is broken in all windows or not at all: the count is binomial, so that coverage is exact."""
    counts = np.arange(80)
    ci = mean_interval(influence((np.arange(n)[:, None] < counts).astype(float)), 0.95)
    for effect in (0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
        covered = binom.pmf(counts, n, effect) @ ((ci.low <= effect) & (effect <= ci.high))
        assert covered >= 0.93, effect
    # The rule of three, for two sides: with nothing broken, t²/n may be.
    assert ci.high[0] == pytest.approx(stdtrit(n - 1, 0.975) ** 2 / n, rel=0.05)
    assert two_sided_p(influence(drops(n, 3, 0)))[0] > 0.05


def test_an_interval_holds_what_an_accuracy_can_be():
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((6, 40)) < 0.7, 1.0, -1.0)
    ci = mean_interval(influence(rows), 0.999)
    assert ci.low.min() >= -1.0
    assert ci.high.max() <= 1.0
    assert ((ci.low <= rows.mean(axis=0)) & (rows.mean(axis=0) <= ci.high)).all()


def test_a_comparison_of_a_run_with_itself_leaves_room_for_what_was_not_seen():
    coalitions = tuple(windows(3, 2))
    values = np.ones((100, len(coalitions)))
    values[:4, [1 in removed for removed in coalitions]] = 0.0
    table = ValueTable(("a", "b", "c"), coalitions, values, items=tuple(map(str, range(100))))
    same, found = compare(table, table), estimate(table)
    assert (same.difference == 0).all()
    assert 0.03 < same.ci.high[1] < 0.05
    assert found.ci.high[0] == pytest.approx(0.038, abs=0.003)  # nothing broken
    assert found.ci.high[1] == pytest.approx(0.10, abs=0.01)  # four broken in all windows


def test_nobody_to_ask_about_has_no_ends():
    nobody = Answers(np.zeros((5, 0)), np.zeros(0), np.zeros(0))
    assert [len(end) for end in score_ends(nobody, np.zeros(0), np.zeros(0))] == [0, 0]
    assert len(score_at_zero(nobody, np.zeros(0))) == 0
