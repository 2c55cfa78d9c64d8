"""Numbers of few bits on a grid of scales: what most 4-bit and 8-bit checkpoints hold, under many names.

A weight is scale × (code − zero), with one scale for each block of `height` rows and `width` columns. The formats of
checkpoints (AWQ, compressed-tensors, FP8, MXFP4, modelopt, HQQ) read their tensors into this one form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import Packed, row_pieces

Codes = Literal["stream", "e2m1", "plain"]

_CONTRADICTION = "the checkpoint's quantisation config contradicts its tensors"
_WORD = 32
# the sixteen numbers of four-bit floats (OCP Microscaling 1.0, E2M1)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_LEAST_POWER = 1 << 22  # the bits of 2^−127, a subnormal float32: what E8M0's 0 stands for


@dataclass(frozen=True)
class Scaled:
    """Codes, scales and, in some formats, zero points, the column's group numbers and a scale of all scales.

    Setting `codes` says how the codes lie: in streams of bits along the columns (`stream`), as four-bit floats, two a
    byte, the lower half first (`e2m1`), or as what they are (`plain`: int8 or an eight-bit float). Scales in uint8 are
    exponents: 2^(e − 127). A scale of all scales multiplies them or, with `divides`, divides them. Offsets are added
    behind the scales; what multiplies a column (a factor that activations would be multiplied by) comes last.
    """

    name: str = "scaled"

    def pack(
        self, where: str, codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...], *, kind: Codes,
        block: tuple[int, int], bits: int = 8, zero: int | torch.Tensor = 0, groups: torch.Tensor | None = None,
        factor: torch.Tensor | None = None, divides: bool = False, offsets: torch.Tensor | None = None,
        per_column: torch.Tensor | None = None, period: int = 0,
    ) -> Packed:  # fmt: skip
        """Take over codes and their scales. With `period`, so many rows of scales are for the rows in turn.

        Shapes: the dense weight is `shape`; codes (..., rows, bytes or words of a row); scales (..., row blocks, column
        blocks), as are `zero` where it is no constant and offsets; groups and per_column (columns,); factor has one
        number.

        Raises:
            CheckpointError: the shapes contradict each other; the message begins with `where`.
        """
        rows, columns = prod(shape[:-1]), shape[-1]
        height, width = block
        per_row = {"stream": -(-columns * bits // _WORD), "e2m1": columns // 2, "plain": columns}[kind]
        if codes.numel() != rows * per_row:
            raise CheckpointError(f"{where}: codes of shape {tuple(codes.shape)} do not make {shape}", _CONTRADICTION)
        row_blocks, column_blocks = period or -(-rows // height), -(-columns // width)
        if groups is not None:
            column_blocks = scales.shape[-1]
            if tuple(groups.shape) != (columns,) or int(groups.min()) < 0 or int(groups.max()) >= column_blocks:
                raise CheckpointError(
                    f"{where}: group numbers of shape {tuple(groups.shape)} do not name {column_blocks} groups",
                    _CONTRADICTION,
                )
        if per_column is not None and per_column.numel() != columns:
            raise CheckpointError(f"{where}: {per_column.numel()} factors for {columns} columns", _CONTRADICTION)
        cuts_blocks = len(shape) > 2 and shape[-2] % height > 0  # one block would hold rows of two experts
        parts = {"codes": codes.reshape(rows, per_row).contiguous()}
        for part, grid in {"scales": scales, "zeros": zero, "offsets": offsets}.items():
            if not isinstance(grid, torch.Tensor):
                continue
            if grid.numel() != row_blocks * column_blocks or cuts_blocks:
                raise CheckpointError(
                    f"{where}: {part} of shape {tuple(grid.shape)} do not fit {shape} in blocks of {height} × {width}",
                    _CONTRADICTION,
                )
            parts[part] = grid.reshape(row_blocks, column_blocks).contiguous()
        parts |= {} if groups is None else {"groups": groups.int()}
        parts |= {} if factor is None else {"factor": factor.float().reshape(1)}
        parts |= {} if per_column is None else {"per_column": per_column.float().reshape(columns)}
        settings: dict[str, str | int | float | bool] = {
            "codes": kind, "bits": bits, "height": height, "width": width, "divides": divides, "period": period,
        }  # fmt: skip
        settings |= {"zero": zero} if isinstance(zero, int) and zero else {}
        return Packed(self, shape, parts, settings)

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out, with the scales of all blocks that they lie in.

        The setting `skip` counts the rows of the first block in front of the first row.

        Shapes: of all leading dimensions taken together, `start` to `stop`.
        """
        height, skip = int(packed.settings["height"]), int(packed.settings.get("skip", 0))
        period = int(packed.settings.get("period", 0))
        first, last = (0, period) if period else ((skip + start) // height, -(-(skip + stop) // height))
        parts = dict(packed.parts)
        parts["codes"] = parts["codes"][start:stop]
        for part in ("scales", "zeros", "offsets"):
            if part in parts:
                parts[part] = parts[part][first:last]
        settings = {**packed.settings, "skip": skip + start - first * height}
        return Packed(self, (stop - start, packed.shape[-1]), parts, settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Compute (scale × (code − zero) + offset) × the column's factor in float32, and round once to `out`'s dtype.

        The setting `arithmetic` names another type to compute in, where a format's own arithmetic is rounded.
        """
        dtype: torch.dtype = getattr(torch, str(packed.settings.get("arithmetic", "float32")))
        for piece, there in row_pieces(packed, out):
            numbers = _numbers(piece).to(dtype)  # (rows, columns)
            if "zeros" in piece.parts:
                numbers -= _spread(piece, piece.parts["zeros"].to(dtype))
            numbers *= _spread(piece, _scales(piece).to(dtype))
            if "offsets" in piece.parts:
                numbers += _spread(piece, piece.parts["offsets"].to(dtype))
            if "per_column" in piece.parts:
                numbers *= piece.parts["per_column"]
            there.copy_(numbers)
            del numbers  # not to be held while the next piece is unpacked


SCALED = Scaled()


def _numbers(piece: Packed) -> torch.Tensor:
    """Read the codes as float32 numbers, less a zero point that is the same for all. Shapes: (rows, columns)."""
    codes, columns = piece.parts["codes"], piece.shape[-1]
    kind, zero = piece.settings["codes"], int(piece.settings.get("zero", 0))
    if kind == "stream":
        numbers = fields(codes, int(piece.settings["bits"]))[:, :columns].float()
    elif kind == "e2m1":
        halves = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)  # (rows, bytes) -> (rows, columns)
        numbers = torch.tensor(_E2M1, device=codes.device)[halves.int()]
    else:
        numbers = codes.float()
    return numbers.sub_(zero) if zero else numbers


def _scales(piece: Packed) -> torch.Tensor:
    """Compute the blocks' scales. Shapes: (row blocks, column blocks) in float32."""
    stored = piece.parts["scales"]
    if stored.dtype == torch.uint8:  # exponents of two (E8M0), by their bits: a GPU's powers may be rounded
        exponents = stored.int()
        scales = torch.where(exponents == 0, _LEAST_POWER, exponents << 23).view(torch.float32)
    else:
        scales = stored.float()
    factor = piece.parts.get("factor")
    if factor is None:
        return scales
    return scales / factor if piece.settings["divides"] else scales * factor


def _spread(piece: Packed, grid: torch.Tensor) -> torch.Tensor:
    """Give every number its block's value.

    Shapes: (row blocks, column blocks) to (rows, columns), or to (rows, 1) where a row has one block.
    """
    rows, columns = piece.shape
    height, width = int(piece.settings["height"]), int(piece.settings["width"])
    period = int(piece.settings.get("period", 0))
    if height > 1 or period:
        number = torch.arange(rows, device=grid.device) + int(piece.settings.get("skip", 0))
        grid = grid[number % period if period else number // height]  # (rows, column blocks)
    if "groups" in piece.parts:
        return grid[:, piece.parts["groups"]]
    return grid if grid.shape[1] == 1 else grid.repeat_interleave(width, dim=1)[:, :columns]


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut the last dimension's stream of 32-bit words into fields of `bits` bits, lowest bits first.

    Shapes: (rows, words) int32 give (rows, words × 32 / bits) int32 fields; where fields straddle words, all that begin
    in the words.
    """
    if _WORD % bits == 0:
        shifts = torch.arange(0, _WORD, bits, dtype=torch.int32, device=words.device)  # (fields a word,)
        return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)  # (rows, words, fields) -> (rows, n)
    # `bits` words hold exactly 32 fields; a field may begin in one word and end in the next
    words = torch.nn.functional.pad(words, (0, -words.shape[-1] % bits))
    start = torch.arange(0, _WORD * bits, bits, device=words.device)  # the bit at which each of 32 fields starts
    run = words.reshape(*words.shape[:-1], -1, bits).long() & 0xFFFFFFFF  # (rows, runs, bits)
    low = run[..., start // _WORD] >> (start % _WORD)  # (rows, runs, 32)
    high = run[..., ((start + bits - 1) // _WORD)] << (_WORD - start % _WORD)
    straddles = start % _WORD + bits > _WORD
    return (torch.where(straddles, low | high, low) & ((1 << bits) - 1)).flatten(-2).int()


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Write fields of `bits` bits into 32-bit words, the first in the lowest bits. Shapes: (rows, n) to (rows, words).

    The fields of a row fill whole words; where `bits` does not divide 32, there are a multiple of 32 of them.
    """
    if _WORD % bits:
        runs = codes.unflatten(-1, (-1, _WORD)).long()  # (rows, runs, 32 fields), `bits` words each
        start = torch.arange(0, _WORD * bits, bits, device=codes.device)
        shifted = runs << start % _WORD  # below 2^(32 + bits): what is above goes to the next word
        words = runs.new_zeros(*runs.shape[:-1], bits + 1)
        words.index_add_(-1, start // _WORD, shifted & 0xFFFFFFFF).index_add_(-1, start // _WORD + 1, shifted >> _WORD)
        summed = words[..., :bits].flatten(-2)
        return torch.where(summed >= 1 << 31, summed - (1 << 32), summed).int()
    shifts = torch.arange(0, _WORD, bits, device=codes.device)
    summed = (codes.unflatten(-1, (-1, _WORD // bits)).long() << shifts).sum(-1)  # (rows, words), below 2^32
    return torch.where(summed >= 1 << 31, summed - (1 << 32), summed).int()


def scale_block(dims: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int] | None = None) -> tuple[int, int]:
    """Tell from the shape of the scales what share of a weight one scale is for: all of it, a row, or a block.

    `block` is what the config says. Where it does not fit, a row's columns are taken in equal parts.

    Shapes: `dims` of the scales, `shape` of the weight.
    """
    rows, columns = prod(shape[:-1]), shape[-1]
    if prod(dims) == 1:
        return rows, columns
    if block is not None and dims[-2:] == (-(-shape[-2] // block[0]), -(-columns // block[1])):
        return block
    if prod(dims) == rows:
        return 1, columns
    return 1, -(-columns // dims[-1])


def needed(where: str, tensors: Mapping[str, torch.Tensor], *names: str) -> list[torch.Tensor]:
    """Take tensors of a packed weight.

    Raises:
        CheckpointError: one is missing.
    """
    if missing := [name for name in names if name not in tensors]:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}", "the checkpoint is incomplete")
    return [tensors[name] for name in names]
