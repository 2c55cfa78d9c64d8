"""HQQ weights as transformers saves them: groups of numbers, with scales and zero points in half precision.

`W_q` has a group a row, of numbers that follow each other (axis 1), or a group a column, of numbers of one column that
lie a share of the rows apart (axis 0). Its codes are packed several a byte (of three bits: ten in 32 bits), the first
share of all rows in the highest bits, the next share below it. `nbits`, `group_size`, `shape`, `axis` and more lie
beside it as tensors. Here the codes stand in streams along the weight's rows. Source: Badri and Shaji, HQQ (2023), and
the package's `core.quantize` and `core.bitpack`, whose arithmetic in half precision is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import OwnPacking, Packed, Stored
from lowmem_layers.model.formats.scaled import SCALED, needed, words_of

_BITS = (8, 4, 3, 2, 1)
_PACKED_IN = {3: (torch.int32, 10)}  # else as many as fill a byte
_FIELDS = 32  # at most so many codes lie in a word
_USUAL_GROUP = 64
_ROWS_AT_ONCE = 64
_ARITHMETIC = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


@dataclass(frozen=True)
class Hqq:
    """Codes of one to eight bits, a scale and a zero point for each group."""

    name: str = "hqq"
    title: str = "HQQ"
    parts: tuple[str, ...] = (
        "W_q", "scale", "zero", "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float",
        "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
        "channel_wise", "optimize", "round_zero",
    )  # fmt: skip
    scales: tuple[str, ...] = ("scale", "zero")

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of HQQ, with settings for all layers or by the layer's name."""
        if about["quant_method"] != "hqq":
            return None
        settings = about.get("quant_config") or {}
        first = settings if "weight_quant_params" in settings else next((s for s in settings.values() if s), {})
        weights = first.get("weight_quant_params") or {}
        bits = int(weights.get("nbits", 4))
        return OwnPacking(self, bits, f"HQQ {bits}-bit", int(weights.get("group_size") or _USUAL_GROUP))

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count codes, scales and zero points. Of codes in 32 bits, 30 are used there and all here."""
        n_bytes = sum(parts[key].n_bytes for key in ("scale", "zero") if key in parts)
        if (codes := parts.get("W_q")) is None:
            return n_bytes
        if "scale" not in parts or codes.n_bytes != 4 * prod(codes.shape):
            return n_bytes + codes.n_bytes
        scales = parts["scale"].shape
        group = codes.shape[1] if scales[-1] == 1 else settings or _USUAL_GROUP  # along axis 1, along axis 0
        return n_bytes + prod(scales) * group * 3 // 8

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one linear layer.

        Shapes: along axis 1, scale and zero (groups, 1) and W_q (groups / codes a byte, numbers of a group); along axis
        0, (1, groups) and (numbers of a group / codes a byte, groups). The weight is (out, in).

        Raises:
            CheckpointError: a part is missing, a group is no part of a row or column, or scales are quantised too.
        """
        where = f"{file}: {name.removesuffix('.weight')}"
        codes, scale, zero, nbits, size, dense, axis = needed(
            where, tensors, "W_q", "scale", "zero", "nbits", "group_size", "shape", "axis"
        )
        bits, group, (rows, columns) = int(nbits), int(size), dense.tolist()
        along_rows = int(axis) == 1
        straddles = bits == 3 and columns % _FIELDS
        if int(axis) not in (0, 1) or bits not in _BITS or (columns if along_rows else rows) % group or straddles:
            raise CheckpointError(
                f"{where}: {bits} bits in groups of {group} along axis {int(axis)} of {rows} × {columns}",
                f"HQQ is read in 1, 2, 3 (columns in {_FIELDS}s), 4 and 8 bits, with groups that fill rows or columns",
            )
        if any(bool(tensors[part]) for part in ("quant_scale", "quant_zero") if part in tensors):
            raise CheckpointError(
                f"{where} has quantised scales or zero points", "save it without quant_scale and quant_zero"
            )
        numbers = _codes(codes, bits, rows * columns // group if along_rows else group).view(rows, columns)
        pieces = [
            words_of(torch.nn.functional.pad(piece, (0, -columns % _FIELDS)), bits)  # a row fills whole words
            for piece in numbers.split(_ROWS_AT_ONCE)
        ]
        words = torch.cat(pieces)[:, : -(-columns * bits // _FIELDS)]
        packed = SCALED.pack(
            where, words, scale, (rows, columns), kind="stream", bits=bits, zero=zero,
            block=(1, group if along_rows else 1), period=0 if along_rows else rows // group,
        )  # fmt: skip
        return Packed(SCALED, packed.shape, packed.parts, {**packed.settings, "arithmetic": _ARITHMETIC[scale.dtype]})


HQQ = Hqq()


def _codes(packed: torch.Tensor, bits: int, n_rows: int) -> torch.Tensor:
    """Unpack the codes. Shapes: (bytes or words, n) to (rows, n) in uint8, groups in rows (axis 1) or columns."""
    held_in, per = _PACKED_IN.get(bits, (torch.uint8, 8 // bits))
    whole = packed.view(held_in)
    shares = [((whole >> (bits * (per - 1 - share))) & ((1 << bits) - 1)).to(torch.uint8) for share in range(per)]
    return torch.cat(shares)[:n_rows]
