"""Safetensors shards: one table of all tensors, each read on its own with ordinary file reads.

The files are not mapped into memory: pages of a mapping count as this process's memory, and a loader that promises a
peak must not depend on when the system drops them. Source of the format: the safetensors README (8 bytes of header
length, a JSON header, the data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.homes.layout import bytes_of

INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # exponents, which are read as the bytes that they are
}
_MAX_HEADER_BYTES = 100_000_000
_PIECE_BYTES = 4 << 20
_NOTES = "__metadata__"  # what wrote the file, and what it noted
_AGAIN = "download or save the checkpoint again"


@dataclass(frozen=True)
class TensorEntry:
    """Say where a tensor's bytes lie. Units: `start` and `n_bytes` in bytes from the beginning of the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    n_bytes: int


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """Read one tensor into fresh memory.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    buffer = torch.empty(entry.n_bytes, dtype=torch.uint8)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        view = bytes_of(buffer)
        done = 0
        while done < entry.n_bytes:
            got = file.readinto(view[done:])
            if not got:
                raise CheckpointError(f"{entry.file.name} ends inside the tensor {entry.name}", _AGAIN)
            done += got
    return buffer.view(entry.dtype).view(entry.shape)


def same_numbers(first: TensorEntry, second: TensorEntry) -> bool:
    """Compare two stored tensors piece by piece."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with first.file.open("rb") as one, second.file.open("rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        left = first.n_bytes
        while left:
            piece = min(left, _PIECE_BYTES)
            if one.read(piece) != other.read(piece):
                return False
            left -= piece
    return True


def read_table(folder: Path) -> dict[str, TensorEntry]:
    """List every tensor of a folder's checkpoint, after checking the shards against the index and their own length.

    Raises:
        CheckpointError: a shard is missing, truncated or damaged, or lacks a tensor that the index says it has.
    """
    # 1) every file's own header
    weight_map = _read_index(folder)
    table: dict[str, TensorEntry] = {}
    for file in weight_files(folder):
        found = read_header(file)
        for name in found.keys() & table.keys():
            raise CheckpointError(
                f"{folder}: {name} is there twice, in {table[name].file.name} and {file.name}",
                "keep one checkpoint in the folder",
            )
        table |= found
    # 2) the index must agree
    lost = [name for name, shard in weight_map.items() if name not in table or table[name].file.name != shard]
    if lost:
        raise CheckpointError(f"{weight_map[lost[0]]} lacks the tensor {lost[0]}, but {INDEX} names it", _AGAIN)
    return table


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files of a folder that its weights are read from, in name order.

    Those that the index names; else `model.safetensors`; else all but adapters and Mistral's second copy of the weights
    under other names (`consolidated`).

    Raises:
        CheckpointError: the index is damaged, or a file that it names is missing.
    """
    if weight_map := _read_index(folder):
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise CheckpointError(f"{shard} is missing from {folder}, but {INDEX} names it", _AGAIN)
        return tuple(folder / shard for shard in shards)
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    files = sorted(folder.glob("*.safetensors"))
    return tuple(file for file in files if not file.name.startswith(("consolidated", "adapter_model")))


def _read_index(folder: Path) -> dict[str, str]:
    """Read which shard each tensor is in; nothing where there is no index.

    Raises:
        CheckpointError: it is damaged, or names a file outside the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index.name} is not a checkpoint's index", _AGAIN) from error
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:  # never read outside the folder
            raise CheckpointError(f"{index.name}: {name} is in {shard!r}, which is no file of its folder", _AGAIN)
    return weight_map


def read_notes(folder: Path) -> dict[str, Any]:
    """Collect what the writers of a folder's weight files noted in their headers."""
    notes: dict[str, Any] = {}
    for file in weight_files(folder):
        found = _header(file)[0].get(_NOTES)
        notes |= found if isinstance(found, dict) else {}
    return notes


def read_header(file: Path) -> dict[str, TensorEntry]:
    """List one shard's tensors.

    Raises:
        CheckpointError: the shard is truncated, or its header is not safetensors'.
    """
    header, start = _header(file)
    size = file.stat().st_size
    return {name: _entry(name, file, start, size, about) for name, about in header.items() if name[:2] != "__"}


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Read a shard's header, and where its data begin."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file.name} is truncated or not a safetensors file ({size} bytes)", _AGAIN)
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file.name} has a damaged header", _AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.name} has a damaged header: it is no table of tensors", _AGAIN)
    return header, 8 + length


def _entry(name: str, file: Path, data_start: int, file_size: int, about: Mapping[str, Any]) -> TensorEntry:
    """Read and check one tensor's line of the header: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}."""
    try:
        kind, (begin, end), shape = about["dtype"], about["data_offsets"], tuple(about["shape"])
        if not isinstance(kind, str) or any(type(number) is not int for number in (begin, end, *shape)):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.name} has a damaged header: {name} lacks its type, shape or place", _AGAIN
        ) from error
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise CheckpointError(f"{file.name}: {name} has the unknown type {kind}", "save it in bfloat16")
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        raise CheckpointError(f"{file.name} has a damaged header: {name} lies at bytes {begin} to {end}", _AGAIN)
    if end - begin != prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file.name}: {name} of shape {shape} cannot have {end - begin} bytes", _AGAIN)
    if data_start + end > file_size:
        raise CheckpointError(
            f"{file.name} is truncated: {name} ends at byte {data_start + end}, the file at byte {file_size}", _AGAIN
        )
    return TensorEntry(name, file, dtype, shape, data_start + begin, end - begin)
