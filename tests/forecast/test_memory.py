"""What is foreseen of the items is what the engine then lays out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.engine.budget import longest_item
from lowmem_layers.engine.trie import trie_rows
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

tokens = st.lists(st.integers(0, 2), min_size=2, max_size=9)
items = st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=8)


@given(items)
def test_the_longest_item_is_that_of_all_tries(parts):
    encoded = [
        EncodedItem("t", str(i), tuple(EncodedChoice(tuple(each), 1) for each in several), 0, str(i))
        for i, several in enumerate(parts)
    ]
    assert longest_item(encoded) == max((sum(map(len, trie_rows([item], float))) for item in encoded), default=0)
