"""Tries hold every choice's tokens, share what is common, and score at the right nodes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.engine.trie import Row, plain_rows, trie_rows
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

tokens = st.integers(0, 3)
choices = st.tuples(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=3))


@st.composite
def items(draw):
    """Items whose choices share contexts, or beginnings of them, or nothing."""
    made = []
    for i in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(choices, min_size=1, max_size=4))
        made.append(item(i, [(context, continuation) for context, continuation in parts]))
    return made


def item(index, parts):
    encoded = tuple(EncodedChoice((*context, *continuation), len(continuation)) for context, continuation in parts)
    return EncodedItem("t", str(index), encoded, 0, str(index))


def path_to(row: Row, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(row.tokens[node])
        node = row.parents[node]
    return path[::-1]


def check_holds_every_choice(rows, given_items):
    seen = set()
    for row in rows:
        for target in row.targets:
            choice = given_items[target.item].choices[target.choice]
            seen.add((target.item, target.choice))
            assert target.tokens == choice.tokens[-choice.n_scored :]
            for j, node in enumerate(target.nodes):
                length = len(choice.tokens) - choice.n_scored + j
                assert path_to(row, node) == list(choice.tokens[:length])
    assert seen == {(i, c) for i, each in enumerate(given_items) for c in range(len(each.choices))}


@given(items())
def test_every_choice_can_be_read_off_its_row(given_items):
    check_holds_every_choice(trie_rows(given_items, cost=lambda n: n * n), given_items)
    check_holds_every_choice(trie_rows(given_items, cost=lambda n: n), given_items)
    check_holds_every_choice(plain_rows(given_items), given_items)


@given(items())
def test_a_trie_has_one_node_for_each_distinct_prefix(given_items):
    for row in trie_rows(given_items, cost=lambda n: n * n):
        members = {target.item for target in row.targets}
        sequences = [c.tokens[:-1] for i in members for c in given_items[i].choices]
        assert len(row) == len({s[: k + 1] for s in sequences for k in range(len(s))})


@given(items())
def test_a_node_sees_its_ancestors_and_itself(given_items):
    for row in trie_rows(given_items, cost=lambda n: n):
        visible = row.visible()
        assert np.array_equal(visible.sum(1), row.depths + 1)
        assert visible.diagonal().all()
        assert not np.triu(visible, 1).any()


def test_items_with_a_long_common_beginning_are_merged_where_it_pays():
    passage = list(range(50))
    pair = [item(i, [([*passage, 60 + i], [7])]) for i in range(2)]
    merged = trie_rows(pair, cost=lambda n: n)
    apart = trie_rows(pair, cost=lambda n: 3.0**n)
    assert [len(row) for row in merged] == [52]
    assert [len(row) for row in apart] == [51, 51]


def test_choices_of_one_token_share_the_node_at_which_they_are_scored():
    (row,) = trie_rows([item(0, [([1, 2, 3], [4]), ([1, 2, 3], [5])])], cost=float)
    assert row.scored_nodes == (2,)
    assert len(row) == 3


def test_a_plain_row_does_not_branch():
    assert all(row.is_chain for row in plain_rows([item(0, [([1, 2], [3, 4]), ([1, 2], [5])])]))
