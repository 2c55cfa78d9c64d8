"""A dictionary in the engine's place: a study without a model, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowmem_layers.game.players.player import players_of
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Task


def make_item(task: str, index: int, n_choices: int) -> EncodedItem:
    """Make an item whose tokens follow from its name."""
    choices = tuple(EncodedChoice((1, index, choice), 1) for choice in range(n_choices))
    lengths = tuple(3 + choice for choice in range(n_choices))
    return EncodedItem(task, f"q{index}", choices, index % n_choices, f"q{index}", lengths, lengths)


@dataclass
class DictionaryEngine:
    """Answer from a table of made-up numbers; `fail_at` raises when that many tiles were scored."""

    seed: int = 0
    tile_items: int = 3
    fail_at: int | None = None
    error: type[BaseException] = KeyboardInterrupt
    scored: list[tuple[str, ...]] = field(default_factory=list)
    poison: dict[str, float] = field(default_factory=dict)
    narrowed: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def plan_tiles(self, items: Sequence[Any], coalitions: Sequence[Any]) -> list[list[int]]:
        """Deal the items out in an order that is not theirs."""
        order = list(range(len(items)))[::2] + list(range(len(items)))[1::2]
        return [order[start : start + self.tile_items] for start in range(0, len(order), self.tile_items)]

    def check_tiles(self, tiles: Sequence[Sequence[Any]], coalitions: Sequence[Any]) -> None:
        """Find that every tile fits."""

    def score(self, items: Sequence[Any], coalitions: Sequence[Any], on_work: Any = None) -> list[np.ndarray]:
        """Draw numbers that depend on item and coalition only."""
        if self.fail_at is not None and len(self.scored) >= self.fail_at:
            raise self.error("the machine was switched off")
        self.scored.append(tuple(item.id for item in items))
        if on_work is not None:
            on_work(self.work(items, coalitions))
        return [self._block(item, coalitions) for item in items]

    def work(self, items: Sequence[Any], coalitions: Sequence[Any]) -> int:
        """Count as if every coalition cost ten."""
        return 10 * len(items) * len(coalitions)

    def describe(self) -> dict[str, Any]:
        """Describe nothing much, and where memory is to have run out."""
        narrowed = {"narrowed": self.narrowed} if self.narrowed and self.scored else {}
        return {"tile_items": self.tile_items, "memory": self.memory, **narrowed}

    def _block(self, item: EncodedItem, coalitions: Sequence[Any]) -> np.ndarray:
        rows = []
        for removed in coalitions:
            rng = np.random.default_rng([self.seed, item.choices[0].tokens[1], len(item.task), *removed, len(removed)])
            rows.append(-rng.exponential(3.0, len(item.choices)) - len(removed))
        block = np.array(rows)
        if item.id in self.poison:
            block[-1, 0] = self.poison[item.id]
        return block


@dataclass
class Bench:
    """What a test sets up: engine, tasks (judged by accuracy unless `metrics` says otherwise), the model's record."""

    engine: DictionaryEngine = field(default_factory=DictionaryEngine)
    n_layers: int = 3
    n_items: int = 8
    model: dict[str, Any] = field(default_factory=lambda: {"id": "tiny", "dtype": "float32", "home": "ram"})
    threads: int = 2
    metrics: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    def prepare(
        self, spec: Specification, announce: Callable[[Any], None], earlier: Any = None, *, measure: Any = None
    ) -> Prepared:
        """Stand in for loading a model."""
        self.calls += 1
        names = spec.tasks
        counts = {name: min(self.n_items - place, spec.limit or 1000) for place, name in enumerate(names)}
        encoded = [make_item(name, i, 2 + (i % 3)) for name, count in counts.items() for i in range(count)]
        tasks = tuple(Task(name, (), self.metrics.get(name, "acc"), 0.25, {"kind": "made up"}) for name in names)
        players = players_of(["ffn"] * self.n_layers)
        machine = {"threads": spec.threads or self.threads}
        return Prepared(players, tasks, tuple(encoded), self.engine, self.model, machine)
