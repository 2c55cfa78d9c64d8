"""The workers of a run as its study sees them: prepared together, one engine, tiles scored on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowmem_layers.errors import UsageError, WorkerError
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.record.manifest import EngineRecord, described
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepared, ReadTasks, Scoring
from lowmem_layers.study.events import Announce, Noted, StageStarted, ignore
from lowmem_layers.study.one_by_one import shortage_note
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.workers.handing import PATIENCE_S, Handing
from lowmem_layers.workers.hands import EndedError, Handle, Hands, LostError, answered
from lowmem_layers.workers.worker import Loaded, News, Place, Scored, deciding_sizes, versions_here

_LOOK_S = 0.5  # between two looks at a worker that loads its model
_START_S = 300.0  # for workers to start and say their versions; a cluster may grow for them


@dataclass
class Crew:
    """Workers that prepare runs and score their tiles, one run after another.

    `read` reads the tasks in this process, so that only it needs the data; None leaves that to the workers. With
    `mixed`, devices that make other numbers in their last bits work together, and each tile says where it was made.

    Units: `patience_s` seconds without progress in a tile, after which a worker counts as hanging.
    """

    hands: Hands
    read: ReadTasks | None = None
    mixed: bool = False
    patience_s: float = PATIENCE_S
    _states: list[str] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _loaded: dict[int, Loaded] = field(default_factory=dict)
    _places: dict[int, Place] = field(default_factory=dict)
    _gone: set[int] = field(default_factory=set)
    _handing: Handing | None = None
    _announce: Announce = ignore

    def prepare(
        self, specification: Specification, announce: Announce, earlier: EngineRecord | None = None
    ) -> Prepared:
        """Load the model into every worker and settle the sizes once, from the smallest device.

        Raises:
            LowmemLayersError: a worker has other versions, cannot load the model, or would make other numbers.
        """
        hands, everybody = self.hands, range(self.hands.n_workers)
        # 1) the workers are there, and run the same code; what an earlier run left them with is given up
        self._announce = announce
        announce(StageStarted(f"starting {hands.n_workers - len(self._gone)} workers"))
        if self._handing is not None:
            self._handing.take_away()
            self._gone |= {worker for worker in everybody if self._states[worker] == "lost"}
        self._places = self._arrivals([worker for worker in everybody if worker not in self._gone])
        # 2) the tasks are read here; the first worker loads alone where it leaves packed weights for the others
        tasks = None if self.read is None else list(self.read(specification))
        present = list(self._places)
        shared, first = hands.share(tasks), present[:1] if specification.quant != "none" else present
        self._names = [f"worker {worker}" for worker in everybody]
        given = (specification, shared, earlier)
        answers = self._load(first, given, announce)
        answers |= self._load([worker for worker in present if worker not in first], given, ignore)
        self._loaded = dict(sorted(answers.items()))
        self._states[:] = ["ready" if worker in self._loaded else "lost" for worker in everybody]
        # 3) one plan for all, and what the study needs
        smallest = self._settle()
        chosen = self._loaded[smallest]
        record = described(chosen.engine, EngineRecord, "more")
        engine = CrewEngine(self, smallest, dict(chosen.engine), announce)
        self._handing = engine.handing = Handing(
            hands,
            self._names,
            lambda worker: hands.call(worker, "load", specification, shared, record, *self._share(worker)),
            self._accept,
            engine.note_narrowed,
            lambda worker: self._loaded[worker].numeric["device"] if self._is_mixed else "",
            self.patience_s,
            states=self._states,
        )
        encoded = self._ask(smallest, "items")
        return Prepared(
            chosen.players, chosen.tasks, encoded, engine, chosen.model, chosen.machine, engine.handing.score_tiles
        )

    def _settle(self) -> int:
        """Let all workers compute in chunks of the smallest device's sizes, and name the worker that has it.

        Raises:
            UsageError: a worker would make other numbers.
        """
        smallest = min(self._loaded, key=lambda worker: self._loaded[worker].budget_bytes)
        chosen = self._loaded[smallest]
        for worker, loaded in self._loaded.items():
            if deciding_sizes(loaded.engine) != deciding_sizes(chosen.engine):
                self._loaded[worker] = self._ask(worker, "use_sizes", chosen.engine["sizes"])
        if reason := next(filter(None, (self._stranger(*each) for each in self._loaded.items())), None):
            raise UsageError(reason, "use workers on equal devices; or mix them with --mix-devices: see its help")
        if len({loaded.host for loaded in self._loaded.values()}) > 1:
            for worker, loaded in self._loaded.items():
                self._names[worker] += f" on {loaded.host}"
        return smallest

    @property
    def _is_mixed(self) -> bool:
        return len({loaded.numeric["device"] for loaded in self._loaded.values()}) > 1

    def _arrivals(self, workers: Sequence[int]) -> dict[int, Place]:
        """See that every worker answers, and runs this process's versions.

        Raises:
            UsageError: a version differs.
            WorkerError: a worker does not answer.
        """
        here, hands = versions_here(), self.hands
        asked = {hands.call(worker, "arrive"): worker for worker in workers}
        found: dict[int, Place] = {}
        waited_s = 0.0
        while asked:
            done = hands.wait(list(asked), _LOOK_S)
            waited_s += 0.0 if done else _LOOK_S
            if waited_s > _START_S:
                late = WorkerError(
                    f"{len(asked)} of {len(workers)} workers did not start within {_START_S:.0f} s",
                    "look at ray status: are there so many free CPUs or cards? Else take fewer --workers",
                )
                for worker in asked.values():
                    self._go_on_without(worker, late)
                break
            for handle in done:
                worker = asked.pop(handle)
                if (place := self._answer_or_go_on(worker, handle)) is None:
                    continue
                found[worker], there = place, place.versions
                names = [name for name in here if there.get(name) != here[name]]
                differ = [f"{name} {there.get(name)} there, {here[name]} here" for name in names]
                if differ:
                    raise UsageError(
                        f"worker {worker} has other versions: {'; '.join(differ)}",
                        "install the same lowmem-layers and libraries on every host",
                    )
        return dict(sorted(found.items()))

    def _answer_or_go_on(self, worker: int, handle: Handle) -> Any | None:
        """Give a worker's answer, or None where it ended and the others go on without it."""
        try:
            return answered(self.hands, handle, f"worker {worker}")
        except EndedError as error:
            self._go_on_without(worker, error)
            return None

    def _go_on_without(self, worker: int, error: WorkerError) -> None:
        """Leave a worker out that was there for an earlier run and ended: a host may have gone.

        Raises:
            WorkerError: this is the first run, which needs all workers; or no other one is left.
        """
        if self._handing is None or len(self._gone) + 1 == self.hands.n_workers:
            raise error
        self._gone.add(worker)
        self._announce(Noted(f"{error.message}; the run goes on without this worker"))

    def _load(self, workers: Sequence[int], given: tuple[Any, ...], announce: Announce) -> dict[int, Loaded]:
        """Load the model into these workers at once; announce what the first of them does."""
        hands, found = self.hands, {}
        asked = {hands.call(worker, "load", *given, *self._share(worker)): worker for worker in workers}
        look: Handle | None = None
        while asked:
            if look is None:
                look = hands.call(workers[0], "news")
            for handle in hands.wait([*asked, look], _LOOK_S):
                if handle in asked:
                    worker = asked.pop(handle)
                    if (loaded := self._answer_or_go_on(worker, handle)) is not None:
                        found[worker] = loaded
                elif handle == look:
                    self._pass_on(hands, look, announce)
                    look = None
        if workers:
            self._pass_on(hands, hands.call(workers[0], "news"), announce)
        return found

    def _pass_on(self, hands: Hands, look: Handle, announce: Announce) -> None:
        """Announce what a worker that loads its model has announced."""
        try:
            news: News = hands.answer(look)
        except LostError:
            return  # the call that loads says so, too
        for event in news.events:
            announce(event)

    def _share(self, worker: int) -> tuple[int, int | None]:
        """Count the workers that share a host's memory with this one, and what was free there before they loaded.

        Units: bytes; what the last of them saw, when all had freed what they held before.
        """
        there = [place for place in self._places.values() if place.host == self._places[worker].host]
        free = [place.free_bytes for place in there if place.free_bytes is not None]
        return len(there), max(free, default=None)

    def _stranger(self, worker: int, loaded: Loaded) -> str | None:
        """Say in what a worker differs from the first one, where that may change numbers."""
        known, first = next(iter(self._loaded.items()))
        may_differ = {"device", "threads", *(name for name in first.numeric if name == "model device")}
        differ = [
            f"{name} ({first.numeric.get(name)} and {loaded.numeric.get(name)})"
            for name in dict.fromkeys([*first.numeric, *loaded.numeric])
            if first.numeric.get(name) != loaded.numeric.get(name) and not (self.mixed and name in may_differ)
        ]
        if loaded.items != first.items:
            differ.append("the items' tokens")
        return (
            f"workers {known} and {worker} would make other numbers; what differs: {'; '.join(differ)}"
            if differ
            else None
        )

    def _accept(self, worker: int, answer: object) -> str | None:
        """Look at a worker that was loaded again: None, or why it cannot take part any more."""
        assert isinstance(answer, Loaded)
        if (reason := self._stranger(worker, answer)) is None:
            self._loaded[worker] = answer
        return reason

    def _ask(self, worker: int, method: str, *arguments: Any) -> Any:
        return self._all([worker], method, *arguments)[worker]

    def _all(self, workers: Sequence[int], method: str, *arguments: Any) -> dict[int, Any]:
        """Call these workers at once, and give their answers."""
        asked = {worker: self.hands.call(worker, method, *arguments) for worker in workers}
        return {worker: answered(self.hands, handle, f"worker {worker}") for worker, handle in asked.items()}


class CrewEngine:
    """The engine of all workers together, for a process that holds no model."""

    handing: Handing

    def __init__(self, crew: Crew, smallest: int, about: dict[str, Any], announce: Announce) -> None:
        self._crew, self._smallest, self._about, self._announce = crew, smallest, about, announce
        self._narrowed: list[Mapping[str, Any]] = []
        self._works: dict[tuple[Removed, ...], dict[EncodedItem, int]] = {}

    def plan_tiles(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[list[int]]:
        """Plan tiles that the smallest device holds."""
        return self._crew._ask(self._smallest, "plan_tiles", items, coalitions)

    def check_tiles(self, tiles: Sequence[Sequence[EncodedItem]], coalitions: Sequence[Removed]) -> None:
        """See that every device holds the tiles of an earlier call."""
        self._crew._all(list(self._crew._loaded), "check_tiles", self._crew.hands.share(tiles), coalitions)

    def work(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> int:
        """Add up the items' work. Each item is asked for once, all that are new in one call."""
        known = self._works.setdefault(tuple(coalitions), {})
        new = list(dict.fromkeys(item for item in items if item not in known))
        if new:
            known |= dict(zip(new, self._crew._ask(self._smallest, "work", new, coalitions), strict=True))
        return sum(known[item] for item in items)

    def score(
        self, items: Sequence[EncodedItem], coalitions: Sequence[Removed], on_work: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Score one tile, on one worker."""
        found = self.handing.score_tiles([0], Scoring([items], coalitions, lambda tile: None, ignore))
        return list(next(iter(found)).scores)

    def describe(self) -> dict[str, Any]:
        """Say what decides the numbers, and in which tiles memory ran out on any worker."""
        rest = {name: value for name, value in self._about.items() if name not in ("narrowed", "memory")}
        return {**rest, **({"narrowed": list(self._narrowed)} if self._narrowed else {})}

    def note_narrowed(self, scored: Scored, announce: Announce) -> None:
        """Keep and announce in which tiles memory ran out."""
        for each in scored.narrowed:
            self._narrowed.append(each)
            announce(shortage_note(each, "later tiles of this worker"))
