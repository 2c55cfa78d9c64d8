"""Weight formats: each module packs a tensor and unpacks it into a dense one; `unpack` finds the module by name."""

from __future__ import annotations

import torch

from lowmem_layers.model.formats import dense, four_bit, gguf_blocks, gptq, int8
from lowmem_layers.model.formats.packed import Packed

_MODULES = {module.NAME: module for module in (dense, four_bit, gguf_blocks, gptq, int8)}


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Write the dense weight into `out`, in `out`'s dtype and on its device.

    Shapes: `out` has `packed.shape`; the packed parts lie on `out`'s device.
    """
    _MODULES[packed.format].unpack(packed, out)


__all__ = ["Packed", "unpack"]
