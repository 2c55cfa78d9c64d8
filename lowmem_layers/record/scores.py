"""The scores of a tile as a parquet file: the same numbers give the same bytes; damage is noticed on reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowmem_layers.errors import EngineError, RecordError
from lowmem_layers.record.files import write_whole
from lowmem_layers.record.items import ItemRow

SCORES_FOLDER = "scores"

_NAME = pa.dictionary(pa.int32(), pa.string())
SCORES_SCHEMA = pa.schema(
    [
        ("task", _NAME),
        ("item", _NAME),
        ("removed", _NAME),
        ("choice", pa.int32()),
        ("loglikelihood", pa.float64()),
        ("gold", pa.int8()),
    ]
)
_KEYS = [name for name in SCORES_SCHEMA.names if name != "loglikelihood"]
_HINT = "remove that file and run the same command again: only its items are scored anew"


def tile_file(folder: Path, tile: int) -> Path:
    """Name the file of a tile's scores."""
    return folder / SCORES_FOLDER / f"tile-{tile:05d}.parquet"


def scores_table(items: Sequence[ItemRow], removed: Sequence[str], scores: Sequence[np.ndarray]) -> pa.Table:
    """Lay out a tile's scores: items in order, then coalitions, then choices.

    Shapes: `scores` has one array (coalitions, choices) for each item, nats.

    Raises:
        EngineError: the scores have another shape.
    """
    if len(scores) != len(items):
        raise EngineError(f"expected scores of {len(items)} items, received {len(scores)}")
    for item, block in zip(items, scores, strict=True):
        if np.shape(block) != (len(removed), item.n_choices):
            raise EngineError(
                f"item {item.id} of {item.task}: expected scores of shape {(len(removed), item.n_choices)}, "
                f"received {np.shape(block)}"
            )
    flat = np.concatenate([np.asarray(block, dtype=np.float64).ravel() for block in scores])
    keys = _keys(items, removed)
    place = SCORES_SCHEMA.names.index("loglikelihood")
    return keys.add_column(place, SCORES_SCHEMA.field(place), pa.array(flat))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file, whole or not at all; the same table gives the same bytes.

    Raises:
        RecordError: the file cannot be written.
    """

    def fill(partial: Path) -> None:
        with pa.OSFile(str(partial), "wb") as file:  # pyarrow would take a path such as hf://x for an address
            pq.write_table(table, file, compression="zstd", compression_level=3, write_page_checksum=True)

    write_whole(path, fill)


def read_table(path: Path, hint: str = _HINT) -> pa.Table:
    """Read a parquet file of the record, its checksums verified.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            return pq.ParquetFile(file, page_checksum_verification=True).read()
    except PermissionError as error:
        raise RecordError(f"cannot read {path}: permission denied", "change its permissions") from error
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except FileNotFoundError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}", hint) from error
    except (pa.ArrowException, OSError, EOFError) as error:
        raise RecordError(f"{path} is damaged: {str(error).splitlines()[0]}", hint) from error


def read_tile(path: Path, items: Sequence[ItemRow], removed: Sequence[str]) -> list[np.ndarray]:
    """Read a tile's scores; its rows must be those of this tile.

    Shapes: one array (coalitions, choices) for each item, nats.

    Raises:
        RecordError: the file is missing or damaged.
    """
    flat = read_tile_table(path, items, removed)["loglikelihood"].to_numpy()
    ends = np.cumsum([item.n_choices * len(removed) for item in items])
    return [block.reshape(len(removed), -1) for block in np.split(flat, ends[:-1])]


def read_tile_table(path: Path, items: Sequence[ItemRow], removed: Sequence[str]) -> pa.Table:
    """Read a tile's table; its rows must be those of this tile.

    Raises:
        RecordError: the file is missing or damaged.
    """
    table = read_table(path)
    expected = _keys(items, removed)
    for name in _KEYS:
        if name not in table.column_names or not _same(table[name], expected[name]):
            raise RecordError(f"{path} is damaged: its column {name} is not that of this tile", _HINT)
    if "loglikelihood" not in table.column_names or table["loglikelihood"].null_count:
        raise RecordError(f"{path} is damaged: scores are missing", _HINT)
    return table


def _keys(items: Sequence[ItemRow], removed: Sequence[str]) -> pa.Table:
    """Lay out every column but the scores."""
    n_choices = [item.n_choices for item in items]
    per_item = np.array(n_choices) * len(removed)
    choice = np.concatenate([np.tile(np.arange(count, dtype=np.int32), len(removed)) for count in n_choices])
    coalition = np.concatenate([np.repeat(np.arange(len(removed), dtype=np.int32), count) for count in n_choices])
    gold = choice == np.repeat([item.gold for item in items], per_item)
    columns = [
        _names([item.task for item in items], per_item),
        _names([item.id for item in items], per_item),
        pa.DictionaryArray.from_arrays(pa.array(coalition), pa.array(list(removed), pa.string())),
        pa.array(choice),
        pa.array(gold.astype(np.int8)),
    ]
    return pa.table(columns, schema=pa.schema([SCORES_SCHEMA.field(name) for name in _KEYS]))


def _names(values: Sequence[str], repeats: np.ndarray) -> pa.DictionaryArray:
    place = {value: index for index, value in enumerate(dict.fromkeys(values))}
    index = np.array([place[value] for value in values], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(np.repeat(index, repeats)), pa.array(list(place), pa.string()))


def _same(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> bool:
    if found.type == expected.type and found.equals(expected):
        return True
    if len(found) != len(expected):
        return False
    plain = expected.type.value_type if pa.types.is_dictionary(expected.type) else expected.type
    return found.cast(plain).equals(expected.cast(plain))
