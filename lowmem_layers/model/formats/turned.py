"""Matrices that stand in the model transposed: (in, out), while files pack them along `in`.

GPT-2 and gpt-oss multiply from the left; gpt-oss' experts alternate the columns of gate and up projections. Here the
packed matrices stay as they are, and are turned one by one while they are unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from lowmem_layers.model.formats.format import Packed, WeightFormat


@dataclass(frozen=True)
class Turned:
    """Another format's weight (experts, pieces × out, in), given as (experts, in, out × pieces); or a single matrix.

    The settings are the other format's, and `turned.format` its name, `turned.pieces` how many matrices of an expert
    stand one below the other there and column by column here.
    """

    formats: Mapping[str, WeightFormat]
    name: str = "turned"

    def pack(self, weight: Packed, pieces: int) -> Packed:
        """Turn a packed stack of experts, or one matrix."""
        *experts, rows, columns = weight.shape
        settings = {**weight.settings, "turned.format": weight.format.name, "turned.pieces": pieces}
        return Packed(self, (*experts, columns, rows), weight.parts, settings)

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut whole experts out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        height, width = packed.shape[-2:]
        if start % height or stop % height:
            raise ValueError(f"rows {start} to {stop} are not whole experts of {height} rows")
        inner = _inner(self.formats, packed)
        cut = inner.format.rows(inner, start // height * width, stop // height * width)
        return Packed(self, ((stop - start) // height, height, width), cut.parts, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Unpack one expert after the other and write it turned."""
        height, width = packed.shape[-2:]
        pieces = int(packed.settings["turned.pieces"])
        inner = _inner(self.formats, packed)
        whole = torch.empty(width, height, dtype=out.dtype, device=out.device)  # one expert, as packed
        for expert, there in enumerate(out.view(-1, height, width)):
            one = inner.format.rows(inner, expert * width, (expert + 1) * width)
            inner.format.unpack(one, whole)
            turned = whole.view(pieces, width // pieces, height).permute(2, 1, 0)  # (in, out, pieces)
            there.copy_(turned.reshape(height, width))


def _inner(formats: Mapping[str, WeightFormat], packed: Packed) -> Packed:
    """Give the weight as it lies packed: (experts, pieces × out, in)."""
    height, width = packed.shape[-2:]
    shape = (prod(packed.shape[:-2]), width, height)
    settings = {name: value for name, value in packed.settings.items() if not name.startswith("turned.")}
    return Packed(formats[str(packed.settings["turned.format"])], shape, packed.parts, settings)
