"""What a run announces while it goes on; displays show it, nothing depends on who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """A stage of the run begins: what is being done, in words."""

    stage: str


@dataclass(frozen=True)
class ModelExamined:
    """The loaded model was tested: driven layer by layer it is itself, and takes token tries or does not.

    Units: `sweep_gap_nats` is the largest difference between the engine's log-likelihoods and whole forward passes'.
    """

    takes_tries: bool
    reason: str
    sweep_gap_nats: float
    elapsed_s: float


@dataclass(frozen=True)
class RunPlanned:
    """The whole job is known.

    Units: work is the engine's (multiply-adds); `work_done` is what an earlier call left finished.
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


@dataclass(frozen=True)
class WorkDone:
    """So much work was done since the last such event.

    Units: the engine's (multiply-adds).
    """

    work: int


@dataclass(frozen=True)
class TileCommitted:
    """A tile is on disk; `leaders` are the sublayers whose removal costs most so far (nats of the gold answer).

    `work` is what the plan reckoned for the tile.
    """

    tile: int
    n_items: int
    work: int
    items_done: int
    tiles_done: int
    elapsed_s: float
    leaders: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class RunFinished:
    """The run is over: done, interrupted or failed."""

    folder: str
    status: str
    elapsed_s: float


Event = StageStarted | ModelExamined | RunPlanned | WorkDone | TileCommitted | RunFinished
Announce = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""
