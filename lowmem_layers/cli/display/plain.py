"""A line now and then, for logs and pipes."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from lowmem_layers.cli.display.progress import Progress, advance, spell_time
from lowmem_layers.study.events import Event, RunFinished, RunPlanned, StageStarted, TileCommitted, WorkDone


class PlainDisplay:
    """Write a line for every stage, and one every `every_s` seconds while scoring."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], every_s: float = 10.0) -> None:
        self._stream = stream
        self._clock = clock
        self._every_s = every_s
        self._last = clock()
        self._progress = Progress(started=clock())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to leave."""

    def __call__(self, event: Event) -> None:
        """Write a line where there is something to say."""
        now = self._clock()
        self._progress = advance(self._progress, event, now)
        if isinstance(event, StageStarted):
            self._say(event.stage, now)
        elif isinstance(event, RunPlanned):
            self._say(
                f"{event.n_items} items × {event.n_coalitions} coalitions of {event.n_players} players, "
                f"{event.n_tiles} tiles ({event.tiles_done} done already)",
                now,
            )
        elif isinstance(event, RunFinished):
            self._say(event.status, now)
        elif isinstance(event, WorkDone | TileCommitted) and now - self._last >= self._every_s:
            self._say(self._where(now), now)

    def _where(self, now: float) -> str:
        at, plan = self._progress, self._progress.plan
        items = f"items {at.items_done}/{plan.n_items}, " if plan is not None else ""
        done, total = at.evaluations
        left = spell_time(at.left_s(now))
        return f"{at.fraction:6.1%}, {items}evaluations {done:,}/{total:,}, {left} left"

    def _say(self, text: str, now: float) -> None:
        self._last = now
        self._stream.write(f"[{spell_time(now - self._progress.started)}] {text}\n")
        self._stream.flush()
