"""What a parquet file of a record takes unpacked, told before it is read."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow.parquet as pq

from lowmem_layers.tasks.pages import row_groups

_FIXED = frozenset({"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"})  # physical types of at most 8 bytes a value


def unpacked_bytes(data: memoryview, about: pq.FileMetaData, texts: Collection[str]) -> int:
    """Add up what the pages of a file of flat columns take unpacked.

    Text must be read as a dictionary: repeated, it would take far more than its pages.

    Units: bytes; `data` is the whole file.

    Raises:
        ValueError: a column is of a type that no record has or says that it holds more than the rows, a header makes no
            sense or a page lies outside the file.
    """
    # what is read is of fixed width, or text that is read as a dictionary
    for column in map(about.schema.column, range(about.num_columns)):
        if column.physical_type not in _FIXED and not (column.physical_type == "BYTE_ARRAY" and column.path in texts):
            raise ValueError(f"column {column.path[:40]!a} holds {column.physical_type}")
        if column.max_repetition_level:
            raise ValueError(f"column {column.path[:40]!a} holds lists")
    total = 0
    for group in row_groups(data):
        for chunk in group.chunks:
            if chunk.n_values != group.n_rows:
                raise ValueError(f"a column has {chunk.n_values:,} values in {group.n_rows:,} rows")
            total += sum(page.taken_bytes for page in chunk.pages)
    return total
