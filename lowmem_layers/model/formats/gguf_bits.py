"""Bits of GGUF blocks: half-precision scales and narrow fields, read by torch."""

from __future__ import annotations

import torch


def half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Read one float16 of each block, as float32. Shapes: the result is (blocks, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def fields(codes: torch.Tensor, width_bits: int, n_fields: int) -> torch.Tensor:
    """Split bytes into their fields of `width_bits` bits, lowest bits first.

    Shapes: `codes` (blocks, runs, bytes of a run) gives (blocks, runs, n_fields, bytes of a run).
    """
    shifts = torch.arange(0, width_bits * n_fields, width_bits, dtype=torch.uint8, device=codes.device)
    return (codes.unsqueeze(2) >> shifts.view(1, 1, -1, 1)) & ((1 << width_bits) - 1)
