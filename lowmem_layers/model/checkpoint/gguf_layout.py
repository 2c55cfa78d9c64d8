"""How llama.cpp's converter lays out rows and columns, and how they come back into the model's order.

Rows are moved as they lie in the file, which keeps their blocks intact. Columns stand inside blocks: they stay where
they are, and are moved when a weight is unpacked. Source: llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from lowmem_layers.model.checkpoint.gguf_family import Family
from lowmem_layers.model.formats import REGROUPED, Packed

# tensors of linear attention that have rows of values, and how many heads of keys and queries stand before them
_VALUE_ROWS = {"attn_qkv": 2, "ssm_conv1d": 2, "attn_gate": 0, "ssm_alpha": 0, "ssm_beta": 0, "ssm_a": 0, "ssm_dt": 0}


def in_order(family: Family, config: Any, kind: str, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Give the rows of a block's tensor in the model's order. (A bias has one number a row.)

    The converter interleaves the two halves of each head's rows of llama-like queries and keys; it sorts Falcon's joint
    projection, which has the heads that share a key beside it, into queries, keys and values; it deals out the heads of
    Qwen3.5's values, first one to each key, then the second.

    Shapes: `rows` (..., bytes of a row), `n_rows` of them where the tensor has one dimension more than a bias.
    """
    counts = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    if family.permuted and kind in counts:
        n_heads = getattr(config, counts[kind])
        pairs = rows.view(n_heads, n_rows // n_heads // 2, 2, -1)  # (heads, rows / 2, half, bytes)
        return pairs.transpose(1, 2).reshape(rows.shape)
    if family.model_type == "falcon" and kind == "attn_qkv" and config.new_decoder_architecture:
        heads, groups = config.num_attention_heads, config.num_kv_heads
        by_head = rows.view(heads + 2 * groups, -1)  # (heads, bytes of a head)
        parts = [part.view(groups, -1, by_head.shape[1]) for part in by_head.split([heads, groups, groups])]
        return torch.cat(parts, dim=1).reshape(rows.shape)  # (groups, queries and key and value, bytes)
    if family.tiled and kind in _VALUE_ROWS:
        n_keys, n_values = config.linear_num_key_heads, config.linear_num_value_heads
        flat = rows.view(n_rows, -1)  # (rows, bytes)
        before = _VALUE_ROWS[kind] * n_keys * config.linear_key_head_dim
        dealt = flat[before:].view(n_values // n_keys, n_keys, -1)  # (values of a key, keys, bytes of a head)
        return torch.cat([flat[:before], dealt.transpose(0, 1).reshape(n_rows - before, -1)]).view(rows.shape)
    return rows


def columns_in_order(family: Family, config: Any, kind: str, weight: Packed) -> Packed:
    """Give a weight with its columns in the model's order: Qwen3.5 deals out those of values as it does their rows."""
    n_keys = getattr(config, "linear_num_key_heads", 1)
    if not family.tiled or kind != "ssm_out" or n_keys == config.linear_num_value_heads:
        return weight
    return REGROUPED.pack(weight, config.linear_num_value_heads // n_keys, n_keys)


def joint_pieces(config: Any) -> list[tuple[int, int, int]]:
    """List what makes up Qwen3-Next's joint projection: queries, keys, values and gates, of one key after the other.

    Each is (which of the file's two tensors, first row, last row + 1): the file has all queries, all keys and all
    values in one, all gates in the other.
    """
    n_keys, width = config.linear_num_key_heads, config.linear_key_head_dim
    height = config.linear_num_value_heads // n_keys * config.linear_value_head_dim  # values of one key
    pieces = []
    for key in range(n_keys):
        starts = (key * width, (n_keys + key) * width, 2 * n_keys * width + key * height, key * height)
        for part, start in enumerate(starts):
            pieces.append((int(part == 3), start, start + (width if part < 2 else height)))
    return pieces
