"""The loop that hands tiles out to workers and takes scores back: each tile once, whatever happens to workers.

A tile whose worker ended, hangs or is out of memory goes to another. What a lost worker computed is not waited for: its
tile is in nobody's hands until it is handed out again, so no tile can arrive twice.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lowmem_layers.errors import LowmemLayersError, ShortageError, WorkerError
from lowmem_layers.study.contracts import ScoredTile, Scoring
from lowmem_layers.study.events import Announce, Noted, WorkDone, WorkersChanged
from lowmem_layers.workers.hands import Handle, Hands, LostError, named
from lowmem_layers.workers.worker import News, Scored

PATIENCE_S = 900.0  # without any progress in a tile, a worker counts as hanging
_LOOK_S = 1.0  # between two looks at what workers do
_MOST_TRIES = 6  # of one tile: if so many workers end over it, it is the tile
_MOST_LOADS = 5  # in a row that a worker may fail to load its model, before it is given up
_LOAD_PATIENCE = 4  # times the patience with a tile: a large model comes from a slow disk
_AHEAD = 4  # tiles for each worker that may wait for an earlier one, where they are wanted in order


@dataclass
class Given:
    """A tile in a worker's hands. Units: seconds of the clock; work in multiply-adds, as reported so far."""

    tile: int
    worker: int
    start: float
    moved: float
    work: int = 0


@dataclass
class Handing:
    """Hands tiles out.

    `reload` sends the call that loads the model into a worker that began anew, and `accept` looks at its answer: None,
    or why that worker cannot take part any more. `on_scored` sees each tile's scores first. `states` says of each
    worker whether it is ready, loading or lost.

    Units: `patience_s` seconds.
    """

    hands: Hands
    names: Sequence[str]
    reload: Callable[[int], Handle]
    accept: Callable[[int, object], str | None]
    on_scored: Callable[[Scored, Announce], None]
    made_on: Callable[[int], str] = lambda worker: ""
    patience_s: float = PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    states: list[str] = field(default_factory=list)
    given: dict[Handle, Given] = field(default_factory=dict)  # what is in workers' hands

    def take_away(self) -> None:
        """End workers that still score a tile nobody waits for: their run failed, or stopped early."""
        for given in self.given.values():
            self.hands.restart(given.worker)
        self.given.clear()

    def score_tiles(self, tiles: Iterable[int], of: Scoring) -> Iterator[ScoredTile]:
        """Score tiles on all workers; give each as it arrives, or in the order that was asked for."""
        tiles = list(tiles)
        loop = _Loop(self, of, deque(tiles))
        places = {tile: place for place, tile in enumerate(tiles)}
        early: dict[int, ScoredTile] = {}
        n_given = 0
        while n_given < len(tiles):
            # Where tiles are wanted in order, no worker runs far ahead of one that is late.
            last = n_given + _AHEAD * len(self.names) if of.in_order else len(tiles)
            loop.hand_out(lambda tile, last=last: places[tile] < last)
            # What arrived is given when idle workers have other tiles: none of them waits until it is recorded.
            if early and (n_given in early or not of.in_order):
                yield early.pop(n_given if of.in_order else next(iter(early)))
                n_given += 1
            else:
                early |= {places[scored.tile]: scored for scored in loop.take_back()}


@dataclass
class _Loop:
    """The state of one loop over tiles: what waits, what is in whose hands, who is idle or being loaded again."""

    about: Handing
    of: Scoring
    waiting: deque[int]
    loading: dict[Handle, int] = field(default_factory=dict)
    load_sent: dict[int, float] = field(default_factory=dict)
    looks: dict[Handle, int] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    failed_loads: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        hands, about = self.about.hands, self.about
        self._shared = hands.share(tuple(self.of.coalitions))
        self._looked = about.clock()
        about.states = about.states or ["ready"] * hands.n_workers
        self._idle = deque(worker for worker, state in enumerate(about.states) if state == "ready")
        for worker, state in enumerate(about.states):
            if state == "loading":
                self._send_load(worker)
        self._say_who()

    def hand_out(self, may_begin: Callable[[int], bool]) -> None:
        """Give every idle worker a tile, in the order in which tiles wait."""
        while self._idle and self.waiting and may_begin(self.waiting[0]):
            worker, tile = self._idle.popleft(), self.waiting.popleft()
            handle = self.about.hands.call(worker, "score", tile, self.of.items[tile], self._shared)
            now = self.about.clock()
            self.about.given[handle] = Given(tile, worker, now, now)
            self.of.begin(tile)

    def take_back(self) -> list[ScoredTile]:
        """Wait a moment, and give the tiles that were scored by then; idle workers are given others first."""
        hands, found = self.about.hands, []
        if not self.about.given and not self.loading:
            raise WorkerError(
                f"no worker is left: {'; '.join(map(' '.join, zip(self.about.names, self.about.states, strict=True)))}",
                "finished tiles are kept: the same command goes on; with fewer --workers each has more memory",
            )
        for handle in hands.wait([*self.about.given, *self.loading, *self.looks], _LOOK_S):
            if handle in self.about.given:
                found += self._taken(handle)
            elif handle in self.loading:
                self._loaded(handle)
            else:
                self._looked_at(handle)
        if self.about.clock() - self._looked >= _LOOK_S:
            self._look()
        return found

    def _taken(self, handle: Handle) -> list[ScoredTile]:
        """Take a tile back: its scores, or the tile itself, which then waits for another worker."""
        given, about = self.about.given.pop(handle), self.about
        try:
            scored: Scored = about.hands.answer(handle)
        except LostError as error:
            self._lost(given, str(error))
            return []
        except (ShortageError, MemoryError) as error:
            self._again(given, f"{type(error).__name__}: {error}")
            self._idle.append(given.worker)
            return []
        except LowmemLayersError as error:
            raise named(error, about.names[given.worker]) from None
        except Exception as error:
            raise WorkerError(
                f"{about.names[given.worker]}, tile {given.tile}: {type(error).__name__}: {error}",
                "finished tiles are kept; the same command without --workers shows with --debug where it comes from",
            ) from error
        self._idle.append(given.worker)
        about.on_scored(scored, self.of.announce)
        spent, name = about.clock() - given.start, about.names[given.worker]
        return [ScoredTile(given.tile, scored.scores, spent, name, about.made_on(given.worker))]

    def _again(self, given: Given, reason: str) -> None:
        """Let a tile wait again, at the front; give up where too many workers failed over it."""
        self.tries[given.tile] += 1
        if self.tries[given.tile] >= _MOST_TRIES:
            raise WorkerError(
                f"tile {given.tile} failed {self.tries[given.tile]} times; at last on "
                f"{self.about.names[given.worker]}: {reason}",
                "finished tiles are kept; if memory ran out, begin again with a smaller --max-cpu-memory or "
                "--max-gpu-memory, which makes smaller tiles",
            )
        self.waiting.appendleft(given.tile)
        name = self.about.names[given.worker]
        self.of.announce(Noted(f"{name}: {reason}; its tile {given.tile} goes to another worker"))
        if given.work:
            self.of.announce(WorkDone(-given.work, given.tile))

    def _lost(self, given: Given, reason: str) -> None:
        """Load the model into the worker that takes the place of one that ended."""
        self._again(given, reason)
        self._load(given.worker)

    def _load(self, worker: int) -> None:
        self.about.states[worker] = "loading"
        self._send_load(worker)
        self._say_who()

    def _send_load(self, worker: int) -> None:
        self.loading[self.about.reload(worker)] = worker
        self.load_sent[worker] = self.about.clock()

    def _loaded(self, handle: Handle) -> None:
        """Take a worker in that has loaded its model again, or give it up."""
        worker, about = self.loading.pop(handle), self.about
        try:
            reason = about.accept(worker, about.hands.answer(handle))
        except (LostError, LowmemLayersError, MemoryError, OSError) as error:
            self.failed_loads[worker] += 1
            if self.failed_loads[worker] < _MOST_LOADS:
                self._load(worker)
                return
            reason = f"its model could not be loaded again: {error}"
        if reason is None:
            self.failed_loads[worker], about.states[worker] = 0, "ready"
            self._idle.append(worker)
            self._say_who()
        else:
            self._give_up(worker, reason)

    def _give_up(self, worker: int, reason: str) -> None:
        self.about.states[worker] = "lost"
        self.of.announce(Noted(f"{self.about.names[worker]} is given up: {reason}"))
        self._say_who()

    def _look(self) -> None:
        """Ask workers how far they are, and end those that have not moved for too long."""
        now = self._looked = self.about.clock()
        asked = set(self.looks.values())
        for handle, given in list(self.about.given.items()):
            if now - given.moved >= self.about.patience_s:
                del self.about.given[handle]
                self.about.hands.restart(given.worker)
                self._lost(given, f"no progress for {now - given.moved:.0f} s")
            elif given.worker not in asked:
                self.looks[self.about.hands.call(given.worker, "news")] = given.worker
        for handle, worker in list(self.loading.items()):  # its host may be gone, and no other has room for it
            if (waited_s := now - self.load_sent[worker]) >= _LOAD_PATIENCE * self.about.patience_s:
                del self.loading[handle]
                self._give_up(worker, f"its model was not loaded again within {waited_s:.0f} s")

    def _looked_at(self, handle: Handle) -> None:
        """Announce how much a worker has done since the last look."""
        worker = self.looks.pop(handle)
        try:
            news: News = self.about.hands.answer(handle)
        except LostError:
            return  # its tile's own call says so, too
        for given in self.about.given.values():
            if given.worker == worker and news.tile == given.tile and news.work > given.work:
                self.of.announce(WorkDone(news.work - given.work, given.tile))
                given.work, given.moved = news.work, self.about.clock()

    def _say_who(self) -> None:
        self.of.announce(WorkersChanged(tuple(self.about.names), tuple(self.about.states)))
