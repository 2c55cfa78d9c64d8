"""The paper's estimate: by hand, against a second implementation, and where it must equal the Shapley value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, estimate, estimator_weights, windows
from lowmem_layers.game.estimators.weights import largest_window
from tests.game.games import additive_game


def names(n):
    return tuple(f"{kind}.{layer}" for layer in range((n + 1) // 2) for kind in ("attn", "ffn"))[:n]


def random_table(n_players, max_removed, n_items=5, seed=0):
    coalitions = tuple(windows(n_players, max_removed))
    values = np.random.default_rng(seed).normal(size=(n_items, len(coalitions)))
    return ValueTable(names(n_players), coalitions, values)


def neighbourhood_by_loops(table, max_removed):
    """Follow the text of the method: list the differences one by one, then take their plain mean."""
    v = {removed: float(np.mean(table.values[:, c])) for c, removed in enumerate(table.coalitions)}
    result = []
    for i in range(len(table.players)):
        differences = [v[()] - v[(i,)]]
        for k in range(2, max_removed + 1):
            first = list(range(i, i + k))  # i is the first of the removed window
            if max(first) <= len(table.players) - 1:
                differences.append(v[tuple(first[1:])] - v[tuple(first)])
            last = list(range(i - k + 1, i + 1))  # i is the last of it
            if min(last) >= 0:
                differences.append(v[tuple(last[:-1])] - v[tuple(last)])
        result.append(sum(differences) / len(differences))
    return np.array(result)


def test_by_hand_on_three_players():
    # v(full) = 10; removing 0, 1, 2 leaves 6, 7, 9; removing 0-1 leaves 1, removing 1-2 leaves 5.
    table = ValueTable(names(3), ((), (0,), (1,), (2,), (0, 1), (1, 2)), np.array([[10.0, 6, 7, 9, 1, 5]]))
    result = estimate(table)
    # player 0: 10-6 = 4 and, first of 0-1, 7-1 = 6; player 1: 10-7 = 3, first of 1-2: 9-5 = 4, last of 0-1: 6-1 = 5;
    # player 2: 10-9 = 1 and, last of 1-2, 7-5 = 2.
    np.testing.assert_allclose(result.value, [5.0, 4.0, 1.5])
    np.testing.assert_allclose(result.ablation_drop, [4.0, 3.0, 1.0])
    np.testing.assert_allclose(result.share, np.array([5, 4, 1.5]) / 10.5)
    np.testing.assert_array_equal(result.rank, [1, 2, 3])
    stratified = estimate(table, "stratified")
    np.testing.assert_allclose(stratified.value, [5.0, (3 + (4 + 5) / 2) / 2, 1.5])


@given(n=st.integers(1, 9), data=st.data())
def test_equals_a_second_implementation(n, data):
    largest = data.draw(st.integers(1, min(n, 4)))
    table = random_table(n, largest, seed=data.draw(st.integers(0, 1000)))
    np.testing.assert_allclose(estimate(table).value, neighbourhood_by_loops(table, largest), atol=1e-12)


def test_the_second_implementation_would_notice_a_wrong_value():
    table = random_table(6, 3)
    wrong = table.values.copy()
    wrong[0, -1] += 1.0
    spoilt = ValueTable(table.players, table.coalitions, wrong)
    assert not np.allclose(estimate(table).value, neighbourhood_by_loops(spoilt, 3))


@pytest.mark.parametrize("estimator", ["neighbourhood", "stratified", "ablation"])
def test_additive_games_are_recovered_exactly(estimator):
    game = additive_game([3.0, -1.0, 0.0, 0.5, 2.0, 7.0, -0.25])
    np.testing.assert_allclose(estimate(game.table(windows(7, 4)), estimator).value, game.shapley, atol=1e-12)


@pytest.mark.parametrize(("n", "largest", "inner", "end"), [(64, 4, 7, 4), (64, 3, 5, 3), (160, 4, 7, 4), (8, 1, 1, 1)])
def test_counts_of_terms(n, largest, inner, end):
    weights = estimator_weights("neighbourhood", windows(n, largest), names(n))
    np.testing.assert_allclose(weights[n // 2].max(), 1 / inner)
    np.testing.assert_allclose(weights[[0, -1]].max(axis=1), 1 / end)
    np.testing.assert_allclose(weights.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.abs(weights).sum(axis=1), 2.0)


def test_a_missing_coalition_is_named():
    full = random_table(6, 3)
    kept = [c for c, removed in enumerate(full.coalitions) if removed != (2, 3, 4)]
    holed = ValueTable(full.players, tuple(full.coalitions[c] for c in kept), full.values[:, kept])
    with pytest.raises(UsageError, match=r"attn\.1\+ffn\.1\+attn\.2") as raised:
        estimate(holed)
    assert raised.value.hint
    estimate(holed, max_removed=2)
    no_full = ValueTable(full.players, full.coalitions[1:], full.values[:, 1:])
    with pytest.raises(UsageError, match="the full model"):
        estimate(no_full)


def test_other_coalitions_do_not_disturb_the_largest_window():
    coalitions = [*windows(8, 3), (0, 5), tuple(range(8)), tuple(range(7)), (1, 2, 4, 7)]
    assert largest_window(coalitions, 8) == 3


@pytest.mark.parametrize("largest", [0, 7])
def test_a_window_out_of_range_is_refused(largest):
    with pytest.raises(UsageError, match="sublayers"):
        estimate(random_table(6, 3), max_removed=largest)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UsageError, match="not an estimator"):
        estimate(random_table(4, 2), "guess")
