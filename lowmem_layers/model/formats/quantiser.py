"""Round dense weights to what they are once quantised to a format and unpacked again."""

from __future__ import annotations

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.change import QuantFormat
from lowmem_layers.model.formats.format import Packed
from lowmem_layers.model.formats.four_bit import FOUR_BIT
from lowmem_layers.model.formats.gguf_blocks import GGUF
from lowmem_layers.model.formats.int8 import INT8

_PIECE_NUMBERS = 1 << 20  # the gguf package takes many times a weight's size while it quantises


def rounded(weight: torch.Tensor, into: QuantFormat, out: torch.Tensor) -> None:
    """Quantise a weight and write what it unpacks to into `out`.

    GGUF's formats by the gguf package (float32, in the order of ggml's reference code), the others by bitsandbytes'
    rules. Shapes: `weight` and `out` (..., rows, columns), where a row holds what one output is summed from.

    Raises:
        ModelError: rows cannot be cut into the format's blocks.
    """
    width = weight.shape[-1]
    check_width(width, into)
    rows, there = weight.reshape(-1, width), out.view(-1, width)  # (rows, columns)
    step = max(1, _PIECE_NUMBERS // width)
    if into.runtime == "bitsandbytes" and into.name != "int8":
        step = len(rows)  # blocks of the flat weight may reach from row to row
    for start in range(0, len(rows), step):
        piece = there[start : start + step]
        packed = _packed(rows[start : start + step], into)
        packed.format.unpack(packed, piece)


def check_width(width: int, into: QuantFormat, name: str = "a weight") -> None:
    """See that rows of `width` numbers are whole blocks.

    Raises:
        ModelError: they are not.
    """
    if width % into.block:
        raise ModelError(
            f"{into.name} packs blocks of {into.block} numbers, and the rows of {name} have {width}",
            "llama-quantize would take another format for such a weight; choose one with smaller blocks",
        )


def _packed(rows: torch.Tensor, into: QuantFormat) -> Packed:
    """Quantise rows. Shapes: (rows, columns)."""
    if into.name == "int8":
        return INT8.pack(rows)
    if into.runtime == "bitsandbytes":
        return FOUR_BIT.pack(rows, into.name)
    from gguf import GGMLQuantizationType, quants  # here, since few runs need it

    name = into.name.upper()
    blocks = quants.quantize(rows.float().cpu().numpy(), GGMLQuantizationType[name])  # (rows, bytes of a row)
    return GGUF.pack(torch.from_numpy(blocks).to(rows.device), name, tuple(rows.shape))
