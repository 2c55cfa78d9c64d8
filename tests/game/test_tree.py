"""The prefix tree computes each shared prefix once, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.tree import PrefixTree, prefix_tree, windows_formula

N_MOST = 9


def windows(n_players, max_removed):
    return [()] + [tuple(range(i, i + k)) for k in range(1, max_removed + 1) for i in range(n_players - k + 1)]


def replay(tree: PrefixTree) -> list[tuple[int, ...]]:
    """Run the steps on states that remember which sublayers they were advanced through."""
    states: dict[int, tuple[int, ...]] = {0: ()}
    for step in tree.steps:
        for source, target in step.copies:
            assert target not in states
            states[target] = states[source]
        for slot in step.advanced:
            states[slot] = (*states[slot], step.position)
    return [states[slot] for slot in tree.final_slots]


def kept(removed, n_players):
    return tuple(p for p in range(n_players) if p not in removed)


def naive(coalitions, n_players):
    """Count the sublayer applications of one whole forward pass a coalition."""
    return sum(len(kept(removed, n_players)) for removed in coalitions)


coalition_lists = st.integers(1, N_MOST).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.sets(st.integers(0, n - 1)).map(lambda s: tuple(sorted(s))), min_size=1, max_size=12),
    )
)


@given(coalition_lists)
def test_every_coalition_ends_in_a_state_advanced_by_just_its_sublayers(given_case):
    n_players, coalitions = given_case
    assert replay(prefix_tree(coalitions, n_players)) == [kept(c, n_players) for c in coalitions]


@given(coalition_lists)
def test_work_is_the_number_of_distinct_prefixes_that_are_advanced(given_case):
    n_players, coalitions = given_case
    nodes = {(p, tuple(q for q in c if q < p)) for c in coalitions for p in range(n_players) if p not in c}
    assert prefix_tree(coalitions, n_players).applications == len(nodes)


@pytest.mark.parametrize(
    ("n_players", "max_removed", "expected"),
    [(64, 4, 7754), (160, 4, 50090), (60, 4, 6790), (60, 0, 60), (6, 6, windows_formula(6, 6))],
)
def test_windows_take_the_closed_form(n_players, max_removed, expected):
    tree = prefix_tree(windows(n_players, max_removed), n_players)
    assert tree.applications == windows_formula(n_players, max_removed) == expected


def test_whole_passes_take_twice_as_much():
    assert naive(windows(64, 4), 64) == 15444
    assert naive(windows(160, 4), 160) == 100020


def test_a_sublayer_that_all_remove_is_never_advanced():
    tree = prefix_tree([(1,), (0, 1), (1, 3)], 4)
    assert tree.steps[1].advanced == ()


def test_a_coalition_given_twice_costs_nothing_more():
    once, twice = prefix_tree([(), (1,)], 4), prefix_tree([(), (1,), (1,), ()], 4)
    assert once.applications == twice.applications
    assert twice.final_slots == (0, 1, 1, 0)


def test_live_slots_grow_as_states_fork():
    tree = prefix_tree(windows(5, 2), 5)
    assert tree.live_slots[-1] == tree.n_slots == 10
    assert list(tree.live_slots) == sorted(tree.live_slots)


@pytest.mark.parametrize("coalitions", [[], [(1, 0)], [(0, 0)], [(4,)], [(-1,)]])
def test_what_is_no_coalition_is_refused(coalitions):
    with pytest.raises(UsageError):
        prefix_tree(coalitions, 4)
