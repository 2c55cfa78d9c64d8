"""What one worker does: load the model once, say what it is, score the tiles that it is given."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lowmem_layers._version import __version__
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.players.player import Player
from lowmem_layers.record.identity import code_digest, fingerprint
from lowmem_layers.record.manifest import EngineRecord, ModelRecord, described
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Engine, Prepare, Prepared, TaskLike
from lowmem_layers.study.description import library_versions
from lowmem_layers.study.events import Event
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.workers.hands import LostError

LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy")  # whose versions decide numbers


@dataclass(frozen=True)
class Place:
    """Where a worker is, and which versions are there.

    Units: bytes of the host's memory that are free; None where that does not matter.
    """

    host: str
    versions: Mapping[str, str]
    free_bytes: int | None = None


@dataclass(frozen=True)
class Loaded:
    """What a worker says of itself once its model is loaded.

    `numeric` are the facts that decide numbers: where two workers differ in one, their numbers may differ. `items` is a
    hash of the items as the model sees them. Units: `budget_bytes` of memory for states, None where that is not known.
    """

    host: str
    process: int
    players: tuple[Player, ...]
    tasks: tuple[TaskLike, ...]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    engine: Mapping[str, Any]
    items: str
    numeric: Mapping[str, str]

    @property
    def budget_bytes(self) -> float:
        return self.engine.get("sizes", {}).get("budget_bytes", float("inf"))


@dataclass(frozen=True)
class Scored:
    """A tile's scores, and the further chunk sizes that were taken because memory ran out in it."""

    scores: list[np.ndarray]
    narrowed: tuple[Mapping[str, Any], ...] = ()


@dataclass
class News:
    """What happened since it was last asked for. Units: `work` in multiply-adds of the tile that goes on."""

    events: list[Event] = field(default_factory=list)
    tile: int | None = None
    work: int = 0


class Worker:
    """One model on one device; its methods are called from another process, `news` also while another one runs."""

    def __init__(self, prepare: Prepare | None = None) -> None:
        self._given = prepare
        self._prepared: Prepared | None = None
        self._threads: int | None = None
        self._news = News()

    def arrive(self) -> Place:
        """Free what an earlier run held; say where this worker is, and which versions and free memory are there."""
        self._prepared = None
        if self._given is not None:
            return Place(socket.gethostname(), versions_here())
        from lowmem_layers.model.memory import available_host_bytes, release_model

        release_model()
        return Place(socket.gethostname(), versions_here(), available_host_bytes())

    def load(
        self,
        specification: Specification,
        tasks: Sequence[Any] | None,
        earlier: EngineRecord | None,
        shared_by: int,
        free_bytes: int | None = None,
    ) -> Loaded:
        """Load the model and examine it.

        `shared_by` workers of this host share the memory that was given, or that was free before any of them loaded:
        at the same time each would take all of it for its own.

        Units: `free_bytes` of the host.
        """
        self._prepared = None
        if specification.max_cpu_memory is not None:
            specification = replace(specification, max_cpu_memory=specification.max_cpu_memory // shared_by)
        prepare = self._given
        if prepare is None:
            from functools import partial

            from lowmem_layers.study.prepare import prepare_study

            share = None if free_bytes is None else free_bytes // shared_by
            prepare = partial(prepare_study, tasks=tasks, free_cpu_memory=share)
        self._prepared = prepare(specification, self._news.events.append, earlier)
        self._threads = self._prepared.machine.get("threads")
        return self._loaded()

    def use_sizes(self, sizes: Mapping[str, Any]) -> Loaded:
        """Compute in chunks of another worker's sizes from now on: they decide the order of additions."""
        from lowmem_layers.engine import Engine as Real
        from lowmem_layers.engine.sweep import Sizes

        prepared, engine = self._ready, self._ready.engine
        if isinstance(engine, Real):
            given = Sizes.of(EngineRecord(sizes=dict(sizes)).sizes)
            again = Real(engine.model, budget_bytes=engine.budget_bytes, sizes=given, changes=engine.changes)
            again.examine(engine.verdict)
            self._prepared = replace(prepared, engine=again)
        return self._loaded()

    def items(self) -> tuple[EncodedItem, ...]:
        """Give the items as the model sees them."""
        return self._ready.encoded

    def plan_tiles(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[list[int]]:
        """Plan tiles that this worker's memory holds."""
        return self._engine.plan_tiles(items, coalitions)

    def check_tiles(self, tiles: Sequence[Sequence[EncodedItem]], coalitions: Sequence[Removed]) -> None:
        """See that this worker's memory holds the tiles."""
        self._engine.check_tiles(tiles, coalitions)

    def work(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[int]:
        """Count the work of each item on its own; that of several adds up."""
        return [self._engine.work([item], coalitions) for item in items]

    def score(self, tile: int, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> Scored:
        """Score one tile."""
        engine, self._news.tile, self._news.work = self._engine, tile, 0
        if self._threads is not None and self._given is None:
            from lowmem_layers.model.devices import use_threads

            use_threads(self._threads)  # of the thread in which this call runs
        before = len(engine.describe().get("narrowed", ()))

        def count(amount: int) -> None:
            self._news.work += amount

        scores = engine.score(items, coalitions, count)
        return Scored(scores, tuple(engine.describe().get("narrowed", ())[before:]))

    def news(self) -> News:
        """Tell what happened since the last call."""
        found = News(self._news.events[:], self._news.tile, self._news.work)
        del self._news.events[: len(found.events)]
        return found

    @property
    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise LostError("it began anew, without a model")  # it was killed while it had nothing to do
        return self._prepared

    @property
    def _engine(self) -> Engine:
        return self._ready.engine

    def _loaded(self) -> Loaded:
        ready, engine = self._ready, self._engine.describe()
        about = described(ready.model, ModelRecord, "placement")
        numeric = {
            **{f"model {name}": str(value) for name, value in about.numeric().items()},
            "device": device_name(about),
            "threads": str(ready.machine.get("threads")),
            "layout": str(engine.get("layout")),
            **{f"engine {name}": str(size) for name, size in deciding_sizes(engine).items()},
        }
        return Loaded(
            socket.gethostname(),
            os.getpid(),
            ready.players,
            ready.tasks,
            ready.model,
            ready.machine,
            engine,
            fingerprint(ready.encoded),
            numeric,
        )


def deciding_sizes(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Take the sizes that decide the order of additions from what an engine says of itself."""
    return {name: size for name, size in engine.get("sizes", {}).items() if name not in ("budget_bytes", "tile_work")}


def versions_here() -> dict[str, str]:
    """Name the versions of this package and of the libraries that decide numbers, on this host."""
    own = {"lowmem-layers": __version__, "its code": code_digest(), "python": platform.python_version()}
    installed = library_versions()
    return own | {name: installed.get(name, "none") for name in LIBRARIES}


def device_name(model: ModelRecord) -> str:
    """Name the device that computes, as exactly as its numbers depend on it: a card, or a CPU's instructions."""
    card = model.placement.get("gpu")
    if isinstance(card, dict) and "name" in card:
        return f"{card['name']}, capability {card.get('capability')}"
    if model.device is None:
        return "unknown"
    import torch

    return f"{model.device} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
