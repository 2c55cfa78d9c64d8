"""What a study needs from outside: an engine, tasks, and a function that puts both together with a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.players.player import Player
from lowmem_layers.record.manifest import EngineRecord
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.events import Announce
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.tasks.metrics import Value


class TaskLike(Protocol):
    """A task as the study records it."""

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> Value: ...
    @property
    def chance(self) -> float: ...
    @property
    def source(self) -> Mapping[str, Any]: ...


class Engine(Protocol):
    """Turns items and coalitions into log-likelihoods."""

    def plan_tiles(self, items: Sequence[Any], coalitions: Sequence[Removed]) -> list[list[int]]:
        """Group item indices into tiles."""
        ...

    def check_tiles(self, tiles: Sequence[Sequence[Any]], coalitions: Sequence[Removed]) -> None:
        """See that tiles planned by an earlier call fit the memory given now; raise BudgetError if not."""
        ...

    def score(
        self, items: Sequence[Any], coalitions: Sequence[Removed], on_work: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Score one tile: an array (coalitions, choices) of float64 nats for each item."""
        ...

    def work(self, items: Sequence[Any], coalitions: Sequence[Removed]) -> int:
        """Estimate the work of scoring (multiply-adds), in the unit that `on_work` reports."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say what decides the numbers: chunk sizes and the like."""
        ...


@dataclass(frozen=True)
class ScoredTile:
    """A tile that was scored: by which worker, where there are several, and on what where their devices differ.

    Shapes: `scores` as `Engine.score` says.
    """

    tile: int
    scores: Sequence[np.ndarray]
    elapsed_s: float
    worker: str = ""
    made_on: str = ""


@dataclass(frozen=True)
class Scoring:
    """What scoring tiles takes, whoever does it.

    `items` are those of all tiles of the plan; `begin` is told which tile begins, `announce` what happens meanwhile.
    With `in_order`, tiles are given back in the order that was asked for.
    """

    items: Sequence[Sequence[EncodedItem]]
    coalitions: Sequence[Removed]
    begin: Callable[[int], None]
    announce: Announce
    in_order: bool = False


ScoreTiles = Callable[[Iterable[int], Scoring], Iterator[ScoredTile]]
"""Score tiles, each once, and give each as it is done. A tile is asked for when it can be begun."""


@dataclass(frozen=True)
class Prepared:
    """A model, its tasks and an engine, ready to score.

    `score_tiles` scores several tiles at once, where there are workers; None: the engine scores one after another.

    Shapes: `encoded` has one entry for each item, in the order of `tasks`.
    """

    players: tuple[Player, ...]
    tasks: tuple[TaskLike, ...]
    encoded: tuple[EncodedItem, ...]
    engine: Engine
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    score_tiles: ScoreTiles | None = None


class ReadTasks(Protocol):
    """Read the tasks of a specification, without a model."""

    def __call__(self, specification: Specification, /) -> Sequence[TaskLike]: ...


class Prepare(Protocol):
    """Put a model, tasks and an engine together as a specification asks for them.

    `earlier` is the engine of the call that began the run: its sizes are used again, since they decide the numbers.
    """

    def __call__(
        self, specification: Specification, announce: Announce, earlier: EngineRecord | None, /
    ) -> Prepared: ...
