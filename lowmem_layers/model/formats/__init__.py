"""Weight formats: each module packs a tensor and unpacks it into a dense one; `unpack` finds the module by name."""

from __future__ import annotations

from math import prod

import torch

from lowmem_layers.model.formats import dense, four_bit, gguf_blocks, gptq, int8, joined
from lowmem_layers.model.formats.packed import Packed

_MODULES = {module.NAME: module for module in (dense, four_bit, gguf_blocks, gptq, int8)}

# Unpacking takes up to twenty bytes a number on the side, so it goes piece by piece (not by smaller ones: on a busy
# machine every step of a piece may wait for its threads).
_PIECE_NUMBERS = {"cpu": 1 << 21}
_PIECE_NUMBERS_ELSEWHERE = 1 << 23


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Write the dense weight into `out`, in `out`'s dtype and on its device.

    Shapes: `out` has `packed.shape` and is contiguous; the packed parts lie on its device.
    """
    width, n_rows = packed.shape[-1], prod(packed.shape[:-1])
    flat = out.view(n_rows, width)
    if packed.format == joined.NAME:
        for row, piece in joined.pieces(packed):
            unpack(piece, flat[row : row + piece.shape[0]])
        return
    module = _MODULES[packed.format]
    if packed.format == four_bit.NAME:
        packed = four_bit.plain_scales(packed) if "nested_absmax" in packed.parts else packed
    step = max(1, _PIECE_NUMBERS.get(out.device.type, _PIECE_NUMBERS_ELSEWHERE) // width)
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        module.unpack(module.rows(packed, start, stop), flat[start:stop])


def unpack_slice(packed: Packed, index: int, out: torch.Tensor) -> None:
    """Write one item of the first dimension (an expert) into `out`.

    Shapes: `out` has `packed.shape` without its first dimension.
    """
    if packed.format == four_bit.NAME and "nested_absmax" in packed.parts:
        packed = four_bit.plain_scales(packed)
    height = prod(packed.shape[1:-1])
    module = joined if packed.format == joined.NAME else _MODULES[packed.format]
    unpack(module.rows(packed, index * height, (index + 1) * height), out.view(height, packed.shape[-1]))


__all__ = ["Packed", "unpack", "unpack_slice"]
