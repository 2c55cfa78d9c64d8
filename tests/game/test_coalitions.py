"""Coalitions: windows, chains, names; and the table of values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game import (
    ValueTable,
    chain,
    chain_coalitions,
    coalition_name,
    is_window,
    parse_coalition,
    permutations,
    players_of,
    random_coalitions,
    single_removals,
    windows,
)

PLAYERS = players_of(["ffn", "moe", "ffn"])


@pytest.mark.parametrize(("n", "largest", "count"), [(64, 4, 251), (160, 4, 635), (60, 4, 235), (5, 0, 1), (3, 3, 7)])
def test_windows_are_counted(n, largest, count):
    listed = windows(n, largest)
    assert len(listed) == len(set(listed)) == count
    assert listed[0] == ()
    assert listed == sorted(listed, key=lambda removed: (len(removed), removed))
    assert all(is_window(removed) for removed in listed[1:])


@pytest.mark.parametrize(("n", "largest"), [(4, 5), (4, -1), (0, 0)])
def test_impossible_windows_are_refused(n, largest):
    with pytest.raises(UsageError):
        windows(n, largest)


def test_single_removals():
    assert single_removals(3) == [(), (0,), (1,), (2,)]


@given(st.sets(st.integers(0, 5)))
def test_names_round_trip(removed):
    coalition = tuple(sorted(removed))
    assert parse_coalition(coalition_name(coalition, PLAYERS), PLAYERS) == coalition


def test_names():
    assert coalition_name((), PLAYERS) == ""
    assert coalition_name((0, 3), PLAYERS) == "attn.0+moe.1"
    assert coalition_name((0, 3), [player.name for player in PLAYERS]) == "attn.0+moe.1"
    for bad in ("attn.9", "attn.0+attn.0", "attn.0+"):
        with pytest.raises(UsageError):
            parse_coalition(bad, PLAYERS)


def test_permutations_come_in_antithetic_pairs():
    orders = permutations(7, 6, seed=3)
    assert orders == permutations(7, 6, seed=3) != permutations(7, 6, seed=4)
    assert all(orders[k] == orders[k + 1][::-1] and sorted(orders[k]) == list(range(7)) for k in (0, 2, 4))
    assert len(permutations(7, 5, seed=3)) == 5


def test_chains():
    assert chain((2, 0, 1)) == [(), (2,), (0, 2), (0, 1, 2)]
    assert chain((2, 0, 1), 1) == [(), (2,)]
    shared = chain_coalitions([(2, 0, 1), (1, 0, 2)])
    assert shared == [(), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)]


def test_random_coalitions():
    drawn = random_coalitions(8, 30, seed=1, max_removed=4)
    assert len(set(drawn)) == 30
    assert {len(removed) for removed in drawn} == {1, 2, 3, 4}
    assert len(random_coalitions(2, 100, seed=0)) == 3


@pytest.mark.parametrize(
    ("players", "coalitions", "shape", "clusters"),
    [
        (("a", "b"), ((), (0,)), (3, 3), None),
        (("a", "b"), ((), (0,)), (0, 2), None),
        (("a", "a"), ((), (0,)), (1, 2), None),
        (("a", "b"), ((), ()), (1, 2), None),
        (("a", "b"), ((), (1, 0)), (1, 2), None),
        (("a", "b"), ((), (2,)), (1, 2), None),
        (("a", "b"), ((), (-1,)), (1, 2), None),
        (("a", "b"), ((), (0,)), (3, 2), np.array([0, 1])),
    ],
)
def test_inconsistent_tables_are_refused(players, coalitions, shape, clusters):
    with pytest.raises(UsageError):
        ValueTable(players, coalitions, np.zeros(shape), clusters)


def test_taking_items():
    table = ValueTable(("a",), ((), (0,)), np.arange(6.0).reshape(3, 2), np.array([7, 7, 9]), ("x", "y", "z"))
    assert table.n_clusters == 2
    taken = table.take_items([2, 0])
    assert taken.items == ("z", "x")
    np.testing.assert_array_equal(taken.values, [[4, 5], [0, 1]])
    np.testing.assert_array_equal(taken.clusters, [9, 7])
    with pytest.raises(UsageError, match="not measured"):
        ValueTable(("a", "b"), ((),), np.zeros((1, 1))).column((1,))
