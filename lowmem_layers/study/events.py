"""What a run announces while it goes on. Displays show these events; the run does not depend on who listens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """A stage of the run begins; `stage` says in words what is being done."""

    stage: str


@dataclass(frozen=True)
class Noted:
    """Something happened that the user should know of, though the run goes on; `words` say what."""

    words: str


@dataclass(frozen=True)
class ModelExamined:
    """The loaded model was examined: computed layer by layer, it gives its own log-likelihoods.

    `takes_tries` tells whether rows may branch, and `reason` why.

    Units: `sweep_gap_nats` is the largest difference between the engine's log-likelihoods and whole forward passes'.
    """

    takes_tries: bool
    reason: str
    sweep_gap_nats: float
    elapsed_s: float


@dataclass(frozen=True)
class RunPlanned:
    """The run is planned: how large it is, and how much of it earlier calls left finished.

    Units: work in the engine's unit (multiply-adds).
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
    """The amount of work that was done since the last such event.

    Units: the engine's (multiply-adds).
    """

    work: int


@dataclass(frozen=True)
class TileCommitted:
    """A tile is on disk; `leaders` are the sublayers whose removal costs most so far (nats of the gold answer).

    Units: `work` in the engine's unit (multiply-adds), as planned for the tile.
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


Event = StageStarted | Noted | ModelExamined | RunPlanned | WorkDone | TileCommitted | RunFinished
Announce = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take no notice of an event."""


def undisturbed(announce: Announce) -> Announce:
    """Go on when nobody can be told any more: the terminal was closed, or the reader of a pipe has left."""

    def heard(event: Event) -> None:
        with contextlib.suppress(OSError):
            announce(event)

    return heard
