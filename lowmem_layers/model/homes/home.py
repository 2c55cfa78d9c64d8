"""Homes: where packed weights live between visits. Memory of a device, or one file on disk."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

import torch

from lowmem_layers.model.formats import Packed
from lowmem_layers.model.homes.layout import Layout, lay_out, write_packed
from lowmem_layers.model.homes.packed_file import PackedFile
from lowmem_layers.model.homes.store import GroupKey


class Home(Protocol):
    """Hold packed groups, and copy any of them into host memory."""

    @property
    def layouts(self) -> Mapping[GroupKey, Layout]:
        """Say what each group holds."""
        ...

    def read_into(self, key: GroupKey, buffer: torch.Tensor) -> None:
        """Copy one group's bytes to the start of `buffer`, in host memory."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say where the packed weights live and how many bytes they take."""
        ...


class MemoryHome:
    """Packed weights in the memory of one device: RAM, or the GPU itself.

    Where that device computes, it is its own feed: visits there copy nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.layouts: dict[GroupKey, Layout] = {}
        self._buffers: dict[GroupKey, torch.Tensor] = {}

    def add(self, key: GroupKey, packed: Mapping[str, Packed]) -> None:
        """Move one group in."""
        layout = lay_out(packed)
        buffer = torch.empty(layout.n_bytes, dtype=torch.uint8, device=self.device)
        write_packed(layout, packed, buffer)
        self.layouts[key] = layout
        self._buffers[key] = buffer

    def read_into(self, key: GroupKey, buffer: torch.Tensor) -> None:
        """Copy one group's bytes to the start of `buffer`."""
        buffer[: self.layouts[key].n_bytes].copy_(self._buffers[key])

    def stream(self, requests: Sequence[Sequence[GroupKey]]) -> Generator[Mapping[str, Packed], None, None]:
        """Yield views of the packed weights where they lie."""
        for request in requests:
            views: dict[str, Packed] = {}
            for key in request:
                views |= self.layouts[key].views(self._buffers[key])
            yield views

    def describe(self) -> dict[str, Any]:
        """Say which memory, and how many bytes of it."""
        return {"home": self.device.type, "packed_bytes": total_bytes(self.layouts)}


class DiskHome:
    """Packed weights in one file, read group by group."""

    def __init__(self, file: PackedFile) -> None:
        self._file = file
        self.layouts = {key: layout for key, layout in file.layouts.items() if key[0] >= 0}

    def read_into(self, key: GroupKey, buffer: torch.Tensor) -> None:
        """Read one group's bytes to the start of `buffer`."""
        self._file.read_into(key, buffer)

    def describe(self) -> dict[str, Any]:
        """Say that it is the disk, and how many bytes of it."""
        return {"home": "disk", "packed_bytes": total_bytes(self.layouts)}


def total_bytes(layouts: Mapping[GroupKey, Layout]) -> int:
    """Add up the packed bytes of all groups."""
    return sum(layout.n_bytes for layout in layouts.values())


def largest_layer_bytes(layouts: Mapping[GroupKey, Layout]) -> int:
    """Count the packed bytes of the largest decoder layer: what one staging buffer must hold."""
    by_layer: dict[int, int] = {}
    for (layer, _), layout in layouts.items():
        by_layer[layer] = by_layer.get(layer, 0) + layout.n_bytes
    return max(by_layer.values(), default=0)
