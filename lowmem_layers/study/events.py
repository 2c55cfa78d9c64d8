"""What a run announces while it goes on. Displays show these events; the run does not depend on who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Step = Literal["tasks", "libraries", "headers", "items", "weights", "examination", "plan", "scoring"]


@dataclass(frozen=True)
class StageStarted:
    """A stage of the run begins; `stage` says in words what is being done, `step` which one it is.

    Without a step it is a remark about the stage that goes on.
    """

    stage: str
    step: Step | None = None


@dataclass(frozen=True)
class TasksRead:
    """The tasks are read; `n_items` counts the items of each."""

    tasks: tuple[str, ...]
    n_items: tuple[int, ...]


@dataclass(frozen=True)
class ModelPlaced:
    """It is known which model runs, how its weights are packed, where they live and what memory may be taken.

    `home` is device, cpu or disk. Units: bytes; `gpu_bytes` is None where the CPU computes.
    """

    model: str
    packing: str
    home: str
    device: str
    dtype: str
    cpu_bytes: int
    gpu_bytes: int | None


@dataclass(frozen=True)
class LayerRead:
    """A decoder layer was read, and quantised where that was asked for: so many of so many."""

    done: int
    n_layers: int


@dataclass(frozen=True)
class Noted:
    """Something happened that the user should know of, though the run goes on; `words` say what."""

    words: str


@dataclass(frozen=True)
class ModelExamined:
    """The loaded model was examined: computed layer by layer, it gives its own log-likelihoods.

    `takes_tries` tells whether rows may branch, and `reason` why. `kept`: an earlier start found this, of the same
    weights, code and device.

    Units: `sweep_gap_nats` is the largest difference between the engine's log-likelihoods and whole forward passes'.
    """

    takes_tries: bool
    reason: str
    sweep_gap_nats: float
    elapsed_s: float
    kept: bool = False


@dataclass(frozen=True)
class TaskPlanned:
    """One task's part of the planned work. Units: work in multiply-adds."""

    task: str
    n_items: int
    work_total: int
    work_done: int


@dataclass(frozen=True)
class RunPlanned:
    """The run is planned: how large it is, and how much of it earlier calls left finished.

    `players` are their names in execution order. Units: work in the engine's unit (multiply-adds).
    """

    folder: str
    model: str
    n_players: int
    n_coalitions: int
    n_items: int
    n_tiles: int
    work_total: int
    items_done: int
    tiles_done: int
    work_done: int
    tasks: tuple[TaskPlanned, ...] = ()
    players: tuple[str, ...] = ()


@dataclass(frozen=True)
class TileStarted:
    """A tile begins; `work` is the planned work of each task in it (multiply-adds), in the order of the tasks."""

    tile: int
    n_items: int
    work: tuple[int, ...]


@dataclass(frozen=True)
class WorkDone:
    """The amount of work that was done since the last such event; in which tile, where several go on at once.

    Units: the engine's (multiply-adds).
    """

    work: int
    tile: int | None = None


@dataclass(frozen=True)
class WorkersChanged:
    """Who works on the run now: the name of each worker, and what it is doing (`ready`, `lost`, `loading`)."""

    names: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """Every player's importance so far, over all finished items together, with 95 % intervals.

    Shapes: (players,) each. Units: nats of the gold answer's log-likelihood; nan where unknown.
    """

    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class TileCommitted:
    """A tile is on disk; `leaders` are the sublayers whose removal costs most so far (nats of the gold answer).

    `standing` is what the finished items say, where the coalitions allow an estimate; `worker` names who scored it,
    where there are several.
    Units: `work` in the engine's unit (multiply-adds), as planned for the tile.
    """

    tile: int
    n_items: int
    work: int
    items_done: int
    tiles_done: int
    elapsed_s: float
    leaders: tuple[tuple[str, float], ...]
    standing: Standing | None = None
    worker: str = ""


@dataclass(frozen=True)
class StatementJudged:
    """The statement at which the run stops was looked at: whether it holds now, and what decides it."""

    statement: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class MachineMeasured:
    """Bare matrix products in the run's number type were timed. Units: multiply-adds a second."""

    macs_s: float


@dataclass(frozen=True)
class RunFinished:
    """The run is over: done, interrupted or failed."""

    folder: str
    status: str
    elapsed_s: float


Event = (
    StageStarted | Noted | TasksRead | ModelPlaced | LayerRead | ModelExamined | MachineMeasured | RunPlanned
    | TileStarted | WorkDone | WorkersChanged | TileCommitted | StatementJudged | RunFinished
)  # fmt: skip
Announce = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take no notice of an event."""


def undisturbed(announce: Announce) -> Announce:
    """Go on when nobody can be told any more: the terminal was closed, or the reader of a pipe has left (`| head`)."""

    def heard(event: Event) -> None:
        nonlocal announce
        try:
            announce(event)
        except OSError:
            announce = ignore

    return heard
