"""What a parquet file of a record takes unpacked, told before it is read."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow.parquet as pq

from lowmem_layers.tasks.pages import PageHeaders

_FIXED = frozenset({"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"})  # physical types of at most 8 bytes a value


def unpacked_bytes(data: memoryview, about: pq.FileMetaData, texts: Collection[str]) -> int:
    """Add up what the pages of a file of flat columns take unpacked.

    Text must be read as a dictionary: repeated, it would take far more than its pages.

    Units: bytes; `data` is the whole file.

    Raises:
        ValueError: a column is of a type that no record has or says that it holds more than the rows, a header makes no
            sense or a page lies outside the file.
    """
    headers, total = PageHeaders(data), 0
    for group in map(about.row_group, range(about.num_row_groups)):
        for chunk in map(group.column, range(about.num_columns)):
            name, kind = chunk.path_in_schema, chunk.physical_type
            if kind not in _FIXED and not (kind == "BYTE_ARRAY" and name in texts):
                raise ValueError(f"column {name[:40]!a} holds {kind}")
            if chunk.num_values != group.num_rows:
                raise ValueError(f"column {name[:40]!a} has {chunk.num_values:,} values in {group.num_rows:,} rows")
            total += sum(page.taken_bytes for page in headers.pages(chunk))
    return total
