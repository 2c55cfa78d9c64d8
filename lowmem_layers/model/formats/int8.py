"""Eight-bit weights: one signed byte a number and one scale a row.

The *weights* are eight bits wide and the arithmetic is the compute dtype's. LLM.int8's mixed arithmetic is avoided on
purpose: its outlier columns depend on what else is in the batch, so one coalition would change another's numbers.
"""

from __future__ import annotations

import torch

from lowmem_layers.model.formats.packed import Packed

NAME = "int8"

_LEVELS = 127.0


def pack(weight: torch.Tensor) -> Packed:
    """Round each row to 127 levels on either side of zero of its largest magnitude.

    Shapes: weight (..., rows, columns) gives bytes of the same shape and scales (..., rows, 1) in float32.
    """
    exact = weight.detach().float()
    largest = exact.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / _LEVELS
    levels = (exact / scale).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
    return Packed(NAME, tuple(weight.shape), {"weight": levels, "scale": scale})


def from_bitsandbytes(weight: torch.Tensor, row_maximum: torch.Tensor) -> Packed:
    """Take over an 8-bit weight as bitsandbytes saves it: `weight` in int8 and `SCB`, each row's largest magnitude."""
    scale = row_maximum.float().reshape(*weight.shape[:-1], 1) / _LEVELS
    return Packed(NAME, tuple(weight.shape), {"weight": weight.contiguous(), "scale": scale})


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
    levels = packed.parts["weight"].reshape(-1, packed.shape[-1])[start:stop]
    scale = packed.parts["scale"].reshape(-1, 1)[start:stop]
    return Packed(NAME, tuple(levels.shape), {"weight": levels, "scale": scale})


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Multiply each row by its scale in float32, then round once to `out`'s dtype."""
    levels = packed.parts["weight"].reshape(packed.shape)
    if out.dtype == torch.float32:
        torch.mul(levels, packed.parts["scale"], out=out)
    else:
        out.copy_(levels * packed.parts["scale"])
