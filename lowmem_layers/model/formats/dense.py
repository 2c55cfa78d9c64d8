"""Plain floating-point weights: bfloat16, float16 or float32, stored as they are."""

from __future__ import annotations

import torch

from lowmem_layers.model.formats.packed import Packed

NAME = "dense"


def pack(weight: torch.Tensor) -> Packed:
    """Keep the weight as it is, in one contiguous piece."""
    return Packed(NAME, tuple(weight.shape), {"weight": weight.detach().contiguous()})


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
    weight = packed.parts["weight"].reshape(-1, packed.shape[-1])[start:stop]
    return Packed(NAME, tuple(weight.shape), {"weight": weight})


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Copy the weight into `out`, rounding to its dtype."""
    out.copy_(packed.parts["weight"])
