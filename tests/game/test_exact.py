"""Exact Shapley values: closed forms, three routes, and the axioms."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, all_coalitions, estimate
from lowmem_layers.game.values.shapiq_game import to_shapiq
from tests.game.exact_routes import shapley_by_layers, shapley_by_orders
from tests.game.games import additive_game, airport_game, gloves_game, majority_game, unanimity_game

GAMES = [
    additive_game([1.0, -2.0, 0.5, 4.0]),
    majority_game(5),
    majority_game(6, quota=5),
    gloves_game(1, 2),
    gloves_game(2, 3),
    gloves_game(3, 1),
    airport_game([1.0, 4.0, 2.0, 2.0, 10.0]),
    unanimity_game(6, (1, 4)),
]


def shapley(table):
    return estimate(table, "shapley").value


def random_table(n, seed):
    coalitions = tuple(all_coalitions(n))
    values = np.random.default_rng(seed).normal(size=(2, len(coalitions)))
    return ValueTable(tuple(f"p{i}" for i in range(n)), coalitions, values)


def relabel(table, order):
    """Rename player p to order[p]."""
    coalitions = tuple(tuple(sorted(order[p] for p in removed)) for removed in table.coalitions)
    return ValueTable(table.players, coalitions, table.values)


@pytest.mark.parametrize("game", GAMES, ids=lambda game: game.name)
def test_closed_forms_by_all_routes(game):
    table = game.table(all_coalitions(game.n_players))
    for route in (shapley, shapley_by_orders, shapley_by_layers):
        np.testing.assert_allclose(route(table), game.shapley, atol=1e-12)


def test_gloves_by_hand():
    np.testing.assert_allclose(gloves_game(1, 2).shapley, [2 / 3, 1 / 6, 1 / 6])


@given(n=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_routes_agree_on_random_games(n, seed):
    table = random_table(n, seed)
    np.testing.assert_allclose(shapley(table), shapley_by_orders(table), atol=1e-12)
    np.testing.assert_allclose(shapley(table), shapley_by_layers(table), atol=1e-12)


def test_fourteen_players():
    game = airport_game(list(range(1, 15)))
    np.testing.assert_allclose(shapley_by_layers(game.table(all_coalitions(14))), game.shapley, atol=1e-9)
    np.testing.assert_allclose(shapley(game.table(all_coalitions(14))), game.shapley, atol=1e-9)


def test_more_players_are_refused():
    with pytest.raises(UsageError, match="2\\^15"):
        all_coalitions(15)


@given(n=st.integers(2, 6), seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=40)
def test_axioms(n, seed, data):
    table, other = random_table(n, seed), random_table(n, seed + 1)
    value = shapley(table)
    total = table.mean(()) - table.mean(tuple(range(n)))
    assert value.sum() == pytest.approx(total, abs=1e-9)  # efficiency
    mixed = ValueTable(table.players, table.coalitions, 2.0 * table.values - 3.0 * other.values)
    np.testing.assert_allclose(shapley(mixed), 2.0 * value - 3.0 * shapley(other), atol=1e-9)  # linearity
    order = data.draw(st.permutations(range(n)))
    np.testing.assert_allclose(shapley(relabel(table, order))[order], value, atol=1e-9)  # anonymity
    null = data.draw(st.integers(0, n - 1))
    without = {removed: c for c, removed in enumerate(table.coalitions) if null not in removed}
    columns = [without[tuple(p for p in removed if p != null)] for removed in table.coalitions]
    nulled = ValueTable(table.players, table.coalitions, table.values[:, columns])
    assert shapley(nulled)[null] == pytest.approx(0.0, abs=1e-12)  # null player


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1])
def test_shapiq_agrees(seed):
    shapiq = pytest.importorskip("shapiq")
    table = random_table(6, seed)
    game = to_shapiq(table)
    exact = shapiq.ExactComputer(game=game, n_players=6)("SV", order=1)
    np.testing.assert_allclose([exact[(p,)] for p in range(6)], shapley(table), atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_shapiq_game_refuses_what_was_not_measured():
    pytest.importorskip("shapiq")
    table = ValueTable(("a", "b"), ((), (0,)), np.array([[1.0, 0.25]]))
    game = to_shapiq(table)
    np.testing.assert_allclose(game(np.array([[True, True], [False, True]])), [1.0, 0.25])
    with pytest.raises(UsageError, match="b removed"):
        game(np.array([[True, False]]))


def test_shapiq_absent(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "shapiq":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError) as raised:
        to_shapiq(ValueTable(("a",), ((),), np.zeros((1, 1))))
    assert "pip install" in raised.value.hint


def test_exact_values_of_too_many_players_are_refused():
    with pytest.raises(UsageError, match=r"of 15 players need 2\^15"):
        shapley(ValueTable(tuple(f"p{i}" for i in range(15)), ((),), np.zeros((1, 1))))
