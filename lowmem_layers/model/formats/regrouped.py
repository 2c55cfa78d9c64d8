"""A matrix whose columns stand in another order in the file than in the model, inside blocks that are kept.

llama.cpp deals out the columns that belong to a key's heads of values: the first of each key, then the second of each
key, and so on. They are put together again while the matrix is unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lowmem_layers.model.formats.format import Packed, WeightFormat, row_pieces


@dataclass(frozen=True)
class Regrouped:
    """Another format's weight (rows, rounds × groups × width), given as (rows, groups × rounds × width).

    The settings are the other format's, and `regrouped.format` its name, `regrouped.rounds` and `regrouped.groups`.
    """

    formats: Mapping[str, WeightFormat]
    name: str = "regrouped"

    def pack(self, weight: Packed, rounds: int, groups: int) -> Packed:
        """Mark a packed matrix as one whose columns are dealt out to `groups` in so many rounds."""
        own = {"regrouped.format": weight.format.name, "regrouped.rounds": rounds, "regrouped.groups": groups}
        return Packed(self, weight.shape, weight.parts, {**weight.settings, **own})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        inner = self._inner(packed)
        cut = inner.format.rows(inner, start, stop)
        return Packed(self, cut.shape, cut.parts, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Unpack the matrix, some rows at a time, and put its columns in order."""
        rounds, groups = int(packed.settings["regrouped.rounds"]), int(packed.settings["regrouped.groups"])
        inner = self._inner(packed)
        for piece, there in row_pieces(inner, out):
            dealt = torch.empty_like(there)
            piece.format.unpack(piece, dealt)
            rows = dealt.view(len(there), rounds, groups, -1).transpose(1, 2)  # (rows, groups, rounds, width)
            there.copy_(rows.reshape(there.shape))

    def _inner(self, packed: Packed) -> Packed:
        """Give the weight as it lies packed."""
        settings = {name: value for name, value in packed.settings.items() if not name.startswith("regrouped.")}
        return Packed(self.formats[str(packed.settings["regrouped.format"])], packed.shape, packed.parts, settings)
