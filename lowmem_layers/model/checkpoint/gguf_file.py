"""A GGUF file: its table of tensors, read without the vocabulary that makes up most of its header.

(The `gguf` package's reader takes seconds to half a minute for that vocabulary.) Source of the format: ggml's
`gguf.md`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lowmem_layers.errors import CheckpointError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_AGAIN = "download the GGUF file again"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place. Shapes: `shape` is the dense one, outermost dimension first. Units: bytes from the start."""

    name: str
    shape: tuple[int, ...]
    quant_type: str
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data: scalar metadata (arrays left out) and the table of tensors."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Name the architecture, as llama.cpp calls it."""
        return str(self.metadata.get("general.architecture", ""))


def read_gguf_header(file: Path) -> GgufHeader:
    """Read metadata and tensor table, and check that the file is long enough for its tensors.

    Raises:
        CheckpointError: the file is not GGUF version 2 or 3, is truncated, or has a tensor of an unknown type.
    """
    try:
        with file.open("rb") as stream:
            magic, version, n_tensors, n_fields = struct.unpack("<4sIQQ", stream.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise CheckpointError(f"{file.name} is not a GGUF file of version 2 or 3", _AGAIN)
            metadata = {}
            for _ in range(n_fields):
                name = _read_string(stream)
                metadata[name] = _read_value(stream, _read(stream, "<I"))
            rows = [_read_row(stream) for _ in range(n_tensors)]
            start = -(-stream.tell() // int(metadata.get("general.alignment", 32)))
    except (struct.error, UnicodeDecodeError, MemoryError, ArithmeticError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file.name} has a truncated or damaged GGUF header", _AGAIN) from error
    data_start = start * int(metadata.get("general.alignment", 32))
    size = file.stat().st_size
    return GgufHeader(file, metadata, {row[0]: _tensor(file, row, data_start, size) for row in rows})


def _tensor(file: Path, row: tuple[str, tuple[int, ...], int, int], data_start: int, file_size: int) -> GgufTensor:
    name, shape, type_number, offset = row
    try:
        quant_type = GGMLQuantizationType(type_number)
    except ValueError as error:
        raise CheckpointError(f"{file.name}: {name} has the unknown type {type_number}", _AGAIN) from error
    numbers, block_bytes = GGML_QUANT_SIZES[quant_type]
    n_bytes = prod(shape) // numbers * block_bytes
    if data_start + offset + n_bytes > file_size:
        raise CheckpointError(
            f"{file.name} is truncated: {name} ends at byte {data_start + offset + n_bytes},"
            f" the file at byte {file_size}",
            _AGAIN,
        )
    return GgufTensor(name, shape, quant_type.name, data_start + offset, n_bytes)


def _read_row(stream: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _read_string(stream)
    n_dims = _read(stream, "<I")
    dims = struct.unpack(f"<{n_dims}Q", stream.read(8 * n_dims))
    type_number, offset = struct.unpack("<IQ", stream.read(12))
    return name, tuple(reversed(dims)), type_number, offset  # ggml names the fastest dimension first


def _read(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _read_string(stream: BinaryIO) -> str:
    return stream.read(_read(stream, "<Q")).decode()


def _read_value(stream: BinaryIO, kind: int) -> Any:
    """Read a scalar or a string; step over an array."""
    if kind == _STRING:
        return _read_string(stream)
    if kind != _ARRAY:
        if kind not in _SCALARS:
            raise struct.error(f"value type {kind}")
        return _read(stream, _SCALARS[kind])
    element, count = struct.unpack("<IQ", stream.read(12))
    if element == _STRING:
        for _ in range(count):
            stream.seek(_read(stream, "<Q"), 1)
    else:
        stream.seek(count * struct.calcsize(_SCALARS[element]), 1)
    return None
