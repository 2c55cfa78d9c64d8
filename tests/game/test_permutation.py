"""Sampled removal orders: unbiased, truncated at chance, with both noises."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations as all_orders

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import (
    ValueTable,
    all_coalitions,
    chain_coalitions,
    compare,
    estimate,
    estimate_permutations,
    permutations,
)
from lowmem_layers.game.answers.compare import Walks
from lowmem_layers.game.estimators.permutation import at_chance, first_cut, permutation_influence, walked_orders
from lowmem_layers.game.uncertainty.errors import mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval
from tests.game.games import airport_game, gloves_game


def noisy_game(n_items, rng):
    """Four players of which an item needs one or two: accuracies with a known population."""
    coalitions = tuple(all_coalitions(4))
    needs = rng.random((n_items, 4)) < np.array([0.6, 0.4, 0.2, 0.05])
    values = np.stack([~needs[:, list(removed)].any(axis=1) for removed in coalitions], axis=1).astype(float)
    return ValueTable(("a", "b", "c", "d"), coalitions, values)


@pytest.mark.parametrize("game", [airport_game([1.0, 5.0, 2.0, 2.5]), gloves_game(2, 3)], ids=["airport", "gloves"])
def test_all_orders_give_the_exact_value(game):
    orders = list(all_orders(range(game.n_players)))
    table = game.table(chain_coalitions(orders))
    np.testing.assert_allclose(permutation_influence(table, orders).value, game.shapley, atol=1e-12)


def test_the_average_over_seeds_is_unbiased():
    game = airport_game([1.0, 5.0, 2.0, 2.5, 0.5])
    table = game.table(all_coalitions(5))
    values = [permutation_influence(table, permutations(5, 2, seed)).value for seed in range(600)]
    error = np.std(values, axis=0) / np.sqrt(600)
    assert (np.abs(np.mean(values, axis=0) - game.shapley) < 4 * error + 1e-12).all()


def test_efficiency_holds_for_every_sample():
    table = noisy_game(50, np.random.default_rng(1))
    value = permutation_influence(table, permutations(4, 3, seed=0)).value
    assert value.sum() == pytest.approx(table.mean(()) - table.mean((0, 1, 2, 3)))


def test_intervals_cover_items_and_orders():
    rng = np.random.default_rng(5)
    population = noisy_game(20_000, rng)
    truth = estimate(population, "shapley").value
    covered = []
    for seed in range(150):
        table = population.take_items(rng.integers(0, 20_000, 100))
        ci = mean_interval(permutation_influence(table, permutations(4, 12, seed)), 0.95)
        covered.append((ci.low <= truth) & (truth <= ci.high))
    assert 0.92 <= np.mean(covered) <= 0.985


def test_walks_are_cut_at_chance():
    # Chance 0.25: without player 2 the value is at chance, whatever else is missing.
    coalitions = ((), (0,), (2,), (0, 2), (0, 1))
    rng = np.random.default_rng(0)
    base = rng.random((400, 1))
    levels = np.array([0.8, 0.7, 0.25, 0.1, 0.6])
    table = ValueTable(("a", "b", "c"), coalitions, (base < levels).astype(float))
    assert at_chance(table, (2,), 0.25)
    assert not at_chance(table, (0,), 0.25)
    orders = [(2, 0, 1), (0, 2, 1)]
    assert walked_orders(table, orders, chance=0.25) == [(2,), (0, 2)]
    value = permutation_influence(table, orders, chance=0.25).value
    v = {removed: table.mean(removed) for removed in coalitions}
    np.testing.assert_allclose(
        value, [(0 + v[()] - v[(0,)]) / 2, 0.0, (v[()] - v[(2,)] + v[(0,)] - v[(0, 2)]) / 2], atol=1e-12
    )
    with pytest.raises(UsageError, match="a\\+b\\+c"):
        permutation_influence(table, orders)


def test_cuts_settled_before_are_kept_to():
    table = noisy_game(60, np.random.default_rng(4))
    orders = permutations(4, 4, seed=1)
    whole = permutation_influence(table, orders, cuts=[4] * 4)
    np.testing.assert_array_equal(whole.value, permutation_influence(table, orders).value)
    cut = permutation_influence(table, orders, cuts=[1, 1, 0, 0])
    first = {orders[0][0], orders[1][0]}
    for player in range(4):
        drop = table.mean(()) - table.mean((player,))
        times = sum(order[0] == player for order in orders[:2])
        assert cut.value[player] == pytest.approx(times * drop / 4)
        assert np.isnan(cut.standard_error[player]) == (player not in first)


def test_a_walk_is_cut_where_chance_was_met_twice():
    rng = np.random.default_rng(0)
    coalitions = ((), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
    levels = np.array([0.9, 0.2, 0.7, 0.2, 0.2])
    table = ValueTable(("a", "b", "c", "d"), coalitions, (rng.random((500, 1)) < levels).astype(float))
    assert first_cut([table], (0, 1, 2, 3), [0.25]) == 3
    assert first_cut([table], (0, 1, 2, 3), [None]) == 4
    assert first_cut([table], (1, 0, 2, 3), [0.25]) is None
    assert first_cut([table, table], (0, 1, 2, 3), [0.25, 0.05]) == 4


def test_front_door():
    table = noisy_game(200, np.random.default_rng(3))
    result = estimate_permutations(table, permutations(4, 20, seed=0))
    assert result.estimator == "permutation"
    assert list(result.order()) == [0, 1, 2, 3]
    assert (result.ci.low < result.value).all()
    np.testing.assert_allclose(result.ablation_drop, estimate(table, "ablation").value)
    two = estimate_permutations([table, table], permutations(4, 20, seed=0), chance=[0.0, None])
    np.testing.assert_allclose(two.value, result.value)


@pytest.mark.parametrize("orders", [[], [(0, 0, 1, 2)], [(0, 1)]])
def test_bad_orders_are_refused(orders):
    with pytest.raises(UsageError):
        permutation_influence(noisy_game(5, np.random.default_rng(0)), orders)


def test_one_pair_leaves_the_error_unknown():
    result = estimate_permutations(noisy_game(50, np.random.default_rng(3)), permutations(4, 2, seed=0))
    assert np.isfinite(result.value).all()
    assert np.isnan(result.ci.low).all()


def accuracies_that_collapse(n_items: int) -> ValueTable:
    """Make a game of 8 players: removals lower an item's margin, far below 0 the answer is a guess among four."""
    rng = np.random.default_rng(0)
    coalitions = tuple(all_coalitions(8))
    effects = np.array([3.0, 2.0, 1.2, 0.8, 0.5, 0.3, 0.1, 0.0])
    gone = np.array([[player in removed for player in range(8)] for removed in coalitions], dtype=float)
    lost = (np.exp(0.5 * rng.normal(size=(n_items, 8))) * effects) @ gone.T
    margin = 2.0 + rng.normal(size=(n_items, 1))
    guess = np.broadcast_to(rng.random((n_items, 1)) < 0.25, lost.shape)
    values = np.where(lost > margin + 1.0, guess, margin - lost > 0).astype(float)
    return ValueTable(tuple(f"p{i}" for i in range(8)), coalitions, values)


def test_walks_cut_at_chance_lose_little():
    """Cut where a pilot of 32 items is at chance, walks are much shorter, values low by under two points of 25."""
    table = accuracies_that_collapse(1500)
    exact = estimate(table, "shapley").value
    cut_short, whole, lengths = [], [], []
    for seed in range(40):
        orders = permutations(8, 16, seed)
        pilot = table.take_items(np.random.default_rng(seed).integers(0, 1500, 32))
        cuts = [8 if cut is None else cut for cut in (first_cut([pilot], order, [0.25]) for order in orders)]
        cut_short.append(permutation_influence(table, orders, cuts=cuts).value)
        whole.append(permutation_influence(table, orders).value)
        lengths.append(np.mean(cuts))
    assert np.mean(lengths) < 6.5
    assert np.abs(np.mean(whole, axis=0) - exact).max() < 0.01
    assert np.abs(np.mean(cut_short, axis=0) - exact).max() < 0.02
    assert (np.argsort(-np.mean(cut_short, axis=0))[:5] == np.argsort(-exact)[:5]).all()


def test_accuracies_that_never_change_are_not_certainly_worth_nothing():
    values = np.ones((30, 8))
    table = ValueTable(("a", "b", "c"), tuple(all_coalitions(3)), values)
    found = estimate_permutations(table, permutations(3, 8, 0))
    assert (found.value == 0).all()
    assert (found.ci.low < 0).all()
    assert (found.ci.high > 0).all()
    assert found.ci.high.max() < 0.13  # Clopper and Pearson's end for 0 of 30 is 0.116


def test_tasks_share_the_noise_of_their_orders():
    rng = np.random.default_rng(0)
    game = airport_game([1.0, 2.0, 3.0, 5.0, 8.0])
    table = game.table(all_coalitions(5))
    tasks = [replace(table, values=table.values + 0.05 * rng.normal(size=(200, 32)), task=str(k)) for k in range(4)]
    orders = permutations(5, 12, seed=0)
    one, four = estimate_permutations(tasks[0], orders), estimate_permutations(tasks, orders)
    width_one, width_four = one.ci.high - one.ci.low, four.ci.high - four.ci.low
    np.testing.assert_allclose(width_four, width_one, rtol=0.15)
    assert ((four.share_ci.high - four.share_ci.low) > 0.8 * (one.share_ci.high - one.share_ci.low)).all()
    without = estimate(tasks[0], "shapley"), estimate(tasks, "shapley")
    narrower = (without[1].ci.high - without[1].ci.low) / (without[0].ci.high - without[0].ci.low)
    np.testing.assert_allclose(narrower, 0.5, rtol=0.15)
    with pytest.raises(UsageError, match="share"):
        mean_over_tasks([permutation_influence(tasks[0], orders), permutation_influence(tasks[1], orders[:6])])


def test_compared_tasks_share_the_noise_of_their_orders():
    rng = np.random.default_rng(0)
    values = [airport_game(costs).table(all_coalitions(4)) for costs in ([1.0, 2.0, 3.0, 5.0], [5.0, 2.0, 4.0, 1.0])]
    pairs = [
        tuple(replace(v, values=v.values + 0.05 * rng.normal(size=(200, 16)), task=str(task)) for v in values)
        for task in range(4)
    ]
    for seeds in ((0, 0), (0, 1)):
        walks = tuple(Walks(tuple(permutations(4, 12, seed))) for seed in seeds)
        one, four = compare(*pairs[0], walks=walks), compare(*zip(*pairs, strict=True), walks=walks)
        np.testing.assert_allclose(four.ci.high - four.ci.low, one.ci.high - one.ci.low, rtol=0.15)
