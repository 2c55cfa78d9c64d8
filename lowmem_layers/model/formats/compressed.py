"""Checkpoints of compressed-tensors, which llm-compressor writes: integers and floats of four and eight bits.

A weight is `weight_packed` (streams of bits in 32-bit words, or two four-bit floats a byte) or `weight` (int8 or
eight-bit floats), with `weight_scale` and, by kind, `weight_zero_point`, `weight_g_idx` and `weight_global_scale`.
Which of them are there says how a weight is packed, so checkpoints that mix several kinds are read too. Source: the
package's `compressors`; as there, codes of unsigned streams are shifted by half their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored
from lowmem_layers.model.formats.fp8 import EIGHT_BIT_FLOATS, eight_bit_floats
from lowmem_layers.model.formats.scaled import SCALED, fields, needed, scale_block

METHODS = ("compressed-tensors", "compressed_tensors")
# the packings that the package names; each weight's own tensors say which of them it has
_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense",
)  # fmt: skip
_WORD = 32


@dataclass(frozen=True)
class CompressedConfig:
    """What the config says of all weights: the widths that occur, and the block where a scheme has two-sided ones."""

    widths: tuple[int, ...]
    block: tuple[int, int] | None


@dataclass(frozen=True)
class Compressed:
    """Weights by compressed-tensors; scales of activations are left out, since activations are not quantised here."""

    name: str = "compressed_tensors"
    title: str = "compressed-tensors"
    parts: tuple[str, ...] = (
        "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale",
        "weight_shape", "input_scale", "input_zero_point", "input_global_scale",
    )  # fmt: skip
    scales: tuple[str, ...] = ("weight_scale", "weight_global_scale")

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of compressed-tensors.

        Raises:
            CheckpointError: it is packed in a way that is not read, or rotated while it runs.
        """
        if about["quant_method"] not in METHODS:
            return None
        # 1) what is not read: sparse packings, and rotations that are applied to hidden states
        where = "config.json: the compressed-tensors config"
        groups = [group for group in (about.get("config_groups") or {}).values() if isinstance(group, Mapping)]
        forms = [str(form) for form in (about.get("format"), *(group.get("format") for group in groups)) if form]
        sparse = str((about.get("sparsity_config") or {}).get("format") or "dense")
        if unknown := [form for form in (*forms, sparse) if form not in _FORMATS]:
            raise CheckpointError(f"{where} says format {unknown[0]!r}", f"these are read: {', '.join(_FORMATS)}")
        if (about.get("transform_config") or {}).get("config_groups"):
            raise CheckpointError(
                f"{where} has a transform_config: hidden states are rotated while the model runs",
                "save the model with its rotations folded into the weights",
            )
        # 2) the widths and kinds of numbers
        schemes = [group["weights"] for group in groups if group.get("weights")]
        widths = sorted({int(scheme.get("num_bits", 8)) for scheme in schemes}) or [8]
        blocks = [tuple(scheme["block_structure"]) for scheme in schemes if scheme.get("block_structure")]
        active = [group["input_activations"] for group in groups if group.get("input_activations")]
        kind = str(schemes[0].get("type", "int")) if schemes else "int"
        acts = min((int(scheme.get("num_bits", 8)) for scheme in active), default=16)
        label = f"compressed-tensors W{'/'.join(map(str, widths))}A{acts} {kind}"
        config = CompressedConfig(tuple(widths), blocks[0] if blocks else None)
        return OwnPacking(self, widths[0], label, config, runs_quantised=bool(active))

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count what is kept: codes, scales, group numbers in four bytes, and zero points of a byte each."""
        kept = {"weight_packed", "weight", "weight_scale", "weight_global_scale"}
        n_bytes = sum(part.n_bytes for key, part in parts.items() if key in kept)
        if "weight_zero_point" in parts and "weight_scale" in parts:
            n_bytes += prod(parts["weight_scale"].shape)
        return n_bytes + (4 * prod(parts["weight_g_idx"].shape) if "weight_g_idx" in parts else 0)

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one weight, as its own tensors say that it is packed.

        Shapes: weight (..., out, in), or weight_packed (..., out, words or bytes of a row); weight_scale (..., row
        blocks, column blocks); packed zero points (words of the outputs, groups).

        Raises:
            CheckpointError: a part is missing, or contradicts another part.
        """
        where = f"{file}: {name.removesuffix('.weight')}"
        if not isinstance(settings, CompressedConfig):
            raise CheckpointError(
                f"{where} is packed by compressed-tensors, but config.json does not say so", SAVED_WITH
            )
        (scales,) = needed(where, tensors, "weight_scale")
        codes = tensors.get("weight_packed")
        if codes is None:
            (codes,) = needed(where, tensors, "weight")
            return _bytes(where, codes, scales, tensors.get("weight_zero_point"), settings)
        if "weight" in tensors:
            raise CheckpointError(f"{where} is there twice, plain and packed", "the checkpoint is damaged")
        if codes.dtype == torch.uint8:  # NVFP4, whose scales have one more scale, and MXFP4
            shape = (*codes.shape[:-1], codes.shape[-1] * 2)
            return SCALED.pack(
                where, codes, scales, shape, kind="e2m1", block=(1, shape[-1] // scales.shape[-1]),
                factor=tensors.get("weight_global_scale"), divides=True,
            )  # fmt: skip
        return _stream(where, codes, scales, tensors, settings)


COMPRESSED = Compressed()


def _bytes(
    where: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, settings: CompressedConfig
) -> Packed:
    """Take over a byte a number: eight-bit floats, or integers with or without zero points."""
    if codes.dtype in EIGHT_BIT_FLOATS:
        return eight_bit_floats(where, codes, scales, settings.block)
    if codes.dtype != torch.int8:
        raise CheckpointError(f"{where} holds {codes.dtype} where int8 is expected", SAVED_WITH)
    shape = tuple(codes.shape)
    block = scale_block(tuple(scales.shape), shape, settings.block)
    return SCALED.pack(where, codes, scales, shape, kind="plain", block=block, zero=0 if zeros is None else zeros)


def _stream(
    where: str, words: torch.Tensor, scales: torch.Tensor, tensors: Mapping[str, torch.Tensor],
    settings: CompressedConfig,
) -> Packed:  # fmt: skip
    """Take over integers in streams of bits, their width found from how many words a row takes."""
    (dense,) = needed(where, tensors, "weight_shape")
    shape = tuple(int(size) for size in dense.tolist())
    columns = shape[-1]
    bits = next((b for b in settings.widths if -(-columns * b // _WORD) == words.shape[-1]), None)
    if bits is None:
        raise CheckpointError(
            f"{where}: rows of {words.shape[-1]} words do not hold {columns} numbers of"
            f" {' or '.join(map(str, settings.widths))} bits",
            "the checkpoint's quantisation config contradicts its tensors",
        )
    zero: int | torch.Tensor = 1 << (bits - 1)
    if (packed := tensors.get("weight_zero_point")) is not None:
        zero = fields(packed.T.contiguous(), bits)[:, : shape[0]].T.to(torch.uint8)  # (out, groups)
    groups = tensors.get("weight_g_idx")
    if groups is not None and int(groups.min()) < 0:  # written so where the groups are in order
        groups = None
    return SCALED.pack(
        where, words, scales, shape, kind="stream", bits=bits, zero=zero, groups=groups,
        block=scale_block(tuple(scales.shape), shape),
    )  # fmt: skip
