"""A GGUF file, or the parts that one was split into: its metadata and its table of tensors.

The vocabulary, which makes up most of a header, is stepped over.

(The `gguf` package's reader takes seconds to half a minute for it.) Source of the format: ggml's `gguf.md`. All
numbers are little-endian; a string is a uint64 length and UTF-8 bytes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
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
_LONGEST_KEPT = 1 << 12  # numbers of an array: one a layer, or one an expert; a vocabulary has many more
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place. Shapes: `shape` is the dense one, outermost dimension first. Units: bytes from the start."""

    name: str
    shape: tuple[int, ...]
    quant_type: str
    start: int
    n_bytes: int
    file: Path


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data: metadata and the table of tensors, of all parts of a split file.

    `file` is the only one or the first part. An array of strings, or of more numbers than a model has layers, is None.
    """

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Name the architecture, as llama.cpp calls it."""
        return str(self.metadata.get("general.architecture", ""))


def gguf_parts(file: Path) -> tuple[Path, ...]:
    """List the files that one GGUF was split into, `NAME-00001-of-00003.gguf` and so on, by any of their names.

    A file of another name is its only part. Whether the files exist is not looked at.
    """
    named = _PART.fullmatch(file.name)
    if named is None:
        return (file,)
    count = int(named["count"])
    ending = f"-of-{count:05d}{file.suffix}"
    return tuple(file.with_name(f"{named['stem']}-{number:05d}{ending}") for number in range(1, count + 1))


def read_gguf_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file, or the headers of all its parts, the first of which has the metadata.

    Raises:
        CheckpointError: a part is missing or damaged, or the parts do not make one file.
    """
    parts = gguf_parts(file)
    missing = [part.name for part in parts if not part.exists()]
    if len(parts) > 1 and missing:
        raise CheckpointError(
            f"the model has {len(parts)} parts, and {file.parent} lacks {', '.join(missing)}",
            "download what is missing",
        )
    headers = [_read_part(part) for part in parts]
    first, count = headers[0], headers[0].metadata.get("split.count", 0)
    if count > 1 and count != len(parts):
        raise CheckpointError(
            f"{file.name} is one of {count} parts, but its name does not say so",
            f"call the parts NAME-00001-of-{count:05d}.gguf and so on, as they were published",
        )
    tensors: dict[str, GgufTensor] = {}
    for header in headers:
        if header.metadata.get("split.count", 0) != count or tensors.keys() & header.tensors.keys():
            raise CheckpointError(f"{header.file.name} is no part of the model that {first.file.name} begins", AGAIN)
        tensors |= header.tensors
    if len(tensors) != first.metadata.get("split.tensors.count", len(tensors)):
        expected = first.metadata["split.tensors.count"]
        raise CheckpointError(f"the parts of {first.file.name} hold {len(tensors)} tensors, not {expected}", AGAIN)
    return replace(first, tensors=tensors)


def _read_part(file: Path) -> GgufHeader:
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
        raise CheckpointError(
            f"{file.name}: {name} has the unknown type {type_number}",
            "it is newer than the gguf package here (pip install --upgrade gguf), or damaged (download it again)",
        ) from error
    numbers, block_bytes = GGML_QUANT_SIZES[quant_type]
    n_bytes = prod(shape) // numbers * block_bytes
    if start + n_bytes > size:
        raise CheckpointError(
            f"{file.name} is truncated: {name} ends at byte {start + n_bytes}, the file at byte {size}", AGAIN
        )
    return GgufTensor(name, shape, quant_type.name, start, n_bytes, file)


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
    """Read a scalar, a string, or a short array of numbers, {uint32 type; uint64 length; values}; else give None."""
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
    elif element in _SCALARS and count <= _LONGEST_KEPT:
        return _read(stream, f"<{count}{_SCALARS[element][1]}")
    elif element in _SCALARS:
        stream.seek(_at_most(_MAX_STRING_BYTES, count) * struct.calcsize(_SCALARS[element]), 1)
    else:
        raise struct.error(f"array of value type {element}")
    return None
