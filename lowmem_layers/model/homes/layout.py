"""One sublayer's packed weights as one run of bytes: the same bytes in RAM, in a file and in a staging buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.model.formats import FORMATS, Packed, WeightFormat

ALIGNMENT_BYTES = 256  # what GPU kernels ask of a pointer, and every dtype's size divides it


@dataclass(frozen=True)
class PartPlace:
    """Say where in the run of bytes one stored tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def n_bytes(self) -> int:
        """Count the tensor's bytes."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class WeightPlace:
    """Say which parts make up one weight, and how they unpack."""

    key: str
    format: WeightFormat
    shape: tuple[int, ...]
    settings: Mapping[str, str | int | float | bool]
    parts: tuple[PartPlace, ...]


@dataclass(frozen=True)
class Layout:
    """Describe a run of bytes that holds several packed weights."""

    weights: tuple[WeightPlace, ...]
    n_bytes: int

    def views(self, buffer: torch.Tensor) -> dict[str, Packed]:
        """Read the packed weights in place: views of `buffer`, which holds at least `n_bytes` bytes."""
        return {
            place.key: Packed(
                place.format,
                place.shape,
                {part.name: _part_view(part, buffer) for part in place.parts},
                place.settings,
            )
            for place in self.weights
        }


def lay_out(packed: Mapping[str, Packed]) -> Layout:
    """Give every part of every weight its place, each aligned."""
    weights = []
    cursor = 0
    for key, weight in packed.items():
        parts = []
        for name, part in weight.parts.items():
            place = PartPlace(name, str(part.dtype).removeprefix("torch."), tuple(part.shape), cursor)
            parts.append(place)
            cursor = -(-(cursor + place.n_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        weights.append(WeightPlace(key, weight.format, tuple(weight.shape), dict(weight.settings), tuple(parts)))
    return Layout(tuple(weights), cursor)


def write_packed(layout: Layout, packed: Mapping[str, Packed], buffer: torch.Tensor) -> None:
    """Copy the packed weights' bytes into their places in `buffer`."""
    for place in layout.weights:
        for part in place.parts:
            _part_view(part, buffer).copy_(packed[place.key].parts[part.name])


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """Write a layout as plain lists, dictionaries, numbers and names."""
    weights = [
        {
            "key": weight.key,
            "format": weight.format.name,
            "shape": list(weight.shape),
            "settings": dict(weight.settings),
            "parts": [[part.name, part.dtype, list(part.shape), part.offset_bytes] for part in weight.parts],
        }
        for weight in layout.weights
    ]
    return {"n_bytes": layout.n_bytes, "weights": weights}


def layout_from_json(document: Mapping[str, Any]) -> Layout:
    """Read back what `layout_to_json` wrote."""
    weights = tuple(
        WeightPlace(
            weight["key"],
            FORMATS[weight["format"]],
            tuple(weight["shape"]),
            weight["settings"],
            tuple(PartPlace(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in weight["parts"]),
        )
        for weight in document["weights"]
    )
    return Layout(weights, document["n_bytes"])


def bytes_of(buffer: torch.Tensor) -> memoryview:
    """Look at a byte tensor in host memory as a buffer, without a copy."""
    array: Any = buffer.numpy()
    return memoryview(array)


def _part_view(part: PartPlace, buffer: torch.Tensor) -> torch.Tensor:
    """Look at one part's bytes as the tensor that they are. Shapes: (n_bytes,) uint8 gives `part.shape`."""
    piece = buffer[part.offset_bytes : part.offset_bytes + part.n_bytes]
    return piece.view(getattr(torch, part.dtype)).view(part.shape)
