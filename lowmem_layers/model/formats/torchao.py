"""torchao weights as transformers saves them in safetensors: tensor classes taken apart, and a note on each.

The class of the weight `m.weight`, and the class's own numbers, stand as JSON in the file's notes under that name; its
tensors are called `m._weight_qdata`, `m._weight_scale` and so on. Activations are not quantised here. Source: the
package's `prototype.safetensors`, each class's own docstring and `dequantize`, and for what only a kernel unpacks, the
kernel (for tensor cores, `int4mm.cu` of PyTorch).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored
from lowmem_layers.model.formats.fp8 import EIGHT_BIT_FLOATS, eight_bit_floats
from lowmem_layers.model.formats.scaled import SCALED, fields, needed, scale_block, words_of

NOTES = "file_notes"  # the entry of a config that holds what the files' headers say beside their tensors
_MIDDLE_OF_FOUR_BITS = 8
_FLIPS_SIGNS = -120  # 0x88 as int8: both halves of a byte, from two's complement to 0 … 15
_TILES = "Int4TilePackedTo4dTensor"
_PLAIN = ("Tensor", "Parameter")
_NOT_READ = {
    "Int4PlainInt32Tensor": "laid out by the kernels of Intel's or Ascend's cards",
}
Parts = Mapping[str, torch.Tensor]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class TorchaoConfig:
    """What the files' notes say: the class of each packed tensor and its attributes, by the weight's name."""

    classes: Mapping[str, tuple[str, Attributes]]


@dataclass(frozen=True)
class Torchao:
    """Weights of torchao's tensor classes; each weight's own note says which of them it is."""

    name: str = "torchao"
    title: str = "torchao"
    parts: tuple[str, ...] = (
        "_*_qdata", "_*_act_per_tensor_scale", "_*_per_tensor_scale", "_*_act_pre_scale", "_*_act_quant_scale",
        "_*_act_quant_zero_point", "_*_scale_and_zero", "_*_scale", "_*_zero_point",
    )  # fmt: skip
    scales: tuple[str, ...] = ("scale", "per_tensor_scale", "act_pre_scale", "scale_and_zero")

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of torchao and the notes of its files.

        Raises:
            CheckpointError: a note is damaged or names a class that is not read, or there is none.
        """
        if about["quant_method"] != "torchao":
            return None
        classes: dict[str, tuple[str, Attributes]] = {}
        for name, text in (about.get(NOTES) or {}).items():
            try:
                note = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                continue  # a note of another kind: "format": "pt"
            if isinstance(note, dict) and note.get("_type", "Tensor") not in _PLAIN:
                classes[name] = str(note["_type"]), dict(note.get("_data") or {})
        if not classes:
            raise CheckpointError(
                "config.json says torchao, but the files' headers name no tensor of its classes",
                "save the model again as safetensors, with transformers 4.57 and torchao 0.14 or later",
            )
        for name, (kind, attributes) in classes.items():
            if kind not in _READERS or _bits(kind, attributes) is None:
                raise CheckpointError(
                    f"{name} is packed in torchao's class {kind}, {_NOT_READ.get(kind, 'in a way that is not known')}",
                    f"these are read: {', '.join(_READERS)}; of Int4WeightOnlyConfig, int4_packing_format='plain'",
                )
        kinds = sorted({kind.removesuffix("Tensor").removesuffix("TilePackedTo4d") for kind, _ in classes.values()})
        bits = min(_bits(kind, attributes) or 8 for kind, attributes in classes.values())
        quantised = any(_quantises_activations(attributes) for _, attributes in classes.values())
        return OwnPacking(self, bits, f"torchao {', '.join(kinds)}", TorchaoConfig(classes), runs_quantised=quantised)

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count codes, scales and zero points. What lies in the order of a kernel loses its padding."""
        kind, attributes = settings.classes.get(name, ("", {})) if settings else ("", {})
        n_bytes = sum(4 * prod(parts[key].shape) for key in ("per_tensor_scale", "act_pre_scale") if key in parts)
        if kind == _TILES:
            rows, columns = attributes["shape"]
            return n_bytes + rows * columns // 2 + 2 * 2 * rows * -(-columns // int(attributes["block_size"][-1]))
        n_bytes += sum(parts[key].n_bytes for key in ("qdata", "zero_point") if key in parts)
        if "qdata" not in parts or "scale" not in parts:
            return n_bytes
        if not attributes.get("is_swizzled_scales"):
            return n_bytes + parts["scale"].n_bytes
        numbers = prod(parts["qdata"].shape) * (8 // (_bits(kind, attributes) or 8))
        return n_bytes + numbers // int(attributes["block_size"])

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one weight, as its note says that it is packed.

        Shapes: qdata (..., out, in), or (..., out, in / 2) with two codes a byte; the dense weight is (..., out, in).

        Raises:
            CheckpointError: a part or the note is missing, or contradicts another part.
        """
        where = f"{file}: {name.removesuffix('.weight')}"
        if not isinstance(settings, TorchaoConfig):
            raise CheckpointError(f"{where} is packed by torchao, but config.json does not say so", SAVED_WITH)
        if name not in settings.classes:
            raise CheckpointError(f"{where}: the file's header does not say of which class {name} is", SAVED_WITH)
        kind, attributes = settings.classes[name]
        needed(where, tensors, "qdata", "scale_and_zero" if kind == _TILES else "scale")
        return _READERS[kind](where, tensors, attributes)


TORCHAO = Torchao()


def _float8(where: str, tensors: Parts, attributes: Attributes) -> Packed:
    """Take over eight-bit floats with a float scale for each block, row or tensor."""
    return eight_bit_floats(where, tensors["qdata"], tensors["scale"], _block(attributes))


def _int8(where: str, tensors: Parts, attributes: Attributes) -> Packed:
    """Take over integers of up to eight bits, a byte each.

    Zero points that are floats are subtracted in the weight's own type, as the class does.
    """
    codes, scales, zero = tensors["qdata"], tensors["scale"], tensors.get("zero_point")
    if codes.dtype != torch.int8:
        raise CheckpointError(f"{where} holds {codes.dtype} where int8 is expected", SAVED_WITH)
    shape = tuple(codes.shape)
    packed = SCALED.pack(
        where, codes, scales, shape, kind="plain", block=scale_block(tuple(scales.shape), shape, _block(attributes)),
        zero=0 if zero is None else zero, per_column=tensors.get("act_pre_scale"),
    )  # fmt: skip
    if zero is None or not zero.is_floating_point():
        return packed
    return Packed(SCALED, shape, packed.parts, {**packed.settings, "arithmetic": str(scales.dtype)[len("torch.") :]})


def _int4(where: str, tensors: Parts, attributes: Attributes) -> Packed:
    """Take over four-bit integers in two's complement, the first of a byte in its lower half: scale × code + zero.

    Shapes: scale and zero_point (..., groups, out).
    """
    codes, scales = tensors["qdata"], tensors["scale"]
    (zero,) = needed(where, tensors, "zero_point")
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    if codes.dtype != torch.int8 or shape[-1] % 8:
        raise CheckpointError(
            f"{where} holds {codes.dtype} of shape {tuple(codes.shape)} where int8 is expected, two codes each",
            SAVED_WITH,
        )
    words = (codes ^ _FLIPS_SIGNS).contiguous().view(torch.int32)  # (..., out, in / 8), codes 0 … 15
    return _with_zeros(where, words, scales.mT, zero.mT, shape, tensors.get("act_pre_scale"))


def _tiles(where: str, tensors: Parts, attributes: Attributes) -> Packed:
    """Take over four-bit integers that lie as tensor cores take them, in tiles of 8 rows and 128 columns.

    A lane holds four words of a row; a word's lower halves hold every fourth pair of columns, its upper ones the
    columns beside them. Rows are padded to whole tiles, columns to 1,024.

    Shapes: qdata (rows / 8, columns / 128, 32 lanes, 4) in int32; scale_and_zero (groups, rows, 2).
    """
    words, both = tensors["qdata"], tensors["scale_and_zero"]  # both: scale and zero point
    shape = tuple(int(size) for size in attributes["shape"])
    if len(shape) != 2 or words.dim() != 4 or words.shape[2:] != (32, 4) or both.dim() != 3:
        raise CheckpointError(
            f"{where} has codes of shape {tuple(words.shape)} for {shape}",
            "matrices in tiles of NVIDIA's cards are read, not experts' and not those of AMD's",
        )
    down, across = words.shape[:2]
    lanes = fields(words, 4).view(down, across, 8, 4, 4, 2, 4)  # (…, row, pair of columns, word, half, eight columns)
    codes = lanes.permute(0, 2, 1, 4, 6, 3, 5).reshape(down * 8, across * 128)[: shape[0], : shape[1]]
    n_groups = -(-shape[1] // int(attributes["block_size"][-1]))
    scales, zeros = both[:n_groups, : shape[0]].permute(2, 1, 0)  # (rows, groups) each
    return _with_zeros(where, words_of(codes, 4), scales, zeros, shape, tensors.get("act_pre_scale"))


def _with_zeros(
    where: str, words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, shape: tuple[int, ...],
    pre_scale: torch.Tensor | None,
) -> Packed:  # fmt: skip
    """Pack scale × (code − 8) + zero. Shapes: scales and zeros (..., out, groups)."""
    return SCALED.pack(
        where, words, scales, shape, kind="stream", bits=4, zero=_MIDDLE_OF_FOUR_BITS, offsets=zeros,
        block=(1, -(-shape[-1] // scales.shape[-1])), per_column=pre_scale,
    )  # fmt: skip


def _shared(where: str, tensors: Parts, attributes: Attributes) -> Packed:
    """Take over MX and NVFP4 tensors: floats of eight or four bits in blocks along the rows.

    A scale is an exponent (MX), or an eight-bit float that a scale of all scales may multiply (NVFP4).
    """
    codes, scales = tensors["qdata"], tensors["scale"]
    is_whole = codes.dtype in EIGHT_BIT_FLOATS
    shape = tuple(codes.shape) if is_whole else (*codes.shape[:-1], codes.shape[-1] * 2)
    size = int(attributes["block_size"])
    if attributes.get("is_swizzled_scales"):
        scales = _in_order(where, scales, prod(shape[:-1]), shape[-1] // size)
    factor = tensors.get("per_tensor_scale")
    if factor is not None and factor.numel() != 1:
        raise CheckpointError(f"{where} has a scale of all scales for each expert", "one for the whole tensor is read")
    return SCALED.pack(
        where, codes, scales, shape, kind="plain" if is_whole else "e2m1", block=(1, size), factor=factor,
    )  # fmt: skip


# the classes that are read
_READERS: Mapping[str, Callable[[str, Parts, Attributes], Packed]] = {
    "Float8Tensor": _float8, "Int8Tensor": _int8, "IntxUnpackedToInt8Tensor": _int8, "Int4Tensor": _int4,
    _TILES: _tiles, "MXTensor": _shared, "NVFP4Tensor": _shared,
}  # fmt: skip


def _in_order(where: str, scales: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """Put scales back in order that lie in tiles of 128 rows and 4 blocks, as NVIDIA's cards take them.

    In a tile, row r stands in row r mod 32, r // 32 selecting four of its sixteen columns. Shapes: to (rows, blocks).
    Source: cuBLAS, "1D block scaling factors layout".
    """
    down, across = -(-rows // 128), -(-blocks // 4)
    if scales.numel() != down * across * 512:
        raise CheckpointError(f"{where}: {scales.numel()} scales do not fill tiles for {rows} × {blocks}", SAVED_WITH)
    tiles = scales.reshape(down, across, 32, 4, 4).transpose(2, 3)  # (down, across, r // 32, r mod 32, 4)
    return tiles.permute(0, 2, 3, 1, 4).reshape(down * 128, across * 4)[:rows, :blocks]


def _block(attributes: Attributes) -> tuple[int, int] | None:
    """Give the rows and columns that share a scale, where the note says so."""
    sizes = attributes.get("block_size") or ()
    return (int(sizes[-2]), int(sizes[-1])) if len(sizes) > 1 else None


def _bits(kind: str, attributes: Attributes) -> int | None:
    """Tell how many bits a number has; None for a kind of numbers that is not read."""
    named = attributes.get({"MXTensor": "elem_dtype", "IntxUnpackedToInt8Tensor": "target_dtype"}.get(kind, ""))
    if named is None:
        return 4 if kind in ("Int4Tensor", _TILES, "NVFP4Tensor") else 8
    name = str(named.get("_data")) if isinstance(named, Mapping) else str(named)
    known = {"float8_e4m3fn": 8, "float8_e5m2": 8, "float4_e2m1fn_x2": 4} | {f"int{n}": n for n in range(1, 9)}
    return known.get(name)


def _quantises_activations(attributes: Attributes) -> bool:
    """Tell whether the class rounds activations too while the model runs."""
    dtype = attributes.get("activation_dtype")
    is_float8 = isinstance(dtype, Mapping) and "float8" in str(dtype.get("_data"))
    return is_float8 or bool(attributes.get("act_quant_kwargs") or attributes.get("activation_quantization"))
