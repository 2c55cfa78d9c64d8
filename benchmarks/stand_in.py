"""A stand-in for model and engine: made-up log-likelihoods that depend on item and coalition alone; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_layers.game.players.player import players_of
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, Task

TASK = "made_up"


@dataclass(frozen=True)
class StandIn:
    """A study of `n_items` items of `n_choices` choices, a model of `n_layers` layers, tiles of `tile_items` items.

    `log` names a file to which the first item of each tile is written when it is scored.
    """

    n_items: int
    n_layers: int = 3
    n_choices: int = 2
    tile_items: int = 1
    log: Path | None = None

    def prepare(
        self, specification: Specification, announce: Callable[[Any], None], earlier: Any = None, *, measure: Any = None
    ) -> Prepared:
        """Stand in for loading a model and encoding items."""
        lengths = tuple(5 + choice for choice in range(self.n_choices))
        encoded = tuple(
            EncodedItem(
                TASK,
                f"q{index}",
                tuple(EncodedChoice((1, index, choice), 1) for choice in range(self.n_choices)),
                index % self.n_choices,
                f"q{index}",
                lengths,
                lengths,
            )
            for index in range(self.n_items)
        )
        players = players_of(("ffn",) * self.n_layers)
        model = {"id": "made-up", "dtype": "float32", "players": len(players)}
        return Prepared(players, tuple(self.tasks(specification)), encoded, self, model, {"threads": 1})

    def tasks(self, specification: Specification) -> list[Task]:
        """Stand in for reading the tasks."""
        return [Task(TASK, (), "acc", 1 / self.n_choices, {"kind": "made up"})]

    def plan_tiles(self, items: Sequence[Any], coalitions: Sequence[Any]) -> list[list[int]]:
        """Cut the items into tiles."""
        order = range(len(items))
        return [list(order[start : start + self.tile_items]) for start in range(0, len(items), self.tile_items)]

    def score(
        self, items: Sequence[Any], coalitions: Sequence[Any], on_work: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Draw log-likelihoods by the item; each removed sublayer costs a little, the first ones most."""
        if self.log is not None:
            with self.log.open("ab", buffering=0) as file:
                file.write(f"{os.getpid()} {items[0].id}\n".encode())
        costs = np.array([sum(1.0 / (1 + place) for place in removed) for removed in coalitions])
        scores = []
        for item in items:
            rng = np.random.default_rng(item.choices[0].tokens[1])
            block = rng.normal(size=(len(coalitions), self.n_choices)) - 3.0
            block[:, item.gold] += 2.0 - costs
            scores.append(block)
        return scores

    def check_tiles(self, tiles: Sequence[Sequence[Any]], coalitions: Sequence[Any]) -> None:
        """Any tile fits."""

    def work(self, items: Sequence[Any], coalitions: Sequence[Any]) -> int:
        """Count evaluations."""
        return len(items) * len(coalitions)

    def describe(self) -> dict[str, Any]:
        """Describe what decides the numbers: nothing."""
        return {"layout": "rows"}
