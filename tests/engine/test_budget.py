"""Tiles keep within memory and work, and what cannot fit is refused with the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.engine.budget import ItemCost, Widths, least_room, plan_tiles, sizes_for, sizes_within
from lowmem_layers.errors import BudgetError

costs = st.lists(st.builds(ItemCost, st.integers(1, 100), st.integers(1, 1000)), min_size=1, max_size=40)


@given(costs, st.integers(100, 500), st.integers(1, 5000))
def test_tiles_hold_every_item_once_in_order_and_keep_their_bounds(given_costs, budget_bytes, tile_work):
    order = list(range(len(given_costs)))[::-1]
    tiles = plan_tiles(given_costs, order, budget_bytes, tile_work)
    assert [index for tile in tiles for index in tile] == order
    for tile in tiles:
        assert sum(given_costs[i].n_bytes for i in tile) <= budget_bytes
        assert len(tile) == 1 or sum(given_costs[i].work for i in tile) <= tile_work


def test_an_item_that_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(BudgetError, match="3 MiB; 2 MiB") as caught:
        plan_tiles([ItemCost(3 << 20, 1)], [0], 2 << 20, 10)
    assert "--max-removed" in caught.value.hint


@given(
    st.integers(1, 1 << 34), st.sampled_from(["cpu", "cuda"]), st.integers(64, 200_000), st.integers(1 << 10, 1 << 33)
)
def test_what_is_foreseen_as_the_least_room_is_enough(more, kind, vocabulary, item_bytes):
    """Chunks shrink with the memory, so that an item fits wherever there is as much as was asked for it."""
    device, widths = torch.device(kind), Widths((1,), 4096, 57_344, vocabulary, 2, parallel=False)
    usual = sizes_for(device, vocabulary)
    budget = least_room(widths, usual, device, item_bytes) + more - 1
    sizes = sizes_within(usual, widths, device, budget)
    assert item_bytes <= budget - widths.chunk_bytes(sizes)
    assert sizes.chunk_tokens <= usual.chunk_tokens


def test_chunks_stay_as_they_are_where_there_is_room():
    device, widths = torch.device("cpu"), Widths((1,), 576, 1536, 49_152, 4, parallel=False)
    assert sizes_within(sizes_for(device, 49_152), widths, device, 2 << 30) == sizes_for(device, 49_152)
