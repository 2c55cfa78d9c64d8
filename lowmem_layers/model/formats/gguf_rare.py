"""GGUF's less common blocks: four-bit floats, three-valued numbers, and numbers looked up in a codebook.

The codebooks (IQ1 … IQ4) are tables of thousands of numbers, for which transformers' own unpackers are called. Source
of the others: the block structures of ggml (`ggml-common.h`), which each unpacker quotes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGMLQuantizationType

from lowmem_layers.model.formats.gguf_bits import fields, half

# twice the sixteen numbers of E2M1 (OCP Microscaling 1.0), so that all are whole
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _look_up(codes: torch.Tensor) -> torch.Tensor:
    """Give the doubled E2M1 numbers of four-bit codes."""
    return torch.tensor(_E2M1, dtype=torch.float32, device=codes.device)[codes.long()]


def mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_mxfp4 {uint8 e; uint8 qs[16]}`: 2^(e − 128) × the doubled number of a code."""
    exponents = blocks[:, :1].int()
    # bits of a float32: a normal number from e = 2 on, below that a subnormal one
    bits = torch.where(exponents < 2, 0x00200000 << exponents.clamp(max=1), (exponents - 1).clamp(min=0) << 23)
    codes = fields(blocks[:, 1:].unsqueeze(1), 4, 2).reshape(-1, 32)
    return bits.view(torch.float32) * _look_up(codes)  # (blocks, 32)


def nvfp4(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_nvfp4 {uint8 d[4]; uint8 qs[32]}`: a scale, half an unsigned E4M3, for each 16 numbers."""
    scales = blocks[:, :4]
    exponents, mantissas = ((scales >> 3) & 15).int(), (scales & 7).int()
    normal = (((exponents + 120) << 23) | (mantissas << 20)).view(torch.float32)  # (1 + m / 8) × 2^(e − 7), by its bits
    steps = torch.where(exponents == 0, mantissas * 2.0**-9, normal) * 0.5
    steps = torch.where((scales == 0) | (scales == 0x7F), torch.zeros_like(steps), steps)  # (blocks, 4)
    codes = fields(blocks[:, 4:].reshape(-1, 4, 8), 4, 2).reshape(-1, 4, 16)
    return (steps.unsqueeze(2) * _look_up(codes)).view(-1, 64)


def tq1_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_tq1_0 {uint8 qs[48]; uint8 qh[4]; half d}`: d × (digit − 1), five base-3 digits a byte."""
    digits = []
    for start, stop, n_digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = torch.tensor([1, 3, 9, 27, 81][:n_digits], dtype=torch.uint8, device=blocks.device)
        shifted = blocks[:, start:stop].unsqueeze(1) * powers.view(1, -1, 1)  # modulo 256, as bytes are
        digits.append(((shifted.int() * 3) >> 8).flatten(1))  # (blocks, digits)
    return half(blocks, 52) * (torch.cat(digits, dim=1).float() - 1)  # (blocks, 256)


def tq2_0(blocks: torch.Tensor) -> torch.Tensor:
    """Unpack `block_tq2_0 {uint8 qs[64]; half d}`: d × (code − 1)."""
    codes = fields(blocks[:, :64].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    return half(blocks, 64) * (codes.float() - 1)  # (blocks, 256)


def by_codebook(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Build the unpacker of one of the IQ formats from transformers' own."""
    number = int(GGMLQuantizationType[name])

    def unpack(blocks: torch.Tensor) -> torch.Tensor:
        from transformers.integrations.gguf.dequant import dequantize

        return dequantize(blocks, number, torch.float32).view(len(blocks), -1)

    return unpack
