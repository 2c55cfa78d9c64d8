"""Eight-bit weights: one signed byte a number and one scale a row.

The *weights* are eight bits wide and the arithmetic is the compute dtype's. LLM.int8's mixed arithmetic is avoided on
purpose: its outlier columns depend on what else is in the batch, so one coalition would change another's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import OwnPacking, Packed, Stored, row_pieces

# what bitsandbytes and transformers call the method in a config, for eight bits and for four
BITSANDBYTES = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")

_LEVELS = 127.0


@dataclass(frozen=True)
class Int8:
    """One byte a number, one float32 scale a row; in checkpoints as bitsandbytes saves it."""

    name: str = "int8"
    title: str = "bitsandbytes 8-bit"
    parts: tuple[str, ...] = ("weight", "SCB", "weight_format")
    scales: tuple[str, ...] = ("SCB",)

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of bitsandbytes that does not say four bits."""
        if about["quant_method"] not in BITSANDBYTES or about.get("load_in_4bit") or about.get("_load_in_4bit"):
            return None
        return OwnPacking(self, 8, "bitsandbytes int8")

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count bytes and scales; the note on the format of the bytes is not kept."""
        return sum(part.n_bytes for key, part in parts.items() if key != "weight_format")

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over a weight as bitsandbytes saves it: `weight` in int8 and `SCB`, each row's largest magnitude.

        Raises:
            CheckpointError: one of both is missing.
        """
        missing = [part for part in ("weight", "SCB") if part not in tensors]
        if missing:
            raise CheckpointError(
                f"{file}: {name}: the 8-bit weight lacks {', '.join(missing)}",
                "the checkpoint is incomplete; save or download it again",
            )
        levels = tensors["weight"].contiguous()  # (..., rows, columns)
        scale = tensors["SCB"].float().reshape(*levels.shape[:-1], 1) / _LEVELS  # (..., rows, 1)
        return Packed(self, tuple(levels.shape), {"weight": levels, "scale": scale})

    def packed_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Count one byte a number and four a row."""
        return prod(shape) + prod(shape) // shape[-1] * 4

    def pack(self, weight: torch.Tensor) -> Packed:
        """Round each row to 127 levels on either side of zero of its largest magnitude.

        Shapes: weight (..., rows, columns) gives bytes of the same shape and scales (..., rows, 1) in float32.
        """
        exact = weight.detach().float()
        largest = exact.abs().amax(dim=-1, keepdim=True)  # (..., rows, 1)
        # by a tensor: CUDA multiplies by the rounded reciprocal of a number
        scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / torch.full_like(largest, _LEVELS)
        levels = (exact / scale).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
        return Packed(self, tuple(weight.shape), {"weight": levels, "scale": scale})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        levels = packed.parts["weight"].reshape(-1, packed.shape[-1])[start:stop]  # (rows, columns)
        scale = packed.parts["scale"].reshape(-1, 1)[start:stop]  # (rows, 1)
        return Packed(self, tuple(levels.shape), {"weight": levels, "scale": scale})

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Multiply each row by its scale in float32, then round once to `out`'s dtype."""
        for piece, there in row_pieces(packed, out):
            levels, scale = piece.parts["weight"], piece.parts["scale"]  # (rows, columns), (rows, 1)
            if there.dtype == torch.float32:
                torch.mul(levels, scale, out=there)
            else:
                there.copy_(levels * scale)


INT8 = Int8()
