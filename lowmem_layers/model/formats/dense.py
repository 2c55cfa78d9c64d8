"""Plain floating-point weights: bfloat16, float16 or float32, stored as they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from lowmem_layers.model.formats.format import Packed


@dataclass(frozen=True)
class Dense:
    """The weight itself."""

    name: str = "dense"

    def packed_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Count the numbers' bytes."""
        return prod(shape) * dtype.itemsize

    def pack(self, weight: torch.Tensor) -> Packed:
        """Keep the weight as it is, in one contiguous piece."""
        return Packed(self, tuple(weight.shape), {"weight": weight.detach().contiguous()})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        weight = packed.parts["weight"].reshape(-1, packed.shape[-1])[start:stop]  # (rows, columns)
        return Packed(self, tuple(weight.shape), {"weight": weight})

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Copy the weight into `out`, rounding to its dtype."""
        out.copy_(packed.parts["weight"])


DENSE = Dense()
