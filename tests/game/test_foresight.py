"""The expected loss of a removal: exact where players far apart do not interact, and chosen by greedily."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.foresight import chains, choose_greedily, foresee, unknown_to
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.values.table import ValueTable

N = 8
PLAYERS = tuple(f"ffn.{i}" for i in range(N))
SINGLE = np.array([9.0, 1.0, 0.5, 4.0, 0.25, 0.75, 2.0, 8.0])
PAIR = np.array([0.3, -0.2, 1.5, 0.1, 6.0, 0.2, 0.7])  # what neighbours i and i + 1 cost besides


def loss(removed):
    """Lose each player's part, and a further one for each pair of neighbours that is gone."""
    return SINGLE[list(removed)].sum() + sum(PAIR[i] for i in removed if i + 1 in removed)


def table(largest, noise=0.0, n_items=20):
    coalitions = tuple(windows(N, largest))
    rng = np.random.default_rng(0)
    values = np.array([[10.0 - loss(c) for c in coalitions]]) + noise * rng.standard_normal((n_items, len(coalitions)))
    return ValueTable(PLAYERS, coalitions, values)


@pytest.mark.parametrize("removed", [(2,), (0, 1), (0, 2, 5), (1, 2, 3, 4, 5), tuple(range(N)), (0, 1, 2, 3, 6, 7)])
@pytest.mark.parametrize("largest", [2, 3, 4])
def test_the_expected_loss_is_exact_where_only_neighbours_interact(removed, largest):
    assert foresee(table(largest), [removed]).loss[0] == pytest.approx(loss(removed))


def test_windows_of_one_add_up_and_know_no_neighbours():
    assert foresee(table(1), [(3, 4, 5)]).loss[0] == pytest.approx(SINGLE[3:6].sum())
    assert len(unknown_to(table(1), (3, 4, 5))) == 1


def test_chains_are_what_stands_side_by_side():
    assert chains((0, 1, 4, 6, 7)) == [(0, 1), (4,), (6, 7)]
    assert chains(()) == []


def test_the_greedy_choice_minds_neighbours():
    path = choose_greedily(table(4), [(i,) for i in range(N)], 4)
    # 4 and 5 are the cheapest after 2 alone, but together they cost 6 more
    assert path == [(4,), (2, 4), (1, 2, 4), (1, 2, 4, 6)]
    assert choose_greedily(table(1), [(i,) for i in range(N)], 3)[-1] == (2, 4, 5)


def test_units_of_several_players_go_together():
    units = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert choose_greedily(table(4), units, 2) == [(2, 3), (2, 3, 4, 5)]


def test_what_was_not_measured_is_said_and_not_guessed():
    assert unknown_to(table(4), (1, 2, 3)) == []
    assert "2 groups" in unknown_to(table(4), (1, 2, 6))[0]
    assert "windows of at most 4" in unknown_to(table(4), (1, 2, 3, 4, 5))[0]
    holes = table(2)
    kept = [column for column, removed in enumerate(holes.coalitions) if removed != (3,)]
    without = ValueTable(PLAYERS, tuple(holes.coalitions[column] for column in kept), holes.values[:, kept])
    with pytest.raises(UsageError, match=r"ffn\.3"):
        foresee(without, [(3, 6)])


def test_a_player_whose_value_is_not_finite_goes_last():
    found = table(2)
    values = found.values.copy()
    values[3, found.column_index((4,))] = -np.inf
    path = choose_greedily(ValueTable(PLAYERS, found.coalitions, values), [(i,) for i in range(N)], 3)
    assert (4,) not in path
    assert path[0] == (2,)


def test_the_interval_of_a_sum_holds_the_truth():
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        clean = table(2, n_items=40)
        noisy = clean.values + rng.standard_normal(clean.values.shape)
        ci = foresee(ValueTable(PLAYERS, clean.coalitions, noisy), [(1, 2, 3, 6)]).ci
        inside += bool(ci.low[0] <= loss((1, 2, 3, 6)) <= ci.high[0])
    assert 181 <= inside <= 199  # of 200 at 95 %


def test_what_is_known_least_does_not_go_first():
    clean = table(1, n_items=16)
    values = clean.values.copy()
    signs = np.tile([1.0, -1.0], 8)
    values[:, clean.column_index((3,))] += 6.0 + 40.0 * signs  # on average a gain of 2, and nobody knows
    path = choose_greedily(ValueTable(PLAYERS, clean.coalitions, values), [(i,) for i in range(N)], 2)
    assert path == [(4,), (2, 4)]
