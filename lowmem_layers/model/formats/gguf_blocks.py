"""GGUF weights kept in the blocks of their file, and unpacked by torch on whatever device they lie.

A row is a run of blocks; a block is a few bytes that stand for 32 numbers (Q4_0 … Q8_0) or 256 (the K formats), with
its own scales. Source of the layouts: the block structures of ggml (`ggml-common.h`); the `gguf` package's numpy
dequantisation is the test oracle. All arithmetic is float32 in ggml's order, rounded once into the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from lowmem_layers.model.formats.packed import Packed

NAME = "gguf"

Unpacker = Callable[[torch.Tensor], torch.Tensor]  # (blocks, bytes of a block) uint8 -> (blocks, numbers) float32


def pack(rows: torch.Tensor, quant_type: str, shape: tuple[int, ...]) -> Packed:
    """Keep a file's rows of blocks.

    Shapes: `rows` (..., bytes of a row) in uint8 for a dense weight of `shape`.
    """
    return Packed(NAME, shape, {"blocks": rows}, {"quant_type": quant_type})


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
    n_rows = prod(packed.shape[:-1])
    blocks = packed.parts["blocks"].reshape(n_rows, -1)[start:stop]
    return Packed(NAME, (stop - start, packed.shape[-1]), {"blocks": blocks}, packed.settings)


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Write the dense weight into `out`."""
    block = BLOCKS[str(packed.settings["quant_type"])]
    out.copy_(block.unpack(packed.parts["blocks"].reshape(-1, block.n_bytes)).view(packed.shape))


def scales(packed: Packed) -> torch.Tensor:
    """Read the half-precision scales of every block: if they are finite, so are all numbers."""
    block = BLOCKS[str(packed.settings["quant_type"])]
    blocks = packed.parts["blocks"].reshape(-1, block.n_bytes)
    return torch.cat([_half(blocks, start) for start in block.scale_starts], dim=1)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read one float16 of each block, as float32. Shapes: the result is (blocks, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _fields(codes: torch.Tensor, width_bits: int, n_fields: int) -> torch.Tensor:
    """Split bytes into their fields of `width_bits` bits, lowest bits first.

    Shapes: `codes` (blocks, runs, bytes of a run) gives (blocks, runs, n_fields, bytes of a run).
    """
    shifts = torch.arange(0, width_bits * n_fields, width_bits, dtype=torch.uint8, device=codes.device)
    return (codes.unsqueeze(2) >> shifts.view(1, 1, -1, 1)) & ((1 << width_bits) - 1)


def _nibbles(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read 32 four-bit codes of each block: the low halves of 16 bytes, then the high halves."""
    return _fields(blocks[:, start : start + 16].unsqueeze(1), 4, 2).reshape(-1, 32)


def _fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read one more bit for each of a block's 32 codes, and move it to its place."""
    bits = _fields(blocks[:, start : start + 4].unsqueeze(1), 1, 8)  # (blocks, 1, bit, byte)
    return bits.transpose(2, 3).reshape(-1, 32) << 4


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_nibbles(blocks, 2).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks, 4).float() * _half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).float() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks, 8) | _fifth_bits(blocks, 4)).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales = blocks[:, :16]
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16).float()
    steps = _half(blocks, 80) * (scales & 15).float()
    minima = _half(blocks, 82) * (scales >> 4).float()
    return (steps.unsqueeze(2) * codes - minima.unsqueeze(2)).view(-1, 256)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    high = _fields(blocks[:, :32].unsqueeze(1), 1, 8).reshape(-1, 16, 16)  # a clear bit means: minus four
    scale_low = _fields(blocks[:, 96:104].unsqueeze(1), 4, 2).reshape(-1, 16)
    scale_high = _fields(blocks[:, 104:108].unsqueeze(1), 2, 4).reshape(-1, 16)
    steps = _half(blocks, 108) * ((scale_low | (scale_high << 4)).float() - 32)
    codes = (low | (high << 2)).float() - 4
    return (steps.unsqueeze(2) * codes).view(-1, 256)


def _six_bit_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the 12 bytes that hold 8 scales and 8 minima of six bits each. Shapes: two of (blocks, 8)."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _scaled(blocks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Apply Q4_K's and Q5_K's scales and minima to codes of shape (blocks, 8, 32)."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    steps = (_half(blocks, 0) * scales).unsqueeze(2)
    offsets = (_half(blocks, 2) * minima).unsqueeze(2)
    return (steps * codes.float() - offsets).view(-1, 256)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    return _scaled(blocks, _fields(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    high = _fields(blocks[:, 16:48].unsqueeze(1), 1, 8).reshape(-1, 8, 32)
    return _scaled(blocks, low | (high << 4))


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 16, 16)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    steps = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (steps.unsqueeze(2) * ((low | (high << 4)).float() - 32)).view(-1, 256)


@dataclass(frozen=True)
class Block:
    """One of GGUF's block formats: its width in bits, numbers and bytes a block, its float16 scales, how to unpack."""

    bits: int
    numbers: int
    n_bytes: int
    scale_starts: tuple[int, ...]
    unpack: Unpacker


BLOCKS = {
    "Q4_0": Block(4, 32, 18, (0,), _q4_0),
    "Q4_1": Block(4, 32, 20, (0, 2), _q4_1),
    "Q5_0": Block(5, 32, 22, (0,), _q5_0),
    "Q5_1": Block(5, 32, 24, (0, 2), _q5_1),
    "Q8_0": Block(8, 32, 34, (0,), _q8_0),
    "Q2_K": Block(2, 256, 84, (80, 82), _q2_k),
    "Q3_K": Block(3, 256, 110, (108,), _q3_k),
    "Q4_K": Block(4, 256, 144, (0, 2), _q4_k),
    "Q5_K": Block(5, 256, 176, (0, 2), _q5_k),
    "Q6_K": Block(6, 256, 210, (208,), _q6_k),
}
