"""Weight formats: one object each, which packs a weight, reads it from a checkpoint and unpacks it into a dense one."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from lowmem_layers.model.formats.awq import AWQ
from lowmem_layers.model.formats.compressed import COMPRESSED
from lowmem_layers.model.formats.dense import DENSE
from lowmem_layers.model.formats.format import CheckpointFormat, OwnPacking, Packed, PackingFormat, WeightFormat
from lowmem_layers.model.formats.four_bit import FOUR_BIT
from lowmem_layers.model.formats.fp8 import FP8
from lowmem_layers.model.formats.gguf_blocks import GGUF
from lowmem_layers.model.formats.gptq import GPTQ
from lowmem_layers.model.formats.hqq import HQQ
from lowmem_layers.model.formats.int8 import INT8
from lowmem_layers.model.formats.joined import Joined, stack
from lowmem_layers.model.formats.modelopt import MODELOPT
from lowmem_layers.model.formats.mxfp4 import MXFP4
from lowmem_layers.model.formats.regrouped import Regrouped
from lowmem_layers.model.formats.scaled import SCALED
from lowmem_layers.model.formats.torchao import TORCHAO
from lowmem_layers.model.formats.turned import Turned

# The formats in which safetensors checkpoints are read. A further one is a file of its own and a name in this list.
CHECKPOINT_FORMATS: tuple[CheckpointFormat, ...] = (
    FOUR_BIT, INT8, GPTQ, AWQ, COMPRESSED, FP8, MXFP4, MODELOPT, HQQ, TORCHAO,
)  # fmt: skip

# What dense weights can be packed into, by the name that records and plans use.
TARGETS: Mapping[str, PackingFormat] = {"none": DENSE, "nf4": FOUR_BIT, "int8": INT8}

_SINGLE: dict[str, WeightFormat] = {each.name: each for each in (DENSE, GGUF, FOUR_BIT, INT8, GPTQ, SCALED)}
_PIECES = _SINGLE | {"turned": Turned(_SINGLE)}
_STACKED: dict[str, WeightFormat] = _SINGLE | {"joined": Joined(_PIECES)}
TURNED, REGROUPED = Turned(_STACKED), Regrouped(_STACKED)
FORMATS: Mapping[str, WeightFormat] = _STACKED | {"turned": TURNED, "regrouped": REGROUPED}


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Write the dense weight into `out`, in `out`'s dtype and on its device.

    Shapes: `out` has `packed.shape` and is contiguous; the packed parts lie on its device.
    """
    packed.format.unpack(packed, out)


def unpacked(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """Unpack a weight in host memory into a dense one of its own."""
    out = torch.empty(packed.shape, dtype=dtype)
    packed.format.unpack(packed, out)
    return out


def unpack_slice(packed: Packed, index: int, out: torch.Tensor) -> None:
    """Write one item of the first dimension (an expert) into `out`.

    Shapes: `out` has `packed.shape` without its first dimension.
    """
    height = prod(packed.shape[1:-1])  # rows of one item
    item = packed.format.rows(packed, index * height, (index + 1) * height)
    unpack(item, out.view(height, packed.shape[-1]))


__all__ = [
    "AWQ", "CHECKPOINT_FORMATS", "COMPRESSED", "DENSE", "FORMATS", "FOUR_BIT", "FP8", "GGUF", "GPTQ", "HQQ", "INT8",
    "MODELOPT", "MXFP4", "REGROUPED", "SCALED", "TARGETS", "TORCHAO", "TURNED", "CheckpointFormat", "OwnPacking",
    "Packed", "PackingFormat", "WeightFormat", "stack", "unpack", "unpack_slice", "unpacked",
]  # fmt: skip
