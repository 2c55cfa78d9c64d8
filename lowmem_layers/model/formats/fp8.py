"""Eight-bit floats with a scale for each block, row or tensor, as DeepSeek-V3, Qwen3-FP8 and Llama-3.1-405B-FP8 come.

`weight` holds the codes and `weight_scale_inv` (in some writers' files `weight_scale`) what they are multiplied by.
Source: transformers' `integrations.finegrained_fp8` and `integrations.fbgemm_fp8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored
from lowmem_layers.model.formats.scaled import SCALED, needed, scale_block

EIGHT_BIT_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)

_SCALES = ("weight_scale_inv", "weight_scale", "scale_inv")


@dataclass(frozen=True)
class Fp8Config:
    """What the config says about a scale's share of a weight: rows and columns of a block; None for rows or all."""

    block: tuple[int, int] | None


@dataclass(frozen=True)
class Fp8:
    """One byte a number. A stack of experts that is stored whole has `_scale_inv` behind its own name."""

    name: str = "fp8"
    title: str = "FP8"
    parts: tuple[str, ...] = (
        "weight_scale_inv", "weight", "weight_scale", "input_scale", "activation_scale", "input_scale_ub", "_scale_inv",
    )  # fmt: skip
    scales: tuple[str, ...] = _SCALES

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of fine-grained or static FP8, or of FBGEMM's.

        Raises:
            CheckpointError: the block is no pair of sizes.
        """
        if about["quant_method"] not in ("fp8", "fbgemm_fp8"):
            return None
        block = about.get("weight_block_size")
        if block is not None and not (isinstance(block, list | tuple) and len(block) == 2 and min(block) > 0):
            raise CheckpointError(
                f"config.json: the FP8 config says weight_block_size {block!r}", "a block has rows and columns"
            )
        how = f" in blocks of {block[0]} × {block[1]}" if block else ""
        return OwnPacking(self, 8, f"FP8{how}", Fp8Config(tuple(block) if block else None), runs_quantised=True)

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count codes and scales; scales of activations are not kept."""
        return sum(part.n_bytes for key, part in parts.items() if key in ("weight", *_SCALES))

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over codes and scales.

        Shapes: weight (..., rows, columns); scales (..., row blocks, column blocks), (rows, 1), (rows,) or one number.

        Raises:
            CheckpointError: a part is missing, or the scales do not fit the weight.
        """
        where = f"{file}: {name}"
        if not isinstance(settings, Fp8Config):
            raise CheckpointError(f"{where} is packed as FP8, but config.json does not say so", SAVED_WITH)
        scale = next((part for part in _SCALES if part in tensors), _SCALES[0])
        codes, scales = needed(where, tensors, "weight", scale)
        return eight_bit_floats(where, codes, scales, settings.block)


def eight_bit_floats(
    where: str, codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None = None
) -> Packed:
    """Take over eight-bit floats with their scales.

    Raises:
        CheckpointError: the codes are no eight-bit floats or not finite, or the scales do not fit them.
    """
    shape = tuple(codes.shape)
    if codes.dtype not in EIGHT_BIT_FLOATS:
        raise CheckpointError(f"{where} holds {codes.dtype} where FP8 has eight-bit floats", SAVED_WITH)
    if bool(codes.isnan().any()):
        raise CheckpointError(f"{where} holds NaN", "the checkpoint is damaged")
    found = scale_block(tuple(scales.shape), shape, block)
    return SCALED.pack(where, codes, scales, shape, kind="plain", block=found)


FP8 = Fp8()
