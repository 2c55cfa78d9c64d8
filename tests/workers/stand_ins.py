"""Workers as plain objects in this process: calls are answered in an order that is drawn, and workers die on demand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowmem_layers.study.contracts import Prepare
from lowmem_layers.workers.hands import LostError
from lowmem_layers.workers.worker import Worker


@dataclass
class ListHands:
    """Carry calls to workers of this process. `dies(worker, method)` says when a worker ends instead of answering."""

    prepare: Prepare
    n_workers: int = 3
    seed: int = 0
    dies: Callable[[int, str], bool] = lambda worker, method: False
    calls: list[tuple[int, str]] = field(default_factory=list)
    restarted: list[int] = field(default_factory=list)
    hangs: set[int] = field(default_factory=set)
    hanging: str = "score"  # the calls of these workers that are not answered

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._workers = [Worker(self.prepare) for _ in range(self.n_workers)]
        self._sent: dict[int, tuple[int, str, tuple[Any, ...]]] = {}

    def call(self, worker: int, method: str, *arguments: Any) -> int:
        self.calls.append((worker, method))
        self._sent[len(self.calls)] = (worker, method, arguments)
        return len(self.calls)

    def share(self, value: Any) -> Any:
        return value

    def wait(self, handles: Sequence[int], timeout_s: float) -> list[int]:
        answering = [
            each for each in handles if not (self._sent[each][1] == self.hanging and self._sent[each][0] in self.hangs)
        ]
        return self._rng.sample(answering, min(len(answering), 2))

    def answer(self, handle: int) -> Any:
        worker, method, arguments = self._sent.pop(handle)
        if self.dies(worker, method):
            self._workers[worker] = Worker(self.prepare)
            raise LostError("it ended")
        return getattr(self._workers[worker], method)(*arguments)

    def restart(self, worker: int) -> None:
        self.restarted.append(worker)
        self.hangs.discard(worker)
        self._workers[worker] = Worker(self.prepare)
