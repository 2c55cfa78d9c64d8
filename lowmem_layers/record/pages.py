"""What a parquet file unpacks to, by the headers of its pages: its footer can claim less than there is.

A page is unpacked into a buffer of the size that its own header says, so these sizes bound the memory that reading
takes. Text must be listed by the caller, who reads it as a dictionary: repeated, it would take far more than its pages.
Source: Apache Parquet's format (parquet.thrift, PageHeader) and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow.parquet as pq

_FIXED = frozenset({"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"})  # physical types of at most 8 bytes a value
_UNPACKED, _PACKED = 2, 3  # fields of PageHeader
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12  # types of values
_DEEPEST = 8
_SMALL_BYTES = 1 << 12  # zstd's densest block is 128 KiB in 4 bytes: a file of this size unpacks to 128 MiB at most
_DENSER = frozenset({"BROTLI"})


def unpacked_bytes(data: memoryview, about: pq.FileMetaData, texts: Collection[str]) -> int:
    """Add up what the pages of a file take unpacked; of a very small file, what its footer says.

    Units: bytes; `data` is the whole file.

    Raises:
        ValueError: a column is of a type that no record has, a header makes no sense or a page lies outside the file.
    """
    groups = [about.row_group(group) for group in range(about.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(about.num_columns)]
    # 1) what is read is of fixed width, or text that is read as a dictionary
    for chunk in chunks:
        name, kind = chunk.path_in_schema, chunk.physical_type
        if kind not in _FIXED and not (kind == "BYTE_ARRAY" and name in texts):
            raise ValueError(f"column {name[:40]!a} holds {kind}")
        if chunk.compression in _DENSER:
            raise ValueError(f"column {name[:40]!a} is packed with {chunk.compression}")
    if len(data) <= _SMALL_BYTES:
        return sum(group.total_byte_size for group in groups)
    # 2) from page to page
    total = 0
    for chunk in chunks:
        at = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
        end = at + chunk.total_compressed_size
        while at < end:
            header = _Header(data, at)
            sizes = header.fields()
            unpacked, packed = sizes.get(_UNPACKED, -1), sizes.get(_PACKED, -1)
            if unpacked < 0 or packed < 0:
                raise ValueError(f"a page of {chunk.path_in_schema[:40]!a} has no size")
            total += unpacked
            at = header.at + packed
    return total


class _Header:
    """Reads one struct of Thrift's compact protocol; `at` is then the place behind it."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self.at = data, at

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Read the struct; give its integers by the number of their field."""
        if depth > _DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        found: dict[int, int] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 15, depth)
            if value is not None:
                found[number] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        """Read an integer, or pass over anything else."""
        if kind in (_TRUE, _FALSE):
            return None
        if kind == _BYTE:
            return self._byte()
        if kind < _DOUBLE:
            return self._integer()
        if kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._unsigned())
        elif kind in (_LIST, _SET):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(length):
                self._value(_BYTE if head & 15 in (_TRUE, _FALSE) else head & 15, depth)
        elif kind == _STRUCT:
            self.fields(depth + 1)
        else:
            raise ValueError("the header of a page holds what none has")
        return None

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _skip(self, n_bytes: int) -> None:
        self.at += n_bytes
        if not 0 < self.at <= len(self._data):
            raise ValueError("a page lies outside the file")

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number in the header of a page has no end")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
