"""Batches: rows of (nearly) the same length laid side by side, and what the model's own forward is given for them.

A row that branches needs a mask that shows every node its ancestors only, and positions that count depth. The mask is
additive float (boolean masks are silently wrong under eager attention), and families that tell full from sliding
attention by `config.layer_types` get one for each. Rows that do not branch are left to the family's own masks and
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lowmem_layers.engine.trie import Row

MASKED_KINDS = frozenset({"full_attention", "sliding_attention"})
"""The kinds of layers, as `config.layer_types` names them, that tree masks are made for."""


@dataclass(frozen=True)
class Batch:
    """Rows of one batch. Shapes: g rows, padded on the right to T nodes; `scored` (S,) are indices into g · T."""

    rows: tuple[Row, ...]

    @cached_property
    def n_nodes(self) -> int:
        """T, the longest row."""
        return max(len(row) for row in self.rows)

    @cached_property
    def n_tokens(self) -> int:
        """Count the nodes without padding."""
        return sum(len(row) for row in self.rows)

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """List the distinct scored nodes, as indices into the flattened rows."""
        return tuple(r * self.n_nodes + node for r, row in enumerate(self.rows) for node in row.scored_nodes)


def make_batches(rows: Sequence[Row], max_tokens: int, max_waste: float = 0.02) -> list[Batch]:
    """Lay rows of similar length side by side, up to `max_tokens` a batch, padding at most `max_waste` of it.

    Rows that branch and rows that do not are kept apart.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.is_chain, len(row), row.tokens)):
        last = batches[-1] if batches else []
        padded = len(row) * (len(last) + 1)
        waste = padded - sum(map(len, last)) - len(row)
        alike = bool(last) and last[-1].is_chain == row.is_chain
        if alike and padded <= max_tokens and waste <= max_waste * padded:
            last.append(row)
        else:
            batches.append([row])
    return [Batch(tuple(batch)) for batch in batches]


def plain_inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Lay out rows that do not branch, for the family's own masks and positions."""
    present = _padded(batch, [np.ones(len(row), dtype=np.int64) for row in batch.rows])
    ids = _padded(batch, [np.asarray(row.tokens) for row in batch.rows])
    return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(present).to(device)}


def tree_inputs(batch: Batch, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Lay out rows that branch: tree masks, depths for positions."""
    ids = _padded(batch, [np.asarray(row.tokens) for row in batch.rows])  # (g, T)
    depths = _padded(batch, [row.depths for row in batch.rows])  # (g, T)
    # 1) who sees whom; padding sees itself, so that no row of attention scores is empty
    visible = np.zeros((len(batch.rows), batch.n_nodes, batch.n_nodes), dtype=bool)  # (g, T, T)
    visible[:, range(batch.n_nodes), range(batch.n_nodes)] = True
    for r, row in enumerate(batch.rows):
        visible[r, : len(row), : len(row)] = row.visible()
    near = visible & within_window(depths, getattr(config, "sliding_window", None))
    # 2) one mask a kind of layer, or one for all of them
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        by_kind = {"full_attention": visible, "sliding_attention": near}
        masks = {kind: _additive(by_kind[kind], dtype, device) for kind in sorted(kinds & MASKED_KINDS)}
    else:
        masks = _additive(near, dtype, device)
    positions = torch.from_numpy(depths).to(device)
    return {"input_ids": torch.from_numpy(ids).to(device), "position_ids": positions, "attention_mask": masks}


def within_window(depths: np.ndarray, window: int | None) -> np.ndarray:
    """Say which node is less than a sliding window away from which. Shapes: (g, T) → (g, T, T)."""
    distance = depths[:, :, None] - depths[:, None, :]
    return distance < window if window else np.ones_like(distance, dtype=bool)


def _padded(batch: Batch, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Fill up with zeros on the right. Shapes: (g, T)."""
    laid = np.zeros((len(rows), batch.n_nodes), dtype=np.int64)
    for r, row in enumerate(rows):
        laid[r, : len(row)] = row
    return laid


def _additive(visible: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Turn visibility into what is added to attention scores. Shapes: (g, T, T) → (g, 1, T, T)."""
    mask = torch.zeros(visible.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~visible), torch.finfo(dtype).min)
    return mask[:, None].to(device)
