"""Equivalence: the textbook's two one-sided tests, agreement with intervals, and how often it is wrong at the edge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, compare, single_removals
from lowmem_layers.game.answers.equivalence import equivalence
from lowmem_layers.game.uncertainty.errors import influence_of, with_coin_flip_item
from lowmem_layers.game.uncertainty.intervals import mean_interval

DROP = np.array([[1.0, -1.0]])


def test_symmetric_items_have_the_textbooks_p():
    half = np.random.default_rng(0).normal(size=(20, 30))
    rows = np.concatenate([half, -half]) + np.linspace(-0.3, 0.3, 30)
    found = equivalence(influence_of(rows, np.arange(40)), 0.5, level=0.95, correction="holm")
    above = stats.ttest_1samp(rows, 0.5, alternative="less").pvalue
    below = stats.ttest_1samp(rows, -0.5, alternative="greater").pvalue
    p = np.maximum(above, below)
    np.testing.assert_allclose(found.p, np.where(np.abs(rows.mean(axis=0)) < 0.5, p, 1.0), rtol=1e-4)
    assert found.p_adjusted.min() == pytest.approx(30 * p.min(), rel=1e-4)


@pytest.mark.parametrize("draw", ["nats", "accuracy"])
def test_equivalent_is_whose_interval_at_90_percent_lies_within_the_margin(draw):
    rng = np.random.default_rng(1)
    if draw == "nats":
        estimate = influence_of(rng.exponential(size=(50, 400)) - rng.uniform(0.5, 1.5, 400), np.arange(50))
    else:
        rows = (rng.random((80, 400)) < 0.06).astype(float) - (rng.random((80, 400)) < rng.uniform(0, 0.12, 400))
        estimate = with_coin_flip_item(influence_of(rows, np.arange(80)), np.repeat(DROP, 400, axis=0), 80, 80)
    margin = 0.3 if draw == "nats" else 0.1
    ci = mean_interval(estimate, 0.90)
    within = (ci.low > -margin) & (ci.high < margin)
    assert 40 < within.sum() < 360
    found = equivalence(estimate, margin, level=0.95, correction="holm")
    np.testing.assert_array_equal(found.p < 0.05, within)
    assert found.p_all == found.p.max()
    assert not found.all_equivalent
    np.testing.assert_array_equal(found.equivalent, found.p_adjusted < 0.05)
    assert (found.p_adjusted >= found.p).all()


@pytest.mark.parametrize("draw", ["normal", "skewed", "accuracy"])
def test_a_difference_as_large_as_the_margin_is_called_small_in_5_percent(draw):
    """At the edge both kinds of error are at their worst: 2,000 tables, whose share varies by 0.5 points."""
    rng, n, runs = np.random.default_rng(2), 100, 2000
    if draw == "accuracy":
        rows = (rng.random((n, runs)) < 0.2).astype(float) - (rng.random((n, runs)) < 0.1)
        weights = np.repeat(DROP, runs, axis=0)
        estimate, margin = with_coin_flip_item(influence_of(rows, np.arange(n)), weights, n, n), 0.1
    else:
        rows = rng.normal(size=(n, runs)) if draw == "normal" else 1.0 - rng.exponential(size=(n, runs))
        estimate, margin = influence_of(rows + 0.4, np.arange(n)), 0.4
    found = equivalence(estimate, margin, level=0.95, correction="bh")
    assert 0.03 <= (found.p < 0.05).mean() <= 0.062
    assert not found.equivalent.any(), "after the correction nobody is left"


def test_a_run_is_equivalent_to_itself_and_few_accuracies_prove_little():
    rng = np.random.default_rng(3)
    items, names = tuple(map(str, range(40))), ("a", "b", "c")
    nats = ValueTable(names, tuple(single_removals(3)), rng.normal(size=(40, 4)), None, items)
    same = compare(nats, nats).equivalence(1e-6)
    assert (same.p_all, same.all_equivalent, same.equivalent.all()) == (0.0, True, True)
    right = compare(*[ValueTable(names, nats.coalitions, np.ones((40, 4)), None, items)] * 2)
    # No change in 40 items: one of 9 % is still possible.
    assert not right.equivalence(0.05).all_equivalent
    assert right.equivalence(0.2).all_equivalent


def test_what_is_unknown_and_what_is_refused():
    lonely = equivalence(influence_of(np.zeros((1, 2)), np.zeros(1, dtype=int)), 0.1, level=0.95, correction="holm")
    assert np.isnan(lonely.p_adjusted).all()
    assert np.isnan(lonely.p_all)
    assert not lonely.all_equivalent
    for margin in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="proves nothing"):
            equivalence(influence_of(np.zeros((3, 2)), np.arange(3)), margin, level=0.95, correction="holm")
