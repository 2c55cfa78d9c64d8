"""MXFP4 as gpt-oss is published: stacks of experts in four-bit floats, 32 of which share a power of two.

`gate_up_proj_blocks` holds two numbers a byte, along the input dimension, `gate_up_proj_scales` the exponents. The
model has each expert's matrix transposed; it stays as it is packed and is turned while it is unpacked. Source: OCP
Microscaling Formats 1.0 and transformers' `integrations.mxfp4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import OwnPacking, Packed, Stored
from lowmem_layers.model.formats.scaled import SCALED, needed
from lowmem_layers.model.formats.turned import Turned

NUMBERS = 32  # that share a scale

_TURNED = Turned({SCALED.name: SCALED})


@dataclass(frozen=True)
class Mxfp4:
    """Half a byte a number and one for each 32; both parts are called by the weight's name with an ending."""

    name: str = "mxfp4"
    title: str = "MXFP4"
    parts: tuple[str, ...] = ("_blocks", "_scales")
    scales: tuple[str, ...] = ()

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of MXFP4."""
        return OwnPacking(self, 4, "MXFP4") if about["quant_method"] == "mxfp4" else None

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count codes and exponents, which stay as they are."""
        return sum(part.n_bytes for part in parts.values())

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over a stack of experts.

        Shapes: blocks (experts, out, groups, 16) and scales (experts, out, groups) in uint8; the weight is (experts,
        in, out).

        Raises:
            CheckpointError: a part is missing, or the shapes contradict each other.
        """
        where = f"{file}: {name}"
        blocks, scales = needed(where, tensors, "blocks", "scales")
        if blocks.dim() != 4 or blocks.shape[-1] * 2 != NUMBERS or blocks.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{where}: blocks of shape {tuple(blocks.shape)} and scales of {tuple(scales.shape)} do not match",
                "the checkpoint is damaged",
            )
        experts, rows, groups = scales.shape
        shape = (experts, rows, groups * NUMBERS)
        return _TURNED.pack(SCALED.pack(where, blocks, scales, shape, kind="e2m1", block=(1, NUMBERS)), 1)


MXFP4 = Mxfp4()
