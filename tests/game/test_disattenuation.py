"""Correlations corrected for measurement error: known true ones, shared noise, and what is certain."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.game import ValueTable, compare, kendall_tau, spearman_rho
from lowmem_layers.game.uncertainty.disattenuation import _kendall, corrected
from lowmem_layers.game.uncertainty.errors import influence_of

DOF = np.full(40, 79.0)


def two_runs(rng, truth, n_items, paired):
    """Measure true importances twice; a paired item's noise is the same in both runs for the larger part."""
    n = truth.shape[1]
    first, second = (5.0 * rng.standard_normal((n_items, n)) for _ in range(2))
    shared = 5.0 * rng.standard_normal((n_items, n)) if paired else 0.0
    a, b = (influence_of(t + 0.5 * e + shared, np.arange(n_items)) for t, e in zip(truth, (first, second), strict=True))
    if paired:
        return a.value, b.value, a.pieces, b.pieces
    return a.value, b.value, np.concatenate([a.pieces, 0 * a.pieces]), np.concatenate([0 * b.pieces, b.pieces])


@pytest.mark.parametrize(("correlation", "paired"), [(0.0, True), (0.9, True), (0.9, False)])
def test_intervals_hold_the_true_correlation_and_estimates_are_not_pulled(correlation, paired):
    rng = np.random.default_rng(3)
    inside, off, raw = [], [], []
    for _ in range(14):
        truth = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 40).T
        runs = two_runs(rng, truth, 80, paired)
        found = corrected(*runs, DOF, level=0.95)
        rho = spearman_rho(*truth)
        inside += [found.spearman_ci.low <= rho <= found.spearman_ci.high]
        inside += [found.pearson_ci.low <= np.corrcoef(truth)[0, 1] <= found.pearson_ci.high]
        inside += [found.kendall_ci.low <= kendall_tau(*truth) <= found.kendall_ci.high]
        off.append([found.spearman - rho, found.kendall - kendall_tau(*truth)])
        raw.append([spearman_rho(*runs[:2]) - rho, kendall_tau(*runs[:2]) - kendall_tau(*truth)])
    assert np.mean(inside) >= 0.85
    assert np.abs(np.mean(off, axis=0)).max() < 0.08
    if (correlation, paired) != (0.9, True):  # there the shared noise and the own noise pull in opposite directions
        assert np.abs(np.mean(raw, axis=0)).min() > 0.05


def test_a_run_compared_with_itself_is_certainly_the_same():
    values = np.random.default_rng(0).normal(0, 1, (60, 9)) + np.arange(9)
    table = ValueTable(
        tuple("abcdefgh"), ((), *((i,) for i in range(8))), values, items=tuple(map(str, range(60))), task="t"
    )
    found = compare(table, table, "ablation").corrected
    assert (found.spearman, found.spearman_ci.low, found.spearman_ci.high) == pytest.approx((1.0, 1.0, 1.0))
    assert (found.pearson, found.pearson_ci.low, found.pearson_ci.high) == pytest.approx((1.0, 1.0, 1.0))
    # the sine of nearly 1 is turned back less exactly
    assert (found.kendall, found.kendall_ci.low, found.kendall_ci.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


def test_pure_noise_says_that_nothing_is_known():
    rng = np.random.default_rng(1)
    found = corrected(*two_runs(rng, np.zeros((2, 30)), 60, False), np.full(30, 59.0), level=0.95)
    assert (found.spearman_ci.low, found.spearman_ci.high) == (-1.0, 1.0)
    assert (found.pearson_ci.low, found.pearson_ci.high) == (-1.0, 1.0)
    assert (found.kendall_ci.low, found.kendall_ci.high) == (-1.0, 1.0)


def test_kendall_counts_pairs_as_its_own_coefficient_does():
    rng = np.random.default_rng(4)
    values = rng.integers(0, 4, (2, 5, 9)).astype(float)  # many ties
    one, other = values[..., :, None] > values[..., None, :]
    for a, b, first, second in zip(*values, one, other, strict=True):
        assert _kendall(first[None], second[None]) == pytest.approx(kendall_tau(a, b))
    # without noise the correction changes nothing
    found = corrected(*values[:, 0], np.zeros((12, 9)), np.zeros((12, 9)), np.full(9, 11.0), level=0.95)
    assert found.kendall == pytest.approx(kendall_tau(*values[:, 0]))


def test_what_is_unknown_has_no_correlation():
    ties, values = np.zeros(5), np.arange(5.0)
    pieces = np.random.default_rng(0).normal(0, 1, (10, 5))
    hole, known, unknown = np.array([np.nan, *values[1:]]), np.full(5, 9.0), np.full(5, np.nan)
    for a, b, rows, dof in (
        (ties, values, pieces, known), (hole, values, pieces, known), (values, values, pieces[:1], unknown),
        (values, values, pieces, unknown),
    ):  # fmt: skip
        found = corrected(a, b, rows, rows, dof, level=0.95)
        assert np.isnan(
            [found.pearson, found.spearman, found.kendall, found.pearson_ci.low, found.kendall_ci.high]
        ).all()


def test_the_coin_flip_item_widens_intervals_but_is_no_noise_of_accuracies():
    rng = np.random.default_rng(2)
    names, lost = tuple(f"p{i}" for i in range(12)), np.linspace(0.0, 0.4, 12)
    coalitions, items = ((), *((i,) for i in range(12))), tuple(map(str, range(90)))
    runs = [
        ValueTable(
            names, coalitions, np.hstack([np.ones((90, 1)), rng.random((90, 12)) >= lost]), items=items, task="t"
        )
        for _ in range(2)
    ]
    a, b = (influence_of(run.values[:, :1] - run.values[:, 1:], np.arange(90)) for run in runs)
    plain = corrected(a.value, b.value, a.pieces, b.pieces, np.full(12, 89.0), level=0.95)
    found = compare(*runs, "ablation").corrected
    assert (found.pearson, found.spearman) == pytest.approx((plain.pearson, plain.spearman))
