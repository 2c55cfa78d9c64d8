"""Homes: where packed weights live between visits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lowmem_layers.model.formats import Packed
from lowmem_layers.model.layout import Layout, lay_out, write_packed
from lowmem_layers.model.store import GroupKey


class MemoryHome:
    """Packed weights in the memory of one device: RAM, or the GPU itself. Visits there copy nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._groups: dict[GroupKey, tuple[Layout, torch.Tensor]] = {}

    def add(self, key: GroupKey, packed: Mapping[str, Packed]) -> None:
        """Move one sublayer's packed weights in."""
        layout = lay_out(packed)
        buffer = torch.empty(layout.n_bytes, dtype=torch.uint8, device=self.device)
        write_packed(layout, packed, buffer)
        self._groups[key] = (layout, buffer)

    def stream(self, requests: Sequence[Sequence[GroupKey]]) -> Iterator[Mapping[str, Packed]]:
        """Yield views of the packed weights where they lie."""
        for request in requests:
            views: dict[str, Packed] = {}
            for key in request:
                layout, buffer = self._groups[key]
                views |= layout.views(buffer)
            yield views

    def describe(self) -> dict[str, Any]:
        """Say which memory, and how many bytes of it."""
        return {"home": self.device.type, "packed_bytes": sum(layout.n_bytes for layout, _ in self._groups.values())}
