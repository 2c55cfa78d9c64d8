"""What a parquet file unpacks to, by the headers of its pages: its footer can claim less than there is.

A page is unpacked into a buffer of the size that its own header says, so these sizes bound the memory that reading
takes, whatever the codec. (The footer's codec is not looked at: asked for one that it does not know, pyarrow ends the
whole process.)
Source: Apache Parquet's format (parquet.thrift, PageHeader) and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

# Fields of PageHeader: two sizes, and what describes a page of data, of a dictionary, and of data in version 2. The
# first field of each of the three is the number of values.
_UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_2 = 2, 3, 5, 7, 8
_ENTRY_BYTES = 16  # what pyarrow takes for an entry of a dictionary, before it looks for it
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12  # types of values
_DEEPEST = 8
_MOST_VALUES = 1_000_000  # in the headers of one file: some 60,000 pages, which take seconds


@dataclass(frozen=True)
class Page:
    """One page of a column chunk, as its header describes it."""

    n_bytes: int  # unpacked
    n_values: int
    is_dictionary: bool

    @property
    def taken_bytes(self) -> int:
        """Tell what reading the page takes, beside the values that are made of it."""
        return self.n_bytes + (_ENTRY_BYTES * self.n_values if self.is_dictionary else 0)


class PageHeaders:
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
            yield Page(
                unpacked, max(found.get(kind, 0) for kind in (_DATA, _DICTIONARY, _DATA_2)), _DICTIONARY in found
            )
            self.at += packed

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Read one struct of Thrift's compact protocol; `at` is then the place behind it.

        Give its integers by the number of their field; of a struct in it the first field, and 0 for whatever else.
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
        """Read an integer, or the first field of a struct, or pass over anything else."""
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
            return self.fields(depth + 1).get(1, 0)
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
