"""The items of a record: what metrics and score files need to know of them, and their table."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import DamagedError
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.tasks.metrics import Metric

ITEMS_FILE = "items.parquet"
ITEMS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("choice", pa.int32()),
        ("gold", pa.int8()),
        ("chars", pa.int32()),
        ("bytes", pa.int32()),
        ("cluster", pa.string()),
        ("n_tokens", pa.int32()),
        ("n_cut", pa.int32()),  # absent in the first records, null where it is not known
    ]
)


_OF_ITEMS, _OF_CHOICES = ("task", "id", "cluster"), ("chars", "sizes", "n_tokens", "n_cut")  # fields of `ItemRow`


class ItemRow(NamedTuple):
    """One item of the record, without its text.

    Shapes: `chars`, `sizes` (bytes), `n_tokens` (scored tokens) and `n_cut` (tokens lost on the left, because the model
        takes no longer input; None where an earlier record does not say it) have one entry for each choice.
    """

    task: str
    id: str
    gold: int
    cluster: str
    chars: tuple[int, ...]
    sizes: tuple[int, ...]
    n_tokens: tuple[int, ...]
    n_cut: tuple[int | None, ...]

    @property
    def n_choices(self) -> int:
        """Count the choices that have scores: the item's own, and what the likeliest tokens would have had."""
        return len(self.chars)

    @property
    def n_own(self) -> int:
        """Count the item's own choices; what the likeliest tokens have is of length 0."""
        return sum(length > 0 for length in self.chars)

    def allows(self, metric: Metric) -> bool:
        """Tell whether the item has what a metric compares."""
        has_likeliest = self.n_own < self.n_choices
        return (self.n_own > 1 or not metric.needs_choices) and (has_likeliest or not metric.needs_likeliest)


def kinds_of(rows: Iterable[ItemRow]) -> list[ItemRow]:
    """Take one item of each kind: of each task and number of choices."""
    return list({(row.task, row.n_own, row.n_choices): row for row in rows}.values())


@contextmanager
def no_collections() -> Iterator[None]:
    """Let Python look for no garbage meanwhile: for where very many small objects are made, and none is dropped.

    Each search walks over all objects, so that 50,000 items would take twice their time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@no_collections()
def rows_of(items: Sequence[EncodedItem]) -> list[ItemRow]:
    """Take from encoded items what the record keeps."""
    return [
        ItemRow(
            item.task,
            item.id,
            item.gold,
            item.cluster,
            item.choice_chars,
            item.choice_bytes,
            tuple(choice.n_scored for choice in item.choices),
            tuple(choice.n_cut for choice in item.choices),
        )
        for item in items
    ]


def items_table(rows: Sequence[ItemRow]) -> pa.Table:
    """Lay the items out as a table with one row for each choice."""
    counts = [row.n_choices for row in rows]
    spread = {name: np.repeat(np.array([getattr(row, name) for row in rows], object), counts) for name in _OF_ITEMS}
    choice = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    gold = choice == np.repeat(np.array([row.gold for row in rows]), counts)
    joined = [list(chain.from_iterable(getattr(row, name) for row in rows)) for name in _OF_CHOICES]
    chars, sizes, n_tokens, n_cut = joined
    columns = [spread["task"], spread["id"], choice, gold.astype(np.int8), chars, sizes, spread["cluster"]]
    return pa.table([*columns, n_tokens, n_cut], schema=ITEMS_SCHEMA)


def listed(column: pa.ChunkedArray) -> list[Any]:
    """List a column's values like `to_pylist`, which takes five times as long where none is missing."""
    return column.to_pylist() if column.null_count else column.to_numpy().tolist()


@no_collections()
def rows_from_table(table: pa.Table, path: Path) -> list[ItemRow]:
    """Read `items_table` back, of an earlier version too.

    Raises:
        DamagedError: a column is missing, or an item has no gold.
    """
    if table.column_names == ITEMS_SCHEMA.names[:-1]:  # of a version that did not count what was cut
        table = table.append_column(ITEMS_SCHEMA.field("n_cut"), pa.nulls(len(table), pa.int32()))
    if not table.schema.equals(ITEMS_SCHEMA):
        raise DamagedError(f"{path} is damaged: its columns are {', '.join(table.column_names)}", _HINT)
    flat = zip(*(listed(table[name]) for name in ITEMS_SCHEMA.names), strict=True)
    rows: list[ItemRow] = []
    for (task, name), group in groupby(flat, key=lambda row: row[:2]):
        choices = list(group)
        gold = [row[2] for row in choices if row[3]]
        if len(gold) != 1 or [row[2] for row in choices] != list(range(len(choices))):
            raise DamagedError(f"{path} is damaged: item {name} of {task} has {len(gold)} gold choices", _HINT)
        chars, sizes, _, n_tokens, n_cut = zip(*(row[4:] for row in choices), strict=True)
        rows.append(ItemRow(task, name, gold[0], choices[0][6], chars, sizes, n_tokens, n_cut))
    return rows


_HINT = "run the same command again: it writes the file anew"
