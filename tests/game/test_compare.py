"""Comparing two runs; rank correlations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lowmem_layers.errors import UsageError
from lowmem_layers.game import (
    ValueTable,
    all_coalitions,
    compare,
    estimate,
    estimate_permutations,
    kendall_tau,
    permutations,
    single_removals,
    spearman_rho,
    windows,
)
from lowmem_layers.game.answers.compare import Walks
from lowmem_layers.game.answers.matching import joined_clusters
from lowmem_layers.game.uncertainty.rank_correlation import top_overlap

NAMES = ("attn.0", "ffn.0", "attn.1", "ffn.1", "attn.2", "ffn.2")
DROPS = np.array([3.0, 2.0, 1.0, 0.5, 0.2, 0.0])


def runs(n_items, seed, change=0.0, noise=0.2):
    """Draw two runs over the same items: B differs by a little noise, and by `change` in the first player."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_items, 7)) * 2.0
    base = np.concatenate([np.zeros((n_items, 1)), -DROPS + shared[:, 1:]], axis=1)
    other = base + noise * rng.normal(size=base.shape)
    other[:, 1] -= change
    items = tuple(f"i{k}" for k in range(n_items))
    coalitions = tuple(single_removals(6))
    return ValueTable(NAMES, coalitions, base, None, items), ValueTable(NAMES, coalitions, other, None, items)


def test_paired_and_unpaired():
    a, b = runs(100, 0, change=0.5)
    paired = compare(a, b)
    nameless = compare(a, ValueTable(NAMES, b.coalitions, b.values))
    assert paired.paired
    assert not nameless.paired
    np.testing.assert_allclose(paired.difference, nameless.difference)
    assert (nameless.ci.high - nameless.ci.low > 5 * (paired.ci.high - paired.ci.low)).all()
    np.testing.assert_array_equal(paired.significant, [True] + [False] * 5)
    np.testing.assert_allclose(paired.value_a, estimate(a).value)


def test_the_mean_over_tasks_halves_the_variance():
    first, second = runs(300, 0, change=0.5), runs(300, 1, change=0.5)
    both = compare(*zip(first, second, strict=True))
    np.testing.assert_allclose(both.difference, (compare(*first).difference + compare(*second).difference) / 2)
    width_one, width_two, width = (found.ci.high - found.ci.low for found in (compare(*first), compare(*second), both))
    np.testing.assert_allclose(width, np.hypot(width_one, width_two) / 2, rtol=0.05)
    assert both.n_items == (600, 600)
    with pytest.raises(UsageError, match="no tables"):
        compare([], [])
    with pytest.raises(UsageError, match="2 tasks of A, 1 of B"):
        compare(first, first[:1])


def test_overlapping_items_are_compared_alone_where_they_are_half_of_the_smaller_run():
    a, b = runs(100, 2)
    half = b.take_items(range(40))
    found = compare(a, half)
    assert (found.paired, found.n_items) == (True, (40, 40))
    np.testing.assert_allclose(found.difference, compare(a.take_items(range(40)), half).difference)
    mostly_others = replace(half, items=(*(half.items or ())[:10], *(f"other{k}" for k in range(30))))
    found = compare(a, mostly_others)
    assert (found.paired, found.n_items) == (False, (100, 40))


def test_items_of_another_task_are_never_the_same():
    a, b = runs(50, 3)
    assert not compare(a, replace(b, task="another")).paired


def test_removal_orders_that_are_the_same_are_paired_too():
    rng = np.random.default_rng(0)
    names, coalitions = ("a", "b", "c"), tuple(all_coalitions(3))
    base = rng.normal(size=(40, 8)) - 3.0 * np.array([len(c) * (1 + (0 in c)) for c in coalitions])
    items = tuple(map(str, range(40)))
    values = [base + 0.1 * rng.normal(size=base.shape) for _ in range(2)]
    tables = [ValueTable(names, coalitions, each, None, items) for each in values]
    same, unlike = (Walks(tuple(permutations(3, 6, seed))) for seed in (0, 1))
    paired, independent = (compare(tables[0], tables[1], walks=(same, other)) for other in (same, unlike))
    assert paired.estimator == "permutation"
    assert (paired.ci.high - paired.ci.low).mean() < 0.5 * (independent.ci.high - independent.ci.low).mean()
    np.testing.assert_allclose(paired.value_a, estimate_permutations(tables[0], same.orders).value)


def test_items_are_matched_by_name():
    a, b = runs(50, 1)
    shuffled = b.take_items(np.random.default_rng(0).permutation(50))
    np.testing.assert_allclose(compare(a, shuffled).ci.low, compare(a, b).ci.low)


def test_a_run_equals_itself():
    a, _ = runs(40, 2)
    same = compare(a, a)
    assert (same.difference == 0).all()
    assert (same.ci.low == 0).all()
    assert not same.significant.any()
    assert same.agreement.kendall == same.agreement.spearman == 1.0
    assert same.agreement.overlap == 3


def test_paired_coverage_and_false_alarms_in_short():
    hits, alarms = [], 0
    for seed in range(120):
        a, b = runs(40, seed)
        result = compare(a, b, seed=seed)
        hits.append((result.ci.low <= 0) & (result.ci.high >= 0))
        alarms += bool(result.significant.any())
    assert 0.925 <= np.mean(hits) <= 0.975
    assert alarms / 120 <= 0.08


def test_accuracies_that_never_change_are_not_certainly_equal():
    values = np.ones((30, 7))
    items = tuple(str(k) for k in range(30))
    table = ValueTable(NAMES, tuple(single_removals(6)), values, None, items)
    result = compare(table, table)
    assert (result.ci.low < 0).all()
    assert (result.ci.high > 0).all()
    assert np.isnan(result.agreement.kendall)  # all ties


def test_refusals_say_what_differs():
    a, _ = runs(10, 0)
    renamed = ValueTable(("attn.0", "moe.0", *NAMES[2:]), a.coalitions, a.values)
    with pytest.raises(UsageError, match=r"player 1 is ffn\.0 in A and moe\.0 in B"):
        compare(a, renamed)
    fewer = ValueTable(NAMES[:5], a.coalitions[:6], a.values[:, :6])
    with pytest.raises(UsageError, match="A has 6 players, B 5"):
        compare(a, fewer)
    wider = ValueTable(NAMES, tuple(windows(6, 2)), np.zeros((10, 12)))
    with pytest.raises(UsageError, match="windows of up to 1 sublayers, B of up to 2"):
        compare(a, wider)
    assert compare(a, wider, max_removed=1).difference.shape == (6,)
    doubled = ValueTable(NAMES, a.coalitions, a.values, None, ("i0",) * 10)
    with pytest.raises(UsageError, match="twice"):
        compare(doubled, doubled)


def test_one_item():
    a, b = runs(1, 0)
    result = compare(a, b)
    assert np.isnan(result.ci.low).all()
    assert not result.significant.any()
    assert np.isnan(result.agreement.kendall_ci.low)


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 15).astype(float)
        assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
        assert spearman_rho(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_correlations_at_the_edges():
    flat, line = np.ones(4), np.arange(4.0)
    assert np.isnan(kendall_tau(flat, line))
    assert np.isnan(spearman_rho(flat, line))
    assert np.isnan(kendall_tau(np.array([1.0, np.nan]), np.array([1.0, 2.0])))
    assert kendall_tau(line, -line) == spearman_rho(line, -line) == -1.0
    assert top_overlap(line, -line, 2) == 0
    assert top_overlap(flat, flat, 3) == 3


def test_agreement_covers_the_truth():
    truth = kendall_tau(DROPS, DROPS)
    hits = []
    for seed in range(30):
        a, b = runs(30, seed, noise=1.0)
        found = compare(a, b, seed=seed).agreement
        hits.append(found.kendall_ci.low <= truth <= found.kendall_ci.high)
        assert found.kendall_ci.low <= found.kendall <= found.kendall_ci.high
        assert found.spearman_ci.low <= found.spearman <= found.spearman_ci.high
    assert np.mean(hits) >= 0.93


def test_pairs_whose_order_is_certain_are_counted_and_those_turned_round_named():
    """Six players far apart; B swaps the first two: one of 15 pairs is certainly in the opposite order."""
    a, _ = runs(2000, 0)
    swapped = a.values.copy()
    swapped[:, [1, 2]] = swapped[:, [2, 1]]
    b = replace(a, values=swapped)
    found, itself = compare(a, b).agreement, compare(a, a).agreement
    assert found.resolved == itself.resolved == 1.0
    assert itself.opposite == 0.0
    assert found.opposite == pytest.approx(1 / 15)
    assert found.kendall == pytest.approx(13 / 15)
    nothing = compare(*runs(30, 0, noise=50.0), level=0.9999).agreement
    assert nothing.resolved == 0.0
    assert np.isnan(nothing.opposite)


def test_noise_makes_the_interval_wide_not_wrong():
    """Forty players that are nearly tied, in an order that the runs share: noise hides it, the interval says so."""
    rng = np.random.default_rng(0)
    truth = np.linspace(0.0, 0.05, 40)
    names = tuple(f"p{i}" for i in range(40))
    for seed in range(10):
        tables = []
        for _ in range(2):
            drops = truth + rng.normal(size=(100, 40))
            values = np.concatenate([np.zeros((100, 1)), -drops], axis=1)
            tables.append(ValueTable(names, tuple(single_removals(40)), values))
        found = compare(*tables, seed=seed).agreement
        assert found.kendall < 0.5
        assert found.kendall_ci.high > 0.99
        assert found.spearman_ci.high > 0.99
        assert found.resolved < 0.1


def test_other_cluster_labels_neither_crash_nor_misalign():
    """One run names its clusters, the other does not, or in another order: the answer is that of the joint clusters."""
    a, b = runs(120, 0, change=0.5)
    codes = np.repeat(np.arange(40), 3)
    both = compare(replace(a, clusters=codes), replace(b, clusters=codes))
    for one, two in ((codes, None), (None, codes), (codes, codes[::-1])):
        found = compare(replace(a, clusters=one), replace(b, clusters=two))
        assert found.paired
        np.testing.assert_allclose(found.ci.low, both.ci.low)
        np.testing.assert_allclose(found.ci.high, both.ci.high)


def test_clusterings_are_joined():
    a, b = np.array([0, 0, 1, 2, 3, 4]), np.array([0, 1, 1, 2, 3, 2])
    joined = joined_clusters(a, b)  # {0, 1, 2} by a chain; {3, 5} by B; {4}
    assert len(np.unique(joined)) == 3
    assert joined[0] == joined[1] == joined[2] != joined[3] == joined[5] != joined[4]
    assert joined_clusters(a, a) is a
