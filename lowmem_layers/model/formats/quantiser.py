"""Round dense weights to what they are once quantised to a format and unpacked again."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.change import QuantFormat
from lowmem_layers.model.formats.format import Packed
from lowmem_layers.model.formats.four_bit import FOUR_BIT
from lowmem_layers.model.formats.gguf_blocks import GGUF
from lowmem_layers.model.formats.int8 import INT8
from lowmem_layers.model.formats.k_quants import K_QUANTISERS, quantise_rows

_PIECE_NUMBERS = 1 << 20  # the gguf package takes many times a weight's size while it quantises


def rounded(weight: torch.Tensor, into: QuantFormat, out: torch.Tensor) -> None:
    """Quantise a weight and write what it unpacks to into `out`, which may be the weight.

    Shapes: `weight` and `out` (..., rows, columns), where a row holds what one output is summed from.

    Raises:
        ModelError: rows cannot be cut into the format's blocks.
    """
    there, start = out.view(-1, out.shape[-1]), 0  # (rows, columns)
    for packed in _pieces(weight, into):
        packed.format.unpack(packed, there[start : start + packed.shape[0]])
        start += packed.shape[0]


def quantised(weight: torch.Tensor, into: QuantFormat) -> Packed:
    """Quantise a weight. Shapes: (..., rows, columns), as for `rounded`, gives packed (rows, columns).

    Raises:
        ModelError: rows cannot be cut into the format's blocks.
    """
    pieces = list(_pieces(weight, into))
    if len(pieces) == 1:
        return pieces[0]
    parts = {name: torch.cat([piece.parts[name] for piece in pieces]) for name in pieces[0].parts}
    shape = (sum(piece.shape[0] for piece in pieces), weight.shape[-1])
    return Packed(pieces[0].format, shape, parts, pieces[0].settings)


def quantised_bytes(shape: tuple[int, ...], into: QuantFormat) -> int:
    """Count what a weight takes once it is quantised. Shapes: `shape` (..., rows, columns)."""
    if into.name == "int8":
        return INT8.packed_bytes(shape, torch.float32)
    if into.runtime == "bitsandbytes":
        return FOUR_BIT.packed_bytes(shape, torch.float32)
    return int(prod(shape) * into.for_rows(shape[-1]).bits) // 8


def check_width(width: int, into: QuantFormat, name: str = "a weight") -> None:
    """See that rows of `width` numbers are whole blocks of a format, or of the one that stands in for it.

    Raises:
        ModelError: they are not.
    """
    block = into.for_rows(width).block
    if width % block:
        raise ModelError(
            f"{into.name} packs blocks of {block} numbers, and the rows of {name} have {width}",
            "llama-quantize would leave such a weight in 16 bits; choose a format without blocks (nf4, int8)",
        )


def _pieces(weight: torch.Tensor, into: QuantFormat) -> Iterator[Packed]:
    """Quantise some rows after the other: by the gguf package, ggml's rules for the K formats, or bitsandbytes' rules.

    Shapes: (..., rows, columns), of each piece (rows, columns).
    """
    width = weight.shape[-1]
    check_width(width, into)
    into = into.for_rows(width)
    rows = weight.reshape(-1, width)  # (rows, columns)
    step = max(1, _PIECE_NUMBERS // width)
    if into.runtime == "bitsandbytes" and into.name != "int8":
        step = len(rows)  # blocks of the flat weight may reach from row to row
    for piece in rows.split(step):
        if into.name == "int8":
            yield INT8.pack(piece)
        elif into.runtime == "bitsandbytes":
            yield FOUR_BIT.pack(piece, into.name)
        else:
            yield GGUF.pack(_blocks(piece, into.name), into.name.upper(), tuple(piece.shape))


def _blocks(rows: torch.Tensor, name: str) -> torch.Tensor:
    """Quantise rows to one of ggml's formats. Shapes: (rows, columns) → (rows, bytes of a row), uint8."""
    if name in K_QUANTISERS:
        return quantise_rows(rows, name)
    from gguf import GGMLQuantizationType, quants  # here, since few runs need it

    blocks = quants.quantize(rows.float().cpu().numpy(), GGMLQuantizationType[name.upper()])
    return torch.from_numpy(blocks).to(rows.device)
