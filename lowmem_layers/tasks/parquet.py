"""The rows of a parquet file that somebody else wrote, read a few at a time, in bounded memory.

A file of some kilobytes can unpack to terabytes: a page of zeros, a long text that a dictionary holds once and every
row names, a list of a billion equal entries. So the headers of its pages are looked at first; texts are read as
dictionaries; and a row becomes Python objects only when it is known what it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lowmem_layers.tasks.pages import row_groups

MOST_BYTES = 1 << 28  # that the pages which are read together may take, and the rows that are made of them
_ROWS = 1000  # at a time
_VALUE_BYTES = 16  # of a value in a list: its place in a dictionary, and how it is nested
_OBJECT_BYTES = 64  # of a Python object, beside the text in it
_TEXTS = frozenset({"STRING", "NONE", "JSON", "ENUM"})  # logical types of texts and bytes


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a parquet file.

    Raises:
        ValueError: it is damaged, or takes too much memory unpacked.
        OSError: it cannot be read.
    """
    with pa.memory_map(str(path)) as file:  # a path of this machine, whatever it looks like
        about = pq.read_metadata(file)
        file.seek(0)
        _check_pages(memoryview(file.read_buffer()).cast("B"), about)
        columns = map(about.schema.column, range(about.num_columns))
        texts = [
            column.path
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and column.logical_type.type in _TEXTS
        ]
        reader = pq.ParquetFile(file, metadata=about, read_dictionary=texts, pre_buffer=False)
        if len(set(reader.schema_arrow.names)) < len(reader.schema_arrow.names):
            raise ValueError("two columns have the same name")
        for group in range(about.num_row_groups):  # one at a time: their dictionaries differ
            for batch in reader.iter_batches(_ROWS, row_groups=[group], use_threads=False):
                batch.validate(full=True)  # places outside a dictionary, text that is no UTF-8
                yield from _spelled_out(batch)


def _check_pages(data: memoryview, about: pq.FileMetaData) -> None:
    """Refuse a file of which some rows cannot be read in bounded memory: one page of each column is open at a time.

    Raises:
        ValueError: pages take too much, a header makes no sense, or a page lies outside the file.
    """
    is_nested = [about.schema.column(place).max_repetition_level > 0 for place in range(about.num_columns)]
    for group in row_groups(data):
        taken = 0
        for chunk, in_lists in zip(group.chunks, is_nested, strict=True):
            taken += sum(page.taken_bytes for page in chunk.pages if page.is_dictionary)
            taken += max((page.taken_bytes for page in chunk.pages if not page.is_dictionary), default=0)
            # One row may hold all that is in lists.
            taken += in_lists * _VALUE_BYTES * sum(page.n_values for page in chunk.pages)
        if taken > MOST_BYTES:
            raise ValueError(
                f"its pages take {taken:,} bytes unpacked, at most {MOST_BYTES:,} are read at once; write it with "
                "smaller pages and row groups"
            )


def _spelled_out(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Make rows of a batch, of half of it at a time where all of it would take too much.

    Raises:
        ValueError: one row alone takes too much.
    """
    taken = sum(map(_object_bytes, batch.columns))
    if taken <= MOST_BYTES:
        yield from batch.to_pylist()
    elif batch.num_rows == 1:
        raise ValueError(f"one of its rows takes {taken:,} bytes, at most {MOST_BYTES:,} are read at once")
    else:
        half = batch.num_rows // 2
        yield from _spelled_out(batch.slice(0, half))
        yield from _spelled_out(batch.slice(half))


def _object_bytes(array: pa.Array) -> int:
    """Count what an array takes as Python objects, roughly: the objects, and the texts in them. Units: bytes."""
    kind, own = array.type, _OBJECT_BYTES * len(array)
    if pa.types.is_dictionary(kind):
        texts = array.dictionary
        if not len(texts) or not (pa.types.is_string(texts.type) or pa.types.is_binary(texts.type)):
            return own + texts.nbytes
        used = array.indices.drop_null().to_numpy(zero_copy_only=False)
        lengths = pc.fill_null(pc.call_function("binary_length", [texts]), 0).to_numpy(zero_copy_only=False)
        return own + int(lengths[used].sum(dtype=np.int64))
    if pa.types.is_struct(kind):
        return 4 * own + sum(map(_object_bytes, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return own + _object_bytes(array.flatten())
    if pa.types.is_map(kind):
        return own + sum(_object_bytes(part.slice(0)) for part in (array.keys, array.items))
    return own + array.nbytes
