"""The table of values: one metric of one task, per item and coalition; all statistics are functions of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.coalitions import Removed, check_coalitions, coalition_name

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Planned:
    """All items of a task that a run may draw: how many, and how many of them the largest cluster has."""

    n_items: int
    largest_cluster: int


@dataclass(frozen=True, eq=False)
class ValueTable:
    """Values of one metric on one task, v_i(S) of item i under coalition S; the game's v(S) is their mean over items.

    Shapes: `values` (items, coalitions), `clusters` (items,) or None (every item its own cluster), `items` (items,) the
    data set's ids or None.
    `in_unit_interval` says that the metric knows only values from 0 to 1; `planned` tells of a run's items that are not
    in the table yet.
    Units: the metric's own (accuracy: 0 or 1; log-likelihood: nats). Non-finite values are kept as they are.

    Raises:
        UsageError: shapes that do not fit, no items, a coalition twice, not sorted, or of players that are not there.
    """

    players: tuple[str, ...]
    coalitions: tuple[Removed, ...]
    values: FloatArray
    clusters: IntArray | None = None
    items: tuple[str, ...] | None = None
    task: str = ""
    in_unit_interval: bool = False
    planned: Planned | None = None
    _index: dict[Removed, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        if values.ndim != 2 or values.shape[1] != len(self.coalitions):
            raise UsageError(
                f"the values have shape {values.shape}, the table {len(self.coalitions)} coalitions",
                "give one row an item and one column a coalition",
            )
        if values.shape[0] == 0:
            raise UsageError("a table of values without items", "score at least one item")
        n_players = len(self.players)
        if len(set(self.players)) != n_players or not self.players:
            raise UsageError(f"{n_players} players, {len(set(self.players))} of them distinct", "name each player once")
        check_coalitions(self.coalitions, n_players)
        object.__setattr__(self, "_index", {removed: c for c, removed in enumerate(self.coalitions)})
        if len(self._index) != len(self.coalitions):
            raise UsageError("a coalition occurs twice in the table", "give every coalition one column")
        for name, column in (("clusters", self.clusters), ("items", self.items)):
            if column is not None and len(column) != values.shape[0]:
                raise UsageError(f"{len(column)} {name} for {values.shape[0]} items", "give one an item")

    @property
    def n_items(self) -> int:
        """Count the items."""
        return self.values.shape[0]

    @property
    def n_players(self) -> int:
        """Count the players."""
        return len(self.players)

    @cached_property
    def cluster_codes(self) -> IntArray:
        """Number the clusters 0..G−1 (each item its own where none are given). Shapes: (items,)."""
        if self.clusters is None:
            return np.arange(self.n_items, dtype=np.int64)
        return np.unique(np.asarray(self.clusters), return_inverse=True)[1].astype(np.int64)

    @property
    def n_clusters(self) -> int:
        """Count the clusters: the independent units of every interval."""
        return int(self.cluster_codes.max()) + 1

    @cached_property
    def is_binary(self) -> bool:
        """Tell whether every value is 0 or 1, as with accuracy."""
        return bool(((self.values == 0.0) | (self.values == 1.0)).all())

    @property
    def is_bounded(self) -> bool:
        """Tell whether no value can lie outside 0 and 1."""
        return self.in_unit_interval or self.is_binary

    def __contains__(self, removed: Removed) -> bool:
        return removed in self._index

    def column_index(self, removed: Removed) -> int:
        """Find a coalition's column.

        Raises:
            UsageError: the coalition was not measured; the message names it.
        """
        if removed not in self._index:
            raise missing_coalition(removed, self.players)
        return self._index[removed]

    def column(self, removed: Removed) -> FloatArray:
        """Take one coalition's per-item values. Shapes: (items,)."""
        return self.values[:, self.column_index(removed)]

    def mean(self, removed: Removed = ()) -> float:
        """Average over items: v(S). Non-finite items make it non-finite."""
        return float(self.column(removed).mean())

    def take_items(self, rows: Sequence[int] | IntArray) -> ValueTable:
        """Keep these items, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            values=self.values[index],
            clusters=None if self.clusters is None else np.asarray(self.clusters)[index],
            items=None if self.items is None else tuple(self.items[i] for i in index),
        )


def missing_coalition(removed: Removed, players: Sequence[str]) -> UsageError:
    """Name the coalition that an estimator needs and the table lacks."""
    name = coalition_name(removed, players) or "(the full model)"
    return UsageError(
        f"the coalition with {name} removed was not measured",
        "measure it, or choose an estimator (or a smaller largest window) that does not need it",
    )


def as_tables(tables: ValueTable | Sequence[ValueTable]) -> list[ValueTable]:
    """List the tables of several tasks; one table is a list of one.

    Raises:
        UsageError: no tables, or tables of different players.
    """
    listed = [tables] if isinstance(tables, ValueTable) else list(tables)
    if not listed:
        raise UsageError("no tables of values", "give the table of at least one task")
    for table in listed[1:]:
        if table.players != listed[0].players:
            raise UsageError(
                f"tasks {listed[0].task!r} and {table.task!r} have different players", "give tasks of one model only"
            )
    return listed
