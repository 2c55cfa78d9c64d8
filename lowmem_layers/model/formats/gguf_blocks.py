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
from lowmem_layers.model.formats.gguf_bits import fields, half
from lowmem_layers.model.formats.gguf_rare import by_codebook, mxfp4, nvfp4, tq1_0, tq2_0
from lowmem_layers.model.memory import all_finite

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_CHECKED_AT_ONCE = 1 << 14  # blocks

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
        if block.scale_starts:
            return all(all_finite(half(blocks, start)) for start in block.scale_starts)
        return all(all_finite(block.unpack(piece)) for piece in blocks.split(_CHECKED_AT_ONCE))

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


def _nibbles(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read 32 four-bit codes of each block: the low halves of 16 bytes, then the high halves."""
    codes = blocks[:, start : start + 16]  # (blocks, 16)
    return torch.cat([codes & 15, codes >> 4], dim=1)  # (blocks, 32)


def _fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read one more bit for each of a block's 32 codes, and move it to its place."""
    bits = fields(blocks[:, start : start + 4].unsqueeze(1), 1, 8)  # (blocks, 1, bit, byte)
    return bits.transpose(2, 3).reshape(-1, 32) << 4  # (blocks, 32)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_0 {half d; uint8 qs[16]}`: d × (code − 8)."""
    return half(blocks, 0) * (_nibbles(blocks, 2).float() - 8)  # (blocks, 32)


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_1 {half d; half m; uint8 qs[16]}`: d × code + m."""
    return (_nibbles(blocks, 4).float() * half(blocks, 0)).add_(half(blocks, 2))  # (blocks, 32)


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_0 {half d; uint8 qh[4]; uint8 qs[16]}`: d × (code − 16), the fifth bits in `qh`."""
    return half(blocks, 0) * ((_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).float() - 16)  # (blocks, 32)


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_1 {half d; half m; uint8 qh[4]; uint8 qs[16]}`: d × code + m, the fifth bits in `qh`."""
    codes = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)  # (blocks, 32)
    return codes.float() * half(blocks, 0) + half(blocks, 2)


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q8_0 {half d; int8 qs[32]}`: d × code."""
    return blocks[:, 2:].contiguous().view(torch.int8).float() * half(blocks, 0)  # (blocks, 32)


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q2_K {uint8 scales[16]; uint8 qs[64]; half d; half dmin}`.

    A scale's low half times d is the step of 16 numbers, its high half times dmin what is taken off them.
    """
    scales = blocks[:, :16]
    codes = fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16).float()  # (blocks, scales, 16)
    steps = half(blocks, 80) * (scales & 15).float()  # (blocks, 16)
    minima = half(blocks, 82) * (scales >> 4).float()  # (blocks, 16)
    return (steps.unsqueeze(2) * codes - minima.unsqueeze(2)).view(-1, 256)


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q3_K {uint8 hmask[32]; uint8 qs[64]; uint8 scales[12]; half d}`: d × (scale − 32) × code."""
    low = fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)  # (blocks, scales, 16)
    high = fields(blocks[:, :32].unsqueeze(1), 1, 8).reshape(-1, 16, 16)  # a clear bit means: minus four
    # six bits a scale: four in the first 8 bytes, two in the last 4
    scale_low = fields(blocks[:, 96:104].unsqueeze(1), 4, 2).reshape(-1, 16)
    scale_high = fields(blocks[:, 104:108].unsqueeze(1), 2, 4).reshape(-1, 16)
    steps = half(blocks, 108) * ((scale_low | (scale_high << 4)).float() - 32)  # (blocks, 16)
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
    steps = (half(blocks, 0) * scales).unsqueeze(2)  # (blocks, 8, 1)
    offsets = (half(blocks, 2) * minima).unsqueeze(2)
    return (steps * codes.float() - offsets).view(-1, 256)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q4_K {half d; half dmin; uint8 scales[12]; uint8 qs[128]}`."""
    return _scaled(blocks, fields(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32))


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q5_K {half d; half dmin; uint8 scales[12]; uint8 qh[32]; uint8 qs[128]}`."""
    low = fields(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)  # (blocks, runs, 32)
    high = fields(blocks[:, 16:48].unsqueeze(1), 1, 8).reshape(-1, 8, 32)
    return _scaled(blocks, low | (high << 4))


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_q6_K {uint8 ql[128]; uint8 qh[64]; int8 scales[16]; half d}`: d × scale × (code − 32)."""
    low = fields(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 16, 16)  # (blocks, scales, 16)
    high = fields(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    steps = half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()  # (blocks, 16)
    return (steps.unsqueeze(2) * ((low | (high << 4)).float() - 32)).view(-1, 256)


@dataclass(frozen=True)
class Block:
    """One of GGUF's block formats: its width in bits, numbers and bytes a block, its float16 scales, how to unpack.

    A format without float16 scales has its scales in another form.
    """

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
    "MXFP4": Block(4, 32, 17, (), mxfp4),
    "NVFP4": Block(4, 64, 36, (), nvfp4),
    "TQ1_0": Block(2, 256, 54, (52,), tq1_0),
    "TQ2_0": Block(2, 256, 66, (64,), tq2_0),
    "IQ1_S": Block(1, 256, 50, (0,), by_codebook("IQ1_S")),
    "IQ1_M": Block(1, 256, 56, (), by_codebook("IQ1_M")),
    "IQ2_XXS": Block(2, 256, 66, (0,), by_codebook("IQ2_XXS")),
    "IQ2_XS": Block(2, 256, 74, (0,), by_codebook("IQ2_XS")),
    "IQ2_S": Block(2, 256, 82, (0,), by_codebook("IQ2_S")),
    "IQ3_XXS": Block(3, 256, 98, (0,), by_codebook("IQ3_XXS")),
    "IQ3_S": Block(3, 256, 110, (0,), by_codebook("IQ3_S")),
    "IQ4_NL": Block(4, 32, 18, (0,), by_codebook("IQ4_NL")),
    "IQ4_XS": Block(4, 256, 136, (0,), by_codebook("IQ4_XS")),
}
