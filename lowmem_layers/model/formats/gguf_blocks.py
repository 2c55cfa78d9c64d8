"""GGUF weights kept in the blocks of their file, and unpacked by torch on whatever device they lie.

A row is a run of blocks; a block is a few bytes that stand for 32 numbers (Q4_0 … Q8_0) or 256 (the K formats), with
its own scales. Source of the layouts: the block structures of ggml (`ggml-common.h`), which each unpacker quotes; the
`gguf` package's numpy dequantisation is the test oracle. All arithmetic is float32 in ggml's order, rounded once into
the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from lowmem_layers.model.formats.dense import DENSE
from lowmem_layers.model.formats.format import Packed, row_pieces
from lowmem_layers.model.memory import all_finite

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Unpacker = Callable[[torch.Tensor], torch.Tensor]  # (blocks, bytes of a block) uint8 -> (blocks, numbers) float32


@dataclass(frozen=True)
class Gguf:
    """A file's rows of blocks, as they are."""

    name: str = "gguf"

    def home_bytes(self, quant_type: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Count what a tensor of a file takes at home: its blocks, or its plain numbers in the compute dtype."""
        if quant_type in PLAIN:
            return DENSE.packed_bytes(shape, dtype)
        return prod(shape) // BLOCKS[quant_type].numbers * BLOCKS[quant_type].n_bytes

    def pack(self, rows: torch.Tensor, quant_type: str, shape: tuple[int, ...]) -> Packed:
        """Take over a file's rows of blocks, or of plain numbers.

        Shapes: `rows` (..., bytes of a row) in uint8 for a dense weight of `shape`.
        """
        if quant_type in PLAIN:
            return DENSE.pack(rows.view(PLAIN[quant_type]).view(shape))
        return Packed(self, shape, {"blocks": rows}, {"quant_type": quant_type})

    def is_finite(self, packed: Packed) -> bool:
        """Tell whether all numbers of what `pack` made are finite."""
        if packed.format == DENSE:
            return all_finite(packed.parts["weight"])
        block = BLOCKS[str(packed.settings["quant_type"])]
        blocks = packed.parts["blocks"].reshape(-1, block.n_bytes)  # (blocks, bytes)
        # if its half-precision scales are, so are all numbers of a block
        return all(all_finite(_half(blocks, start)) for start in block.scale_starts)

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        blocks = packed.parts["blocks"].reshape(prod(packed.shape[:-1]), -1)[start:stop]  # (rows, bytes)
        return Packed(self, (stop - start, packed.shape[-1]), {"blocks": blocks}, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Write the dense weight into `out`."""
        block = BLOCKS[str(packed.settings["quant_type"])]
        for piece, there in row_pieces(packed, out):
            blocks = piece.parts["blocks"].reshape(-1, block.n_bytes)  # (blocks, bytes)
            there.copy_(block.unpack(blocks).view(there.shape))


GGUF = Gguf()


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
    return _fields(blocks[:, start : start + 16].unsqueeze(1), 4, 2).reshape(-1, 32)  # (blocks, 32)


def _fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read one more bit for each of a block's 32 codes, and move it to its place."""
    bits = _fields(blocks[:, start : start + 4].unsqueeze(1), 1, 8)  # (blocks, 1, bit, byte)
    return bits.transpose(2, 3).reshape(-1, 32) << 4  # (blocks, 32)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_0 {half d; uint8 qs[16]}`: d × (code − 8)."""
    return _half(blocks, 0) * (_nibbles(blocks, 2).float() - 8)  # (blocks, 32)


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_1 {half d; half m; uint8 qs[16]}`: d × code + m."""
    return (_nibbles(blocks, 4).float() * _half(blocks, 0)).add_(_half(blocks, 2))  # (blocks, 32)


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_0 {half d; uint8 qh[4]; uint8 qs[16]}`: d × (code − 16), the fifth bits in `qh`."""
    return _half(blocks, 0) * ((_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).float() - 16)  # (blocks, 32)


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_1 {half d; half m; uint8 qh[4]; uint8 qs[16]}`: d × code + m, the fifth bits in `qh`."""
    codes = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)  # (blocks, 32)
    return codes.float() * _half(blocks, 0) + _half(blocks, 2)


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q8_0 {half d; int8 qs[32]}`: d × code."""
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)  # (blocks, 32)


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q2_K {uint8 scales[16]; uint8 qs[64]; half d; half dmin}`.

    A scale's low half times d is the step of 16 numbers, its high half times dmin what is taken off them.
    """
    scales = blocks[:, :16]
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16).float()  # (blocks, scales, 16)
    steps = _half(blocks, 80) * (scales & 15).float()  # (blocks, 16)
    minima = _half(blocks, 82) * (scales >> 4).float()  # (blocks, 16)
    return (steps.unsqueeze(2) * codes - minima.unsqueeze(2)).view(-1, 256)


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q3_K {uint8 hmask[32]; uint8 qs[64]; uint8 scales[12]; half d}`: d × (scale − 32) × code."""
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)  # (blocks, scales, 16)
    high = _fields(blocks[:, :32].unsqueeze(1), 1, 8).reshape(-1, 16, 16)  # a clear bit means: minus four
    # six bits a scale: four in the first 8 bytes, two in the last 4
    scale_low = _fields(blocks[:, 96:104].unsqueeze(1), 4, 2).reshape(-1, 16)
    scale_high = _fields(blocks[:, 104:108].unsqueeze(1), 2, 4).reshape(-1, 16)
    steps = _half(blocks, 108) * ((scale_low | (scale_high << 4)).float() - 32)  # (blocks, 16)
    codes = (low | (high << 2)).float() - 4
    return (steps.unsqueeze(2) * codes).view(-1, 256)


def _scaled(blocks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Apply the scales of `block_q4_K` and `block_q5_K`: d × scale × code − dmin × minimum, for runs of 32 numbers.

    Shapes: codes (blocks, 8, 32) give (blocks, 256).
    """
    # twelve bytes hold 8 scales and 8 minima of six bits each (`get_scale_min_k4` in ggml-quants.c)
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1).float()  # (blocks, 8)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1).float()  # (blocks, 8)
    steps = (_half(blocks, 0) * scales).unsqueeze(2)  # (blocks, 8, 1)
    offsets = (_half(blocks, 2) * minima).unsqueeze(2)
    return (steps * codes.float() - offsets).view(-1, 256)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_K {half d; half dmin; uint8 scales[12]; uint8 qs[128]}`."""
    return _scaled(blocks, _fields(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32))


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_K {half d; half dmin; uint8 scales[12]; uint8 qh[32]; uint8 qs[128]}`."""
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)  # (blocks, runs, 32)
    high = _fields(blocks[:, 16:48].unsqueeze(1), 1, 8).reshape(-1, 8, 32)
    return _scaled(blocks, low | (high << 4))


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q6_K {uint8 ql[128]; uint8 qh[64]; int8 scales[16]; half d}`: d × scale × (code − 32)."""
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 16, 16)  # (blocks, scales, 16)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    steps = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()  # (blocks, 16)
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
    "Q4_0": Block(4, 32, 18, (0,), q4_0),
    "Q4_1": Block(4, 32, 20, (0, 2), q4_1),
    "Q5_0": Block(5, 32, 22, (0,), q5_0),
    "Q5_1": Block(5, 32, 24, (0, 2), q5_1),
    "Q8_0": Block(8, 32, 34, (0,), q8_0),
    "Q2_K": Block(2, 256, 84, (80, 82), q2_k),
    "Q3_K": Block(3, 256, 110, (108,), q3_k),
    "Q4_K": Block(4, 256, 144, (0, 2), q4_k),
    "Q5_K": Block(5, 256, 176, (0, 2), q5_k),
    "Q6_K": Block(6, 256, 210, (208,), q6_k),
}
