"""The scores of a tile as a parquet file: the same numbers give the same bytes; damage is noticed on reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowmem_layers.errors import DamagedError, EngineError, RecordError
from lowmem_layers.record.files import write_whole
from lowmem_layers.record.items import ItemRow, listed
from lowmem_layers.record.unpacking import unpacked_bytes

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
MAX_ROWS = 2_000_000  # of any other table than a tile's
_ROOM_BYTES, _ROW_BYTES = 1 << 26, 1 << 7  # what a table may take: this, and so much more for each row
_LISTED = ["task", "item", "removed", "cluster"]  # texts that repeat: read as a dictionary, as tiles are written
_CHECKSUM, _MADE_ON = b"sha256", b"made on"  # names in the metadata of the file
_KEYS = [name for name in SCORES_SCHEMA.names if name != "loglikelihood"]
_HINT = "run the same command again: only its items are scored anew"


def tile_name(tile: int) -> str:
    """Name the file of a tile's scores, without its folder."""
    return f"tile-{tile:05d}.parquet"


def tile_file(folder: Path, tile: int) -> Path:
    """Give the path of a tile's scores."""
    return folder / SCORES_FOLDER / tile_name(tile)


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


def write_table(path: Path, table: pa.Table, made_on: str = "") -> None:
    """Write a parquet file and the hash of its content, whole or not at all; the same table gives the same bytes.

    `made_on` names the device, where the devices of a run differ.

    Raises:
        RecordError: the file cannot be written.
    """
    where = {_MADE_ON: made_on.encode()} if made_on else {}
    described = table.replace_schema_metadata({_CHECKSUM: content_hash(table), **where})

    def fill(partial: Path) -> None:
        with pa.OSFile(str(partial), "wb") as file:  # pyarrow would take a path such as hf://x for an address
            pq.write_table(described, file, compression="zstd", compression_level=3, write_page_checksum=True)

    write_whole(path, fill)


def read_table(path: Path, hint: str = _HINT, most_rows: int = MAX_ROWS) -> pa.Table:
    """Read a parquet file of the record; the checksums of its pages and the hash of its content are verified.

    Parquet's own checksums do not cover the headers of pages and the file's footer, where a flipped bit can change
    names or numbers. Files of version 0.2 and before have no hash of their content. What a file unpacks to is looked at
    before it is read, so that a small one cannot fill the memory.

    Raises:
        DamagedError: the file is missing or damaged.
        RecordError: it may not be read.
    """
    try:
        with pa.OSFile(str(path)) as file:
            if file.size() > _ROOM_BYTES + _ROW_BYTES * most_rows:
                raise DamagedError(f"{path} is damaged: it has {file.size():,} bytes", hint)
            content = file.read_buffer()
        about = pq.read_metadata(pa.BufferReader(content))
        size = unpacked_bytes(memoryview(content).cast("B"), about, _LISTED)
        if about.num_rows > most_rows or size > _ROOM_BYTES + _ROW_BYTES * about.num_rows:
            raise DamagedError(f"{path} is damaged: it holds {about.num_rows:,} rows of {size:,} bytes", hint)
        listed = [name for name in _LISTED if name in about.schema.names]
        file = pq.ParquetFile(
            pa.BufferReader(content), metadata=about, page_checksum_verification=True, read_dictionary=listed
        )
        table = file.read(use_threads=False)
        if "loglikelihood" not in table.column_names:
            table = _spelled_out(table)
        table.validate(full=True)  # text that is no UTF-8, places outside a dictionary
        stored = (table.schema.metadata or {}).get(_CHECKSUM)
        if stored is not None and stored.decode("ascii", "replace") != content_hash(table):
            raise DamagedError(f"{path} is damaged: its content has another checksum", hint)
        return table.replace_schema_metadata(None)
    except PermissionError as error:
        raise RecordError(f"cannot read {path}: permission denied", "change its permissions") from error
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except FileNotFoundError as error:
        raise DamagedError(f"cannot read {path}: no such file", hint) from error
    except (pa.ArrowException, OSError, EOFError, ValueError, TypeError) as error:  # the last two: bytes, no text
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DamagedError(f"{path} is damaged: {reason}", hint) from error


def _spelled_out(table: pa.Table) -> pa.Table:
    """Put its text in the place of each place in a dictionary, unless that would fill the memory.

    Raises:
        ValueError: a long text is repeated so often.
    """
    fields = []
    for field in table.schema:
        if pa.types.is_dictionary(field.type):
            for chunk in table[field.name].chunks:
                longest = max((len(text or "") for text in chunk.dictionary.to_pylist()), default=0)
                if longest * len(table) > _ROOM_BYTES + _ROW_BYTES * len(table):
                    raise ValueError(f"a text of {longest:,} characters in {field.name}, {len(table):,} rows")
            field = field.with_type(field.type.value_type)
        fields.append(field)
    return table.cast(pa.schema(fields, table.schema.metadata))


def content_hash(table: pa.Table) -> str:
    """Hash what a table says: sha256.

    Of a tile, the log-likelihoods as little-endian float64, in order: its other columns follow from run.json and the
    items. Of any other table, the JSON object of its columns: name to list of values.
    """
    if "loglikelihood" in table.column_names:
        numbers = table["loglikelihood"].to_numpy().astype("<f8", copy=False)
        return hashlib.sha256(numbers.tobytes()).hexdigest()
    columns = {name: listed(table[name]) for name in table.column_names}
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def read_tile(path: Path, items: Sequence[ItemRow], removed: Sequence[str]) -> list[np.ndarray]:
    """Read a tile's scores; its rows must be those of this tile.

    Shapes: one array (coalitions, choices) for each item, nats.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    flat = read_tile_table(path, items, removed)["loglikelihood"].to_numpy()
    ends = np.cumsum([item.n_choices * len(removed) for item in items])
    return [block.reshape(len(removed), -1) for block in np.split(flat, ends[:-1])]


def read_tile_table(path: Path, items: Sequence[ItemRow], removed: Sequence[str]) -> pa.Table:
    """Read a tile's table; its rows must be those of this tile.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    table = read_table(path, most_rows=sum(item.n_choices for item in items) * len(removed))
    expected = _keys(items, removed)
    for name in _KEYS:
        if name not in table.column_names or not _same(table[name], expected[name]):
            raise DamagedError(f"{path} is damaged: its column {name} is not that of this tile", _HINT)
    numbers = table["loglikelihood"] if "loglikelihood" in table.column_names else pa.chunked_array([], pa.float64())
    if numbers.type != pa.float64() or numbers.null_count or len(numbers) != len(expected):
        raise DamagedError(f"{path} is damaged: scores are missing", _HINT)
    place = SCORES_SCHEMA.names.index("loglikelihood")
    return expected.add_column(place, SCORES_SCHEMA.field(place), numbers)


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
