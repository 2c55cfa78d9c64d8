"""What a parquet file takes to read, by the headers of its pages: its footer can claim less than there is.

A page is unpacked into a buffer of the size that its own header says, so these sizes bound the memory that reading
takes, whatever the codec. pyarrow is not asked for what the footer says of column chunks: at some damage (a codec that
there is not, statistics of another type) that ends the whole process, where reading the file raises an error.
Source: Apache Parquet's format (parquet.thrift), Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE, _BYTE, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 5, 6, 7, 8, 9, 10, 12  # types
_ENTRY_BYTES = 16  # what pyarrow takes for an entry of a dictionary, before it looks for it
_DEEPEST = 16  # structs and lists; a footer has 10
_MOST_VALUES = 1_000_000  # in the footer and the headers of one file: some 60,000 pages, which take seconds


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


@dataclass(frozen=True)
class Chunk:
    """One column's part of a row group."""

    n_values: int
    pages: tuple[Page, ...]


@dataclass(frozen=True)
class RowGroup:
    """A number of rows, in one chunk for each column of the schema, in its order."""

    n_rows: int
    chunks: tuple[Chunk, ...]


def row_groups(data: memoryview) -> Iterator[RowGroup]:
    """Go through a file's footer and the headers of its pages.

    Raises:
        ValueError: the footer or a header makes no sense, or a page lies outside the file.
    """
    reader = Thrift(data)
    reader.at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for group in reader.struct().get((4, _LIST), ()):
        chunks = []
        for column in _field(group, 1, _LIST):
            about = _field(column, 3, _STRUCT)
            # Where pyarrow begins to read; without rows there is a dictionary alone, and no place of data
            start, dictionary = _field(about, 9, _I64), about.get((11, _I64), 0)
            start = dictionary if 0 < dictionary < start or start == 0 else start
            pages = tuple(_pages(reader, start, start + _field(about, 7, _I64)))
            chunks.append(Chunk(_field(about, 5, _I64), pages))
        yield RowGroup(_field(group, 3, _I64), tuple(chunks))


def _pages(reader: Thrift, start: int, end: int) -> Iterator[Page]:
    """Go from page to page; the header of each says how long it is."""
    reader.at = start
    while reader.at < end:
        header = reader.struct()
        unpacked, packed = _field(header, 2, _I32), _field(header, 3, _I32)
        if unpacked < 0 or packed < 0:
            raise ValueError("a page has no size")
        # Of data, of a dictionary, of data in version 2
        kinds = [header[kind, _STRUCT] for kind in (5, 7, 8) if (kind, _STRUCT) in header]
        n_values = max((_field(kind, 1, _I32) for kind in kinds), default=0)
        yield Page(unpacked, n_values, (7, _STRUCT) in header)
        reader.at += packed


def _field(struct: Any, number: int, kind: int) -> Any:
    """Take a field of a struct; of another type than it should be, it counts as missing, as everywhere in Thrift."""
    if not isinstance(struct, dict) or (number, kind) not in struct:
        raise ValueError("its footer, or the header of a page, lacks a field")
    return struct[number, kind]


class Thrift:
    """Reads values of Thrift's compact protocol; `at` is the place behind what was read."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.at, self._left = data, 0, _MOST_VALUES

    def struct(self, depth: int = 0) -> dict[tuple[int, int], Any]:
        """Read a struct: its values by the number and the type of their field. Of texts only the length is read."""
        found: dict[tuple[int, int], Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            found[number, head & 15] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("its footer, or the header of a page, is nested too deeply")
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its footer and the headers of its pages hold more than {_MOST_VALUES:,} values")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind < _DOUBLE:
            return self._integer()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            length, inner = head >> 4 if head >> 4 < 15 else self._unsigned(), head & 15
            return [self._value(_BYTE if inner in (_TRUE, _FALSE) else inner, depth + 1) for _ in range(length)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("its footer, or the header of a page, holds what none has")

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _skip(self, n_bytes: int) -> int:
        self.at += n_bytes
        if not 0 < self.at <= len(self._data):
            raise ValueError("a page, or the footer, lies outside the file")
        return n_bytes

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number in the footer or in the header of a page has no end")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
