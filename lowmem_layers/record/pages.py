"""What a parquet file unpacks to, by the headers of its pages: its footer can claim less than there is.

A page is unpacked into a buffer of the size that its own header says, so these sizes bound the memory that reading
takes, whatever the codec. (The footer's codec is not looked at: asked for one that it does not know, pyarrow ends the
whole process.) Text must be read as a dictionary: repeated, it would take far more than its pages.
Source: Apache Parquet's format (parquet.thrift, PageHeader) and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

_FIXED = frozenset({"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"})  # physical types of at most 8 bytes a value
_UNPACKED, _PACKED = 2, 3  # fields of PageHeader
_DICTIONARY = 7  # the field that only the header of a dictionary page has
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12  # types of values
_DEEPEST = 8
_MOST_VALUES = 1_000_000  # in the headers of one file: some 60,000 pages, which take seconds


@dataclass(frozen=True)
class Page:
    """One page of a column chunk, as its header describes it."""

    n_bytes: int  # unpacked
    is_dictionary: bool


def unpacked_bytes(data: memoryview, about: pq.FileMetaData, texts: Collection[str]) -> int:
    """Add up what the pages of a file of flat columns take unpacked.

    Units: bytes; `data` is the whole file.

    Raises:
        ValueError: a column is of a type that no record has or says that it holds more than the rows, a header makes no
            sense or a page lies outside the file.
    """
    headers, total = _Headers(data), 0
    for group in map(about.row_group, range(about.num_row_groups)):
        for chunk in map(group.column, range(about.num_columns)):
            # what is read is of fixed width, or text that is read as a dictionary; and one value a row
            name, kind = chunk.path_in_schema, chunk.physical_type
            if kind not in _FIXED and not (kind == "BYTE_ARRAY" and name in texts):
                raise ValueError(f"column {name[:40]!a} holds {kind}")
            if chunk.num_values != group.num_rows:
                raise ValueError(f"column {name[:40]!a} has {chunk.num_values:,} values in {group.num_rows:,} rows")
            total += sum(page.n_bytes for page in headers.pages(chunk))
    return total


class _Headers:
    """Reads the headers of a file's pages."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.at, self._left = data, 0, _MOST_VALUES

    def pages(self, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
        """Go through a column chunk from page to page.

        Raises:
            ValueError: a header makes no sense, or a page lies outside the file.
        """
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
        end = start + chunk.total_compressed_size
        self.at = start
        while self.at < end:
            found = self.fields()
            unpacked, packed = found.get(_UNPACKED, -1), found.get(_PACKED, -1)
            if unpacked < 0 or packed < 0:
                raise ValueError(f"a page of {chunk.path_in_schema[:40]!a} has no size")
            yield Page(unpacked, _DICTIONARY in found)
            self.at += packed

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Read one struct of Thrift's compact protocol; `at` is then the place behind it.

        Give its integers by the number of their field, and 0 for whatever else is there.
        """
        if depth > _DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        found: dict[int, int] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            found[number] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> int:
        """Read an integer, or pass over anything else."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"the headers of its pages hold more than {_MOST_VALUES:,} values")
        if kind in (_TRUE, _FALSE):
            return 0
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
        return 0

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
