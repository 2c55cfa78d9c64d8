"""The manifest of a run: what the run is, so that its numbers can be trusted and its folder recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from lowmem_layers.game.players.design import Design
from lowmem_layers.model.change import Change, parse_change
from lowmem_layers.record.limits import MOST_THREADS
from lowmem_layers.record.spec import Specification, StudySpec
from lowmem_layers.record.tile_plan import TilePlan
from lowmem_layers.tasks.metrics import Value

if TYPE_CHECKING:
    Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
else:
    Json = Any  # the decoder takes any JSON value here

Status = Literal["running", "done", "interrupted", "failed"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=MOST_THREADS)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]  # the upper bound keeps infinity out
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)] | Annotated[float, msgspec.Meta(ge=1, le=1 << 62)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Described = TypeVar("Described")


@dataclass(frozen=True)
class ModelRecord:
    """The model.

    Each field decides numbers, but for `placement`: where the weights live, how much memory they are expected to take
    and whatever else the model says of itself, which changes no number and may differ from start to start.
    """

    id: str
    dtype: str = ""
    architecture: str | None = None
    fingerprint: str | None = None
    quantisation: Mapping[str, Json] | None = None
    device: str | None = None
    players: Count | None = None
    parallel_sublayers: bool | None = None
    placement: Mapping[str, Json] = field(default_factory=dict)

    @property
    def packing(self) -> str | None:
        """Name the packing that the weights have (`GGUF Q4_1`, `nf4`), where the record says it."""
        used = (self.quantisation or {}).get("used")
        return used if isinstance(used, str) else None

    def numeric(self) -> dict[str, Json]:
        """Give what decides numbers, as far as the record says it."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "placement"}
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Json]:
        """Give everything that is known of the model, as JSON takes it."""
        return {**self.numeric(), **self.placement}


@dataclass(frozen=True)
class TaskRecord:
    """The data of one task: how many items, judged by which metric, from which source.

    `fingerprint` is a hash of the items as the model sees them; `source` is what the data set says of itself.
    """

    task: str
    items: Count
    metric: Value
    chance: Fraction
    fingerprint: str
    source: Mapping[str, Json]


@dataclass(frozen=True)
class MachineRecord:
    """What the last bits of numbers depend on beside the model's device."""

    threads: Threads | None = None


@dataclass(frozen=True)
class EngineRecord:
    """How the engine computes.

    `layout` and `sizes` decide the order of additions; `self_test` and `more` are what the engine says besides;
    `narrowed` names the tiles before which memory ran out, and the smaller chunks from there on. `memory` is the most
    that any call has taken, see `memory_account`.
    """

    layout: str | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)
    self_test: Mapping[str, Json] = field(default_factory=dict)
    narrowed: tuple[Mapping[str, Json], ...] = ()
    memory: Mapping[str, Count] = field(default_factory=dict)
    more: Mapping[str, Json] = field(default_factory=dict)

    @property
    def sizes_now(self) -> dict[str, Any]:
        """Give the chunk sizes that a run goes on with: those of its beginning, or what memory has left of them."""
        last = self.narrowed[-1] if self.narrowed else {}
        return {name: last.get(name, size) for name, size in self.sizes.items()}

    def to_json(self) -> dict[str, Json]:
        """Give everything that is known of the engine, as JSON takes it."""
        known = {} if self.layout is None else {"layout": self.layout}
        found: dict[str, Json] = {**known, "sizes": dict(self.sizes), "self_test": dict(self.self_test)}
        if self.narrowed:
            found["narrowed"] = [dict(each) for each in self.narrowed]
        if self.memory:
            found["memory"] = dict(self.memory)
        return {**found, **self.more}


@dataclass(frozen=True)
class Manifest:
    """Everything that run.json says.

    `resolved` is what the options mean, with the options as passed in it; `identity` the options that decide the
    numbers; `data` has one entry for each task. `stopped` states what was proven when the run stopped early.

    Units: `work` is the engine's (multiply-adds); `elapsed_s` counts every call that worked on the run.
    """

    status: Status
    created: str
    resolved: Specification
    identity: Mapping[str, Json]
    model: ModelRecord
    data: tuple[TaskRecord, ...]
    machine: MachineRecord
    engine: EngineRecord
    versions: Mapping[str, str]
    design: Design
    plan: TilePlan
    work: int
    elapsed_s: float = 0.0
    stopped: str = ""

    @property
    def change(self) -> Change:
        """Say what was done to the sublayers that a coalition names."""
        return parse_change(self.resolved.change)

    @property
    def packing(self) -> str:
        """Name the packing that the weights had (`GGUF Q4_1`, `nf4`, `none`); where no record says, what was asked."""
        return self.model.packing or self.resolved.quant

    @property
    def passed(self) -> StudySpec:
        """Give the options as they were passed."""
        return self.resolved.passed

    @property
    def sublayers(self) -> tuple[str, ...]:
        """Name the model's sublayers, in execution order."""
        return tuple(player.name for player in self.design.sublayers)

    @property
    def n_items(self) -> int:
        """Count the items of all tasks."""
        return sum(task.items for task in self.data)

    def with_status(self, status: Status, elapsed_s: float, stopped: str = "") -> Manifest:
        """Give the same record with another status, and more time on its account."""
        return replace(self, status=status, elapsed_s=round(self.elapsed_s + elapsed_s, 3), stopped=stopped)

    def with_memory(self, narrowed: Sequence[Mapping[str, Json]], memory: Mapping[str, Count]) -> Manifest:
        """Give the same record with further tiles before which memory ran out, and what another call has taken."""
        most = dict(self.engine.memory)
        for name, size in memory.items():
            most[name] = max(size, most.get(name, 0))
        return replace(self, engine=replace(self.engine, narrowed=(*self.engine.narrowed, *narrowed), memory=most))


def described(about: Mapping[str, Json], kind: type[Described], rest: str) -> Described:
    """Read what a model or an engine says of itself; what `kind` has no field for goes into its field `rest`.

    Raises:
        msgspec.ValidationError: a field has another type; the message names it.
    """
    return msgspec.convert(gathered(about, kind, rest), kind)


def gathered(about: Mapping[str, Json], kind: type, rest: str) -> dict[str, Any]:
    """Put everything that `kind` has no field for under `rest`."""
    known = {each.name for each in fields(kind)} - {rest}
    found: dict[str, Any] = {name: value for name, value in about.items() if name in known}
    return found | {rest: {name: value for name, value in about.items() if name not in known}}
