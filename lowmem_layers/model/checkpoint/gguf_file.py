"""A GGUF file: its table of tensors, read without the vocabulary that makes up most of its header.

(The `gguf` package's reader takes seconds to half a minute for that vocabulary.) Source of the format: ggml's
`gguf.md`. All numbers are little-endian; a string is a uint64 length and UTF-8 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lowmem_layers.errors import CheckpointError

AGAIN = "download the GGUF file again"

# numbers of `gguf_metadata_value_type`
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_STRING_BYTES = 1 << 26  # a chat template has some ten thousand


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

    `gguf_header_t` is {char magic[4]; uint32 version; uint64 tensor_count; uint64 metadata_kv_count}; then come the
    fields, {string key; uint32 type; value}, and the tensors, {string name; uint32 n_dims; uint64 dims[]; uint32 type;
    uint64 offset}, whose offsets count from the first multiple of the alignment behind the table.

    Raises:
        CheckpointError: the file is not GGUF version 2 or 3, is truncated, or has a tensor of an unknown type.
    """
    rows: list[tuple[str, tuple[int, ...], int, int]] = []  # name, shape, number of the type, offset
    metadata: dict[str, Any] = {}
    try:
        with file.open("rb") as stream:
            # 1) what it is, and how much follows
            magic, version, n_tensors, n_fields = _read(stream, "<4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise CheckpointError(f"{file.name} is not a GGUF file of version 2 or 3", AGAIN)
            # 2) the fields
            for _ in range(n_fields):
                name = _read_string(stream)
                metadata[name] = _read_value(stream, *_read(stream, "<I"))
            # 3) the tensors
            for _ in range(n_tensors):
                name = _read_string(stream)
                n_dims = _at_most(_MAX_DIMS, *_read(stream, "<I"))
                dims = _read(stream, f"<{n_dims}Q")
                rows.append((name, tuple(reversed(dims)), *_read(stream, "<IQ")))  # ggml: fastest dimension first
            table_end = stream.tell()
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise struct.error(f"alignment {alignment!r}")
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file.name} has a truncated or damaged GGUF header", AGAIN) from error
    # 4) where each tensor lies
    data_start, size = -(-table_end // alignment) * alignment, file.stat().st_size
    tensors = {name: _placed(file, size, name, shape, kind, data_start + at) for name, shape, kind, at in rows}
    return GgufHeader(file, metadata, tensors)


def _placed(file: Path, size: int, name: str, shape: tuple[int, ...], type_number: int, start: int) -> GgufTensor:
    """Count a tensor's bytes, and refuse it where the file of `size` bytes ends before it does."""
    try:
        quant_type = GGMLQuantizationType(type_number)
    except ValueError as error:
        raise CheckpointError(f"{file.name}: {name} has the unknown type {type_number}", AGAIN) from error
    numbers, block_bytes = GGML_QUANT_SIZES[quant_type]
    n_bytes = prod(shape) // numbers * block_bytes
    if start + n_bytes > size:
        raise CheckpointError(
            f"{file.name} is truncated: {name} ends at byte {start + n_bytes}, the file at byte {size}", AGAIN
        )
    return GgufTensor(name, shape, quant_type.name, start, n_bytes)


def _read(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    """Read what `struct` calls `form`.

    Raises:
        struct.error: the file ends inside it.
    """
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _at_most(limit: int, number: int) -> int:
    """Refuse a count that no sound file has, before memory is taken for it."""
    if number > limit:
        raise struct.error(f"{number} is more than {limit}")
    return number


def _read_string(stream: BinaryIO) -> str:
    return stream.read(_at_most(_MAX_STRING_BYTES, *_read(stream, "<Q"))).decode()


def _read_value(stream: BinaryIO, kind: int) -> Any:
    """Read a scalar or a string; step over an array, {uint32 type; uint64 length; values}, and give None for it."""
    if kind == _STRING:
        return _read_string(stream)
    if kind in _SCALARS:
        return _read(stream, _SCALARS[kind])[0]
    if kind != _ARRAY:
        raise struct.error(f"value type {kind}")
    element, count = _read(stream, "<IQ")
    if element == _STRING:
        for _ in range(count):
            stream.seek(_at_most(_MAX_STRING_BYTES, *_read(stream, "<Q")), 1)
    elif element in _SCALARS:
        stream.seek(_at_most(_MAX_STRING_BYTES, count) * struct.calcsize(_SCALARS[element]), 1)
    else:
        raise struct.error(f"array of value type {element}")
    return None
