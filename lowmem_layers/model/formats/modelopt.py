"""Checkpoints of NVIDIA's Model Optimizer: FP8, and NVFP4 with a scale of all scales.

FP8: `weight` in eight-bit floats and one `weight_scale`. NVFP4: `weight` has two four-bit floats a byte, 16 numbers
share an FP8 `weight_scale`, and all scales are multiplied by `weight_scale_2`. `input_scale` is for activations that
are quantised while the model runs, which is not done here. Source: the package's `export` and `NVFP4QTensor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored
from lowmem_layers.model.formats.fp8 import eight_bit_floats
from lowmem_layers.model.formats.scaled import SCALED, needed

# the package's names for what is read, with their bits
_ALGORITHMS = {"FP8": 8, "FP8_PER_CHANNEL_PER_TOKEN": 8, "NVFP4": 4, "W4A16_NVFP4": 4, "MIXED_PRECISION": 4}
_WEIGHTS_ONLY = "W4A16_NVFP4"


@dataclass(frozen=True)
class Modelopt:
    """Weights by modelopt; each weight's own tensors say which of both kinds it is."""

    name: str = "modelopt"
    title: str = "modelopt"
    parts: tuple[str, ...] = ("weight_scale_2", "weight", "weight_scale", "input_scale")
    scales: tuple[str, ...] = ("weight_scale", "weight_scale_2")

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of modelopt, in config.json's form or in that of `hf_quant_config.json`.

        Raises:
            CheckpointError: it names an algorithm that is not read.
        """
        if about["quant_method"] not in ("modelopt", "modelopt_fp4", "modelopt_fp8"):
            return None
        algorithm = str(about.get("quant_algo") or (about.get("quantization") or {}).get("quant_algo") or "").upper()
        if algorithm not in _ALGORITHMS:
            raise CheckpointError(
                f"config.json: the modelopt config says quant_algo {algorithm!r}",
                f"these are read: {', '.join(_ALGORITHMS)}",
            )
        return OwnPacking(
            self, _ALGORITHMS[algorithm], f"modelopt {algorithm}", algorithm, runs_quantised=algorithm != _WEIGHTS_ONLY
        )

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count codes and scales, not those of activations."""
        return sum(part.n_bytes for key, part in parts.items() if key != "input_scale")

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one weight.

        Shapes: weight (..., out, in) in eight-bit floats, or (..., out, in / 2) in uint8 with weight_scale (..., out,
        in / 16).

        Raises:
            CheckpointError: a part is missing, or contradicts another part.
        """
        where = f"{file}: {name}"
        if settings is None:
            raise CheckpointError(f"{where} is packed by modelopt, but config.json does not say so", SAVED_WITH)
        codes, scales = needed(where, tensors, "weight", "weight_scale")
        if codes.dtype != torch.uint8:
            return eight_bit_floats(where, codes, scales)
        (factor,) = needed(where, tensors, "weight_scale_2")
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        block = (1, shape[-1] // scales.shape[-1])
        return SCALED.pack(where, codes, scales, shape, kind="e2m1", block=block, factor=factor)


MODELOPT = Modelopt()
