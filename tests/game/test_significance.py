"""p values and intervals say the same: significant at α is what lies outside the interval at level 1 − α."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lowmem_layers.game import ValueTable, compare, interactions, single_removals, windows
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, influence_of, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval, two_sided_p

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1 - 1e-6)
DRAWS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "losses": lambda rng, size: -rng.lognormal(0.0, 1.5, size),
    "rare": lambda rng, size: (rng.random(size) < 0.1) * rng.normal(3.0, 1.0, size),
    "symmetric": lambda rng, size: (
        np.repeat(rng.normal(size=(size[0] // 2, size[1])), 2, axis=0) * np.tile([[1.0], [-1.0]], (size[0] // 2, 1))
    ),
    "constant": lambda rng, size: np.tile(rng.normal(size=size[1]), (size[0], 1)),
}


def assert_the_same(estimate: Influence) -> None:
    p = two_sided_p(estimate)
    for level in LEVELS:
        ci = mean_interval(estimate, level)
        apart = (
            np.abs(p / (1.0 - level) - 1.0) > 1e-8
        )  # few accuracies may have p = 1 − level, to the last digit or not
        np.testing.assert_array_equal((p < 1.0 - level)[apart], ((ci.low > 0) | (ci.high < 0))[apart])


@given(
    kind=st.sampled_from(sorted(DRAWS)),
    n_items=st.integers(1, 40).map(lambda half: 2 * half),
    n_clusters=st.none() | st.integers(1, 12),
    shift=st.floats(-3.0, 3.0),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_an_estimate_is_significant_where_its_interval_excludes_0(kind, n_items, n_clusters, shift, seed):
    rng = np.random.default_rng(seed)
    rows = DRAWS[kind](rng, (n_items, 8))
    rows += shift * rows.std(axis=0) / np.sqrt(n_items)  # near the edge, where the two could differ
    codes = np.arange(n_items) if n_clusters is None else rng.integers(0, n_clusters, n_items)
    codes = np.unique(codes, return_inverse=True)[1]
    assert_the_same(influence_of(rows, codes))
    assert_the_same(mean_over_tasks([influence_of(rows, codes), influence_of(-rows[::-1] + 0.1, codes)]))


@given(
    n_items=st.integers(1, 60),
    lost=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    n_clusters=st.none() | st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=100, deadline=None)
def test_accuracies_are_too(n_items, lost, n_clusters, seed):
    rng = np.random.default_rng(seed)
    right = rng.random((n_items, 4)) < np.array([0.9, *lost])
    clusters = None if n_clusters is None else rng.integers(0, n_clusters, n_items)
    table = ValueTable(("a", "b", "c"), tuple(single_removals(3)), right.astype(float), clusters)
    estimate = estimate_influence(table, estimator_weights("ablation", table.coalitions, table.players))
    assert estimate.is_binary
    assert_the_same(estimate)


def test_without_spread_or_without_knowledge():
    nan = float("nan")
    pieces = np.zeros((5, 3))
    p = two_sided_p(Influence(np.array([0.0, -2.0, nan]), pieces, np.array([4.0, 4.0, 4.0])))
    np.testing.assert_array_equal(p, [1.0, 0.0, nan])
    assert np.isnan(two_sided_p(Influence(np.ones(3), pieces, np.full(3, nan)))).all()


def test_symmetric_items_have_students_p():
    half = np.random.default_rng(0).normal(size=(20, 5)) + 0.5
    rows = np.concatenate([half, 2 * half.mean(axis=0) - half])  # mirrored at the mean: no skewness
    np.testing.assert_allclose(
        two_sided_p(influence_of(rows, np.arange(40))), stats.ttest_1samp(rows, 0.0).pvalue, rtol=1e-6
    )


def test_a_sample_that_misses_the_rare_large_losses_is_not_called_significant():
    """Losses of mean 0 whose large ones are rare: where Student's t is below 0.01, most of it is this accident."""
    rows = np.exp(0.5) - np.random.default_rng(1).lognormal(0.0, 1.0, (30, 2000))
    student = stats.ttest_1samp(rows, 0.0).pvalue
    p = two_sided_p(influence_of(rows, np.arange(30)))
    assert (p >= student * (1.0 - 1e-9)).all()
    assert (student < 0.01).mean() > 0.04
    assert (p < 0.01).mean() < 0.02


def test_a_significant_difference_or_interaction_never_has_0_in_its_own_interval():
    """Nothing differs and nothing interacts; the items are few and skewed."""
    n, n_significant = 30, 0
    players, items = tuple(f"p{i}" for i in range(n)), tuple(map(str, range(30)))
    for seed in range(30):
        skewed = np.exp(0.5) - np.random.default_rng(seed).lognormal(0.0, 1.0, (30, n))
        alone = np.concatenate([np.zeros((30, 1)), skewed], axis=1)  # the full model, then every single removal
        a, b = (ValueTable(players, tuple(single_removals(n)), each, None, items) for each in (alone, 0.0 * alone))
        pairs = np.concatenate([np.zeros((30, n + 1)), skewed[:, 1:]], axis=1)  # only the windows of two vary
        for found in (compare(a, b), interactions(ValueTable(players, tuple(windows(n, 2)), pairs))):
            outside = (found.ci.low > 0) | (found.ci.high < 0)
            assert outside[found.significant].all()
            n_significant += int(found.significant.sum())
    assert n_significant > 0
