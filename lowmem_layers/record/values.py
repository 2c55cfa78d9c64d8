"""The values of a run's finished items, computed from each tile once: from its file, or from memory during the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lowmem_layers.errors import DamagedError, RecordError
from lowmem_layers.game.players.coalitions import coalition_name
from lowmem_layers.game.players.groups import grouped_table
from lowmem_layers.game.values.table import FloatArray, Planned, ValueTable
from lowmem_layers.record.items import ItemRow, kinds_of
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.scores import read_tile, tile_file
from lowmem_layers.tasks.metrics import item_values, metric_named

_Key = tuple[str, str]  # a task, and a metric's name


class CollectedValues:
    """One value for each item and coalition, by as many metrics as were asked for.

    `tiles` are the finished ones, in the order in which they were given. A tile's file is read when a metric is asked
    for that was not yet computed: once for all metrics that are asked for together. Very many tiles may be read in
    several calls: what is averaged meanwhile are the items that were read.
    """

    def __init__(self, folder: Path, manifest: Manifest, rows: Sequence[ItemRow], tiles: Sequence[int]) -> None:
        self.folder, self.manifest, self.rows = folder, manifest, rows
        self.tiles = list(tiles)
        self.removed = [coalition_name(removed, manifest.sublayers) for removed in manifest.plan.coalitions]
        self._arrays: dict[_Key, FloatArray] = {}  # (items of the task, coalitions); rows of unfinished items are empty
        self._tables: dict[str | None, list[ValueTable]] = {}
        self._totals: dict[str, FloatArray] = {}  # sums over the finished items, kept up to date tile by tile
        self._behind: dict[int, frozenset[_Key]] = {}  # what is still to be computed of a tile
        self._kinds = kinds_of(rows)
        self._done = np.zeros(len(rows), dtype=bool)  # (items,): their tile is finished
        self._read = np.zeros(len(rows), dtype=bool)  # (items,): nothing of it is still to be computed
        self._done[[index for tile in self.tiles for index in manifest.plan.tiles[tile]]] = True
        self._items: dict[str, list[int]] = {entry.task: [] for entry in manifest.data}  # which items are a task's
        self._places: list[int] = []  # of each item, its place among the items of its task
        for index, row in enumerate(rows):
            self._places.append(len(self._items[row.task]))
            self._items[row.task].append(index)

    @property
    def n_items(self) -> int:
        """Count the items whose tile is finished."""
        return int(self._done.sum())

    @property
    def rows_done(self) -> list[ItemRow]:
        """List the items whose tile is finished."""
        return [row for row, done in zip(self.rows, self._done, strict=True) if done]

    @property
    def every_task_begun(self) -> bool:
        """Tell whether every task has finished items."""
        return all(self._done[items].any() for items in self._items.values())

    def rows_of(self, tile: int) -> list[ItemRow]:
        """List the items of a tile."""
        return [self.rows[index] for index in self.manifest.plan.tiles[tile]]

    def allows(self, value: str | None) -> bool:
        """Tell whether the items have the choices that a metric compares."""
        metrics = {task: metric_named(name) for task, name in self._keys(value)}
        return all(row.allows(metrics[row.task]) for row in self._kinds)

    @property
    def n_unread(self) -> int:
        """Count the finished tiles that are still to be read for the metrics that were asked for."""
        return len(self._behind)

    def collect(
        self,
        *values: str | None,
        lost: Callable[[int, DamagedError], None] | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """See that these metrics are computed for every finished tile; None means each task's own metric.

        With `lost`, a damaged tile is no longer counted as finished, and `lost` is told of it. `enough` is asked before
        each tile: where it says yes, the others are left to the next call.

        Raises:
            DamagedError: a file is damaged, and there is no `lost`.
            UsageError: an unknown metric, or one that a task does not allow.
        """
        # 1) which tiles have to be read for which metrics
        new = frozenset(key for value in values for key in self._keys(value) if key not in self._arrays)
        if new:
            self._arrays |= {key: np.empty((len(self._items[key[0]]), len(self.removed))) for key in new}
            behind = self._behind
            self._behind = {tile: behind[tile] | new if tile in behind else new for tile in self.tiles}
            self._read[:] = False
            self._totals.clear()
        # 2) each of them once
        for tile in tuple(self._behind):
            if enough():
                return
            try:
                scores = read_tile(tile_file(self.folder, tile), self.rows_of(tile), self.removed)
            except DamagedError as error:
                if lost is None:
                    raise
                del self._behind[tile]
                self.tiles.remove(tile)
                self._done[list(self.manifest.plan.tiles[tile])] = False
                lost(tile, error)
                continue
            self._take(tile, scores, {key: self._arrays[key] for key in self._behind.pop(tile)})

    def add(self, tile: int, scores: Sequence[np.ndarray]) -> None:
        """Add a tile that was just finished, by all metrics that were collected so far.

        Shapes: `scores` has one array (coalitions, choices) for each item, nats.
        """
        self._take(tile, scores, self._arrays)
        self.tiles.append(tile)
        self._done[list(self.manifest.plan.tiles[tile])] = True

    def mean(self, metric: str) -> FloatArray:
        """Average a collected metric over all items of all tasks that were read. Shapes: (coalitions,)."""
        if metric not in self._totals:
            self._totals[metric] = self._total(metric, np.flatnonzero(self._read).tolist())
        return self._totals[metric] / int(self._read.sum())

    def pooled(self, metric: str) -> ValueTable:
        """Give one table of a collected metric: the items of all tasks that were read together."""
        manifest = self.manifest
        done = [(task, np.array(items)[self._read[items]]) for task, items in self._items.items()]
        clusters = [f"{task}/{self.rows[index].cluster}" for task, items in done for index in items]
        values = np.concatenate([self._arrays[task, metric][self._read[items]] for task, items in self._items.items()])
        codes = np.unique(clusters, return_inverse=True)[1]
        table = ValueTable(manifest.sublayers, manifest.plan.coalitions, values, codes)
        return table if manifest.design.grouping is None else grouped_table(table, manifest.design.grouping)

    def tables(self, value: str | None) -> list[ValueTable]:
        """Give one table for each task: the finished items, in the order of the task, and the coalitions of players.

        Raises:
            RecordError: a file is damaged, or no item of a task is finished.
            UsageError: an unknown metric, or one that a task does not allow.
        """
        if value not in self._tables:
            self.collect(value)
            grouping = self.manifest.design.grouping
            tables = [self._table(key) for key in self._keys(value)]
            self._tables[value] = tables if grouping is None else [grouped_table(each, grouping) for each in tables]
        return self._tables[value]

    def _take(self, tile: int, scores: Sequence[np.ndarray], arrays: dict[_Key, FloatArray]) -> None:
        """Compute a tile's values, and count its items among those that were read."""
        self._fill(arrays, tile, scores)
        self._read[list(self.manifest.plan.tiles[tile])] = True
        self._tables.clear()
        for metric, total in self._totals.items():
            total += self._total(metric, self.manifest.plan.tiles[tile])

    def _total(self, metric: str, indices: Sequence[int]) -> FloatArray:
        """Add a collected metric up over these items. Shapes: (coalitions,)."""
        places: dict[str, list[int]] = {}
        for index in indices:
            places.setdefault(self.rows[index].task, []).append(self._places[index])
        return sum(
            (self._arrays[task, metric][chosen].sum(axis=0) for task, chosen in places.items()),
            np.zeros(len(self.removed)),
        )

    def _keys(self, value: str | None) -> list[_Key]:
        """Name the task and the metric of each table that `value` asks for."""
        named = None if value is None else metric_named(value).name
        return [(entry.task, named or entry.metric) for entry in self.manifest.data]

    def _fill(self, arrays: dict[_Key, FloatArray], tile: int, scores: Sequence[np.ndarray]) -> None:
        """Compute a tile's values into the rows of its items."""
        indices, full = self.manifest.plan.tiles[tile], self.manifest.plan.coalitions.index(())
        for task in dict.fromkeys(self.rows[index].task for index in indices):
            chosen = [
                (index, block) for index, block in zip(indices, scores, strict=True) if self.rows[index].task == task
            ]
            rows = [self.rows[index] for index, _ in chosen]
            widest = max(row.n_choices for row in rows)
            padded = np.full((len(rows), len(self.removed), widest), np.nan)  # (items, coalitions, choices)
            lengths = np.zeros((2, len(rows), widest), dtype=np.int64)  # (characters and bytes, items, choices)
            for place, (row, (_, block)) in enumerate(zip(rows, chosen, strict=True)):
                padded[place, :, : row.n_choices] = block
                lengths[:, place, : row.n_choices] = (row.chars, row.sizes)
            gold = np.array([row.gold for row in rows])
            places = [self._places[index] for index, _ in chosen]
            for (of, name), array in arrays.items():
                if of == task:
                    array[places] = item_values(padded, gold, lengths[0], lengths[1], name, full)

    def _table(self, key: _Key) -> ValueTable:
        items = np.array(self._items[key[0]], dtype=np.intp)
        done = self._done[items]  # (items of the task,)
        if not done.any():
            raise RecordError(
                f"{self.folder}: no item of {key[0]} is finished",
                "run the same command again: it goes on where it stopped",
            )
        rows = [self.rows[index] for index in items[done]]
        largest = max(Counter(self.rows[index].cluster for index in items).values())
        values = self._arrays[key]  # (items of the task, coalitions)
        return ValueTable(
            players=self.manifest.sublayers,
            coalitions=self.manifest.plan.coalitions,
            values=values if done.all() else values[done],
            clusters=np.unique([row.cluster for row in rows], return_inverse=True)[1],
            items=tuple(row.id for row in rows),
            task=key[0],
            in_unit_interval=metric_named(key[1]).in_unit_interval,
            planned=Planned(len(items), largest),
        )
