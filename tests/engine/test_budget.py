"""Tiles keep within memory and work, and what cannot fit is refused with the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.engine.budget import ItemCost, plan_tiles
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
