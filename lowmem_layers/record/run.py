"""A run folder opened for reading: its items and scores, and every metric as a function of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import DamagedError
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.folder import finished_tiles
from lowmem_layers.record.items import ITEMS_FILE, ItemRow, items_table, rows_from_table
from lowmem_layers.record.manifest import Manifest, TaskRecord
from lowmem_layers.record.scores import SCORES_SCHEMA, read_table, read_tile_table, tile_file
from lowmem_layers.record.values import CollectedValues

_ITEMS_HINT = "run the same command again: it writes the file anew"


@dataclass(frozen=True, repr=False)
class RunRecord:
    """One run's record: a folder and what is in it.

    Wherever an unfinished run's numbers are computed, its items are those of its finished tiles. `carried` are the
    values that a run collected while it was measured; without them, tiles are read when a value is first asked for.
    """

    folder: Path
    manifest: Manifest
    carried: CollectedValues | None = field(default=None, compare=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Name the tasks, in the order of the run."""
        return tuple(entry.task for entry in self.manifest.data)

    @property
    def players(self) -> tuple[str, ...]:
        """Name the players: sublayers, or groups of them."""
        return self.manifest.design.names

    @property
    def n_items_done(self) -> int:
        """Count the items whose tile is on disk."""
        return sum(len(self.manifest.plan.tiles[tile]) for tile in self._finished)

    @property
    def is_unfinished(self) -> bool:
        """Tell whether items are missing that the run was to score."""
        return self.n_items_done < self.manifest.n_items and not self.manifest.stopped

    def metric(self, task: str) -> str:
        """Name the task's own metric."""
        return self._entry(task).metric

    def chance(self, task: str) -> float:
        """Give the accuracy of random guessing."""
        return self._entry(task).chance

    @property
    def item_rows(self) -> tuple[ItemRow, ...]:
        """List the items: what metrics need, no text."""
        return tuple(self.values.rows)

    def items(self) -> pa.Table:
        """Read the items: what metrics need, no text."""
        return items_table(self.values.rows)

    def scores(self) -> pa.Table:
        """Read the log-likelihoods: one row for each item, coalition and choice, in the order of the tasks' items.

        Raises:
            RecordError: a file is damaged.
        """
        values, tiles = self.values, self.manifest.plan.tiles
        tables = [
            read_tile_table(tile_file(self.folder, tile), values.rows_of(tile), values.removed)
            for tile in self._finished
        ]
        joined = pa.concat_tables([SCORES_SCHEMA.empty_table(), *tables]).unify_dictionaries()
        items = [index for tile in self._finished for index in tiles[tile]]
        if items == sorted(items):
            return joined
        lengths = [values.rows[index].n_choices * len(values.removed) for index in items]  # rows of the table, each
        return joined.take(np.argsort(np.repeat(items, lengths), kind="stable"))

    def value_tables(self, value: str | None = None) -> list[ValueTable]:
        """Compute a table for each task: one value for each item and coalition of players.

        `value` None means each task's own metric.

        Raises:
            RecordError: a file is damaged, or no item of a task is finished.
            UsageError: an unknown value, or one that the task does not allow.
        """
        return self.values.tables(value)

    @cached_property
    def values(self) -> CollectedValues:
        """Remember the values that were computed: those that the run carries, or those read from its tiles.

        Raises:
            RecordError: the list of items is damaged, or belongs to another run.
        """
        if self.carried is not None:
            return self.carried
        path = self.folder / ITEMS_FILE
        rows = rows_from_table(read_table(path, _ITEMS_HINT), path)
        said = Counter({entry.task: entry.items for entry in self.manifest.data})
        if Counter(row.task for row in rows) != said:
            raise DamagedError(
                f"{path} does not hold the {self.manifest.n_items} items of the tasks that run.json names", _ITEMS_HINT
            )
        return CollectedValues(self.folder, self.manifest, rows, self._finished)

    @cached_property
    def _finished(self) -> list[int]:
        if self.carried is not None:
            return sorted(self.carried.tiles)
        return finished_tiles(self.folder, len(self.manifest.plan.tiles))

    def _entry(self, task: str) -> TaskRecord:
        return next(entry for entry in self.manifest.data if entry.task == task)
