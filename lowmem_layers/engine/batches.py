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
        if batches and _fits(batches[-1], row, max_tokens, max_waste):
            batches[-1].append(row)
        else:
            batches.append([row])
    return [Batch(tuple(batch)) for batch in batches]


def _fits(batch: list[Row], row: Row, max_tokens: int, max_waste: float) -> bool:
    padded = len(row) * (len(batch) + 1)
    used = sum(len(other) for other in batch) + len(row)
    alike = batch[-1].is_chain == row.is_chain
    return alike and padded <= max_tokens and padded - used <= max_waste * padded


def plain_inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Lay out rows that do not branch, for the family's own masks and positions."""
    present = _padded(batch, [np.ones(len(row), dtype=np.int64) for row in batch.rows])
    ids = _padded(batch, [np.asarray(row.tokens) for row in batch.rows])
    return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(present).to(device)}


def tree_inputs(batch: Batch, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Lay out rows that branch: tree masks, depths for positions."""
    ids = _padded(batch, [np.asarray(row.tokens) for row in batch.rows])
    depths = _padded(batch, [row.depths for row in batch.rows])
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "position_ids": torch.from_numpy(depths).to(device),
        "attention_mask": _tree_masks(batch, depths, config, dtype, device),
    }


def _padded(batch: Batch, rows: Sequence[np.ndarray]) -> np.ndarray:
    laid = np.zeros((len(rows), batch.n_nodes), dtype=np.int64)
    for r, row in enumerate(rows):
        laid[r, : len(row)] = row
    return laid


def _tree_masks(batch: Batch, depths: np.ndarray, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    visible = np.zeros((len(batch.rows), batch.n_nodes, batch.n_nodes), dtype=bool)
    visible[:, range(batch.n_nodes), range(batch.n_nodes)] = True
    for r, row in enumerate(batch.rows):
        visible[r, : len(row), : len(row)] = row.visible()
    near = visible & _within(depths, getattr(config, "sliding_window", None))
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        by_kind = {"full_attention": visible, "sliding_attention": near}
        return {kind: _additive(by_kind[kind], dtype, device) for kind in kinds if kind in by_kind}
    return _additive(near, dtype, device)


def _within(depths: np.ndarray, window: int | None) -> np.ndarray:
    """Say which node is less than a sliding window away from which. Shapes: (g, T) → (g, T, T)."""
    distance = depths[:, :, None] - depths[:, None, :]
    return distance < window if window else np.ones_like(distance, dtype=bool)


def _additive(visible: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Turn visibility into what is added to attention scores. Shapes: (g, T, T) → (g, 1, T, T)."""
    mask = torch.zeros(visible.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~visible), torch.finfo(dtype).min)
    return mask[:, None].to(device)
