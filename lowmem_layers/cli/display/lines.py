"""Displays that write lines: sentences for logs and pipes, or a JSON object for each event."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from lowmem_layers.cli.display.progress import Progress, advance, spell_time
from lowmem_layers.cli.output import visible
from lowmem_layers.study.events import Event, ModelExamined, Noted, RunFinished, RunPlanned, StageStarted


class PlainDisplay:
    """Write a line for each stage, and while scoring a line every `every_s` seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], every_s: float = 10.0) -> None:
        self._stream = stream
        self._clock = clock
        self._every_s = every_s
        self._last = clock()
        self._progress = Progress(started=clock())

    def __call__(self, event: Event) -> None:
        """Write the event's line; of the events while scoring, only those that come `every_s` after the last line."""
        now = self._clock()
        self._progress = at = advance(self._progress, event, now)
        match event:
            case StageStarted(stage):
                line = stage
            case Noted(words):
                line = f"note: {words}"
            case ModelExamined():
                layout = "rows share their prefixes" if event.takes_tries else "rows are computed one by one"
                line = (
                    f"examined in {event.elapsed_s:.1f} s: the sweep differs from whole passes by "
                    f"{event.sweep_gap_nats:.2g} nats; {layout} ({event.reason})"
                )
            case RunPlanned():
                line = (
                    f"{event.n_items} items × {event.n_coalitions} coalitions of {event.n_players} players, "
                    f"{event.n_tiles} tiles ({event.tiles_done} done already)"
                )
            case RunFinished():
                line = event.status
            case _:
                if now - self._last < self._every_s:
                    return
                items = f"items {at.items_done}/{at.plan.n_items}, " if at.plan is not None else ""
                done, total = at.evaluations
                left = spell_time(at.left_s(now))
                line = f"{at.fraction:6.1%}, {items}evaluations {done:,}/{total:,}, {left} left"
        self._last = now
        self._stream.write(f"[{spell_time(now - at.started)}] {visible(line)}\n")
        self._stream.flush()


class JsonDisplay:
    """Write each event as one line, with the time since the start, the share done and the seconds left."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._progress = Progress(started=clock())

    def __call__(self, event: Event) -> None:
        """Write the event's line."""
        now = self._clock()
        self._progress = advance(self._progress, event, now)
        left = self._progress.left_s(now)
        line = {
            "event": type(event).__name__,
            "time_s": round(now - self._progress.started, 3),
            "fraction": round(self._progress.fraction, 6),
            "left_s": None if left is None else round(left, 1),
            **asdict(event),
        }
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
