"""Batches waste little, lay rows out in full, and show every node its ancestors only."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.engine.batches import Batch, make_batches, plain_inputs, tree_inputs
from lowmem_layers.engine.trie import Row

CPU = torch.device("cpu")
FORK = Row((5, 6, 7, 8), (-1, 0, 1, 0), ())  # 5 → 6 → 7 and 5 → 8


def chain(length):
    return Row(tuple(range(1, length + 1)), tuple(range(-1, length - 1)), ())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_and_keep_their_bounds(lengths, max_tokens):
    rows = [chain(length) for length in lengths]
    batches = make_batches(rows, max_tokens, max_waste=0.02)
    assert sorted(len(row) for batch in batches for row in batch.rows) == sorted(lengths)
    for batch in batches:
        padded = batch.n_nodes * len(batch.rows)
        assert len(batch.rows) == 1 or padded <= max_tokens
        assert padded - batch.n_tokens <= 0.02 * padded


def test_plain_rows_are_padded_on_the_right():
    inputs = plain_inputs(Batch((chain(3), chain(1))), CPU)
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tree_positions_count_depth():
    inputs = tree_inputs(Batch((FORK,)), SimpleNamespace(), torch.float32, CPU)
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 1]]


def seen(mask):
    return (mask[0, 0] == 0).int().tolist()


def test_tree_masks_hide_the_other_branch():
    mask = tree_inputs(Batch((FORK,)), SimpleNamespace(), torch.float32, CPU)["attention_mask"]
    assert mask.dtype == torch.float32
    assert seen(mask) == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_a_sliding_window_counts_depth_not_place():
    mask = tree_inputs(Batch((FORK,)), SimpleNamespace(sliding_window=2), torch.float32, CPU)["attention_mask"]
    assert seen(mask) == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]


def test_families_with_layer_types_get_a_mask_for_each():
    config = SimpleNamespace(sliding_window=2, layer_types=["sliding_attention", "full_attention"])
    masks = tree_inputs(Batch((FORK,)), config, torch.float32, CPU)["attention_mask"]
    assert seen(masks["full_attention"])[2] == [1, 1, 1, 0]
    assert seen(masks["sliding_attention"])[2] == [0, 1, 1, 0]


def test_padding_sees_itself_so_that_no_row_of_scores_is_empty():
    mask = tree_inputs(Batch((FORK, chain(2))), SimpleNamespace(), torch.float32, CPU)["attention_mask"]
    assert (mask[1, 0] == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
