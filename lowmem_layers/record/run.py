"""A run folder opened for reading: its items and scores, and every metric as a function of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import RecordError
from lowmem_layers.game.players.coalitions import coalition_name
from lowmem_layers.game.players.groups import grouped_table
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.folder import finished_tiles
from lowmem_layers.record.items import ITEMS_FILE, ItemRow, items_table, rows_from_table
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import SCORES_SCHEMA, read_table, read_tile, read_tile_table, tile_file
from lowmem_layers.tasks.metrics import item_values


@dataclass(frozen=True)
class RunRecord:
    """One run's record: a folder and what is in it.

    `items` of an unfinished run are those of its finished tiles wherever numbers are computed.
    """

    folder: Path
    manifest: Manifest

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
    def every_task_begun(self) -> bool:
        """Tell whether every task has finished items."""
        return {row.task for tile in self._finished for row in self._tile_rows(tile)} == set(self.tasks)

    @property
    def is_unfinished(self) -> bool:
        """Tell whether items are missing that the run was to score."""
        return self.n_items_done < self.manifest.n_items and not self.manifest.stopped

    def metric(self, task: str) -> str:
        """Name the task's own metric."""
        return next(entry.metric for entry in self.manifest.data if entry.task == task)

    def chance(self, task: str) -> float:
        """Give the accuracy of random guessing."""
        return next(entry.chance for entry in self.manifest.data if entry.task == task)

    @property
    def item_rows(self) -> tuple[ItemRow, ...]:
        """List the items: what metrics need, no text."""
        return tuple(self._rows)

    def items(self) -> pa.Table:
        """Read the items: what metrics need, no text."""
        return items_table(self._rows)

    def scores(self) -> pa.Table:
        """Read the log-likelihoods: one row an item, coalition and choice; items in the order of the tasks.

        Raises:
            RecordError: a file is damaged.
        """
        tables = [
            read_tile_table(tile_file(self.folder, tile), self._tile_rows(tile), self._removed)
            for tile in self._finished
        ]
        joined = pa.concat_tables([SCORES_SCHEMA.empty_table(), *tables]).unify_dictionaries()
        order = self._item_order()
        return joined if order is None else joined.take(order)

    def value_tables(self, value: str | None = None) -> list[ValueTable]:
        """Compute one value an item and coalition of players, a table a task; None means each task's own metric.

        Raises:
            RecordError: a file is damaged, or no item of a task is finished.
            UsageError: an unknown value, or one that the task does not allow.
        """
        parts: dict[str, list[ValueTable]] = {task: [] for task in self.tasks}
        for tile in self._finished:
            rows = self._tile_rows(tile)
            blocks = read_tile(tile_file(self.folder, tile), rows, self._removed)
            for task in dict.fromkeys(row.task for row in rows):
                chosen = [(row, block) for row, block in zip(rows, blocks, strict=True) if row.task == task]
                parts[task].append(self._part(task, chosen, value))
        tables = [self._join(task, found) for task, found in parts.items()]
        grouping = self.manifest.design.grouping
        return tables if grouping is None else [grouped_table(table, grouping) for table in tables]

    @cached_property
    def _finished(self) -> list[int]:
        return finished_tiles(self.folder, len(self.manifest.plan.tiles))

    @cached_property
    def _rows(self) -> list[ItemRow]:
        path = self.folder / ITEMS_FILE
        rows = rows_from_table(read_table(path, "run the same command again: it writes the file anew"), path)
        said = Counter({entry.task: entry.items for entry in self.manifest.data})
        if Counter(row.task for row in rows) != said:
            raise RecordError(
                f"{path} does not hold the {self.manifest.n_items} items of the tasks that run.json names",
                "run the same command again: it writes the file anew",
            )
        return rows

    @cached_property
    def _removed(self) -> list[str]:
        return [coalition_name(removed, self.manifest.sublayers) for removed in self.manifest.plan.coalitions]

    def _tile_rows(self, tile: int) -> list[ItemRow]:
        return [self._rows[index] for index in self.manifest.plan.tiles[tile]]

    def _item_order(self) -> np.ndarray | None:
        """Order the rows of the joined tiles by item; None where they are already."""
        items = [index for tile in self._finished for index in self.manifest.plan.tiles[tile]]
        if items == sorted(items):
            return None
        lengths = [self._rows[index].n_choices * len(self._removed) for index in items]
        return np.argsort(np.repeat(items, lengths), kind="stable")

    def _part(self, task: str, chosen: list[tuple[ItemRow, np.ndarray]], value: str | None) -> ValueTable:
        widest = max(row.n_choices for row, _ in chosen)
        scores = np.full((len(chosen), len(self._removed), widest), np.nan)
        lengths = np.zeros((2, len(chosen), widest), dtype=np.int64)
        for index, (row, block) in enumerate(chosen):
            scores[index, :, : row.n_choices] = block
            lengths[:, index, : row.n_choices] = (row.chars, row.sizes)
        gold = np.array([row.gold for row, _ in chosen])
        values = item_values(scores, gold, lengths[0], lengths[1], value or self.metric(task))
        names = tuple(row.id for row, _ in chosen)
        clusters = np.array([row.cluster for row, _ in chosen])
        return ValueTable(self.manifest.sublayers, self.manifest.plan.coalitions, values, clusters, names, task)

    def _join(self, task: str, parts: list[ValueTable]) -> ValueTable:
        if not parts:
            raise RecordError(
                f"{self.folder}: no item of {task} is finished",
                "run the same command again: it goes on where it stopped",
            )
        names = [name for part in parts for name in part.items or ()]
        place = {row.id: index for index, row in enumerate(self._rows) if row.task == task}
        order = np.argsort([place[name] for name in names], kind="stable")
        labels = np.concatenate([part.clusters for part in parts if part.clusters is not None])
        joined = ValueTable(
            self.manifest.sublayers,
            self.manifest.plan.coalitions,
            np.concatenate([part.values for part in parts]),
            np.unique(labels, return_inverse=True)[1],
            tuple(names),
            task,
        )
        return joined.take_items(order)
